"""Statistics of a folder of training photographs, used by its views: mean image and colours, measured once."""

import hashlib
import io
import math
import os
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from minidl.data.images import ImageFolder, ImageLoader
from minidl.data.views import CentreView, ColourComponents
from minidl.system.files import write_whole

# A variance of 0 may be rounded to slightly below 0: 255^2 times the precision of float64 is 1e-11.
ROUNDING = 1e-9

# In bytes, of the cache and of each array in it: a mean image of 2000 x 2000 pixels. A compressed archive of a few
# kilobytes could hold gigabytes.
LARGEST_CACHE = 2**26


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of the centre crops of a folder's photographs, for pixels in 0..255.

    Attributes:
        mean_image: (size, size, 3) float32, the mean of each pixel, which He et al. (2015) subtract.
        covariance: (3, 3) float64, the covariance of (red, green, blue) over all pixels of all images.
    """

    mean_image: np.ndarray
    covariance: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(3,) float32, the mean of red, green and blue, which Simonyan and Zisserman (2014) subtract."""
        return self.mean_image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)

    @property
    def colours(self) -> ColourComponents:
        """The principal components of the colours, for the colour shift in both papers."""
        return ColourComponents.of(self.covariance)


class Ranks(Protocol):
    """Processes that work together: what is used here of `minidl.distributed.Communicator`."""

    rank: int
    size: int

    def all_reduce(self, array) -> None:
        """Replace the array by its sum over all ranks."""

    def broadcast(self, array, root: int = 0) -> None:
        """Replace the array by that of rank `root`."""


def measure_images(
    folder: ImageFolder,
    cache: str | Path,
    shorter_side: int = 256,
    size: int = 224,
    threads: int | None = None,
    skip_broken: bool = False,
    ranks: Ranks | None = None,
) -> ImageStatistics:
    """Measure the statistics of a training folder, or read them from `cache` if they are already there.

    The papers only say "the training set". Here that means the centre crop of each photograph, of the size and about
    the scale that the network sees. Measuring takes as long as one epoch of loading. It is repeated if the images
    (their names and sizes in bytes), `shorter_side` or `size` have changed since the cache was written.

    Args:
        folder: the training images.
        cache: an .npz file; its folder is created if it does not exist.
        shorter_side: as in `CentreView`.
        size: height and width of the mean image, the same as in the views that subtract it.
        threads: as in `ImageLoader`.
        skip_broken: as in `ImageLoader`: the image that replaces a broken one is counted once more.
        ranks: the processes that measure together, such as `minidl.distributed.start` gives. All of them call this
            function. They divide the images, and rank 0 reads and writes `cache`.

    A cache that cannot be written in the end, such as on a full disk, is a warning.

    Raises:
        BrokenImageError: an image cannot be decoded.
        ValueError: `cache` is damaged, another kind of file, or cannot be written.
    """
    ranks = ranks or _Alone()
    fingerprint = _fingerprint(folder, shorter_side, size)
    statistics = _load(Path(cache), fingerprint, size) if ranks.rank == 0 else None
    found = np.array([statistics is not None], np.int64)
    ranks.all_reduce(found)
    if not found[0]:
        if ranks.rank == 0:
            _check_writable(Path(cache))  # before the hours of measuring
        view = CentreView(shorter_side, size)
        loader = ImageLoader(folder, 64 * ranks.size, view, threads=threads, skip_broken=skip_broken)
        statistics = _measure(loader.shard(ranks.rank, ranks.size), ranks)
        if ranks.rank == 0:
            _save(Path(cache), fingerprint, statistics)
    elif statistics is None:
        statistics = ImageStatistics(np.empty((size, size, 3), np.float32), np.empty((3, 3)))
    for array in (statistics.mean_image, statistics.covariance):
        ranks.broadcast(array)
    return statistics


class _Alone:
    """A single process."""

    rank, size = 0, 1

    def all_reduce(self, array) -> None:
        """Leave the array, which is the sum already."""

    def broadcast(self, array, root: int = 0) -> None:
        """Leave the array."""


def _check_writable(cache: Path) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache.parent):
            pass
    except OSError as error:
        raise ValueError(f"measure_images: cannot write {cache} ({error.strerror}); name another file") from None


def _measure(loader: ImageLoader, ranks: Ranks) -> ImageStatistics:
    """Measure in one pass. The sums are exact integers, so neither threads, ranks nor order change the result."""
    from tqdm import tqdm

    size, count = loader.view.size, len(loader.dataset)
    pixel_sums = np.zeros((size, size, 3), dtype=np.int64)
    products = np.zeros((3, 3), dtype=np.int64)
    for images, _ in tqdm(loader, desc="mean of the images", disable=None if ranks.rank == 0 else True):
        pixel_sums += images.sum(axis=0, dtype=np.int64)
        colours = images.reshape(-1, 3).astype(np.float64)  # (N, S, S, 3) -> (N*S*S, 3)
        products += (colours.T @ colours).astype(np.int64)  # exact: float64 holds 2^53, 40,000 times such a sum
    ranks.all_reduce(pixel_sums)
    ranks.all_reduce(products)
    mean = pixel_sums.sum(axis=(0, 1)) / (count * size**2)
    covariance = products / (count * size**2) - np.outer(mean, mean)
    return ImageStatistics((pixel_sums / count).astype(np.float32), covariance)


def _fingerprint(folder: ImageFolder, shorter_side: int, size: int) -> str:
    """Hash what the statistics depend on; of each file only the name and the size, not the contents."""
    digest = hashlib.sha256(f"{shorter_side} {size}\n".encode())
    for path in folder.paths:
        name = Path(path).relative_to(folder.root).as_posix()
        digest.update(os.fsencode(name) + f"\0{Path(path).stat().st_size}\n".encode())  # file names contain no \0
    return digest.hexdigest()


def _load(cache: Path, fingerprint: str, size: int) -> ImageStatistics | None:
    """Read the cached statistics; None if there are none, or they belong to other images."""
    if not cache.exists():
        return None
    try:
        content = _read_bounded(cache)
        with np.load(content) as arrays:
            if str(arrays["fingerprint"]) != fingerprint:
                what = f"measure_images: {cache} is of other images or sizes; measuring again"
                warnings.warn(what, RuntimeWarning, stacklevel=3)
                return None
            statistics = ImageStatistics(arrays["mean_image"], arrays["covariance"])
        _check(statistics, size)
    except Exception as error:  # NumPy can raise KeyError, BadZipFile, zlib.error, MemoryError and more
        raise ValueError(
            f"measure_images: expected a file that it wrote, got {cache} ({error}); remove it, or name another"
        ) from error
    return statistics


def _read_bounded(cache: Path) -> io.BytesIO:
    """Read the .npz file, which is a zip archive, if neither it nor any array in it is too large."""
    if not cache.is_file() or cache.stat().st_size > LARGEST_CACHE:
        raise ValueError(f"expected a regular file of at most {LARGEST_CACHE:,} bytes")
    content = io.BytesIO(cache.read_bytes())  # np.load leaves a file open if it is not an archive
    with zipfile.ZipFile(content) as archive:
        for member in archive.infolist():
            if member.file_size > LARGEST_CACHE:
                raise ValueError(f"{member.filename[:100]}: expected at most {LARGEST_CACHE:,} bytes")
            with archive.open(member) as array:
                _check_header(member.filename[:100], array)
    content.seek(0)
    return content


def _check_header(name: str, array: IO[bytes]) -> None:
    """Check the size that an .npy file declares, for which NumPy allocates memory before it reads the numbers."""
    version = np.lib.format.read_magic(array)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(array)
    if math.prod(shape) * dtype.itemsize > LARGEST_CACHE:
        raise ValueError(f"{name}: expected at most {LARGEST_CACHE:,} bytes, got {dtype} {shape}")


def _check(statistics: ImageStatistics, size: int) -> None:
    """Check the statistics: training with a mean from a damaged or foreign file would fail silently."""
    mean, covariance = statistics.mean_image, statistics.covariance
    if (mean.dtype, mean.shape) != (np.float32, (size, size, 3)):
        raise ValueError(f"mean_image: expected float32 {(size, size, 3)}, got {mean.dtype} {mean.shape}")
    if not (mean >= 0).all() or not (mean <= 255).all():  # NaN fails too
        raise ValueError(f"mean_image: expected numbers in 0..255, got {mean.min()} to {mean.max()}")
    if (covariance.dtype, covariance.shape) != (np.float64, (3, 3)):
        raise ValueError(f"covariance: expected float64 (3, 3), got {covariance.dtype} {covariance.shape}")
    if not np.isfinite(covariance).all() or (covariance != covariance.T).any():
        raise ValueError(f"covariance: expected a finite, symmetric matrix, got {covariance.tolist()}")
    if np.linalg.eigvalsh(covariance).min() < -ROUNDING:
        raise ValueError(f"covariance: expected no negative eigenvalue, got {covariance.tolist()}")


def _save(cache: Path, fingerprint: str, statistics: ImageStatistics) -> None:
    content = io.BytesIO()
    np.savez(content, fingerprint=fingerprint, mean_image=statistics.mean_image, covariance=statistics.covariance)
    try:
        write_whole(cache, content.getvalue())
    except OSError as error:
        warnings.warn(
            f"measure_images: cannot write the statistics ({error}): the next run measures again",
            RuntimeWarning,
            stacklevel=3,
        )
