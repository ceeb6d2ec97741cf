"""Finds the network that a command of `minidl.study` is asked for."""

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from minidl.nn import Conv2d, Linear, Module

Shape = tuple[int, ...]  # of one input, without the batch
Statistics = tuple[np.ndarray, np.ndarray]  # mean and standard deviation of pixels in 0..255

# The networks of the two papers: name -> (module, function, arguments, input). They are in the repository's examples.
CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)
VGG = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
NETWORKS = {
    **{f"resnet{d}": ("models.resnet", "cifar_resnet", {"depth": d}, CIFAR) for d in (20, 32, 44, 56, 110, 1202)},
    **{f"resnet{d}": ("models.resnet", "imagenet_resnet", {"depth": d}, IMAGENET) for d in (18, 34, 50, 101, 152)},
    **{
        f"plain{d}": ("models.resnet", "cifar_resnet", {"depth": d, "shortcut": "none"}, CIFAR)
        for d in (20, 32, 44, 56, 110)
    },
    **{name: ("models.vgg", "vgg", {"config": config}, IMAGENET) for name, config in VGG.items()},
    **{
        f"{name}-bn": ("models.vgg", "vgg", {"config": config, "batch_norm": True}, IMAGENET)
        for name, config in VGG.items()
    },
}


class BadInputError(ValueError):
    """What the user gave cannot be used. The message says what was expected, what was found, and the remedy."""


@dataclasses.dataclass
class Network:
    """A network, with what is known of its input."""

    name: str  # as the user wrote it
    model: Module
    input_shape: Shape
    call: str  # the Python that built it
    statistics: Statistics | None = None  # of the images that published weights were trained on


def find_network(name: str, input_shape: Shape | None = None) -> Network:
    """Build the network called `name`: one of NETWORKS, MODULE:FUNCTION, or FILE.py:FUNCTION.

    Raises BadInputError if there is none, or if it cannot be built.
    """
    if ":" not in name:
        return _known_network(name, input_shape)
    place, _, function_name = name.rpartition(":")
    function = _function(_imported(place), place, function_name)
    model = _called(function, name)
    return Network(name, model, input_shape or _guessed_input(model, name), f"{function_name}()")


def _known_network(name: str, input_shape: Shape | None) -> Network:
    if name not in NETWORKS:
        raise BadInputError(
            f"there is no network {name!r}; known are {', '.join(NETWORKS)}; for one of your own write MODULE:FUNCTION "
            "(mynet:make) or FILE:FUNCTION (path/to/mynet.py:make)"
        )
    module, function, arguments, known_shape = NETWORKS[name]
    folders = [Path(inspect.getfile(Module)).parents[2] / "examples", Path.cwd() / "examples"]
    found = [folder for folder in folders if (folder / "models").is_dir()]
    if not found:
        raise BadInputError(
            f"{name} is one of the repository's examples, which are not installed with minidl; run this in a clone of "
            "the repository, or name a network of your own as MODULE:FUNCTION"
        )
    if str(found[0]) not in sys.path:
        sys.path.insert(0, str(found[0]))
    build = getattr(importlib.import_module(module), function)
    call = f"{function}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    config = importlib.import_module("models.config")
    statistics = (config.TORCHVISION_MEAN, config.TORCHVISION_STD) if known_shape == IMAGENET else None
    return Network(name, build(**arguments), input_shape or known_shape, call, statistics)


# -- MODULE:FUNCTION ---------------------------------------------------------------------------------------------------


def _imported(place: str) -> ModuleType:
    """Import a module by its name, with the current folder on the path, or by the path of its file."""
    is_file = place.endswith(".py") or "/" in place or "\\" in place
    if is_file and not Path(place).is_file():
        raise BadInputError(f"there is no file {place}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return _imported_file(Path(place)) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # whatever the user's file does
        remedy = f"run it in the folder of {place}.py, or pass the path of the file"
        missing = isinstance(error, ModuleNotFoundError) and error.name == place
        what = f"{type(error).__name__}: {error}"
        raise BadInputError(f"cannot import {place} ({what}); {remedy if missing else 'mend it first'}") from error


def _imported_file(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.resolve().parent))  # for the files beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _function(module: ModuleType, place: str, name: str) -> Callable:
    function = getattr(module, name, None)
    if not callable(function):
        others = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        has = f"it has {', '.join(others)}" if others else "it defines no function"
        raise BadInputError(f"{place} has no function {name!r}; {has}")
    try:
        inspect.signature(function).bind()
    except TypeError:
        raise BadInputError(
            f"expected a function that needs no arguments, got {name}{inspect.signature(function)} of {place}; write "
            f"one, such as: def make(): return {name}(...)"
        ) from None
    except ValueError:
        pass  # some built-in functions have no signature
    return function


def _called(function: Callable, name: str) -> Module:
    try:
        model = function()
    except (Exception, SystemExit) as error:
        raise BadInputError(f"{name} raised {type(error).__name__}: {error}; mend it first") from error
    if not isinstance(model, Module):
        raise BadInputError(
            f"expected {name} to return a minidl.nn.Module, got {type(model).__name__}; return the network"
        )
    return model


def _guessed_input(model: Module, name: str) -> Shape:
    """The shape of one input, from the first layer with weights: 32 x 32 pixels for a convolution."""
    for _, layer in model.named_modules():
        if isinstance(layer, Conv2d):
            return 32, 32, layer.weight.shape[2]
        if isinstance(layer, Linear):
            return layer.weight.layout.flattened_from or (layer.weight.shape[0],)
    raise BadInputError(
        f"the input of {name} is unknown, as it has no Conv2d and no Linear; pass --input-shape, such as 32x32x3"
    )
