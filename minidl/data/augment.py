"""Batches of images (N, H, W, C) made new: shifted, mirrored, normalised. Randomness comes in as an argument.

The recipe of ResNet's section 4.2 (He et al. 2015), as a `DataLoader` transform:

    def augment(images, rng):
        images = normalize(images, mean)  # first, so that the crop pads with the mean image
        return random_flip(random_crop(images, rng, padding=4), rng)

`CropAndFlip(mean, padding=4)` is the same in one go. It keeps the draws apart from the pixels, so that images which lie
on a GPU are varied there: see `AugmentedLoader`.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minidl.kernels import device_of, kernels_for, to_device

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


class CropAndFlip:
    """Images of uint8 normalised, shifted and mirrored at random, on the device that holds them.

    As a transform it is random_flip(random_crop(normalize(images, mean, std), rng, padding), rng), bit for bit. Its two
    halves are for themselves too: `draw` is done on the host, `apply` wherever the images are.

    Args:
        mean: as in `normalize`, and so is `std`.
        std: what is left is divided by it.
        padding: how far an image is shifted, in pixels along each axis; zeros, the mean image, move in.
        flip_probability: how often an image is mirrored. With 0, and padding 0, the result is not random.

    Raises:
        ValueError: padding < 0, or flip_probability outside [0, 1].
    """

    def __init__(self, mean: Statistic, std: Statistic = 1.0, padding: int = 4, flip_probability: float = 0.5) -> None:
        if padding < 0:
            raise ValueError(f"CropAndFlip: expected padding >= 0, got {padding}")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"CropAndFlip: expected flip_probability in [0, 1], got {flip_probability}")
        self.mean, self.std = mean, std
        self.padding, self.flip_probability = padding, flip_probability
        self._statistics: dict = {}

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """All images (N, H, W, C) in their order: a transform of `DataLoader`."""
        return self.apply(images, np.arange(len(images)), *self.draw(rng, len(images)))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(tops, lefts, flips) for `count` images, int64 (3, count): the corner of each crop, and 1 to mirror it."""
        corners = rng.integers(0, 2 * self.padding + 1, size=(2, count))
        return np.vstack([corners, rng.random(count) < self.flip_probability])

    def apply(self, images, chosen, tops, lefts, flips):
        """images[chosen], varied as drawn: (M, H, W, C) uint8 -> (N, H, W, C) float32, on the device of the images.

        The four arrays (N,) are checked if they are on the host. On a GPU they are not, as the host would have to wait:
        an image that does not exist is NaN there.
        """
        draws = chosen, tops, lefts, flips
        self._check(images, draws)
        device = device_of(images)
        mean, std = self._written_out(images.shape[1:], device)
        draws = (to_device(draw, device) for draw in draws)
        return kernels_for(images).crop_and_flip(images, *draws, mean, std, self.padding)

    def _written_out(self, shape: tuple[int, ...], device: str) -> list:
        """mean and std for each pixel; made once, as nothing may be copied to a GPU while a graph is captured."""
        if (shape, device) not in self._statistics:
            statistics = (_per_pixel(statistic, shape) for statistic in (self.mean, self.std))
            self._statistics[shape, device] = [to_device(statistic, device) for statistic in statistics]
        return self._statistics[shape, device]

    def _check(self, images, draws: tuple) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(
                f"CropAndFlip: expected uint8 images (M, H, W, C), got {images.dtype} {images.shape}; "
                "pass them as they were loaded"
            )
        if any(draw.shape != draws[0].shape or draw.ndim != 1 for draw in draws):
            raise ValueError(
                "CropAndFlip: expected one number for each image in chosen, tops, lefts and flips, "
                f"got {', '.join(str(draw.shape) for draw in draws)}"
            )
        limits = len(images), 2 * self.padding + 1, 2 * self.padding + 1, 2
        for name, draw, limit in zip(("chosen", "tops", "lefts", "flips"), draws, limits, strict=True):
            if device_of(draw) == "cpu" and draw.size and not 0 <= draw.min() <= draw.max() < limit:
                raise ValueError(
                    f"CropAndFlip: expected {name} in [0, {limit}), got numbers from {draw.min()} to {draw.max()}"
                )


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
