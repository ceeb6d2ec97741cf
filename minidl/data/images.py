"""Folders of photographs, as ILSVRC-2012 comes: `train/<wnid>/*.JPEG`. Decoded when they are asked for, by threads.

The photographs have as many sizes as there are cameras, so what becomes a batch are views of them: a view is a function
`view(path, rng) -> array` that reads one file and cuts out what the network is to see (see `minidl.data.views`).

    train = ImageFolder("imagenet/train", names="imagenet/LOC_synset_mapping.txt")
    loader = ImageLoader(train, 256, TrainingView(shorter_side=(256, 480)), shuffle=True)
    for images, labels in loader:  # uint8 (256, 224, 224, 3), int64 (256,)
"""

import io
import os
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minidl.data.loader import Batch, DataLoader
from minidl.system.cpus import available_cpus

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]
View = Callable[[str, np.random.Generator], np.ndarray]

# The second word of a seed, beside those of minidl.data.loader.
VIEW = 2

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif")

# The longer side of a photograph, in shorter sides: no panorama comes near it.
MAX_PROPORTION = 100


class ImageFolder:
    """The image files of a folder that has one folder per class; `folder[indices]` is `(paths, labels)`.

    Classes are in the order of their folders' names, and so are the files of a class: in ILSVRC-2012 label 0 is
    n01440764. What is hidden, what is no image by its suffix, and what is no file (a folder, a FIFO) is passed over.

    Args:
        root: holds `<wnid>/*.JPEG`.
        names: a file with a line `n01440764 tench, Tinca tinca` for each class, such as LOC_synset_mapping.txt.
        classes: those of another folder, so that labels agree with that folder; a class may then be absent here.

    Attributes:
        paths: (N,) array of strings.
        labels: (N,) int64.
        classes: the folders' names, WordNet ids in ILSVRC-2012.
        names: what people call the classes; without a file the same as `classes`.

    Raises:
        FileNotFoundError: there is no such folder or file.
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
        """The paths and the labels at these indices: pixels come from `ImageLoader`."""
        return self.paths[indices], self.labels[indices]


def _class_folders(root: Path) -> dict[str, Path]:
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if not folders:
        raise ValueError(
            f"ImageFolder: expected a folder for each class in {root}, got none; "
            "sort the images into <wnid>/*.JPEG (those of ILSVRC-2012's val come unsorted)"
        )
    return folders


def _check_known(root: Path, folders: dict[str, Path], classes: tuple[str, ...]) -> None:
    unknown = folders.keys() - set(classes)
    if unknown:
        raise ValueError(
            f"ImageFolder: {root / min(unknown)} is none of the {len(classes)} classes asked for; "
            "pass the classes of the folder that was trained on, and move others away"
        )


def image_files(folder: str | Path) -> list[str]:
    """The image files of a folder in the order of their names; 1.3 million Paths would take thrice the memory."""
    with os.scandir(folder) as entries:
        files = sorted(entry.path for entry in entries if _is_image(entry.name) and _is_file(entry))
    if not files:
        raise ValueError(f"ImageFolder: no image in {folder} ({', '.join(SUFFIXES)}); remove the folder or fill it")
    return files


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _is_file(entry: os.DirEntry) -> bool:
    """No folder, and nothing that can be read for ever, such as a FIFO. A link that leads nowhere is a missing file."""
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


def read_names(path: str | Path) -> dict[str, str]:
    """{WordNet id: name} of a file with lines like 'n01440764 tench, Tinca tinca', in the file's order."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return {wnid: name.strip() for wnid, name in (line.split(maxsplit=1) for line in lines if len(line.split()) > 1)}


def _names_of(classes: tuple[str, ...], path: Path) -> tuple[str, ...]:
    names = read_names(path)
    missing = [wnid for wnid in classes if wnid not in names]
    if missing:
        raise ValueError(
            f"ImageFolder: expected a line for each class in {path}, got none for {missing[0]} "
            f"({len(missing)} in all); a line reads 'n01440764 tench, Tinca tinca'"
        )
    return tuple(names[wnid] for wnid in classes)


# ---- One file --------------------------------------------------------------------------------------------------------


class BrokenImageError(ValueError):
    """A file that cannot be decoded; the message names it."""


def read_image(path: str | Path, shorter_side: int, crop: Callable[[tuple[int, int]], Box] | None = None) -> "Image":
    """The photograph upright, in RGB, scaled so that its shorter side has this many pixels.

    The longer side is int(shorter_side * longer / shorter), rounded down, and the filter is Pillow's bilinear one, as
    wide as the new pixels are apart (the papers name none). These are the pixels of torchvision's
    `Resize(shorter_side)`, bit for bit, for a photograph that is stored upright.

    Grey, CMYK and palette images become RGB, of 16 bits the upper 8 count, transparency is dropped, and a camera's note
    of how it was held is obeyed (torchvision's `ImageFolder` ignores it).

    Args:
        path: the file.
        shorter_side: in pixels, of the whole photograph.
        crop: `crop((width, height)) -> (left, top, right, bottom)`, the part of the scaled photograph that is wanted.
            This is the fast way, for training. Only that part is scaled, which saves a third of all time; its values
            are those of the whole, but for 1 or 2 of 255 where the filter's weights are rounded otherwise. And a JPEG
            much larger than asked for is decoded at 1/2, 1/4 or 1/8 of its size, never below what is asked for: its
            values differ by more at sharp edges. For exact values crop what this function returns without `crop`.

    Raises:
        OSError: the file cannot be read.
        BrokenImageError: it was read, but it is cut off, damaged or no image, or one side is more than 100 times the
            other: scaled, a file of a few hundred bytes would fill the memory.
    """
    content = Path(path).read_bytes()
    try:
        image = _decode(content, None if crop is None else shorter_side)
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error: all that a decoder may raise
        raise BrokenImageError(
            f"read_image: {path} cannot be decoded ({error}); replace it, or pass skip_broken=True to ImageLoader"
        ) from error
    return _resize(image, shorter_side, crop)


def _decode(content: bytes, least: int | None) -> "Image":
    """The image upright, in RGB. With `least` a JPEG may be decoded smaller, its shorter side never below that."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError("damaged at its beginning, or no image") from None  # Pillow's message is about a BytesIO
    _check_proportions(image.size)
    if least is not None:
        image.draft("RGB", (least, least))
    ImageOps.exif_transpose(image, in_place=True)  # decodes; in place, as the copy would be a waste
    if image.mode.startswith("I"):  # grey of 16 bits: a conversion by Pillow would cut it off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")  # a palette with transparency has no other way to RGB without a warning
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_proportions(size: tuple[int, int]) -> None:
    """A few hundred bytes can hold 1 x 60,000 pixels, which at a shorter side of 256 are 12 GB."""
    if max(size) > MAX_PROPORTION * min(size):
        raise ValueError(
            f"{size[0]} x {size[1]} pixels: expected a longer side of at most {MAX_PROPORTION} times the shorter"
        )


def _resize(image: "Image", shorter_side: int, crop: Callable[[tuple[int, int]], Box] | None) -> "Image":
    from PIL import Image

    shorter = min(image.size)
    width, height = (side * shorter_side // shorter for side in image.size)  # rounded down, as torchvision does
    if crop is None:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    left, top, right, bottom = crop((width, height))
    x, y = image.width / width, image.height / height  # pixels of the file per pixel of the scaled photograph
    box = left * x, top * y, min(right * x, image.width), min(bottom * y, image.height)  # rounding may lead outside
    return image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box)


# ---- Many ------------------------------------------------------------------------------------------------------------


class ImageLoader(DataLoader):
    """Batches of views of the photographs of a folder, decoded by several threads.

    In each epoch an image has a random generator of its own, from (seed, epoch, index): the same view comes whatever
    the size of the batches and the number of threads, and wherever a training was interrupted. All else is as in
    `DataLoader`.

    A broken file stops the loader. With `skip_broken` it is named in one warning, noted in `broken`, and replaced by
    the next image of the folder that is not, with that one's label: batches keep their size, and the next image, of the
    same class as a rule, is seen once more, in another view. A disk that fails is an error even so.

    Args:
        dataset: the files and their labels.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        view: `view(path, rng) -> array`, all of one shape; `TrainingView`, `CentreView` or a function of your own.
        shuffle: a new order each epoch, otherwise the folder's own.
        seed: with the epoch and the image, it decides all randomness.
        drop_last: leave out a last batch that is not full.
        prefetch: batches loaded ahead; 0 loads each when asked.
        threads: how many files are decoded at a time; by default as many as there are cores.
        skip_broken: go on without the files that cannot be decoded.

    Raises:
        ValueError: as `DataLoader`, or not one file of the folder can be decoded.
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
        self._noting = threading.Lock()
        super().__init__(dataset, batch_size, shuffle, seed, None, drop_last, prefetch)

    def _check(self) -> None:
        super()._check()
        if self.threads < 1:
            raise ValueError(f"ImageLoader: threads must be 1 or more, got {self.threads}")

    def _load(self, order: np.ndarray, epoch: int, number: int) -> Batch:
        chosen = self._rows(order, number).tolist()
        from concurrent.futures import ThreadPoolExecutor  # on first use, as it loads logging too

        # A fresh pool for each batch costs 1 % of decoding one image, and needs no shutdown.
        with ThreadPoolExecutor(self.threads, thread_name_prefix="ImageLoader") as threads:
            views, found = zip(*threads.map(partial(self._view_of, epoch), chosen), strict=True)
        return np.stack(views), self.dataset.labels[list(found)]

    def _view_of(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """The view of an image, or of the next one that is not broken, and the index of the image it is of."""
        count = len(self.dataset)
        for other in range(index, index + count):
            path = self.dataset.paths[other % count]
            try:
                return self.view(path, self._generator(VIEW, epoch, index)), other % count
            except BrokenImageError as error:
                if not self.skip_broken:
                    raise
                self._note(path, error)
        raise ValueError(f"ImageLoader: none of the {count} images in {self.dataset.root} can be decoded")

    def _note(self, path: str, error: BrokenImageError) -> None:
        with self._noting:
            if path not in self.broken:
                self.broken.append(path)
                warnings.warn(f"ImageLoader: skipped: {error}", RuntimeWarning, stacklevel=2)
