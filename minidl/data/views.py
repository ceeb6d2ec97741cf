"""Views of photographs: scaled, cropped, flipped, with shifted colours, as in the training of VGG and ResNet.

Simonyan and Zisserman (2014), section 3.1, and He et al. (2015), section 3.4, differ in the scales and in the mean:

    TrainingView(VGG_SIDES, mean=statistics.mean, colours=statistics.colours)
    TrainingView(RESNET_SIDES, mean=statistics.mean_image, colours=statistics.colours)

where `statistics = measure_images(...)`. A view without mean, std and colours is uint8, a quarter of float32's bytes.

Testing uses one view of a photograph (`CentreView`) or several (`CropsView`, `WholeView`). Their pixels equal those of
torchvision's `Resize` and `CenterCrop`, bit for bit, for photographs of any size. `TrainingView` reads faster, which
changes pixels by about 1 of 255 (see `read_image`).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minidl.data.augment import Statistic, normalize
from minidl.data.images import Box, read_image

VGG_SIDES = (256, 512)
RESNET_SIDES = (256, 480)


def draw_side(sides: int | tuple[int, int], rng: np.random.Generator) -> int:
    """Draw an integer from the range `sides`, both ends included. A single integer is returned unchanged."""
    return sides if isinstance(sides, int) else int(rng.integers(sides[0], sides[1] + 1))


def random_box(sides: tuple[int, int], size: int, rng: np.random.Generator) -> Box:
    """Draw a crop (left, top, right, bottom) from an image of (width, height) `sides`, all positions equally likely."""
    left, top = (int(rng.integers(0, side - size + 1)) for side in sides)
    return left, top, left + size, top + size


def centre_box(sides: tuple[int, int], size: int) -> Box:
    """The centre crop (left, top, right, bottom) of an image of (width, height) `sides`, as torchvision's `CenterCrop`.

    It starts at round((side - size) / 2). Python rounds halves to even: 5 pixels too many start the crop at 2.
    """
    left, top = (round((side - size) / 2) for side in sides)
    return left, top, left + size, top + size


def corner_boxes(sides: tuple[int, int], size: int) -> list[Box]:
    """Five crops: the corners and the centre of the central square (Krizhevsky et al. 2012, sections 2 and 4.1).

    For a photograph with shorter side S they equal torchvision's `CenterCrop(S), FiveCrop(size)`.
    """
    left, top, right, bottom = centre_box(sides, min(sides))
    middle, _, _, _ = centre_box((min(sides), min(sides)), size)
    corners = [(x, y) for y in (top, bottom - size) for x in (left, right - size)]
    return [(x, y, x + size, y + size) for x, y in (*corners, (left + middle, top + middle))]


def grid_boxes(sides: tuple[int, int], size: int, number: int = 5) -> list[Box]:
    """number x number crops, evenly spaced from edge to edge, by row (Simonyan and Zisserman 2014, section 3.2)."""
    lefts, tops = (np.linspace(0, side - size, number).round().astype(int).tolist() for side in sides)
    return [(left, top, left + size, top + size) for top in tops for left in lefts]


def mirror_at_random(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip the image (H, W, C) left to right with probability 1/2."""
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


class ColourComponents(NamedTuple):
    """The principal components of the colours of a set of images, for pixels in 0..1, largest first.

    The `eigenvalues` (3,) and the columns of `eigenvectors` (3, 3) belong to the covariance of (red, green, blue).
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @classmethod
    def of(cls, covariance: np.ndarray) -> "ColourComponents":
        """Compute them from a covariance (3, 3) for pixels in 0..255. Each vector's largest entry is made positive."""
        eigenvalues, eigenvectors = np.linalg.eigh(covariance / 255**2)  # ascending
        largest = np.abs(eigenvectors).argmax(axis=0)
        signs = np.sign(eigenvectors[largest, range(3)])
        return cls(eigenvalues[::-1].copy(), (eigenvectors * signs)[:, ::-1].copy())

    def draw(self, rng: np.random.Generator, std: float = 0.1) -> np.ndarray:
        """Draw a colour shift (3,) for pixels in 0..255: 255 sum_i alpha_i lambda_i p_i, alpha_i ~ N(0, std^2).

        Krizhevsky et al. (2012), section 4.1; lambda_i are the eigenvalues, p_i the eigenvectors. The paper does not
        state the range of the pixels, and lambda_i grows with its square. For pixels in 0..1 the first component
        (lambda = 0.2) shifts colours by about 5 of 255; for pixels in 0..255 it would be 1,300, far out of range.
        """
        alpha = std * rng.standard_normal(3)
        return 255 * self.eigenvectors @ (alpha * self.eigenvalues)


class TrainingView:
    """A random crop of the photograph at a random scale, flipped at random, colours shifted, mean subtracted.

    Args:
        shorter_side: of the photograph when it is cropped, in pixels: a number or (least, largest).
        size: height and width of the crop.
        mean: as in `normalize`: per channel (3,), per pixel (size, size, 3), or None to leave the pixels as they are.
        colours: the components of the colour shift, or None to leave the colours as they are.
        std: divides the result; shapes as for `mean`. The papers do not divide.

    Raises:
        ValueError: `size` is larger than the least shorter side, or the sides are not in order.
    """

    def __init__(
        self,
        shorter_side: int | tuple[int, int],
        size: int = 224,
        mean: Statistic | None = None,
        colours: ColourComponents | None = None,
        std: Statistic | None = None,
    ) -> None:
        _check_sides("TrainingView", shorter_side, size)
        self.shorter_side, self.size, self.mean, self.colours, self.std = shorter_side, size, mean, colours, std

    def __call__(self, path: str | Path, rng: np.random.Generator) -> np.ndarray:
        """Return (size, size, 3): uint8 without mean, std and colours, else float32."""
        shorter_side = draw_side(self.shorter_side, rng)
        crop = read_image(path, shorter_side, partial(random_box, size=self.size, rng=rng))
        pixels = mirror_at_random(np.asarray(crop), rng)
        if self.colours is None:
            return _scale(pixels, self.mean, self.std)
        mean = 0.0 if self.mean is None else self.mean
        return _scale(pixels, mean - self.colours.draw(rng), self.std)


class CentreView:
    """The centre crop of the photograph, mean subtracted. It is deterministic.

    The pixels equal those of torchvision's `Resize(shorter_side), CenterCrop(size)`. Arguments and errors are as in
    `TrainingView`. The sizes 256 and 224 go back to Krizhevsky et al. (2012), section 2.
    """

    def __init__(
        self,
        shorter_side: int = 256,
        size: int = 224,
        mean: Statistic | None = None,
        std: Statistic | None = None,
    ) -> None:
        _check_sides("CentreView", shorter_side, size)
        self.shorter_side, self.size, self.mean, self.std = shorter_side, size, mean, std

    def __call__(self, path: str | Path, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return (size, size, 3): uint8 without mean and std, else float32."""
        photograph = read_image(path, self.shorter_side)
        crop = photograph.crop(centre_box(photograph.size, self.size))
        return _scale(np.asarray(crop), self.mean, self.std)


class CropsView:
    """Several crops of a photograph and their mirror images, for "10-crop" and "multi-crop" testing.

        CropsView(corner_boxes)             10: four corners and the centre (Krizhevsky et al. 2012)
        CropsView(grid_boxes)               50: 5 x 5 places (Simonyan and Zisserman 2014, at three scales: 150)

    Args:
        boxes: `boxes((width, height), size) -> [(left, top, right, bottom), ...]` in the scaled photograph.

    The other arguments and the errors are as in `TrainingView`.
    """

    def __init__(
        self,
        boxes: Callable[[tuple[int, int], int], list[Box]],
        shorter_side: int = 256,
        size: int = 224,
        mean: Statistic | None = None,
        std: Statistic | None = None,
    ) -> None:
        _check_sides("CropsView", shorter_side, size)
        self.boxes, self.shorter_side, self.size, self.mean, self.std = boxes, shorter_side, size, mean, std

    def __call__(self, path: str | Path, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return (2 B, size, size, 3): the B crops, then their mirror images; dtype as in `CentreView`."""
        photograph = read_image(path, self.shorter_side)
        pixels, boxes = np.asarray(photograph), self.boxes(photograph.size, self.size)
        crops = np.stack([pixels[top:bottom, left:right] for left, top, right, bottom in boxes])
        return _scale(np.concatenate([crops, crops[:, :, ::-1]]), self.mean, self.std)


class WholeView:
    """The whole photograph and its mirror image, for "dense" testing of networks that accept any image size.

    Simonyan and Zisserman (2014), section 3.2. The mean cannot be per pixel, because photographs differ in size.
    """

    def __init__(self, shorter_side: int, mean: Statistic | None = None, std: Statistic | None = None) -> None:
        self.shorter_side, self.mean, self.std = shorter_side, mean, std

    def __call__(self, path: str | Path, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return (2, H, W, 3), where min(H, W) = shorter_side; dtype as in `CentreView`."""
        pixels = np.asarray(read_image(path, self.shorter_side))
        return _scale(np.stack([pixels, pixels[:, ::-1]]), self.mean, self.std)


def _scale(pixels: np.ndarray, mean: Statistic | None, std: Statistic | None) -> np.ndarray:
    """Return (pixels - mean) / std for one image or several; unchanged uint8 pixels if both are None."""
    if mean is None and std is None:
        return pixels
    images = pixels if pixels.ndim == 4 else pixels[None]
    scaled = normalize(images, 0.0 if mean is None else mean, 1.0 if std is None else std)
    return scaled.reshape(pixels.shape)


def _check_sides(name: str, shorter_side: int | tuple[int, int], size: int) -> None:
    least, largest = (shorter_side, shorter_side) if isinstance(shorter_side, int) else shorter_side
    if not 1 <= size <= least <= largest:
        raise ValueError(
            f"{name}: expected 1 <= size <= shorter_side, a number or (least, largest), "
            f"got size {size} and shorter_side {shorter_side}"
        )
