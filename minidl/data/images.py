"""Folders of photographs in ILSVRC-2012's layout, `train/<wnid>/*.JPEG`, decoded on demand by several threads.

Photographs differ in size, so a batch consists of views. A view is a function `view(path, rng) -> array` that reads one
file and returns the part that the network sees (see `minidl.data.views`).

    train = ImageFolder("imagenet/train", names="imagenet/LOC_synset_mapping.txt")
    loader = ImageLoader(train, 256, TrainingView(shorter_side=(256, 480)), shuffle=True)
    for images, labels in loader:  # uint8 (256, 224, 224, 3), int64 (256,)
"""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minidl.data.loader import VIEW, Batch, DataLoader
from minidl.system.cpus import available_cpus
from minidl.system.files import read_text

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]
View = Callable[[str, np.random.Generator], np.ndarray]

SUFFIXES = (".jpeg", ".jpg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UNREAD_SUFFIXES = (".avif", ".heic", ".heif", ".jp2", ".jxl")  # of photographs too

# Pillow reads 40 more formats. They are refused: one of them, EPS, is a program, which Pillow runs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# The tag of EXIF's orientation, and the names of Pillow's operations that turn an image of each orientation upright.
ORIENTATION = 0x0112
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}

# The largest ratio of the longer side to the shorter one; no panorama comes near it.
MAX_PROPORTION = 100

# The largest photograph: 8192 x 8192 pixels. Pillow stores a pixel of RGB in 4 bytes, and rotating or converting needs
# up to three more copies: 1 GiB while it is decoded, besides its file.
MAX_PIXELS = 2**26
MAX_BYTES = 2**28  # of the file


class ImageFolder:
    """The image files of a folder with one subfolder per class; `folder[indices]` is `(paths, labels)`.

    Classes are sorted by folder name, and the images of a class by file name: in ILSVRC-2012 label 0 is n01440764.
    Hidden files, files without the suffix of an image, and folders or FIFOs among the images are ignored; HEIC, AVIF
    and JPEG 2000 with a warning.

    Args:
        root: the folder that holds `<wnid>/*.JPEG`.
        names: a file with a line `n01440764 tench, Tinca tinca` for each class, such as LOC_synset_mapping.txt.
        classes: the classes of another folder, to get the same labels as there; a class may be absent here.

    Attributes:
        paths: (N,) array of strings.
        labels: (N,) int64.
        classes: the folders' names, WordNet ids in ILSVRC-2012.
        names: readable names of the classes; the same as `classes` if no file was given.

    Raises:
        FileNotFoundError: the folder or the file of names does not exist.
        ValueError: a class has no images, is not among `classes`, or is not in the file of names.
    """

    def __init__(
        self, root: str | Path, names: str | Path | None = None, classes: tuple[str, ...] | None = None
    ) -> None:
        self.root = Path(root)
        folders = _class_folders(self.root)
        self.classes = tuple(folders) if classes is None else tuple(classes)
        _check_known(self.root, folders, self.classes)
        self.names = self.classes if names is None else _names_of(self.classes, Path(names))
        files = {wnid: image_files(folder) for wnid, folder in folders.items()}
        label_of = {wnid: label for label, wnid in enumerate(self.classes)}
        self.paths = np.array([path for wnid in files for path in files[wnid]], dtype=object)
        self.labels = np.array([label_of[wnid] for wnid in files for _ in files[wnid]], dtype=np.int64)

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.paths)

    def __getitem__(self, indices: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """The paths and labels at these indices; `ImageLoader` reads the pixels."""
        return self.paths[indices], self.labels[indices]


def _class_folders(root: Path) -> dict[str, Path]:
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if not folders:
        raise ValueError(
            f"ImageFolder: expected a folder for each class in {root}, got none; "
            "sort the images into <wnid>/*.JPEG (ILSVRC-2012's val images come unsorted)"
        )
    return folders


def _check_known(root: Path, folders: dict[str, Path], classes: tuple[str, ...]) -> None:
    unknown = folders.keys() - set(classes)
    if unknown:
        raise ValueError(
            f"ImageFolder: {root / min(unknown)} is not among the {len(classes)} given classes; "
            "pass the classes of the training folder, and move other folders away"
        )


def image_files(folder: str | Path) -> list[str]:
    """List the image files of a folder by name, as strings: 1.3 million Paths would take three times the memory.

    Photographs in a format that is not read, such as HEIC, are left out with a warning.
    """
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".") and _is_file(entry)]
    files = sorted(entry.path for entry in found if entry.name.lower().endswith(SUFFIXES))
    if unread := sorted(entry.name for entry in found if entry.name.lower().endswith(UNREAD_SUFFIXES)):
        what = f"{len(unread)} photographs in {folder}, such as {unread[0]}, have a format that is not read"
        warnings.warn(f"image_files: {what}; convert them to JPEG", RuntimeWarning, stacklevel=2)
    if not files:
        raise ValueError(f"image_files: no image in {folder} ({', '.join(SUFFIXES)}); remove the folder or fill it")
    return files


def _is_file(entry: os.DirEntry) -> bool:
    """False for folders, and for FIFOs, which may block for ever. True for a broken link: reading it is an error."""
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


def read_names(path: str | Path) -> dict[str, str]:
    """Read {WordNet id: name} from a file with lines like 'n01440764 tench, Tinca tinca', in the file's order.

    Raises OSError, or a ValueError that names the file, if it is no text or has no such line.
    """
    lines = [line.split(maxsplit=1) for line in read_text(path).splitlines()]
    names = {line[0]: line[1].strip() for line in lines if len(line) > 1}
    if not names:
        raise ValueError(f"read_names: expected lines like 'n01440764 tench, Tinca tinca' in {path}, got none")
    return names


def _names_of(classes: tuple[str, ...], path: Path) -> tuple[str, ...]:
    names = read_names(path)
    missing = [wnid for wnid in classes if wnid not in names]
    if missing:
        raise ValueError(
            f"ImageFolder: expected a line for each class in {path}, got none for {missing[0]} "
            f"({len(missing)} in all); write lines like 'n01440764 tench, Tinca tinca'"
        )
    return tuple(names[wnid] for wnid in classes)


# -- one file ----------------------------------------------------------------------------------------------------------


class BrokenImageError(ValueError):
    """Raised if a file cannot be decoded; the message names the file."""


def read_image(path: str | Path, shorter_side: int, crop: Callable[[tuple[int, int]], Box] | None = None) -> "Image":
    """Read a photograph, upright and in RGB, scaled so that its shorter side has `shorter_side` pixels.

    The longer side is int(shorter_side * longer / shorter). The filter is Pillow's bilinear one, widened when scaling
    down so that it antialiases (the papers name no filter). For a photograph that is stored upright, the pixels equal
    those of torchvision's `Resize(shorter_side)`, bit for bit.

    Grey, CMYK and palette images become RGB, 16-bit images keep their upper 8 bits, and transparency is dropped.
    Numbers of 32 bits are refused. The EXIF orientation is applied (torchvision's `ImageFolder` ignores it).

    Args:
        path: the file.
        shorter_side: of the whole photograph, in pixels.
        crop: `crop((width, height)) -> (left, top, right, bottom)` selects a part of the scaled photograph. This is
            the fast way, for training. Only that part is scaled, which saves a third of the time; some pixels differ by
            1 or 2 of 255, because the filter's weights are rounded differently. A JPEG much larger than needed is
            decoded at 1/2, 1/4 or 1/8 of its size, but never below `shorter_side`; this changes sharp edges by more.
            For exact pixels, call without `crop` and crop the result.

    Only the first picture of an animated file is read. Memory: at most 1.25 GiB (WebP needs the most).

    Raises:
        OSError: the file cannot be read.
        BrokenImageError: the file is truncated, damaged or not an image of one of `FORMATS`; or it is too large: more
            than 8192 x 8192 pixels or 256 MiB, or one side is more than 100 times the other. A file of a few hundred
            bytes could fill the memory when decoded or scaled. Also if it is not a regular file.
    """
    _check_file(Path(path))
    content = Path(path).read_bytes()
    try:
        image = _decode(content, None if crop is None else shorter_side)
    except MemoryError:
        raise
    except Exception as error:  # a decoder can raise OSError, SyntaxError, struct.error and more
        raise BrokenImageError(
            f"read_image: {path} cannot be decoded ({error}); replace it, or pass skip_broken=True to ImageLoader"
        ) from error
    return _resize(image, shorter_side, crop)


def _check_file(path: Path) -> None:
    """Refuse FIFOs and devices, which may block or send data without end, and files too large for a photograph."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BrokenImageError(f"read_image: {path} is not a regular file; remove it")
    if status.st_size > MAX_BYTES:
        raise BrokenImageError(f"read_image: {path}: expected at most {MAX_BYTES:,} bytes, got {status.st_size:,}")


def _decode(content: bytes, least: int | None) -> "Image":
    """Decode an image to upright RGB. With `least`, a JPEG may be decoded smaller, to a shorter side >= `least`."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("damaged at its beginning, or not an image") from None  # Pillow's message names a BytesIO
    _check_size(*image.size)
    if least is not None:
        image.draft("RGB", (least, least))
    image.load()
    kind, orientation = image.format, _orientation(image)
    if orientation in TURNS:
        image = image.transpose(Image.Transpose[TURNS[orientation]])
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):  # older versions of Pillow read I
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow's conversion would clip at 255
    if image.mode in ("I", "F"):  # the brightest number is unknown
        raise ValueError(f"expected 8 or 16 bits for each channel, got numbers of 32 bits (mode {image.mode})")
    if image.has_transparency_data:
        image = image.convert("RGBA")  # converted directly to RGB, a palette with transparency causes a warning
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: "Image") -> int | None:
    """The EXIF orientation, 1 to 8; None without one, and if the EXIF data are damaged: the pixels are not."""
    with contextlib.suppress(Exception):  # Pillow reads damaged tags with errors of many types
        return image.getexif().get(ORIENTATION)
    return None


def _check_size(width: int, height: int) -> None:
    """Refuse sizes that would fill the memory: 312 bytes can hold 1 x 60,000 pixels, 12 GB at a shorter side of 256."""
    if max(width, height) > MAX_PROPORTION * min(width, height):
        raise ValueError(
            f"{width} x {height} pixels: expected a longer side of at most {MAX_PROPORTION} times the shorter"
        )
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels: expected at most {MAX_PIXELS:,} in all; scale it down")


def _resize(image: "Image", shorter_side: int, crop: Callable[[tuple[int, int]], Box] | None) -> "Image":
    from PIL import Image

    shorter = min(image.size)
    width, height = (side * shorter_side // shorter for side in image.size)  # rounded down, as torchvision does
    if crop is None:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    left, top, right, bottom = crop((width, height))
    x, y = image.width / width, image.height / height  # pixels of the file per pixel of the scaled photograph
    box = left * x, top * y, min(right * x, image.width), min(bottom * y, image.height)  # rounding may exceed it
    return image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box)


# -- batches of views --------------------------------------------------------------------------------------------------


class ImageLoader(DataLoader):
    """Batches of views of a folder's photographs, decoded by several threads.

    Each image has its own random generator in each epoch, seeded with (seed, epoch, index). So its view does not depend
    on the batch size, on the number of threads, or on where training was interrupted. Otherwise like `DataLoader`.

    A broken file stops the loader. With `skip_broken` the loader warns once, adds the file to the list `broken`, and
    uses the next intact image of the folder, with its label. So batches keep their size, and the next image, usually of
    the same class, is seen once more in another view. A disk error stops the loader even then.

    Args:
        dataset: the files and their labels.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        view: `view(path, rng) -> array`, all of one shape: `TrainingView`, `CentreView` or your own function.
        shuffle: True for a new order each epoch, False for the order of the folder.
        seed: all randomness depends only on the seed, the epoch and the image.
        drop_last: drop the last batch if it is not full.
        prefetch: number of batches loaded ahead; 0 loads each batch on request.
        threads: number of files decoded in parallel; by default the number of CPUs.
        skip_broken: replace files that cannot be decoded, instead of raising an error.

    Raises:
        ValueError: as in `DataLoader`, or no file of the folder can be decoded.
        BrokenImageError: a file cannot be decoded.
    """

    def __init__(
        self,
        dataset: ImageFolder,
        batch_size: int,
        view: View,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        prefetch: int = 2,
        threads: int | None = None,
        skip_broken: bool = False,
    ) -> None:
        self.view = view
        self.threads = available_cpus() if threads is None else threads
        self.skip_broken = skip_broken
        self.broken: list[str] = []
        self._broken_lock = threading.Lock()
        super().__init__(dataset, batch_size, shuffle, seed, None, drop_last, prefetch)

    def _check(self) -> None:
        super()._check()
        if self.threads < 1:
            raise ValueError(f"ImageLoader: threads must be 1 or more, got {self.threads}")

    def _load(self, order: np.ndarray, epoch: int, number: int) -> Batch:
        chosen = self._rows(order, number).tolist()
        if not chosen:  # an empty part, of a shard
            blank = self._view_of(epoch, 0)[0]
            return np.zeros_like(blank, shape=(0, *blank.shape)), self.dataset.labels[:0]
        from concurrent.futures import ThreadPoolExecutor  # imported on first use: it loads logging too

        # A fresh pool for each batch costs 1 % of decoding one image, and needs no shutdown.
        with ThreadPoolExecutor(self.threads, thread_name_prefix="ImageLoader") as threads:
            views, found = zip(*threads.map(partial(self._view_of, epoch), chosen), strict=True)
        return np.stack(views), self.dataset.labels[list(found)]

    def _view_of(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """Return (view, index) of the image, or of the next one that can be decoded."""
        count = len(self.dataset)
        for other in range(index, index + count):
            path = self.dataset.paths[other % count]
            try:
                return self.view(path, self._generator(VIEW, epoch, index)), other % count
            except BrokenImageError as error:
                if not self.skip_broken:
                    raise
                self._note_broken(path, error)
        raise ValueError(f"ImageLoader: none of the {count} images in {self.dataset.root} can be decoded")

    def _note_broken(self, path: str, error: BrokenImageError) -> None:
        with self._broken_lock:
            if path not in self.broken:
                self.broken.append(path)
                warnings.warn(f"ImageLoader: skipped: {error}", RuntimeWarning, stacklevel=2)
