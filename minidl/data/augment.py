"""Augmentation of image batches (N, H, W, C): crops, flips, cutout, normalisation. The random generator is an argument.

The recipe of ResNet's section 4.2 (He et al. 2015), as a `DataLoader` transform:

    def augment(images, rng):
        images = normalize(images, mean)  # first, so that the crop pads with the mean image
        return random_flip(random_crop(images, rng, padding=4), rng)

`CropAndFlip(mean, padding=4)` does the same in one pass. It draws random numbers on the host and processes the pixels
on the device that holds them: see `AugmentedLoader`.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minidl.kernels import device_of, kernels_for, to_device

Statistic = np.ndarray | float


def random_crop(images: np.ndarray, rng: np.random.Generator, padding: int = 4) -> np.ndarray:
    """Pad each image with `padding` zeros on every side, then crop it back to H x W at a random position.

    All (2 * padding + 1)^2 positions are equally likely.
    """
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    crops = sliding_window_view(padded, (height, width), axis=(1, 2))  # a view: (N, tops, lefts, C, H, W)
    tops, lefts = rng.integers(0, 2 * padding + 1, size=(2, count))
    chosen = crops[np.arange(count), tops, lefts]  # (N, C, H, W)
    return np.ascontiguousarray(chosen.transpose(0, 2, 3, 1))


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip each image left to right with probability 1/2."""
    flipped = rng.random(len(images)) < 0.5
    result = images.copy()
    result[flipped] = images[flipped, :, ::-1]
    return result


def random_cutout(images: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Set a square of size x size pixels to 0 in each image, which is the mean of normalised images.

    DeVries, Taylor 2017, "Improved regularization of convolutional neural networks with cutout", section 3. The centre
    is any pixel with equal probability, so a part of the square may lie outside the image: row r of the centre cuts
    rows r - size // 2 to r - size // 2 + size - 1, as far as they exist.
    """
    count, height, width, _ = images.shape
    result = images.copy()
    for image, row, column in zip(result, *_draw_pixels(rng, count, height, width), strict=True):
        top, left = row - size // 2, column - size // 2
        image[max(top, 0) : top + size, max(left, 0) : left + size] = 0
    return result


def _draw_pixels(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Draw (rows, columns) of `count` pixels: int64 (2, count)."""
    return np.stack([rng.integers(0, height, count), rng.integers(0, width, count)])


def normalize(images: np.ndarray, mean: Statistic, std: Statistic = 1.0) -> np.ndarray:
    """Return (images - mean) / std in float32.

    `mean` and `std` are in the units of the images (0..255), each of shape (H, W, C), (C,) or a scalar.
    """
    mean, std = _per_pixel(mean, images.shape[1:]), _per_pixel(std, images.shape[1:])
    result = np.subtract(images, mean, dtype=np.float32)
    result /= std
    return result


def _per_pixel(statistic: Statistic, shape: tuple[int, ...]) -> np.ndarray:
    """Expand a statistic to (H, W, C): NumPy is five times slower if it has to broadcast (C,)."""
    return np.ascontiguousarray(np.broadcast_to(statistic, shape), dtype=np.float32)


class CropAndFlip:
    """Normalise uint8 images, then crop and flip them at random, on the device that holds them.

    With zeros around the images, a call equals random_flip(random_crop(normalize(images, mean, std), rng, padding),
    rng), bit for bit. Its two halves can also be called separately: `draw` runs on the host, `apply` on the device of
    the images.

    Args:
        mean: subtracted from the images; shapes as in `normalize`.
        std: divides the result; shapes as in `normalize`.
        padding: pixels added on each side before cropping.
        flip_probability: probability of flipping an image. With 0 and padding 0 the result is deterministic.
        padding_mode: "zeros" adds zeros, which are the mean after normalisation; "reflect" adds the mirror image of the
            pixels inside the border, which itself is not repeated, as torch.nn.functional.pad does.

    Raises:
        ValueError: padding < 0, flip_probability outside [0, 1], or another padding_mode.
    """

    def __init__(
        self,
        mean: Statistic,
        std: Statistic = 1.0,
        padding: int = 4,
        flip_probability: float = 0.5,
        padding_mode: str = "zeros",
    ) -> None:
        if padding < 0:
            raise ValueError(f"CropAndFlip: expected padding >= 0, got {padding}")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"CropAndFlip: expected flip_probability in [0, 1], got {flip_probability}")
        if padding_mode not in ("zeros", "reflect"):
            raise ValueError(f"CropAndFlip: expected padding_mode 'zeros' or 'reflect', got {padding_mode!r}")
        self.mean, self.std = mean, std
        self.padding, self.flip_probability, self.padding_mode = padding, flip_probability, padding_mode
        self._statistics: dict = {}

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment all images (N, H, W, C), in order. An instance can be the `transform` of a `DataLoader`."""
        return self.apply(images, np.arange(len(images)), *self.draw(rng, len(images)))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw (tops, lefts, flips) for `count` images, int64 (3, count): the corner of each crop, and 1 to flip it."""
        corners = rng.integers(0, 2 * self.padding + 1, size=(2, count))
        return np.vstack([corners, rng.random(count) < self.flip_probability])

    def apply(self, images, chosen, tops, lefts, flips) -> Any:
        """Augment images[chosen]: (M, H, W, C) uint8 -> (N, H, W, C) float32, on the device of the images.

        The range of the four arrays (N,) is checked only on the host: on a GPU the check would make the host wait.
        There, an index out of range in `chosen` produces an image of NaN.
        """
        draws = chosen, tops, lefts, flips
        self._check(images, draws)
        device = device_of(images)
        mean, std = self._mean_and_std(images.shape[1:], device)
        draws = (to_device(draw, device) for draw in draws)
        return kernels_for(images).crop_and_flip(
            images, *draws, mean, std, self.padding, self.padding_mode == "reflect"
        )

    def _mean_and_std(self, shape: tuple[int, ...], device: str) -> list:
        """Return mean and std per pixel. They are cached, as nothing may be copied to a GPU during a graph capture."""
        if (shape, device) not in self._statistics:
            statistics = (_per_pixel(statistic, shape) for statistic in (self.mean, self.std))
            self._statistics[shape, device] = [to_device(statistic, device) for statistic in statistics]
        return self._statistics[shape, device]

    def _check(self, images, draws: tuple) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(
                f"CropAndFlip: expected uint8 images (M, H, W, C), got {images.dtype} {images.shape}; "
                "pass the images as loaded"
            )
        if self.padding_mode == "reflect" and self.padding >= min(images.shape[1:3]):
            raise ValueError(
                f"CropAndFlip: expected images larger than the padding of {self.padding} pixels, got {images.shape}"
            )
        if any(draw.shape != draws[0].shape or draw.ndim != 1 for draw in draws):
            raise ValueError(
                "CropAndFlip: expected chosen, tops, lefts and flips of one shape (N,), "
                f"got {', '.join(str(draw.shape) for draw in draws)}"
            )
        limits = len(images), 2 * self.padding + 1, 2 * self.padding + 1, 2
        for name, draw, limit in zip(("chosen", "tops", "lefts", "flips"), draws, limits, strict=True):
            if device_of(draw) == "cpu" and draw.size and not 0 <= draw.min() <= draw.max() < limit:
                raise ValueError(
                    f"CropAndFlip: expected {name} in [0, {limit}), got numbers from {draw.min()} to {draw.max()}"
                )


class Cutout:
    """A `CropAndFlip` with cutout after it: see `random_cutout`, which it equals bit for bit.

    Args:
        augment: what comes before. Its random numbers are drawn first and are the same as without cutout.
        size: side of the square in pixels; 16 in the paper for CIFAR-10, 8 for CIFAR-100.
        image_size: (height, width) of the images.

    Raises:
        ValueError: the square is larger than the images, or smaller than a pixel.
    """

    def __init__(self, augment: CropAndFlip, size: int, image_size: tuple[int, int]) -> None:
        if not 1 <= size <= min(image_size):
            height, width = image_size
            raise ValueError(
                f"Cutout: expected a size from 1 to {min(height, width)} for {height}x{width} images, got {size}"
            )
        self.augment, self.size, self.image_size = augment, size, image_size

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment all images (N, H, W, C), in order. An instance can be the `transform` of a `DataLoader`."""
        return self.apply(images, np.arange(len(images)), *self.draw(rng, len(images)))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw (tops, lefts, flips, rows, columns), int64 (5, count): those of `augment`, and the squares' centres."""
        return np.vstack([self.augment.draw(rng, count), _draw_pixels(rng, count, *self.image_size)])

    def apply(self, images, chosen, tops, lefts, flips, rows, columns):
        """Augment images[chosen]: (M, H, W, C) uint8 -> (N, H, W, C) float32, on the device of the images."""
        if images.shape[1:3] != self.image_size:
            raise ValueError(f"Cutout: expected images of {self.image_size} pixels as declared, got {images.shape}")
        result, device = self.augment.apply(images, chosen, tops, lefts, flips), device_of(images)
        in_rows, in_columns = (
            self._is_cut(to_device(centres, device), to_device(np.arange(length), device))
            for centres, length in zip((rows, columns), self.image_size, strict=True)
        )
        result[in_rows[:, :, None] & in_columns[:, None, :]] = 0
        return result

    def _is_cut(self, centres, positions):
        """True where a position is within the square, along one dimension: (N,), (length,) -> (N, length)."""
        first = centres[:, None] - self.size // 2
        return (first <= positions) & (positions < first + self.size)


def per_pixel_mean(images: np.ndarray) -> np.ndarray:
    """The mean image (H, W, C), float32, which He et al. (2015), section 4.2, subtract."""
    # float64 sums uint8 values exactly (up to 2^53), so the order of the images does not matter.
    return images.mean(axis=0, dtype=np.float64).astype(np.float32)


def channel_mean_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of each channel of uint8 images, in 0..255: two float32 arrays (C,)."""
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
    # E[x^2] - E[x]^2 loses no precision here: einsum sums integers exactly. It needs no float copy of the images.
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64) / images[..., 0].size
    return mean.astype(np.float32), np.sqrt(squares - mean**2).astype(np.float32)
