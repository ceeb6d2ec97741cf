"""The input that a network is studied on: a photograph, a drawn shape, or random numbers; and its trained weights."""

import dataclasses
from pathlib import Path

import numpy as np

from minidl.data import BrokenImageError, read_image
from minidl.data.augment import normalize
from minidl.data.shapes import SHAPES, draw_shape
from minidl.nn import Module
from minidl.study._network import BadInputError, Shape, Statistics
from minidl.training.checkpoint import load_checkpoint, read_checkpoint

# Without the statistics of a data set, pixels in 0..255 are brought to about mean 0 and variance 1.
PIXEL_MEAN, PIXEL_STD = 127.5, 64.0


@dataclasses.dataclass
class Weights:
    """Where the weights come from, and what the file says beside them."""

    words: str
    scaling: str = f"(pixel - {PIXEL_MEAN:g}) / {PIXEL_STD:g}"  # how pixels in 0..255 are scaled, in words
    mean: np.ndarray | float = PIXEL_MEAN
    std: np.ndarray | float = PIXEL_STD
    names: tuple[str, ...] = ()  # of the classes

    def class_name(self, label: int) -> str:
        """The class as a text: 'class 3', with its name if the file has it."""
        return f"class {label} ({self.names[label]})" if label < len(self.names) else f"class {label}"


@dataclasses.dataclass
class Example:
    """One input: a batch of one, and its pixels if it is an image."""

    words: str
    array: np.ndarray  # (1, ...)
    pixels: np.ndarray | None  # (H, W, C), uint8


def load_weights(model: Module, path: str | None, statistics: Statistics | None = None) -> Weights:
    """Load a checkpoint or a safetensors file into the model; None leaves the weights as they are.

    Pixels are scaled by the mean and std in the file, or else by `statistics`, those of the network's data set.

    Raises BadInputError if the file cannot be read or does not fit.
    """
    if path is None:
        return Weights("fresh, as the network was built")
    try:
        load_checkpoint(path, model)
        extra, counters = read_checkpoint(path, "extra/")
    except OSError as error:
        raise BadInputError(f"--weights: cannot read {path} ({error.strerror or error})") from error
    except ValueError as error:
        raise BadInputError(f"--weights: {error}") from error
    network = counters.get("network")
    names = network.get("names", ()) if isinstance(network, dict) else ()
    loaded = Weights(f"from {Path(path).name}", names=tuple(map(str, names)))
    if {"extra/mean", "extra/std"} <= extra.keys():
        scaling = "by the mean and the standard deviation in the file of the weights"
        return dataclasses.replace(loaded, scaling=scaling, mean=extra["extra/mean"], std=extra["extra/std"])
    if statistics is not None:
        scaling = "by torchvision's mean and standard deviation of ImageNet"
        return dataclasses.replace(loaded, scaling=scaling, mean=statistics[0], std=statistics[1])
    return loaded


def make_example(path: str | None, shape: Shape, weights: Weights) -> Example:
    """Return the image of a file, cut to the network's input, or else a drawn shape; random numbers for other inputs.

    Raises BadInputError if the file is no image, or the network takes none.
    """
    takes_images = len(shape) == 3 and shape[2] in (1, 3)
    if path is not None and not takes_images:
        raise BadInputError(
            f"--image: the network takes inputs of shape {shape}, not images (H, W, 3) or (H, W, 1); leave --image "
            "out, or pass --input-shape"
        )
    if not takes_images:
        numbers = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
        return Example("random numbers of mean 0 and variance 1", numbers, None)
    words, pixels = _drawn(shape) if path is None else _read(path, shape)
    try:
        return Example(words, normalize(pixels[None], weights.mean, weights.std), pixels)
    except ValueError as error:
        raise BadInputError(
            f"--weights: the mean image in the file does not fit inputs of shape {shape} ({error}); leave "
            "--input-shape out"
        ) from error


def _drawn(shape: Shape) -> tuple[str, np.ndarray]:
    height, width, channels = shape
    square, _ = draw_shape(SHAPES[5], max(height, width), np.random.default_rng(0))
    return f"a drawn {SHAPES[5]}", _cut(square, height, width, channels)


def _read(path: str, shape: Shape) -> tuple[str, np.ndarray]:
    height, width, channels = shape
    try:
        image = read_image(path, shorter_side=max(height, width))
    except OSError as error:
        raise BadInputError(f"--image: cannot read {path} ({error.strerror or error})") from error
    except BrokenImageError as error:
        raise BadInputError(f"--image: {path} is not an image that can be decoded ({error.__cause__})") from error
    return Path(path).name, _cut(np.asarray(image), height, width, channels)


def _cut(pixels: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    """The middle of an image; grey if there is one channel."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    pixels = pixels[top : top + height, left : left + width]
    grey = pixels.mean(axis=2, keepdims=True).round().astype(np.uint8)
    return np.ascontiguousarray(pixels if channels == 3 else grey)
