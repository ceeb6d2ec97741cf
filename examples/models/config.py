"""What must be known of a network besides its weights: how it is built, its classes, how images come in.

The training scripts write it into the checkpoint, so a script that uses the network needs nothing but the file:

    model, config = load_network("runs/latest/checkpoint.safetensors")
    view = config.view()                                        a photograph's path -> what the network is shown
    config.names[model(Tensor(view(path)[None])).argmax(dim=1).item()]
"""

from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path

import numpy as np

from minidl.data import CentreView, read_names
from minidl.nn import Module
from minidl.training.checkpoint import load_checkpoint, read_checkpoint
from models.resnet import IMAGENET_BLOCKS, cifar_resnet, imagenet_resnet
from models.vgg import CONFIGS, vgg

BUILDERS = {builder.__name__: builder for builder in (cifar_resnet, imagenet_resnet, vgg)}

# The networks of the two papers by the names that scripts take: how each is built.
IMAGENET_MODELS = {
    **{f"vgg-{config}": ("vgg", {"config": config}) for config in CONFIGS},
    **{f"vgg-{config}-bn": ("vgg", {"config": config, "batch_norm": True}) for config in CONFIGS},
    **{f"resnet{depth}": ("imagenet_resnet", {"depth": depth}) for depth in IMAGENET_BLOCKS},
    **{f"plain{depth}": ("imagenet_resnet", {"depth": depth, "shortcut": "none"}) for depth in IMAGENET_BLOCKS},
}

# What files of weights from torchvision expect of the images, in 0..255.
TORCHVISION_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
TORCHVISION_STD = np.array([58.395, 57.12, 57.375], np.float32)


@dataclass(frozen=True)
class NetworkConfig:
    """The network that a file of weights is for.

    Attributes:
        name: of the network, for people: resnet50, vgg-D.
        builder: the function that builds it, a key of BUILDERS.
        arguments: of that function.
        names: what people call the classes, in the order of the logits.
        classes: the names of their folders, WordNet ids for ImageNet; None where the file of weights does not tell.
        shorter_side: of a photograph, in pixels, when its middle is cut out.
        size: of what is cut out.
        mean: what is subtracted from pixels in 0..255: (3,) or (size, size, 3).
        std: what the rest is divided by: (3,) or a number.
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
        """The network before training; options that leave its parameters' shapes as they are: `seed`, `recompute`."""
        return BUILDERS[self.builder](**self.arguments, **options)

    def view(self) -> CentreView:
        """The middle of a photograph as the network expects it."""
        return CentreView(self.shorter_side, self.size, self.mean, self.std)

    def to_json(self) -> dict:
        """All but the mean and the standard deviation, which are arrays."""
        return {name: value for name, value in asdict(self).items() if name not in ("mean", "std")}

    def arrays(self) -> dict[str, np.ndarray]:
        """The mean and the standard deviation."""
        return {"mean": np.float32(self.mean), "std": np.float32(self.std)}


def read_config(path: str | Path) -> NetworkConfig | None:
    """What a checkpoint says of its network; None for weights from elsewhere."""
    arrays, counters = read_checkpoint(path, "extra/")
    if "network" not in counters:
        return None
    try:
        note = counters["network"].items()
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in note}
        config = NetworkConfig(**fields, mean=arrays["extra/mean"], std=arrays["extra/std"])
        arguments = signature(BUILDERS[config.builder]).bind(**config.arguments)
        arguments.apply_defaults()
        classes = arguments.arguments["num_classes"]
        if len(config.names) != classes:  # before a network for a thousand million classes is built
            raise ValueError(f"{len(config.names)} names for {classes} classes")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    return config


def check_variant(path: str | Path, config: NetworkConfig) -> None:
    """A ValueError if the weights are for the other variant of bottleneck blocks, which have the same shapes.

    A file that does not say what it holds is taken for torchvision's.
    """
    if config.builder != "imagenet_resnet" or IMAGENET_BLOCKS[config.arguments["depth"]][0] != "bottleneck":
        return
    note, expected = read_config(path), config.arguments.get("variant", "torchvision")
    variant = "torchvision" if note is None else note.arguments.get("variant", "torchvision")
    if variant != expected:
        got = (
            "which does not say its variant and is taken for torchvision's"
            if note is None
            else f"of variant {variant!r}"
        )
        raise ValueError(
            f"load_network: expected weights of variant {expected!r}, got {path}, {got}; the two have their strides in "
            f"different places (see models/resnet.py): pass --variant {variant}"
        )


def _damaged(path: str | Path, error: Exception) -> ValueError:
    what = f"{type(error).__name__}: {error}"
    return ValueError(f"load_network: {path}: what it says of its network is damaged ({what}); use an earlier file")


def torchvision_config(model: str, weights: str | Path, names: str | Path | None = None) -> NetworkConfig:
    """For weights of a network in IMAGENET_MODELS that do not say more: images as torchvision's networks want them.

    `names` is a file as for `minidl.data.read_names`, with a line for each class, in the order of their WordNet ids.
    """
    last = "classifier.6.bias" if model.startswith("vgg") else "fc.bias"
    arrays, _ = read_checkpoint(weights, last)
    if last not in arrays:
        raise ValueError(f"--model {model}: {weights} holds no such network, as there is no {last} in it")
    config = standard_config(model, len(arrays[last]))
    if names is None:
        return config
    name_of = dict(sorted(read_names(names).items()))
    if len(name_of) != len(config.names):
        raise ValueError(
            f"--names: expected {len(config.names)} classes as in {weights}, got {len(name_of)} in {names}"
        )
    return replace(config, names=tuple(name_of.values()), classes=tuple(name_of))


def standard_config(model: str, num_classes: int = 1000) -> NetworkConfig:
    """A network of IMAGENET_MODELS without names of classes, with torchvision's normalisation of images."""
    builder, arguments = IMAGENET_MODELS[model]
    names = tuple(f"class {number}" for number in range(num_classes))
    arguments = arguments | {"num_classes": num_classes}
    return NetworkConfig(model, builder, arguments, names, None, 256, 224, TORCHVISION_MEAN, TORCHVISION_STD)


def load_network(path: str | Path, otherwise: NetworkConfig | None = None) -> tuple[Module, NetworkConfig]:
    """The network with its weights, in evaluation mode, and its config; `otherwise` is for files that have none."""
    config = read_config(path) or otherwise
    if config is None:
        raise ValueError(f"load_network: {path} does not say which network it is for; name it with --model")
    try:
        model = config.build()
    except (TypeError, ValueError) as error:
        if config is otherwise:
            raise
        raise _damaged(path, error) from error
    check_variant(path, config)
    load_checkpoint(path, model)
    return model.eval(), config
