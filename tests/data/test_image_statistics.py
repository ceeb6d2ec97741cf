import errno
import io
import os
import struct
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minidl.data import (
    BrokenImageError,
    CentreView,
    ColourComponents,
    ImageFolder,
    ImageLoader,
    TrainingView,
    image_statistics,
    measure_images,
)
from tests.data.test_images import break_file, encode, make_folder, picture

SIZES = {"shorter_side": 32, "size": 24}


@pytest.fixture
def folder(tmp_path):
    return ImageFolder(make_folder(tmp_path / "train"))


@pytest.fixture
def passes(monkeypatch):
    """One entry for each pass over the images."""
    made = []
    measure = image_statistics._measure
    monkeypatch.setattr(image_statistics, "_measure", lambda *loader: made.append(loader) or measure(*loader))
    return made


def crops(folder):
    view = CentreView(**SIZES)
    return np.stack([view(path) for path in folder.paths]).astype(np.float64)


def test_the_statistics_are_those_of_the_pixels_of_all_centre_crops(folder, tmp_path):
    statistics = measure_images(folder, tmp_path / "mean.npz", **SIZES)
    images = crops(folder)
    np.testing.assert_array_equal(statistics.mean_image, images.mean(axis=0).astype(np.float32))
    np.testing.assert_allclose(statistics.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    covariance = np.cov(images.reshape(-1, 3).T, bias=True)
    np.testing.assert_allclose(statistics.covariance, covariance, rtol=1e-9)
    for ours, expected in zip(statistics.colours, ColourComponents.of(covariance), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-9)
    assert (statistics.mean_image.dtype, statistics.mean.dtype) == (np.float32, np.float32)


def test_neither_threads_nor_the_size_of_the_batches_change_a_bit(folder):
    def measured(batch_size, threads):
        loader = ImageLoader(folder, batch_size, CentreView(**SIZES), threads=threads)
        return image_statistics._measure(loader, image_statistics._Alone())

    expected = measured(12, 1)
    for other in (measured(5, 1), measured(1, 3)):
        np.testing.assert_array_equal(other.mean_image, expected.mean_image)
        np.testing.assert_array_equal(other.covariance, expected.covariance)


def test_the_images_are_read_once_and_then_the_file(folder, tmp_path, passes):
    cache = tmp_path / "not" / "there" / "mean.npz"
    first, second = (measure_images(folder, cache, **SIZES) for _ in range(2))
    assert len(passes) == 1
    np.testing.assert_array_equal(first.mean_image, second.mean_image)
    np.testing.assert_array_equal(first.covariance, second.covariance)


def test_a_folder_that_moves_keeps_its_statistics(folder, tmp_path, passes):
    measure_images(folder, tmp_path / "mean.npz", **SIZES)
    moved = folder.root.rename(tmp_path / "elsewhere")
    measure_images(ImageFolder(moved), tmp_path / "mean.npz", **SIZES)
    assert len(passes) == 1


def test_the_name_of_a_file_may_be_any_bytes(folder, tmp_path, passes):
    """Latin-1, say: such a name is no UTF-8."""
    path = Path(os.fsdecode(os.fsencode(folder.root / folder.classes[0]) + b"/\xfc.JPEG"))
    path.write_bytes(encode(picture(50, 50)))
    for _ in range(2):
        measure_images(ImageFolder(folder.root), tmp_path / "mean.npz", **SIZES)
    assert len(passes) == 1


def add(folder):
    (folder.root / folder.classes[0] / "new.JPEG").write_bytes(encode(picture(50, 50)))


def remove(folder):
    Path(folder.paths[3]).unlink()


def change(folder):
    Path(folder.paths[3]).write_bytes(encode(picture(50, 50, seed=99)))


def rename(folder):
    Path(folder.paths[3]).rename(folder.paths[3].replace("_3", "_33"))


@pytest.mark.parametrize("edit", [add, remove, change, rename])
def test_the_images_are_read_again_when_the_folder_has_changed(folder, tmp_path, passes, edit):
    measure_images(folder, tmp_path / "mean.npz", **SIZES)
    edit(folder)
    folder = ImageFolder(folder.root)
    with pytest.warns(RuntimeWarning, match=r"mean\.npz is of other images or sizes; measuring again"):
        statistics = measure_images(folder, tmp_path / "mean.npz", **SIZES)
    assert len(passes) == 2
    np.testing.assert_array_equal(statistics.mean_image, crops(folder).mean(axis=0).astype(np.float32))


@pytest.mark.parametrize("numbers", [{"shorter_side": 40, "size": 24}, {"shorter_side": 32, "size": 28}])
def test_the_images_are_read_again_for_other_sizes(folder, tmp_path, passes, numbers):
    measure_images(folder, tmp_path / "mean.npz", **SIZES)
    with pytest.warns(RuntimeWarning, match=r"of other images or sizes"):
        statistics = measure_images(folder, tmp_path / "mean.npz", **numbers)
    assert statistics.mean_image.shape == (numbers["size"],) * 2 + (3,)
    assert len(passes) == 2


class Rank:
    """One of several ranks that are threads of this process."""

    def __init__(self, rank, size, table, barrier):
        self.rank, self.size, self.table, self.barrier = rank, size, table, barrier

    def exchange(self, array, combine):
        self.table[self.rank] = array.copy()
        self.barrier.wait()
        array[...] = combine(self.table)
        self.barrier.wait()

    def all_reduce(self, array):
        self.exchange(array, sum)

    def broadcast(self, array, root=0):
        self.exchange(array, lambda table: table[root])


def test_ranks_divide_the_images_and_have_the_same_bits(folder, tmp_path, passes):
    """Only rank 0 sees the cache, which is written once and then read."""
    expected = measure_images(folder, tmp_path / "mean.npz", **SIZES)
    table, barrier = [None] * 3, threading.Barrier(3, timeout=60)

    def measured(rank):
        cache = tmp_path / "of ranks" / "mean.npz" if rank == 0 else tmp_path / "nowhere" / "mean.npz"
        return measure_images(folder, cache, **SIZES, ranks=Rank(rank, 3, table, barrier))

    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            for statistics in threads.map(measured, range(3)):
                np.testing.assert_array_equal(statistics.mean_image, expected.mean_image)
                np.testing.assert_array_equal(statistics.covariance, expected.covariance)
    assert len(passes) == 1 + 3
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "of ranks" / "mean.npz").read_bytes() == (tmp_path / "mean.npz").read_bytes()


def test_a_cache_that_cannot_be_written_is_an_error_before_the_images_are_read(folder, passes):
    with pytest.raises(ValueError, match=r"measure_images: cannot write /proc/mean\.npz .*; name another file"):
        measure_images(folder, "/proc/mean.npz", **SIZES)
    assert not passes


def test_a_disk_that_fills_up_in_the_meantime_costs_no_statistics(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = measure_images(folder, tmp_path / "mean.npz", **SIZES)
    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(RuntimeWarning, match=r"cannot write the statistics .*No space.*other\.npz.*measures again"):
        statistics = measure_images(folder, tmp_path / "other.npz", **SIZES)
    np.testing.assert_array_equal(statistics.mean_image, expected.mean_image)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"notes", npz(weights=np.ones(3)), npz(fingerprint="")[:-30]])
def test_a_file_of_another_kind_is_named_and_stays(folder, tmp_path, content):
    (tmp_path / "mean.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"measure_images: expected a file that it wrote, got .*mean\.npz \("):
        measure_images(folder, tmp_path / "mean.npz", **SIZES)
    assert (tmp_path / "mean.npz").read_bytes() == content


def contents(**changes):
    """What a cache holds, with other arrays in place of some."""
    arrays = {"mean_image": np.full((24, 24, 3), 120.0, np.float32), "covariance": 100 * np.eye(3)}
    return arrays | changes


def with_item(array, value):
    array = array.copy()
    array[0, 0] = value
    return array


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("mean_image", np.full((5, 24, 3), 120.0, np.float32), r"float32 \(24, 24, 3\)"),
        ("mean_image", np.float32(120), r"float32 \(24, 24, 3\)"),
        ("mean_image", np.full((24, 24, 3), 120.0), r"float32 \(24, 24, 3\)"),
        ("mean_image", np.full((24, 24, 3), "120"), r"float32 \(24, 24, 3\)"),
        ("mean_image", with_item(contents()["mean_image"], np.nan), r"numbers in 0\.\.255"),
        ("mean_image", with_item(contents()["mean_image"], -3), r"numbers in 0\.\.255"),
        ("mean_image", with_item(contents()["mean_image"], 1e30), r"numbers in 0\.\.255"),
        ("covariance", np.eye(2), r"float64 \(3, 3\)"),
        ("covariance", np.eye(3, dtype=np.float32), r"float64 \(3, 3\)"),
        ("covariance", np.eye(3, dtype=complex), r"float64 \(3, 3\)"),
        ("covariance", with_item(100 * np.eye(3), np.nan), "finite"),
        ("covariance", with_item(100 * np.eye(3), np.inf), "finite"),
        ("covariance", -100 * np.eye(3), "no negative eigenvalue"),
        ("covariance", np.array([[100.0, 90, 0], [0, 100, 0], [0, 0, 100]]), "symmetric"),
    ],
)
def test_a_cache_with_the_right_fingerprint_and_wrong_contents_is_named_and_stays(
    folder, tmp_path, name, value, expected
):
    fingerprint = image_statistics._fingerprint(folder, **SIZES)
    content = npz(fingerprint=fingerprint, **contents(**{name: value}))
    (tmp_path / "mean.npz").write_bytes(content)
    message = (
        rf"measure_images: expected a file that it wrote, got .*mean\.npz \({name}: expected .*{expected}.*; remove"
    )
    with pytest.raises(ValueError, match=message):
        measure_images(folder, tmp_path / "mean.npz", **SIZES)
    assert (tmp_path / "mean.npz").read_bytes() == content
    (tmp_path / "mean.npz").write_bytes(npz(fingerprint=fingerprint, **contents()))
    measure_images(folder, tmp_path / "mean.npz", **SIZES)  # the same without what was changed


def test_a_variance_of_zero_may_be_rounded_below_zero(folder, tmp_path):
    """As those of grey photographs are: three with brightness 3, 100 and 250 have variances -2e-12, -7e-13 and 3e4."""
    arrays = contents(covariance=np.diag([-2e-12, -7e-13, 3e4]))
    (tmp_path / "mean.npz").write_bytes(npz(fingerprint=image_statistics._fingerprint(folder, **SIZES), **arrays))
    assert measure_images(folder, tmp_path / "mean.npz", **SIZES).covariance[0, 0] == -2e-12


def test_no_damage_to_the_cache_ends_in_anything_but_an_error_that_names_it(folder, tmp_path):
    """Bytes changed, cut off and put in; in a compressed archive too, which NumPy can read. Some leave it readable."""
    arrays = {"fingerprint": image_statistics._fingerprint(folder, **SIZES)} | contents()
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **arrays)
    generator, refused = np.random.default_rng(0), 0
    for whole in (npz(**arrays), compressed.getvalue()):
        for _ in range(150):
            content = mutate(whole, generator)
            (tmp_path / "mean.npz").write_bytes(content)
            try:
                image_statistics._load(tmp_path / "mean.npz", arrays["fingerprint"], SIZES["size"])
            except ValueError as error:
                assert "got " + str(tmp_path / "mean.npz") in str(error)
                refused += 1
    assert refused > 100


def zipped(header, length=0, version=b"\x01\x00"):
    """A compressed archive whose first array has this header, and zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        content = b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + bytes(length)
        archive.writestr("fingerprint.npy", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zipped(b"{'descr': '|u1', 'fortran_order': False, 'shape': (10995116277760,)}\n"),
        zipped(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,)}\n", 1000),
        zipped(b"{'descr': '|u1', 'fortran_order': False, 'shape': (67108865,)}\n", 2**26 + 1),
        zipped(b"{'descr': '|O', 'fortran_order': False, 'shape': ()}\n", 100),
        zipped(b"(" * 9000),
    ],
    ids=["10 TiB", "8 GB", "a bomb", "a pickle", "a deep header"],
)
def test_a_cache_that_declares_too_much_takes_no_memory(tmp_path, content):
    (tmp_path / "mean.npz").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"got .*mean\.npz"):
        image_statistics._load(tmp_path / "mean.npz", "", 24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_pipe_in_the_place_of_the_cache_is_refused(tmp_path):
    os.mkfifo(tmp_path / "mean.npz")
    with pytest.raises(ValueError, match=r"got .*mean\.npz \(expected a regular file"):
        image_statistics._load(tmp_path / "mean.npz", "", 24)


def mutate(content, generator):
    """The content with up to four bytes changed, or a part cut out or doubled; headers more often than the rest."""
    content = bytearray(content)
    kind, end = generator.integers(4), len(content) if generator.random() < 0.5 else 300
    if kind == 0:
        return bytes(content[: generator.integers(len(content))])
    start = int(generator.integers(end))
    if kind == 1:
        return bytes(content[:start] + content[start + int(generator.integers(1, 50)) :])
    if kind == 2:
        return bytes(content[:start] + content[max(0, start - 20) :])
    for place in generator.integers(0, end, generator.integers(1, 5)):
        content[place] = generator.integers(256)
    return bytes(content)


def test_a_broken_image_leaves_no_file_unless_it_is_to_be_skipped(folder, tmp_path):
    break_file(folder.root / folder.classes[1] / "n01443537_2.JPEG")
    with pytest.raises(BrokenImageError, match="n01443537_2"):
        measure_images(folder, tmp_path / "mean.npz", **SIZES)
    assert not (tmp_path / "mean.npz").exists()
    with pytest.warns(RuntimeWarning, match="n01443537_2"):
        statistics = measure_images(folder, tmp_path / "mean.npz", **SIZES, skip_broken=True)
    replaced = ImageFolder(folder.root)
    replaced.paths[6] = replaced.paths[7]
    np.testing.assert_array_equal(statistics.mean_image, crops(replaced).mean(axis=0).astype(np.float32))


def test_the_training_views_of_a_whole_set_have_a_mean_of_about_zero(folder, tmp_path):
    statistics = measure_images(folder, tmp_path / "mean.npz", **SIZES)
    for mean in (statistics.mean, statistics.mean_image):
        views = TrainingView((32, 40), 24, mean, statistics.colours)
        epochs = [images for loader in [ImageLoader(folder, 12, views)] for _ in range(20) for images, _ in loader]
        assert np.abs(np.mean(epochs, axis=(0, 1, 2, 3))).max() < 6  # of 255


def test_real_photographs_have_the_colours_that_are_known_of_imagenet(imagenet_sample, tmp_path):
    """(123.68, 116.78, 103.94) is the mean that the networks of VGG were published with."""
    statistics = measure_images(ImageFolder(imagenet_sample), tmp_path / "mean.npz")
    np.testing.assert_allclose(statistics.mean, [123.68, 116.78, 103.94], atol=12)
    assert (statistics.colours.eigenvectors[:, 0] > 0.5).all()  # bright or dark, before any colour
    assert 0.1 < statistics.colours.eigenvalues[0] < 0.25
