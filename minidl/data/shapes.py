"""A generated data set of ten shapes, with CIFAR's image size and dtypes, that needs no download.

Position, size, rotation and colours are random, so no single pixel reveals the class. A linear classifier stays at
chance level; a small convolutional network learns the classes.
"""

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from minidl.data.dataset import ArrayDataset

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageDraw import ImageDraw as Drawing

Colour = tuple[int, int, int]

SHAPES = ("circle", "ring", "crescent", "triangle", "square", "star", "cross", "arrow", "heart", "hourglass")

# Chosen by eye, so that a person can tell the shapes apart at 32 x 32.
SUPERSAMPLING = 2  # shapes are drawn larger by this factor, then averaged, for smooth edges
RADIUS = (0.2, 0.42)  # of the circle around a shape, in image widths: 13 to 27 of 32 pixels across
CONTRAST = 64  # least difference between shape and background, in each channel
CLUTTER = 3  # number of lines, and of blobs, behind the shape
BLOB = 0.12  # largest width of a blob, in image widths
NOISE = 20  # largest change of a pixel value, up or down

# Of the images with several shapes.
LEAST_SCENE = 32  # pixels
SHAPES_TRIED = 6  # how many are drawn, without those that would cover another one
RADIUS_IN_A_SCENE = (0.14, 0.28)  # 9 to 18 of 64 pixels


def make_shapes(count: int, seed: int = 0, train: bool = True, size: int = 32) -> ArrayDataset:
    """Draw `count` images (size, size, 3), uint8 RGB. Image i has label i % 10, so the classes are balanced.

    Image i depends only on (seed, train, i), so a longer data set starts with the images of a shorter one.

    Args:
        count: number of images; each takes about 0.1 ms.
        seed: different seeds draw different images.
        train: True for the training images, False for the test images.
        size: height and width in pixels.
    """
    labels = np.arange(count, dtype=np.int64) % len(SHAPES)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        images[i], _ = draw_shape(SHAPES[label], size, np.random.default_rng([seed, int(train), i]))
    return ArrayDataset(images, labels, SHAPES)


def draw_shape(
    shape: str, size: int, rng: np.random.Generator, radius: tuple[float, float] = RADIUS, margin: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw clutter, a shape over it, and noise over both. Return the image, uint8 (size, size, 3), and the shape's box.

    The box is (left, top, right, bottom) in pixels, around the corners of the outline.

    Args:
        shape: one of `SHAPES`.
        size: height and width in pixels.
        rng: the only source of randomness.
        radius: (least, largest) radius of the circle around the shape, in image widths.
        margin: least distance of this circle from the edges of the image, in image widths.

    Raises:
        ValueError: the largest circle does not fit between the margins.
    """
    from PIL import Image, ImageDraw

    if radius[1] + margin > 0.5:
        raise ValueError(f"draw_shape: expected radius + margin <= 0.5 image widths, got {radius[1]} + {margin}")

    background, foreground = _contrasting_colours(rng)
    canvas = Image.new("RGB", (SUPERSAMPLING * size, SUPERSAMPLING * size), background)
    drawing = ImageDraw.Draw(canvas)
    _draw_clutter(drawing, canvas.width, rng)
    corners = canvas.width * _placed(_outlines()[shape], rng, radius, margin)
    drawing.polygon(corners.view(np.float64).tolist(), fill=foreground)  # complex -> x, y, x, y, ...
    return _with_noise(canvas, rng), _box_around(corners / SUPERSAMPLING)


class Scenes:
    """Images (N, H, W, 3) of several shapes, uint8 RGB, and their masks (N, H, W), int64: the class of each pixel.

    `scenes[indices]` is `(images[indices], masks[indices])`, as a `DataLoader` needs it. Class 0 is the background, and
    class 1 + i is `SHAPES[i]`; `classes` has the names.
    """

    classes = ("background", *SHAPES)

    def __init__(self, images: np.ndarray, masks: np.ndarray) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.images)

    def __getitem__(self, indices: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """The images and masks at these indices."""
        return self.images[indices], self.masks[indices].astype(np.int64)


def make_scenes(count: int, seed: int = 0, train: bool = True, size: int = 64) -> Scenes:
    """Draw `count` images of several shapes, with masks: a data set for segmentation. See `draw_scene`.

    Image i depends only on (seed, train, i).

    Args:
        count: number of images; each takes about 0.5 ms.
        seed: different seeds draw different images.
        train: True for the training images, False for the test images.
        size: height and width in pixels, 32 or more: in smaller images nobody can tell the shapes apart.

    Raises:
        ValueError: the size is less than 32.
    """
    if size < LEAST_SCENE:
        raise ValueError(f"make_scenes: expected a size of {LEAST_SCENE} pixels or more, got {size}")
    images, masks = np.empty((count, size, size, 3), np.uint8), np.empty((count, size, size), np.uint8)
    for i in range(count):
        images[i], masks[i] = draw_scene(size, np.random.default_rng([seed, int(train), i]))
    return Scenes(images, masks)


def draw_scene(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw clutter, several shapes over it, and noise. Return the image and its mask, uint8 (size, size).

    Each shape has a colour of its own that differs from the background's. A shape that would cover a part of another
    one is left out, so all shapes are whole. A pixel belongs to a shape that covers at least half of it.
    """
    from PIL import Image, ImageDraw

    background = tuple(rng.integers(0, 256, 3).tolist())
    canvas = Image.new("RGB", (SUPERSAMPLING * size, SUPERSAMPLING * size), background)
    drawing = ImageDraw.Draw(canvas)
    _draw_clutter(drawing, canvas.width, rng)
    mask = np.zeros((size, size), np.uint8)
    for label in rng.integers(1, len(SHAPES) + 1, SHAPES_TRIED):
        outline = canvas.width * _placed(_outlines()[SHAPES[label - 1]], rng, RADIUS_IN_A_SCENE)
        corners = outline.view(np.float64).tolist()
        shape = Image.new("L", canvas.size)
        ImageDraw.Draw(shape).polygon(corners, fill=255)
        covered = np.asarray(shape.reduce(SUPERSAMPLING)) >= 128
        if not mask[covered].any():
            mask[covered] = label
            drawing.polygon(corners, fill=_colour_far_from(background, rng))
    return _with_noise(canvas, rng), mask


def _with_noise(canvas: "Image.Image", rng: np.random.Generator) -> np.ndarray:
    pixels = np.asarray(canvas.reduce(SUPERSAMPLING))
    noise = rng.integers(-NOISE, NOISE + 1, pixels.shape, dtype=np.int16)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def _box_around(points: np.ndarray) -> np.ndarray:
    return np.array([points.real.min(), points.imag.min(), points.real.max(), points.imag.max()])


def _contrasting_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    first = tuple(rng.integers(0, 256, 3).tolist())
    return first, _colour_far_from(first, rng)


def _colour_far_from(other: Colour, rng: np.random.Generator) -> Colour:
    """Draw a colour that differs from the other one by at least CONTRAST in each channel."""
    # Modulo 256, a step between CONTRAST and 256 - CONTRAST ends at least CONTRAST away.
    return tuple(((other + rng.integers(CONTRAST, 257 - CONTRAST, 3)) % 256).tolist())


def _draw_clutter(drawing: "Drawing", width: int, rng: np.random.Generator) -> None:
    lines = width * rng.random((CLUTTER, 4))  # x, y to x, y
    blobs = width * rng.random((CLUTTER, 4))  # x, y and, once scaled, width and height
    colours = rng.integers(0, 256, (2 * CLUTTER, 3)).tolist()
    for line, colour in zip(lines.tolist(), colours[:CLUTTER], strict=True):
        drawing.line(line, fill=tuple(colour), width=SUPERSAMPLING)
    for (x, y, w, h), colour in zip(blobs.tolist(), colours[CLUTTER:], strict=True):
        drawing.ellipse((x, y, x + BLOB * w, y + BLOB * h), fill=tuple(colour))


def _placed(
    outline: np.ndarray, rng: np.random.Generator, radii: tuple[float, float] = RADIUS, margin: float = 0.0
) -> np.ndarray:
    """Return the outline with random rotation, size and position in the image, whose corners are 0 and 1 + 1j."""
    radius = rng.uniform(*radii)
    turn = np.exp(2j * math.pi * rng.random())
    x, y = rng.uniform(margin + radius, 1 - margin - radius, 2)
    return radius * turn * outline + complex(x, y)


@cache
def _outlines() -> dict[str, np.ndarray]:
    """The corners of each shape as complex numbers x + iy in the unit circle: multiplying rotates, adding moves."""
    arm = np.array([0.3 + 0.3j, 0.3 + 0.95j, -0.3 + 0.95j])
    wing = np.array([-0.95 + 0.25j, 0.1 + 0.25j, 0.1 + 0.75j, 1])
    t = np.linspace(0, 2 * math.pi, 32)
    heart = 16 * np.sin(t) ** 3 + 1j * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return {
        "circle": _arc(0, 1),
        "ring": np.concatenate([_arc(0, 1), 0.55 * _arc(1, 0)]),  # out along the rim, back along the hole
        "crescent": np.concatenate([_arc(0.14, 0.86), 0.45 + 0.79 * _arc(0.79, 0.21)]),
        "triangle": _arc(0, 1, points=4),
        "square": _arc(0, 1, points=5),
        "star": _arc(0, 1, points=11) * np.where(np.arange(11) % 2, 0.42, 1.0),  # tips and notches
        "cross": np.concatenate([arm * 1j**quarter for quarter in range(4)]),
        "arrow": np.concatenate([wing, wing[::-1].conj()]),
        "heart": heart / 17,
        "hourglass": np.array([-0.75 - 0.65j, 0.75 - 0.65j, -0.75 + 0.65j, 0.75 + 0.65j]),  # crosses itself at 0
    }


def _arc(start: float, stop: float, points: int = 32) -> np.ndarray:
    """Points on the unit circle from `start` to `stop`, as fractions of a full turn."""
    return np.exp(2j * math.pi * np.linspace(start, stop, points))
