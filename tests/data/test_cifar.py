import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from minidl.data import load_cifar10, load_cifar100, per_pixel_mean
from minidl.data.cifar import CIFAR10, CIFAR100, Archive, load_archive, unpickle
from minidl.data.download import RemoteFile, check_address
from tests.data.servers import Servers, cut_after, good


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def pixels(name, count=4):
    """Images as the files hold them: rows of C*H*W values."""
    return np.random.default_rng(list(name.encode())).integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)


def official_pickle(rows, labels):
    """A batch as Python 2 and NumPy 1 pickled it, opcode by opcode: the format of the official files."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = struct.pack("<cicic", b"J", len(rows), b"J", rows.shape[1], b"\x86")
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = struct.pack("<ci", b"T", rows.size) + rows.tobytes()
    array = empty + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


FILES = {
    "batch_1": official_pickle(pixels("batch_1"), [0, 1, 2, 1]),
    "batch_2": official_pickle(pixels("batch_2"), [2, 2, 1, 0]),
    "test": official_pickle(pixels("test"), [1, 0, 1, 2]),
    "meta": pickle.dumps({b"label_names": [b"cat", b"dog", b"frog"]}, protocol=4),
}


def packed(members):
    """A .tar.gz of (name or TarInfo, content) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def honest_members():
    return [(f"toy-batches/{name}", content) for name, content in FILES.items()]


def toy_archive(content=b"", *sources):
    """A tiny CIFAR: two training batches of four images, one test batch. By default nobody sends it: see port 9."""
    sources = sources or ("http://127.0.0.1:9/toy.tar.gz",)
    return Archive(
        name="toy",
        packed=RemoteFile("toy.tar.gz", len(content), hashlib.sha256(content).hexdigest(), sources),
        folder="toy-batches",
        train=("batch_1", "batch_2"),
        test=("test",),
        meta="meta",
        labels_key=b"labels",
        classes_key=b"label_names",
        md5={name: md5(data) for name, data in FILES.items()} | {"toy.tar.gz": md5(content)},
    )


@pytest.fixture
def unpacked(tmp_path):
    """A root with the unpacked folder in it."""
    folder = tmp_path / "toy-batches"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return tmp_path


def load(root, train=True, archive=None):
    return load_archive(archive or toy_archive(), root, train, download=False)


# Reading


def test_training_images_are_those_of_all_batches_in_order(unpacked):
    dataset = load(unpacked)
    assert dataset.images.shape == (8, 32, 32, 3)
    assert dataset.images.dtype == np.uint8
    assert dataset.images.flags.c_contiguous
    np.testing.assert_array_equal(dataset.labels, [0, 1, 2, 1, 2, 2, 1, 0])
    assert dataset.labels.dtype == np.int64
    assert dataset.classes == ("cat", "dog", "frog")


def test_a_pixel_keeps_its_row_column_and_channel(unpacked):
    images = load(unpacked).images
    image, row, column, channel = 6, 5, 17, 2
    stored = pixels("batch_2")[image - 4, channel * 1024 + row * 32 + column]
    assert images[image, row, column, channel] == stored
    np.testing.assert_array_equal(images[:4].transpose(0, 3, 1, 2).reshape(4, -1), pixels("batch_1"))


def test_test_images_are_those_of_the_test_batch(unpacked):
    np.testing.assert_array_equal(load(unpacked, train=False).labels, [1, 0, 1, 2])


def test_test_images_load_without_the_training_files(unpacked):
    (unpacked / "toy-batches/batch_2").unlink()
    assert len(load(unpacked, train=False)) == 4


def test_the_root_may_be_the_unpacked_folder_itself_under_any_name(unpacked):
    assert len(load(unpacked / "toy-batches")) == 8
    (unpacked / "toy-batches").rename(unpacked / "renamed")
    assert len(load(unpacked / "renamed")) == 8


def test_files_of_the_users_own_are_not_replaced(tmp_path):
    """CIFAR-100's are called meta, train and test."""
    content = packed(honest_members())
    (tmp_path / "toy.tar.gz").write_bytes(content)
    for name in list(FILES)[1:]:
        (tmp_path / name).write_text("mine")
    assert len(load(tmp_path, archive=toy_archive(content))) == 8
    assert all((tmp_path / name).read_text() == "mine" for name in list(FILES)[1:])


def test_each_loader_reads_its_own_archive_and_takes_the_root_as_a_string(unpacked, monkeypatch):
    monkeypatch.setattr("minidl.data.cifar.CIFAR10", toy_archive())
    monkeypatch.setattr("minidl.data.cifar.CIFAR100", dataclasses.replace(toy_archive(), train=("batch_2",)))
    assert len(load_cifar10(str(unpacked), download=False)) == 8
    assert len(load_cifar100(str(unpacked), download=False)) == 4
    assert len(load_cifar10(str(unpacked), train=False, download=False)) == 4


def test_a_truncated_batch_file_is_an_error_that_names_it(unpacked):
    path = unpacked / "toy-batches/batch_2"
    path.write_bytes(path.read_bytes()[:-100])
    expected, got = md5(FILES["batch_2"]), md5(path.read_bytes())
    with pytest.raises(ValueError) as caught:
        load(unpacked)
    assert str(caught.value) == (
        f"load_toy: batch_2 in {path.parent} is damaged: md5 expected {expected}, got {got}; "
        "delete it and download again"
    )


@pytest.mark.parametrize("name", ["batch_1", "meta"])
def test_one_changed_byte_is_an_error_that_names_the_file(unpacked, name):
    path = unpacked / "toy-batches" / name
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"load_toy: {name} in .* is damaged"):
        load(unpacked)


def test_a_damaged_file_is_never_unpickled(unpacked, tmp_path):
    (unpacked / "toy-batches/batch_1").write_bytes(pickle.dumps(Evil(os.mkdir, str(tmp_path / "harm"))))
    with pytest.raises(ValueError, match=r"batch_1 in .* is damaged"):
        load(unpacked)


# Reading what is damaged behind a right md5 sum, such as that of an archive of your own


def replaced(root, name, content):
    """An archive to which this content is the right one."""
    (root / "toy-batches" / name).write_bytes(content)
    return dataclasses.replace(toy_archive(), md5=toy_archive().md5 | {name: md5(content)})


def batch(**changes):
    """A batch of four images as today's Python pickles it, with other values under some keys; None leaves one out."""
    values = {"data": pixels("x"), "labels": [0, 1, 2, 1]} | changes
    return pickle.dumps({key.encode(): value for key, value in values.items() if value is not None}, protocol=4)


HONEST = official_pickle(pixels("x"), [0, 1, 2, 1])
DAMAGED = {
    "empty": (b"", "expected a pickle"),
    "no pickle": (b"<html>404</html>", "expected a pickle"),
    "zeros": (bytes(1000), "expected a pickle"),
    "cut off": (HONEST[:-100], "expected a pickle"),
    "a code for text that does not exist": (b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "expected a pickle"),
    "a lie about a length": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "expected a pickle"),
    "a lie about rows": (HONEST.replace(b"J\x04\x00\x00\x00", b"J\x05\x00\x00\x00", 1), "expected a pickle"),
    "another state": (HONEST.replace(b"\x89T", b"NT", 1).replace(b"tbU\x06", b"tb0U\x06", 1), "expected a pickle"),
    "a list": (pickle.dumps([1, 2], 4), "expected a pickle .*expected a dictionary, got list"),
    "no images": (batch(data=None), r"expected the key 'data', got \[b'labels'\]"),
    "no labels": (batch(labels=None), r"expected the key 'labels', got \[b'data'\]"),
    "images that are a list": (batch(data=[1, 2]), r"expected data \(N, 3072\) in uint8, got list"),
    "an array without contents": (HONEST.replace(b"tbU\x06labels", b"t0U\x06labels"), "expected a pickle .*refused"),
    "images of another size": (batch(data=pixels("x")[:, 1:]), r"expected data \(N, 3072\) in uint8, got \(4, 3071\)"),
    "images in a row": (batch(data=pixels("x").ravel()), r"expected data \(N, 3072\) in uint8, got \(12288,\)"),
    "images in four dimensions": (batch(data=pixels("x").reshape(4, 3, 32, 32)), r"expected .* got \(4, 3, 32, 32\)"),
    "not one image": (batch(data=pixels("x")[:0], labels=[]), r"expected data \(N, 3072\) in uint8, got \(0, 3072\)"),
    "images of another type": (batch(data=np.zeros((4, 3072))), "expected a pickle .*uint8 arrays only"),
    "a label too few": (batch(labels=[0, 1, 2]), "expected 4 labels, got 3"),
    "a label too many": (batch(labels=[0, 1, 2, 1, 1]), "expected 4 labels, got 5"),
    "a label too large": (batch(labels=[0, 1, 2, 3]), r"expected labels in 0\.\.2, got 3"),
    "a label of 70 bits": (batch(labels=[0, 1, 2, 2**70]), "expected a pickle .*refused"),
    "a label of 5,000 digits": (batch(labels=[0, 1, 2, 10**5000]), "expected a pickle .*refused"),
    "a label below 0": (batch(labels=[0, 1, -1, 2]), r"expected labels in 0\.\.2, got -1"),
    "a label that is text": (batch(labels=[0, 1, "2", 1]), r"expected labels in 0\.\.2, got '2'"),
    "a label with a fraction": (batch(labels=[0, 1, 1.5, 1]), "expected a pickle .*refused"),
    "a label that is a list": (batch(labels=[0, 1, [1], 1]), r"expected labels in 0\.\.2, got \[1\]"),
    "labels that are a number": (batch(labels=7), "expected 4 labels, got int"),
    "labels that are an array": (batch(labels=pixels("x")[:, 0]), "expected 4 labels, got PickledArray"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_with_what_was_expected_and_what_to_do(unpacked, damage):
    content, expected = DAMAGED[damage]
    archive = replaced(unpacked, "batch_2", content)
    message = rf"^load_toy: batch_2 in {unpacked}/toy-batches is damaged: {expected}.*; delete it and download again$"
    with pytest.raises(ValueError, match=message):
        load(unpacked, archive=archive)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, r"expected the key 'label_names', got \[\]"),
        ({b"label_names": 5}, "expected class names, got 5"),
        ({b"label_names": []}, r"expected class names, got \[\]"),
        ({b"label_names": [b"cat", 3]}, r"expected class names, got \[b'cat', 3\]"),
        ({b"label_names": [b"cat", b"\xff"]}, r"expected class names, got \[b'cat', b'\\xff'\]"),
        ({b"label_names": [b"cat", b"dog"]}, r"batch_1 in .* is damaged: expected labels in 0\.\.1, got 2"),
        (b"junk", "expected a pickle .*expected a dictionary, got bytes"),
    ],
)
def test_a_damaged_file_of_names_is_named_too(unpacked, value, expected):
    archive = replaced(unpacked, "meta", pickle.dumps(value, 4))
    with pytest.raises(ValueError, match=rf"^load_toy: .*{expected}.*; delete it and download again$"):
        load(unpacked, archive=archive)


def test_what_an_error_quotes_of_a_file_is_short(unpacked):
    archive = replaced(unpacked, "batch_1", pickle.dumps(dict.fromkeys(map(str, range(10_000))), 4))
    with pytest.raises(ValueError, match="expected the key 'data'") as caught:
        load(unpacked, archive=archive)
    assert len(str(caught.value)) < 500


def test_the_same_holds_for_both_official_archives(unpacked, monkeypatch):
    for name, load_official in (("CIFAR10", load_cifar10), ("CIFAR100", load_cifar100)):
        for content in (b"", pickle.dumps({b"data": 1}, 4)):
            archive = dataclasses.replace(replaced(unpacked, "test", content), name=name.lower())
            monkeypatch.setattr(f"minidl.data.cifar.{name}", archive)
            with pytest.raises(ValueError, match=f"^load_{name.lower()}: test in .* is damaged: .*; delete it and"):
                load_official(unpacked, train=False, download=False)


def mutate(content, generator):
    """The content with bytes changed, a part cut out, doubled or replaced, or cut off."""
    content, kind = bytearray(content), generator.integers(5)
    start = int(generator.integers(len(content)))
    if kind == 0:
        return bytes(content[:start])
    if kind == 1:
        return bytes(content[:start] + content[start + int(generator.integers(1, 9)) :])
    if kind == 2:
        return bytes(content[:start] + content[max(0, start - 9) :])
    if kind == 3:
        return bytes(content[:start] + generator.bytes(4) + content[start + 4 :])
    for place in generator.integers(0, len(content), generator.integers(1, 5)):
        content[place] = generator.integers(256)
    return bytes(content)


def test_no_damage_to_a_pickle_ends_in_anything_but_the_documented_errors(unpacked):
    """600 files, whose pixels are few, so that most changes hit the opcodes."""
    generator = np.random.default_rng(0)
    rows = pixels("x", 1)[:, :12]
    modern = pickle.dumps({b"data": rows, b"labels": [0], b"name": "toy"}, protocol=4)
    refused = {pickle.UnpicklingError: 0, ValueError: 0}
    for whole in (official_pickle(rows, [0]), modern, FILES["meta"]):
        for _ in range(200):
            content = mutate(whole, generator)
            try:
                assert isinstance(unpickle(content), dict)
            except pickle.UnpicklingError:
                refused[pickle.UnpicklingError] += 1
            archive = replaced(unpacked, "batch_1", content)
            with pytest.raises(ValueError, match=r"batch_1 in .* is damaged: .*; delete it"):
                load(unpacked, archive=archive)
            refused[ValueError] += 1
    assert refused[ValueError] > 590
    assert 300 < refused[pickle.UnpicklingError] < refused[ValueError]


def peak_memory(function):
    """The most bytes that Python and NumPy held while the function ran."""
    tracemalloc.start()
    try:
        with contextlib.suppress(pickle.UnpicklingError, ValueError, OSError):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HUNGRY = {
    "an index of 2^32 - 1 for a memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "a frame of 2^62 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "text of 2^32 - 1 bytes": b"\x80\x02T\xff\xff\xff\xff}.",
    "an array of 2^60 bytes": HONEST.replace(b"J\x04\x00\x00\x00", b"J\xff\xff\xff\x7f", 1),
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
}


@pytest.mark.parametrize("name", HUNGRY)
def test_a_pickle_takes_no_more_memory_than_its_file(name):
    assert peak_memory(lambda: unpickle(HUNGRY[name])) < 200_000


@pytest.mark.parametrize("opcode", [b"(", b"]", b"}", b"N", b"}q\x00", b"]\x85"])
def test_a_pickle_of_too_many_opcodes_is_refused(opcode, monkeypatch):
    monkeypatch.setattr("minidl.data._cifar_pickle.MOST_OPCODES", 1000)
    with pytest.raises(pickle.UnpicklingError, match="at most 1,000 opcodes"):
        unpickle(b"\x80\x02" + opcode * 100_000 + b".")


def test_keys_whose_hash_takes_for_ever_are_refused():
    """Each of these tuples holds the one before it twice: the hash of the last looks at 2^200 of them."""
    twice = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(200))
    with pytest.raises(pickle.UnpicklingError, match="keys that are text, got tuple"):
        unpickle(b"\x80\x02)q\x00" + twice + b"}h\xc8Ns.")


@pytest.mark.parametrize("content", [b"", b"no archive", packed(honest_members())[:-200]])
def test_a_damaged_archive_is_named_too(tmp_path, content):
    (tmp_path / "toy.tar.gz").write_bytes(content)
    message = (
        rf"^load_toy: toy\.tar\.gz in {tmp_path} is damaged: expected a \.tar\.gz .*; delete it and download again$"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path, archive=toy_archive(content))


def test_every_file_of_the_official_archives_has_its_md5_sum():
    for archive in (CIFAR10, CIFAR100):
        names = {archive.packed.name, *archive.train, *archive.test, archive.meta}
        assert names == set(archive.md5)
        assert all(len(bytes.fromhex(value)) == 16 for value in archive.md5.values())


@pytest.mark.parametrize("archive", [CIFAR10, CIFAR100], ids=["CIFAR10", "CIFAR100"])
def test_the_official_archives_have_several_encrypted_sources_of_the_same_file(archive):
    remote = archive.packed
    assert len({urlsplit(source).hostname for source in remote.sources}) == len(remote.sources) >= 3
    for source in remote.sources:
        check_address(source)
        assert urlsplit(source).scheme == "https" and urlsplit(source).path.endswith(f"/{remote.name}")
    assert len(bytes.fromhex(remote.sha256)) == 32 and 160 < remote.size / 2**20 < 163


# Unpickling


class Evil:
    """Pickles as a call of `function`, which is what a harmful file does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, exec, getattr, np.load, np.frombuffer])
def test_a_pickle_that_calls_a_function_is_refused(function, protocol, tmp_path):
    harm = tmp_path / "harm"
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        unpickle(pickle.dumps(Evil(function, str(harm)), protocol))
    assert not harm.exists()


@pytest.mark.parametrize("value", [{1}.__class__, slice(3), 1j, Path("x"), np.float64(1), range(3)])
def test_a_pickle_of_any_other_object_is_refused(value):
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        unpickle(pickle.dumps({b"data": value}, protocol=2))


@pytest.mark.parametrize("dtype", [object, np.float64, np.int8, "S4", [("x", np.uint8)]])
def test_an_array_of_another_type_than_uint8_is_refused(dtype):
    with pytest.raises(pickle.UnpicklingError, match="uint8 arrays only"):
        unpickle(pickle.dumps({b"data": np.zeros(3, dtype)}, protocol=4))


def test_an_array_that_claims_more_than_it_holds_is_an_error():
    honest = official_pickle(pixels("x"), [1])
    lying = honest.replace(struct.pack("<i", 4), struct.pack("<i", 5), 1)
    with pytest.raises(pickle.UnpicklingError, match=r"expected bytes for an array of shape \(5, 3072\), got 12,288"):
        unpickle(lying)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_pickle_of_todays_numpy_is_read_too(order):
    rows = np.asarray(pixels("x"), order=order)
    content = unpickle(pickle.dumps({b"data": rows, b"labels": [1, 2], b"name": b"x"}, protocol=4))
    np.testing.assert_array_equal(content[b"data"].values, rows)
    assert content[b"labels"] == [1, 2]
    assert content[b"name"] == b"x"


# Unpacking


def test_an_archive_is_unpacked_once(tmp_path):
    content = packed(honest_members())
    (tmp_path / "toy.tar.gz").write_bytes(content)
    assert len(load(tmp_path, archive=toy_archive(content))) == 8
    assert sorted(path.name for path in (tmp_path / "toy-batches").iterdir()) == sorted(FILES)
    (tmp_path / "toy.tar.gz").unlink()
    assert len(load(tmp_path)) == 8


def test_a_missing_batch_file_is_unpacked_again(unpacked):
    content = packed(honest_members())
    (unpacked / "toy.tar.gz").write_bytes(content)
    (unpacked / "toy-batches/batch_1").unlink()
    assert len(load(unpacked, archive=toy_archive(content))) == 8


def test_a_truncated_archive_is_an_error_that_names_it_and_nothing_is_unpacked(tmp_path):
    content = packed(honest_members())
    (tmp_path / "toy.tar.gz").write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"load_toy: toy\.tar\.gz in .* is damaged: md5 expected .*; delete it"):
        load(tmp_path, archive=toy_archive(content))
    assert [path.name for path in tmp_path.iterdir()] == ["toy.tar.gz"]


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_members_with_unexpected_names_are_not_written(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    harmful = [
        ("../outside", b"harm"),
        ("toy-batches/../../outside", b"harm"),
        (str(tmp_path / "outside"), b"harm"),
        ("toy-batches/extra", b"harm"),
        ("test", b"harm"),
        link("toy-batches/link", "/etc/passwd", tarfile.SYMTYPE),
    ]
    content = packed(harmful + honest_members())
    (root / "toy.tar.gz").write_bytes(content)
    assert len(load(root, archive=toy_archive(content))) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert sorted(path.name for path in root.iterdir()) == ["toy-batches", "toy.tar.gz"]
    assert sorted(path.name for path in (root / "toy-batches").iterdir()) == sorted(FILES)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_an_expected_name_on_a_link_or_device_is_not_followed(tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(FILES["test"])
    content = packed([link("toy-batches/test", str(secret), kind), ("toy-batches/meta", FILES["meta"])])
    (tmp_path / "toy.tar.gz").write_bytes(content)
    with pytest.raises(FileNotFoundError, match="test"):
        load(tmp_path, train=False, archive=toy_archive(content))
    assert [path.name for path in (tmp_path / "toy-batches").iterdir()] == ["meta"]


def sparse(name, size):
    """A member of a few bytes that an extended header calls sparse, with this size."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
    return info, b"1\n0\n1\n".ljust(512, b"\0")


def told(name, size):
    """A member of 20 bytes whose header tells this size; it is the last one."""
    info = tarfile.TarInfo(name)
    info.size = size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 20)


LYING = {
    "sparse, of 1 TiB": packed([sparse("toy-batches/test", 2**40)]),
    "8 EiB": told("toy-batches/test", 2**63),
    "a negative size": told("toy-batches/test", -512),
    "a byte too much": told("toy-batches/test", 21),
    "elsewhere, 2^28 bytes": told("elsewhere", 2**28),
    "twice the same name": packed([("toy-batches/test", b"a"), ("toy-batches/test", b"b")]),
}


@pytest.mark.parametrize("name", LYING)
def test_an_archive_that_lies_about_a_size_takes_no_memory(tmp_path, name):
    content = LYING[name]
    (tmp_path / "toy.tar.gz").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=r"toy|test"):
        load(tmp_path, train=False, archive=toy_archive(content))
    assert peak_memory(lambda: load(tmp_path, train=False, archive=toy_archive(content))) < 2**24


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("minidl.data.cifar.LARGEST_UNPACKED", 2**20)
    content = packed([("elsewhere", bytes(2**21)), *honest_members()])
    (tmp_path / "toy.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"toy\.tar\.gz in .* is damaged: .*at most 1,048,576 bytes"):
        load(tmp_path, archive=toy_archive(content))


def test_a_pipe_or_a_device_in_the_place_of_a_file_is_refused(unpacked):
    (unpacked / "toy-batches/test").unlink()
    os.mkfifo(unpacked / "toy-batches/test")
    with pytest.raises(ValueError, match=r"test in .* is damaged: expected a regular file"):
        load(unpacked, train=False)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def no_space(_):
        raise OSError("No space left on device")

    content = packed(honest_members())
    (tmp_path / "toy.tar.gz").write_bytes(content)
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        load(tmp_path, archive=toy_archive(content))
    assert list((tmp_path / "toy-batches").iterdir()) == []


# Downloading


@pytest.fixture
def serve(monkeypatch):
    """Starts servers that send these bytes, and stops them after the test."""
    monkeypatch.setenv("no_proxy", "*")
    with Servers() as start:
        yield lambda content, answer=good: start(content, answer)


def test_a_missing_data_set_is_downloaded_once_and_kept(tmp_path, serve):
    content = packed(honest_members())
    server = serve(content)
    archive = toy_archive(content, server.url)
    for train in (True, False, True):
        load_archive(archive, tmp_path / "new/deep", train, download=True)
    assert len(server.ranges) == 1
    assert (tmp_path / "new/deep/toy.tar.gz").read_bytes() == content


def test_nothing_is_downloaded_where_the_files_are(unpacked):
    assert len(load_archive(toy_archive(), unpacked, train=True, download=True)) == 8


def test_the_next_mirror_continues_a_download_that_was_cut_off(tmp_path, serve):
    content = packed(honest_members())
    first, second = serve(content, cut_after(1000)), serve(content)
    assert len(load_archive(toy_archive(content, first.url, second.url), tmp_path, train=True, download=True)) == 8
    assert (first.ranges, second.ranges) == ([None], ["bytes=1000-"])


def test_a_download_with_other_bytes_is_an_error_and_leaves_nothing_behind(tmp_path, serve):
    content = packed(honest_members())
    server = serve(bytes(len(content)))
    host = urlsplit(server.url).netloc
    message = rf"load_toy: cannot download toy\.tar\.gz: .* \({host}: has another file: SHA-256 expected "
    with pytest.raises(ConnectionError, match=message):
        load_archive(toy_archive(content, server.url), tmp_path, train=True, download=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_mirror_of_ones_own_replaces_all_others(tmp_path, serve, monkeypatch, slash):
    content = packed(honest_members())
    paths = []

    def answer(handler):
        paths.append(handler.path)
        good(handler)

    own, official = serve(content, answer), serve(content)
    monkeypatch.setenv("MINIDL_CIFAR_URL", f"{own.url}/cifar{slash}")
    assert len(load_archive(toy_archive(content, official.url), tmp_path, train=True, download=True)) == 8
    assert (paths, official.ranges) == (["/file/cifar/toy.tar.gz"], [])


def test_a_mirror_of_ones_own_must_be_encrypted(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDL_CIFAR_URL", "http://example.invalid/cifar")
    message = r"correct MINIDL_CIFAR_URL=http://example.invalid/cifar, "
    message += r".*\(example.invalid: is http://example.invalid/cifar/toy.tar.gz, which is not encrypted"
    with pytest.raises(ConnectionError, match=message):
        load_archive(toy_archive(b"x"), tmp_path, train=True, download=True)


def test_without_a_network_the_error_gives_the_address_the_place_and_the_way_around(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    archive = toy_archive(b"x")  # port 9: nobody answers
    with pytest.raises(ConnectionError) as caught:
        load_archive(archive, tmp_path / "new", train=True, download=True)
    message = str(caught.value)
    assert message.startswith("load_toy: cannot download toy.tar.gz: ")
    assert f"put {archive.packed.sources[0]} into {tmp_path}/new by hand" in message
    assert "set MINIDL_CIFAR_URL to a mirror of your own" in message
    assert "--dataset shapes, which needs no download" in message
    assert list(tmp_path.iterdir()) == []


def test_without_permission_to_download_the_error_says_what_is_missing_and_what_to_do(unpacked):
    (unpacked / "toy-batches/batch_2").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load(unpacked)
    assert str(caught.value) == (
        f"load_toy: batch_2 not found in {unpacked}: pass download=True, or put http://127.0.0.1:9/toy.tar.gz "
        f"into {unpacked} by hand, or use --dataset shapes, which needs no download"
    )


def test_importing_the_package_loads_no_pillow_no_tqdm_and_no_network_code():
    code = "import sys, minidl.data; print({'PIL', 'tqdm', 'urllib.request'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


# The real files


def test_the_official_files_hold_what_is_known_of_them(real_cifar10):
    dataset = load(real_cifar10, archive=dataclasses.replace(CIFAR10, train=("data_batch_1",)))
    assert dataset.images.shape == (10_000, 32, 32, 3)
    assert dataset.classes[dataset.labels[0]] == "frog"
    np.testing.assert_array_equal(np.bincount(dataset.labels)[:3], [1005, 974, 1032])
    mean = per_pixel_mean(dataset.images).mean(axis=(0, 1)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.003)  # those of all 50,000 images
