import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minidl.data import BrokenImageError, CentreView, ImageFolder, ImageLoader, TrainingView, read_image

WNIDS = ("n01440764", "n01443537", "n02084071")


def picture(width, height, seed=0):
    """A photograph of sorts: smooth colours, so that JPEG and scaling change them little."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_folder(root, per_class=4):
    """Three classes of photographs, no two of one size."""
    for c, wnid in enumerate(WNIDS):
        (root / wnid).mkdir(parents=True)
        for i in range(per_class):
            image = picture(40 + 5 * c + i, 60 - 3 * i, seed=10 * c + i)
            (root / wnid / f"{wnid}_{i}.JPEG").write_bytes(encode(image))
    return root


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "train")


def break_file(path):
    path.write_bytes(path.read_bytes()[:-200])


def by_path(loader):
    """One epoch of views that are numbers, as {index: number}, where images are told by their order."""
    return {int(index): draw for views, _ in loader for index, draw in views.tolist()}


# -- the folder --------------------------------------------------------------------------------------------------------


def test_classes_are_in_the_order_of_their_ids_and_files_in_that_of_their_names(root):
    folder = ImageFolder(root)
    assert folder.classes == folder.names == WNIDS
    assert len(folder) == 12
    assert folder.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert folder.labels.dtype == np.int64
    assert [Path(path).name for path in folder.paths[:5]] == [f"n01440764_{i}.JPEG" for i in range(4)] + [
        "n01443537_0.JPEG"
    ]


def test_an_array_of_indices_gives_the_paths_and_labels_of_these_images(root):
    folder = ImageFolder(root)
    paths, labels = folder[np.array([9, 0])]
    assert [Path(path).relative_to(root).as_posix() for path in paths] == [
        "n02084071/n02084071_1.JPEG",
        "n01440764/n01440764_0.JPEG",
    ]
    assert labels.tolist() == [2, 0]


def test_what_is_hidden_or_no_image_is_passed_over(root):
    (root / "LOC_synset_mapping.txt").write_text("")
    (root / ".cache").mkdir()
    (root / WNIDS[0] / "Thumbs.db").write_bytes(b"")
    (root / WNIDS[0] / "._n01440764_0.JPEG").write_bytes(b"")
    assert ImageFolder(root).classes == WNIDS
    assert len(ImageFolder(root)) == 12


def test_every_usual_suffix_is_read(root):
    before, folder = len(ImageFolder(root)), min(root.iterdir())
    for suffix in ("jfif", "TIF", "tiff"):
        (folder / f"more.{suffix}").write_bytes(encode(picture(40, 40)))
    assert len(ImageFolder(root)) == before + 3


def test_a_photograph_in_a_format_that_is_not_read_is_left_out_with_a_warning(root):
    for name in ("a.HEIC", "b.avif", "notes.txt"):
        (min(root.iterdir()) / name).touch()
    with pytest.warns(RuntimeWarning, match=r"2 photographs in .*, such as a\.HEIC, have a format that is not read"):
        ImageFolder(root)


def test_a_folder_that_is_called_like_an_image_is_passed_over_and_a_link_that_leads_nowhere_is_not(root):
    (root / WNIDS[0] / "thumbnails.jpg").mkdir()
    assert len(ImageFolder(root)) == 12
    (root / WNIDS[0] / "lost.jpg").symlink_to(root / "nowhere")
    assert len(ImageFolder(root)) == 13  # an error when it is read: an image is missing


def test_what_is_called_like_an_image_and_is_no_file_is_passed_over(root, tmp_path):
    """To read a FIFO would take for ever, and so would /dev/zero."""
    os.mkfifo(root / WNIDS[0] / "pipe.JPEG")
    (root / WNIDS[0] / "zero.JPEG").symlink_to("/dev/zero")
    (root / WNIDS[0] / "folder.JPEG").symlink_to(tmp_path)
    (root / WNIDS[0] / "pipe_too.JPEG").symlink_to(root / WNIDS[0] / "pipe.JPEG")
    assert len(ImageFolder(root)) == 12
    (root / WNIDS[0] / "linked.JPEG").symlink_to(root / WNIDS[1] / "n01443537_0.JPEG")
    assert len(ImageFolder(root)) == 13


def test_classes_get_their_names_from_a_file_with_a_line_for_each(root, tmp_path):
    names = tmp_path / "LOC_synset_mapping.txt"
    names.write_text(
        "n09999999 unused\nn02084071\tdog, domestic dog\nn01443537 goldfish\n\nn01440764 tench, Tinca tinca\n"
    )
    assert ImageFolder(root, names).names == ("tench, Tinca tinca", "goldfish", "dog, domestic dog")
    names.write_text("n02084071 dog\n")
    with pytest.raises(ValueError, match=r"LOC_synset_mapping\.txt, got none for n01440764 \(2 in all\)"):
        ImageFolder(root, names)


def test_another_folder_can_have_the_labels_of_this_one_though_a_class_is_absent_there(root, tmp_path):
    (tmp_path / "val" / WNIDS[2]).mkdir(parents=True)
    (tmp_path / "val" / WNIDS[2] / "1.JPEG").write_bytes(encode(picture(9, 9)))
    assert ImageFolder(tmp_path / "val", classes=ImageFolder(root).classes).labels.tolist() == [2]
    with pytest.raises(ValueError, match="n01443537 is not among the 1 given classes"):
        ImageFolder(root, classes=WNIDS[:1])


def test_a_folder_without_classes_or_a_class_without_images_is_an_error(root, tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a folder for each class in .*flat, got none"):
        ImageFolder(tmp_path / "flat")
    (root / "n00000001").mkdir()
    with pytest.raises(ValueError, match=r"no image in .*n00000001"):
        ImageFolder(root)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(tmp_path / "nowhere")


# -- one file ----------------------------------------------------------------------------------------------------------


def read(tmp_path, content, shorter_side=32):
    (tmp_path / "one.JPEG").write_bytes(content)
    return read_image(tmp_path / "one.JPEG", shorter_side)


def assert_close(image, expected, tolerance=4):
    """In the mean, which a wrong colour or place would change, and what a filter does at an edge hardly does."""
    difference = np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float))
    assert difference.mean() < tolerance, difference.mean()


@pytest.mark.parametrize(("width", "height", "size"), [(100, 50, (64, 32)), (50, 75, (32, 48)), (20, 16, (40, 32))])
def test_the_shorter_side_is_as_asked_and_the_proportions_are_kept(tmp_path, width, height, size):
    content = encode(picture(width, height), quality=95)
    image = read(tmp_path, content)
    assert (image.size, image.mode) == (size, "RGB")
    expected = Image.open(io.BytesIO(content)).resize(size, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize(("width", "height", "size"), [(67, 48, (44, 32)), (33, 94, (32, 91)), (17, 2, (272, 32))])
def test_the_longer_side_is_rounded_down_as_torchvision_does(tmp_path, width, height, size):
    content = encode(picture(width, height), "PNG")
    seen = []
    assert read(tmp_path, content).size == size
    read_image(tmp_path / "one.JPEG", 32, lambda size: seen.append(size) or (0, 0, 8, 8))
    assert seen == [size]


@pytest.mark.parametrize(
    ("shorter", "decoded"), [(258, 514), (257, 257), (129, 257), (128, 129), (65, 129), (64, 65), (8, 65)]
)
def test_a_crop_of_a_large_jpeg_is_decoded_smaller_but_never_below_what_is_asked_for(
    tmp_path, monkeypatch, shorter, decoded
):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *args: sizes.append(self.size) or resize(self, *args))
    content = encode(picture(600, 514))
    sizes.clear()  # the picture was scaled too
    assert min(read(tmp_path, content, shorter).size) == shorter
    assert min(read_image(tmp_path / "one.JPEG", shorter, lambda size: (0, 0, *size)).size) == shorter
    assert [min(size) for size in sizes] == [514, decoded]  # the whole photograph is decoded at its full size


def test_decoding_at_half_the_size_changes_the_image_little(tmp_path):
    whole = read(tmp_path, encode(picture(600, 520), quality=95), 256)
    small = read_image(tmp_path / "one.JPEG", 256, lambda size: (0, 0, *size))
    assert_close(small, whole, tolerance=1)


@pytest.mark.parametrize("shorter_side", [24, 31, 48, 71])
@pytest.mark.parametrize("corner", ["first", "last"])
def test_a_crop_that_is_scaled_alone_is_that_of_the_scaled_photograph(tmp_path, shorter_side, corner):
    noise = np.random.default_rng(0).integers(0, 256, (48, 67, 3), dtype=np.uint8)  # shifts would be seen
    content = encode(Image.fromarray(noise), "PNG")
    whole = np.asarray(read(tmp_path, content, shorter_side))
    height, width, _ = whole.shape
    left, top = (0, 0) if corner == "first" else (width - 20, height - 20)
    crop = read_image(tmp_path / "one.JPEG", shorter_side, lambda size: (left, top, left + 20, top + 20))
    np.testing.assert_allclose(np.asarray(crop), whole[top : top + 20, left : left + 20], atol=2)


@pytest.mark.parametrize("shorter_side", range(30, 60))
def test_no_crop_reaches_out_of_the_photograph_by_rounding(tmp_path, shorter_side):
    (tmp_path / "one.JPEG").write_bytes(encode(picture(67, 47)))
    assert read_image(tmp_path / "one.JPEG", shorter_side, lambda size: (1, 1, *size)).size[1] == shorter_side - 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1"])
def test_every_kind_of_colour_becomes_rgb(tmp_path, mode):
    image = picture(64, 48).convert(mode)
    kind = "JPEG" if mode in ("L", "CMYK") else "PNG"  # under the same suffix: the content tells what it is
    result = read(tmp_path, encode(image, kind), 48)
    assert (result.mode, result.size) == ("RGB", (64, 48))
    assert_close(result, image.convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_upper_8(tmp_path, kind):
    """Pillow's own conversion cuts off at 255: nearly all would be white."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint16) * 1024, (48, 64))
    image = read(tmp_path, encode(Image.fromarray(np.ascontiguousarray(ramp)), kind), 48)
    np.testing.assert_array_equal(np.asarray(image), np.repeat((ramp >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_numbers_of_32_bits_are_refused(tmp_path, dtype):
    """The brightest one is unknown: 0..255 and 0..1 would both become black."""
    ramp = np.arange(64 * 48, dtype=dtype).reshape(48, 64)
    with pytest.raises(BrokenImageError, match=r"expected 8 or 16 bits for each channel, got numbers of 32 bits"):
        read(tmp_path, encode(Image.fromarray(ramp), "TIFF"))


def test_a_palette_with_transparency_becomes_rgb_without_a_warning(tmp_path):
    image = picture(64, 48).quantize(16)
    result = read(tmp_path, encode(image, "PNG", transparency=bytes(range(0, 256, 16))), 48)
    assert_close(result, image.convert("RGB"))


ORIENTATIONS = {  # what EXIF's numbers say must be done to what is stored
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored[::-1].transpose(1, 0, 2),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_photograph_stands_as_the_camera_was_held(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(64, 49), quality=95, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(content)))
    expected = ORIENTATIONS[orientation](stored)
    np.testing.assert_array_equal(np.asarray(read(tmp_path, content, 49)), expected)
    part = read_image(tmp_path / "one.JPEG", 49, lambda size: (3, 2, 43, 42))
    np.testing.assert_array_equal(np.asarray(part), expected[2:42, 3:43])


def test_damaged_exif_data_do_not_make_a_photograph_unreadable(tmp_path):
    """The maker of the camera, tag 0x010F, should be a text. Pillow reads a number, and cannot write it again."""
    entries = struct.pack("<HHIfHHII", 0x010F, 11, 1, 1.5, 0x0112, 3, 1, 6)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    image = picture(64, 48)
    assert read(tmp_path, encode(image, exif=exif), 48).size == (48, 64)
    assert read(tmp_path, encode(image, exif=b"Exif\0\0MM nonsense"), 48).size == (64, 48)


def test_a_broken_file_is_an_error_that_names_it(tmp_path):
    whole = encode(picture(64, 48))
    for content in (whole[:-200], whole[:10], b"", b"no image at all", encode(picture(64, 48), "PNG")[:-50]):
        with pytest.raises(BrokenImageError, match=r"read_image: .*one\.JPEG cannot be decoded \([^<]*; replace it"):
            read(tmp_path, content)  # no "<_io.BytesIO object at ...>"
    with pytest.raises(FileNotFoundError, match="two"):
        read_image(tmp_path / "two.JPEG", 32)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 301)])
def test_an_image_that_scaling_would_make_a_hundred_times_as_long_as_wide_is_broken(tmp_path, size):
    """312 bytes of PNG would become 256 x 15,360,000 pixels, 12 GB; also where no more than a crop is asked for."""
    content = encode(Image.new("RGB", size), "PNG")
    message = (
        rf"one\.JPEG cannot be decoded \({size[0]} x {size[1]} pixels: expected .* at most 100 times the shorter\)"
    )
    with pytest.raises(BrokenImageError, match=message):
        read(tmp_path, content)
    with pytest.raises(BrokenImageError, match=message):
        read_image(tmp_path / "one.JPEG", 32, lambda size: (0, 0, 8, 8))
    assert read(tmp_path, encode(Image.new("RGB", (300, 3)), "PNG")).size == (3200, 32)


def png_header(width, height):
    """A PNG that declares this size and has no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8193, 8192), (65_500, 1025), (13_000, 13_000), (2**20, 2**20)])
@pytest.mark.parametrize("crop", [None, lambda size: (0, 0, 8, 8)])
def test_an_image_of_too_many_pixels_is_broken_before_it_is_decoded(tmp_path, size, crop):
    (tmp_path / "one.JPEG").write_bytes(png_header(*size))
    with pytest.raises(BrokenImageError, match=r"one\.JPEG cannot be decoded \(.*(pixels|decompression bomb)"):
        read_image(tmp_path / "one.JPEG", 32, crop)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of the memory from /proc")
def test_the_largest_image_stays_within_the_stated_memory(tmp_path):
    """8192 x 8192, palette with transparency and turned by EXIF: the case with the most copies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("P", (8192, 8192))
    image.putpalette(bytes(range(256)) * 3)
    image.save(tmp_path / "large.png", transparency=bytes(range(256)), exif=exif, compress_level=1)
    code = (
        "from minidl.data import read_image; read_image({!r}, 256)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    ).format(str(tmp_path / "large.png"))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 2**20  # KiB


def test_a_program_in_postscript_is_not_run(tmp_path):
    """Pillow hands EPS to Ghostscript."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(BrokenImageError, match=r"one\.JPEG cannot be decoded \(damaged at its beginning, or not an"):
        read(tmp_path, content)


def test_what_is_no_regular_file_or_too_large_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.JPEG")
    (tmp_path / "zero.JPEG").symlink_to("/dev/zero")
    (tmp_path / "folder.JPEG").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(BrokenImageError, match=rf"{name}\.JPEG is not a regular file"):
            read_image(tmp_path / f"{name}.JPEG", 32)
    with (tmp_path / "sparse.JPEG").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BrokenImageError, match=r"sparse\.JPEG: expected at most 268,435,456 bytes, got 1,099,511"):
        read_image(tmp_path / "sparse.JPEG", 32)
    (tmp_path / "lost.JPEG").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="lost"):
        read_image(tmp_path / "lost.JPEG", 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("tenth", range(10))
def test_a_file_cut_off_at_any_tenth_is_an_error_that_names_it(tmp_path, kind, tenth):
    whole = encode(picture(64, 48), kind)
    with pytest.raises(BrokenImageError, match=r"one\.JPEG cannot be decoded"):
        read(tmp_path, whole[: len(whole) * tenth // 10])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animated_file_the_first_picture_is_read(tmp_path, kind):
    first, second = picture(64, 48, seed=1), picture(64, 48, seed=2)
    content = encode(first, kind, save_all=True, append_images=[second])
    assert_close(read(tmp_path, content, 48), first, tolerance=8)


def test_a_lack_of_memory_is_not_taken_for_a_broken_file(tmp_path, monkeypatch):
    def no_memory(file, formats):
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        read(tmp_path, b"")


# -- the loader --------------------------------------------------------------------------------------------------------


def random_view(path, rng):
    """The number of the file, 0 to 11, and a random number."""
    wnid, number = Path(path).stem.split("_")
    read_image(path, 8)
    return np.array([4 * WNIDS.index(wnid) + int(number), rng.random()])


def test_a_batch_is_one_array_of_views_with_their_labels(root):
    folder = ImageFolder(root)
    batches = list(ImageLoader(folder, 5, CentreView(32, 24)))
    assert [images.shape for images, _ in batches] == [(5, 24, 24, 3), (5, 24, 24, 3), (2, 24, 24, 3)]
    assert all(images.dtype == np.uint8 and labels.dtype == np.int64 for images, labels in batches)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), folder.labels)
    np.testing.assert_array_equal(batches[1][0][2], CentreView(32, 24)(folder.paths[7]))


def test_the_view_of_an_image_depends_on_seed_epoch_and_index_alone(root):
    folder = ImageFolder(root)

    def epochs(batch_size, **options):
        loader = ImageLoader(folder, batch_size, random_view, **({"seed": 1} | options))
        return [by_path(loader) for _ in range(2)]

    expected = epochs(1, threads=1, prefetch=0)
    assert expected == epochs(5, threads=3) == epochs(12, threads=2, prefetch=5) == epochs(4, shuffle=True)
    draws = [draw for epoch in expected for draw in epoch.values()]
    assert len(set(draws)) == 24
    assert not set(draws) & {draw for epoch in epochs(5, seed=2) for draw in epoch.values()}


def test_a_loader_goes_on_from_a_saved_position_with_the_same_bits(root):
    def loader():
        return ImageLoader(ImageFolder(root), 5, TrainingView((30, 40), 24), shuffle=True, seed=3)

    two_epochs = loader()
    whole = [(images.tobytes(), labels.tolist()) for _ in range(2) for images, labels in two_epochs]
    resumed = loader()
    resumed.load_state_dict({"epoch": 1, "batch": 1})
    assert [(images.tobytes(), labels.tolist()) for images, labels in resumed] == whole[4:]


def test_no_more_files_are_decoded_at_a_time_than_there_are_threads_and_no_thread_is_left(root):
    busy, most, lock = [0], [0], threading.Lock()
    together = threading.Barrier(2, timeout=300)

    def view(path, rng):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        together.wait()  # fails if one thread does all
        with lock:
            busy[0] -= 1
        return np.zeros(1)

    list(ImageLoader(ImageFolder(root), 6, view, threads=2))
    assert most == [2]
    for thread in threading.enumerate():
        if "Loader" in thread.name:
            thread.join(timeout=300)  # it ends after its last batch
            assert not thread.is_alive()


def test_a_broken_file_stops_the_loader_before_its_batch(root):
    break_file(root / WNIDS[1] / "n01443537_2.JPEG")
    loader = ImageLoader(ImageFolder(root), 5, CentreView(32, 24))
    with pytest.raises(BrokenImageError, match=r"n01443537_2\.JPEG"):
        list(loader)
    assert loader.state_dict() == {"epoch": 0, "batch": 1}


def test_skipped_files_are_named_once_and_replaced_by_the_next_that_is_whole(root):
    for name in ("n01440764_2", "n01440764_3", "n02084071_3"):
        break_file(root / name[:9] / f"{name}.JPEG")
    loader = ImageLoader(ImageFolder(root), 4, random_view, threads=2, skip_broken=True)
    with pytest.warns(RuntimeWarning, match="ImageLoader: skipped: read_image: ") as caught:
        batches = list(loader)
    assert len(caught) == 3
    assert sorted(Path(path).stem for path in loader.broken) == ["n01440764_2", "n01440764_3", "n02084071_3"]
    views = np.concatenate([views for views, _ in batches])
    assert views[:, 0].tolist() == [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 0]
    assert [labels.tolist() for _, labels in batches] == [[0, 0, 1, 1], [1, 1, 1, 1], [2, 2, 2, 0]]
    assert len(set(views[:, 1])) == 12  # a replacement is seen in another view
    with warnings.catch_warnings(action="error"):
        list(loader)


def test_a_folder_of_nothing_but_broken_files_is_an_error_even_if_they_are_skipped(root):
    for path in root.rglob("*.JPEG"):
        break_file(path)
    loader = ImageLoader(ImageFolder(root), 4, CentreView(32, 24), threads=1, skip_broken=True)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match=r"none of the 12 images in .*train can be"):
        list(loader)


def test_a_file_that_is_gone_is_an_error_even_if_broken_files_are_skipped(root):
    folder = ImageFolder(root)
    (root / WNIDS[0] / "n01440764_1.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match="n01440764_1"):
        list(ImageLoader(folder, 4, CentreView(32, 24), skip_broken=True))


def test_there_is_at_least_one_thread(root):
    with pytest.raises(ValueError, match=r"^ImageLoader: threads must be 1 or more, got 0"):
        ImageLoader(ImageFolder(root), 4, CentreView(32, 24), threads=0)


def test_pillow_is_loaded_with_the_first_image_only(root):
    code = (
        "import sys; from minidl.data import CentreView, ImageFolder, ImageLoader; "
        f"loader = ImageLoader(ImageFolder({str(root)!r}), 4, CentreView(32, 24)); "
        "print('PIL' in sys.modules); list(loader); print('PIL' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_real_photographs_can_be_read(imagenet_sample):
    folder = ImageFolder(imagenet_sample)
    assert len(folder) > 100
    for images, labels in ImageLoader(folder, 50, CentreView()):
        assert images.shape == (len(labels), 224, 224, 3)
        assert 60 < images.mean() < 190
