"""Batches of images (N, H, W, C) made new: shifted, mirrored, normalised. Randomness comes in as an argument.

The recipe of ResNet's section 4.2 (He et al. 2015), as a `DataLoader` transform:

    def augment(images, rng):
        images = normalize(images, mean)  # first, so that the crop pads with the mean image
        return random_flip(random_crop(images, rng, padding=4), rng)
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Statistic = np.ndarray | float


def random_crop(images: np.ndarray, rng: np.random.Generator, padding: int = 4) -> np.ndarray:
    """Shift each image by up to `padding` pixels along each axis, zeros moving in: an H x W crop of the padded image.

    All (2 * padding + 1)^2 shifts are equally likely.
    """
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    crops = sliding_window_view(padded, (height, width), axis=(1, 2))  # a view: (N, tops, lefts, C, H, W)
    tops, lefts = rng.integers(0, 2 * padding + 1, size=(2, count))
    chosen = crops[np.arange(count), tops, lefts]  # (N, C, H, W)
    return np.ascontiguousarray(chosen.transpose(0, 2, 3, 1))


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror each image left to right with probability 1/2."""
    flipped = rng.random(len(images)) < 0.5
    result = images.copy()
    result[flipped] = images[flipped, :, ::-1]
    return result


def normalize(images: np.ndarray, mean: Statistic, std: Statistic = 1.0) -> np.ndarray:
    """(images - mean) / std, in float32.

    `mean` and `std`, in the units of the images (0..255), are per pixel (H, W, C), per channel (C,) or one number.
    """
    mean, std = _per_pixel(mean, images.shape[1:]), _per_pixel(std, images.shape[1:])
    result = np.subtract(images, mean, dtype=np.float32)
    result /= std
    return result


def _per_pixel(statistic: Statistic, shape: tuple[int, ...]) -> np.ndarray:
    """The statistic written out to (H, W, C): NumPy is five times slower where only the short last axis matches."""
    return np.ascontiguousarray(np.broadcast_to(statistic, shape), dtype=np.float32)


def per_pixel_mean(images: np.ndarray) -> np.ndarray:
    """The mean image (H, W, C), float32: what He et al. (2015), section 4.2, subtract."""
    # float64 adds uint8 values exactly (up to 2^53), so the order of the images changes nothing.
    return images.mean(axis=0, dtype=np.float64).astype(np.float32)


def channel_mean_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of each channel of uint8 images, in 0..255: two (C,), float32."""
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
    # E[x^2] - E[x]^2 loses no digits here: einsum sums whole numbers, and needs no float copy of the images.
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64) / images[..., 0].size
    return mean.astype(np.float32), np.sqrt(squares - mean**2).astype(np.float32)
