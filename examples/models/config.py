"""The description of a network that checkpoints carry: how to build it, its classes, how to prepare images for it.

The training scripts save it in the checkpoint, so that the file alone is enough to use the network:

    model, config = load_network("runs/latest/checkpoint.safetensors")       see models/weights.py
    view = config.view()                                        path of a photograph -> input array of the network
    config.names[model(Tensor(view(path)[None])).argmax(dim=1).item()]
"""

import re
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path

import numpy as np

from minidl.data import CentreView, read_names
from minidl.nn import Module
from minidl.training.checkpoint import read_checkpoint
from models.resnet import IMAGENET_BLOCKS, cifar_resnet, imagenet_resnet
from models.resnet_variants import (
    SHORTCUT_KINDS,
    cifar_se_resnet,
    cifar_shortcut_resnet,
    imagenet_se_resnet,
    preact_resnet,
    stochastic_resnet,
    wide_resnet,
)
from models.speedrun import speedrun
from models.vgg import CONFIGS, vgg

BUILDERS = {builder.__name__: builder for builder in (cifar_resnet, imagenet_resnet, speedrun, vgg)}
VARIANTS = cifar_shortcut_resnet, stochastic_resnet, cifar_se_resnet, preact_resnet, wide_resnet, imagenet_se_resnet
BUILDERS |= {builder.__name__: builder for builder in VARIANTS}  # of the papers that followed

# The networks for photographs: name -> (builder, arguments).
IMAGENET_MODELS = {
    **{f"vgg-{config}": ("vgg", {"config": config}) for config in CONFIGS},
    **{f"vgg-{config}-bn": ("vgg", {"config": config, "batch_norm": True}) for config in CONFIGS},
    **{f"resnet{depth}": ("imagenet_resnet", {"depth": depth}) for depth in IMAGENET_BLOCKS},
    **{f"plain{depth}": ("imagenet_resnet", {"depth": depth, "shortcut": "none"}) for depth in IMAGENET_BLOCKS},
    **{f"se-resnet{depth}": ("imagenet_se_resnet", {"depth": depth}) for depth in (50, 101, 152)},
}

# The networks for 32x32 images: family -> (builder, arguments). Names add the depth, and the width of a wide network.
CIFAR_FAMILIES = {
    "resnet": ("cifar_resnet", {}),
    "plain": ("cifar_resnet", {"shortcut": "none"}),
    **{kind: ("cifar_shortcut_resnet", {"kind": kind}) for kind in SHORTCUT_KINDS},
    "stochastic": ("stochastic_resnet", {}),
    "se-resnet": ("cifar_se_resnet", {}),
    "preact": ("preact_resnet", {}),
    "se-preact": ("preact_resnet", {"se": True}),
    "wrn": ("wide_resnet", {}),
    "se-wrn": ("wide_resnet", {"se": True}),
}

# The largest numbers in a network's description: ResNet-1202 is the deepest network, ImageNet-21k has 21,841 classes.
LARGEST_DEPTH = 1202
LARGEST_SIZE = 2**15

# The normalisation of torchvision's networks, for pixels in 0..255.
TORCHVISION_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
TORCHVISION_STD = np.array([58.395, 57.12, 57.375], np.float32)


def cifar_model(name: str) -> tuple[str, dict]:
    """The (builder, arguments) of a network for 32x32 images: 'resnet-20', 'preact-110', 'se-preact-164', 'wrn-28-10'.

    Raises a ValueError if the name is not FAMILY-DEPTH, or FAMILY-DEPTH-WIDTH for the wide networks.
    """
    found = re.fullmatch(r"(.+?)-(\d+)(?:-(\d+))?", name, re.ASCII)
    family, depth, width = found.groups() if found else (name, None, None)
    is_wide = family.endswith("wrn")
    if family not in CIFAR_FAMILIES or depth is None or is_wide != (width is not None):
        expected = ", ".join(f"{family}-DEPTH{'-WIDTH' * family.endswith('wrn')}" for family in CIFAR_FAMILIES)
        raise ValueError(f"--model: expected {expected}, got {name}")
    builder, arguments = CIFAR_FAMILIES[family]
    return builder, arguments | {"depth": int(depth)} | ({"width": int(width)} if is_wide else {})


@dataclass(frozen=True)
class NetworkConfig:
    """The description of a network.

    Attributes:
        name: display name, such as 'resnet50' or 'vgg-D'.
        builder: name of the function that builds the network, a key of BUILDERS.
        arguments: keyword arguments of that function.
        names: readable class names, in the order of the logits.
        classes: names of the class folders (WordNet ids for ImageNet); None if unknown.
        shorter_side: shorter side of a photograph, in pixels, to which it is scaled before the centre crop.
        size: side of the centre crop in pixels.
        mean: subtracted from pixels in 0..255: (3,) or (size, size, 3).
        std: divides the difference: (3,) or a number.
    """

    name: str
    builder: str
    arguments: dict
    names: tuple[str, ...]
    classes: tuple[str, ...] | None
    shorter_side: int
    size: int
    mean: np.ndarray
    std: np.ndarray | float = 1.0

    def build(self, **options) -> Module:
        """Build the untrained network. `options` are `seed` and `recompute`, which do not change parameter shapes."""
        return BUILDERS[self.builder](**self.arguments, **options)

    def with_names(self, path: str | Path) -> "NetworkConfig":
        """The config with the classes in a file for `minidl.data.read_names`, sorted by WordNet id."""
        name_of = dict(sorted(read_names(path).items()))
        if len(name_of) != len(self.names):
            raise ValueError(
                f"--names: expected {len(self.names)} classes of {self.name}, got {len(name_of)} in {path}"
            )
        return replace(self, names=tuple(name_of.values()), classes=tuple(name_of))

    def view(self) -> CentreView:
        """The transform from a photograph's path to the network's input: scale, centre crop, normalise."""
        return CentreView(self.shorter_side, self.size, self.mean, self.std)

    def to_json(self) -> dict:
        """All attributes except `mean` and `std`, which are arrays."""
        return {name: value for name, value in asdict(self).items() if name not in ("mean", "std")}

    def arrays(self) -> dict[str, np.ndarray]:
        """`mean` and `std` as float32 arrays."""
        return {"mean": np.float32(self.mean), "std": np.float32(self.std)}


def read_config(path: str | Path) -> NetworkConfig | None:
    """Read the description of the network from a checkpoint; None if the file has none."""
    arrays, counters = read_checkpoint(path, "extra/")
    if "network" not in counters:
        return None
    try:
        items = counters["network"].items()
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in items}
        config = NetworkConfig(**fields, mean=arrays["extra/mean"], std=arrays["extra/std"])
        arguments = signature(BUILDERS[config.builder]).bind(**config.arguments)
        arguments.apply_defaults()
        classes = arguments.arguments["num_classes"]
        if len(config.names) != classes:  # checked before building a network with 10^9 classes
            raise ValueError(f"{len(config.names)} names for {classes} classes")
        check_config(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    return config


def check_config(config: NetworkConfig) -> None:
    """Raise TypeError or ValueError for a description from a file that is wrong, or whose network has no end."""
    if not all(isinstance(name, str) for name in (config.name, *config.names, *(config.classes or ()))):
        raise TypeError("expected names that are text")
    sizes = {"shorter_side": config.shorter_side, "size": config.size}
    sizes |= {name: value for name, value in config.arguments.items() if type(value) in (int, float)}
    for name, value in sizes.items():
        largest = LARGEST_DEPTH if name == "depth" else LARGEST_SIZE
        if type(value) is not int or not 0 <= value <= largest:
            raise ValueError(f"expected {name} in 0..{largest}, got {value!r}")
    for name, least in (("mean", -np.inf), ("std", 0)):
        values = np.asarray(getattr(config, name))
        if values.shape not in ((), (3,), (config.size, config.size, 3)):
            raise ValueError(f"expected {name} of shape (3,), got {values.shape}")
        if not (np.isfinite(values).all() and (values > least).all()):
            raise ValueError(f"expected finite numbers{' > 0' if name == 'std' else ''} as {name}, got others")
    config.view()  # checks that the crop is not larger than the photograph


def check_variant(path: str | Path, config: NetworkConfig) -> None:
    """Raise a ValueError if the weights are for the other variant of bottleneck blocks, which has the same shapes.

    A file without a description is assumed to come from torchvision.
    """
    is_resnet = config.builder in ("imagenet_resnet", "imagenet_se_resnet")
    if not is_resnet or IMAGENET_BLOCKS[config.arguments["depth"]][0] != "bottleneck":
        return
    saved, expected = read_config(path), config.arguments.get("variant", "torchvision")
    variant = "torchvision" if saved is None else saved.arguments.get("variant", "torchvision")
    if variant != expected:
        got = (
            "which has no description and is assumed to be torchvision's"
            if saved is None
            else f"of variant {variant!r}"
        )
        raise ValueError(
            f"load_network: expected weights of variant {expected!r}, got {path}, {got}; the two have their strides "
            f"in different layers (see models/resnet.py): pass --variant {variant}"
        )


def damaged(path: str | Path, error: Exception) -> ValueError:
    """The error for a description that no network has."""
    what = f"{type(error).__name__}: {error}"
    return ValueError(f"load_network: the network description in {path} is damaged ({what}); use an earlier file")


def torchvision_config(model: str, weights: str | Path) -> NetworkConfig:
    """The config for torchvision's weights of a network in IMAGENET_MODELS."""
    last = "classifier.6.bias" if model.startswith("vgg") else "fc.bias"
    arrays, _ = read_checkpoint(weights, last)
    if last not in arrays:
        raise ValueError(f"--model {model}: expected weights of this network, got {weights}, which has no {last}")
    return standard_config(model, len(arrays[last]))


def standard_config(model: str, num_classes: int = 1000) -> NetworkConfig:
    """The config of a network in IMAGENET_MODELS with torchvision's normalisation and numbered class names."""
    builder, arguments = IMAGENET_MODELS[model]
    names = tuple(f"class {number}" for number in range(num_classes))
    arguments = arguments | {"num_classes": num_classes}
    return NetworkConfig(model, builder, arguments, names, None, 256, 224, TORCHVISION_MEAN, TORCHVISION_STD)
