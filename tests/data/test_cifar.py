import dataclasses
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from minidl.data import load_cifar10, load_cifar100, per_pixel_mean
from minidl.data.cifar import CIFAR10, CIFAR100, Archive, load_archive, unpickle


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


def toy_archive(content=b"", url="http://127.0.0.1:9/toy.tar.gz"):
    """A tiny CIFAR: two training batches of four images, one test batch."""
    return Archive(
        name="toy",
        url=url,
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


def test_every_file_of_the_official_archives_has_its_md5_sum():
    for archive in (CIFAR10, CIFAR100):
        names = {Path(archive.url).name, *archive.train, *archive.test, archive.meta}
        assert names == set(archive.md5)
        assert all(len(bytes.fromhex(value)) == 16 for value in archive.md5.values())


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
    with pytest.raises(ValueError, match="reshape"):
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


class Server(http.server.ThreadingHTTPServer):
    """A web server with one file, on this machine; `cut` bytes of it never arrive."""

    def __init__(self, content, cut=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.requests = content, cut, 0
        self.url = f"http://127.0.0.1:{self.server_port}/toy.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: len(self.server.content) - self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Starts a Server, and stops it after the test."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(content, cut=0):
        server = Server(content, cut)
        servers.append((server, threading.Thread(target=server.serve_forever, args=(0.01,))))
        servers[-1][1].start()
        return server

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_missing_data_set_is_downloaded_once_and_kept(tmp_path, serve):
    content = packed(honest_members())
    server = serve(content)
    archive = toy_archive(content, server.url)
    for train in (True, False, True):
        load_archive(archive, tmp_path / "new/deep", train, download=True)
    assert server.requests == 1
    assert (tmp_path / "new/deep/toy.tar.gz").read_bytes() == content


def test_nothing_is_downloaded_where_the_files_are(unpacked):
    assert len(load_archive(toy_archive(), unpacked, train=True, download=True)) == 8


def test_a_download_cut_short_is_an_error_and_leaves_nothing_behind(tmp_path, serve):
    content = packed(honest_members())
    server = serve(content, cut=50)
    with pytest.raises((ValueError, ConnectionError), match=r"load_toy: .*toy\.tar\.gz"):
        load_archive(toy_archive(content, server.url), tmp_path, train=True, download=True)
    assert list(tmp_path.iterdir()) == []


def test_a_download_with_another_md5_sum_is_an_error_and_leaves_nothing_behind(tmp_path, serve):
    content, other = packed(honest_members()), packed([("toy-batches/test", b"other")])
    server = serve(other)
    message = rf"load_toy: the download of {server.url} is damaged: md5 expected {md5(content)}, got {md5(other)}; "
    with pytest.raises(ValueError, match=message):
        load_archive(toy_archive(content, server.url), tmp_path, train=True, download=True)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_error_gives_the_address_the_place_and_the_way_around(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    archive = toy_archive()  # port 9: nobody answers
    with pytest.raises(ConnectionError) as caught:
        load_archive(archive, tmp_path, train=True, download=True)
    message = str(caught.value)
    assert message.startswith("load_toy: cannot download toy.tar.gz: ")
    assert f"put {archive.url} into {tmp_path} by hand" in message
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
