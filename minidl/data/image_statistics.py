"""The mean and the colours of a training set of photographs, which its views subtract and add: measured once."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minidl.data.images import ImageFolder, ImageLoader
from minidl.data.views import CentreView, ColourComponents
from minidl.system.files import write_whole

# How far below 0 rounding may lead a variance of 0: 255^2 times the precision of float64 is 1e-11.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ImageStatistics:
    """What was measured on the centre crops of a folder's photographs, in 0..255.

    Attributes:
        mean_image: (size, size, 3) float32, the mean of each pixel: what He et al. (2015) subtract.
        covariance: (3, 3) float64, of (red, green, blue) over all pixels of all images.
    """

    mean_image: np.ndarray
    covariance: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(3,) float32, the mean of red, green and blue: what Simonyan and Zisserman (2014) subtract."""
        return self.mean_image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)

    @property
    def colours(self) -> ColourComponents:
        """The principal components of the colours, for the colour shift of both papers."""
        return ColourComponents.of(self.covariance)


def measure_images(
    folder: ImageFolder,
    cache: str | Path,
    shorter_side: int = 256,
    size: int = 224,
    threads: int | None = None,
    skip_broken: bool = False,
) -> ImageStatistics:
    """The statistics of all images of a training folder, from `cache` where that holds them already.

    The papers say "the training set" and no more: here it is the centre crop of each photograph, of the size and about
    the scale that the network is to see. It takes as long as an epoch of loading. The file is written again when the
    folder has other images (their names and sizes in bytes count) or other numbers are asked for.

    Args:
        folder: the training images.
        cache: an .npz file; its folder is made where there is none.
        shorter_side: as in `CentreView`, and so is `size`.
        size: height and width of the mean image: those of the views it is subtracted from.
        threads: as in `ImageLoader`, and so is `skip_broken`: a replacement counts in a broken image's place.
        skip_broken: go on without the files that cannot be decoded.

    Raises:
        BrokenImageError: an image cannot be decoded.
        ValueError: `cache` is a file of another kind, or damaged.
    """
    fingerprint = _fingerprint(folder, shorter_side, size)
    statistics = _load(Path(cache), fingerprint, size)
    if statistics is None:
        view = CentreView(shorter_side, size)
        statistics = _measure(ImageLoader(folder, 64, view, threads=threads, skip_broken=skip_broken))
        _save(Path(cache), fingerprint, statistics)
    return statistics


def _measure(loader: ImageLoader) -> ImageStatistics:
    """One pass. The sums are of whole numbers, and exact: neither the threads nor the order change a bit."""
    from tqdm import tqdm

    size, count = loader.view.size, len(loader.dataset)
    pixel_sums = np.zeros((size, size, 3), dtype=np.int64)
    products = np.zeros((3, 3), dtype=np.int64)
    for images, _ in tqdm(loader, desc="mean of the images", disable=None):
        pixel_sums += images.sum(axis=0, dtype=np.int64)
        colours = images.reshape(-1, 3).astype(np.float64)  # (N, S, S, 3) -> (N*S*S, 3)
        products += (colours.T @ colours).astype(np.int64)  # float64 is exact to 2^53, 40,000 times such a sum
    mean = pixel_sums.sum(axis=(0, 1)) / (count * size**2)
    covariance = products / (count * size**2) - np.outer(mean, mean)
    return ImageStatistics((pixel_sums / count).astype(np.float32), covariance)


def _fingerprint(folder: ImageFolder, shorter_side: int, size: int) -> str:
    """A hash of what the statistics depend on, as far as the names and the sizes of the files tell."""
    digest = hashlib.sha256(f"{shorter_side} {size}\n".encode())
    for path in folder.paths:
        name = Path(path).relative_to(folder.root).as_posix()
        digest.update(os.fsencode(name) + f"\0{Path(path).stat().st_size}\n".encode())  # no file name holds a \0
    return digest.hexdigest()


def _load(cache: Path, fingerprint: str, size: int) -> ImageStatistics | None:
    """What the file holds, if it is of these images."""
    if not cache.exists():
        return None
    content = io.BytesIO(cache.read_bytes())  # NumPy leaves a file open that is no archive
    try:
        with np.load(content) as arrays:
            if str(arrays["fingerprint"]) != fingerprint:
                return None
            statistics = ImageStatistics(arrays["mean_image"], arrays["covariance"])
        _check(statistics, size)
    except Exception as error:  # KeyError, BadZipFile, zlib.error, MemoryError: all that NumPy may raise
        raise ValueError(
            f"measure_images: expected a file of its own making, got {cache} ({error}); remove it, or name another"
        ) from error
    return statistics


def _check(statistics: ImageStatistics, size: int) -> None:
    """The file may be damaged, or by another program: training with such a mean would fail without a word."""
    mean, covariance = statistics.mean_image, statistics.covariance
    if (mean.dtype, mean.shape) != (np.float32, (size, size, 3)):
        raise ValueError(f"mean_image: expected float32 {(size, size, 3)}, got {mean.dtype} {mean.shape}")
    if not (mean >= 0).all() or not (mean <= 255).all():  # NaN is neither
        raise ValueError(f"mean_image: expected numbers in 0..255, got {mean.min()} to {mean.max()}")
    if (covariance.dtype, covariance.shape) != (np.float64, (3, 3)):
        raise ValueError(f"covariance: expected float64 (3, 3), got {covariance.dtype} {covariance.shape}")
    if not np.isfinite(covariance).all() or (covariance != covariance.T).any():
        raise ValueError(f"covariance: expected finite numbers, symmetric, got {covariance.tolist()}")
    if np.linalg.eigvalsh(covariance).min() < -ROUNDING:
        raise ValueError(f"covariance: expected no variance below 0 in any direction, got {covariance.tolist()}")


def _save(cache: Path, fingerprint: str, statistics: ImageStatistics) -> None:
    content = io.BytesIO()
    np.savez(content, fingerprint=fingerprint, mean_image=statistics.mean_image, covariance=statistics.covariance)
    write_whole(cache, content.getvalue())
