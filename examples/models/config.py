"""What must be known of a network besides its weights: how it is built, its classes, how images come in.

The training scripts write it into the checkpoint, so a script that uses the network needs nothing but the file:

    model, config = load_network("runs/latest/checkpoint.safetensors")
    view = config.view()                                        a photograph's path -> what the network is shown
    config.classes[model(Tensor(view(path)[None])).argmax(dim=1).item()]
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minidl.checkpoint import load_checkpoint, read_checkpoint
from minidl.data import CentreView, read_names
from minidl.nn import Module
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
        builder: the function that builds it, a key of BUILDERS.
        arguments: of that function.
        classes: what people call the classes, in the order of the logits.
        shorter_side: of a photograph, in pixels, when its middle is cut out.
        size: of what is cut out.
        mean: what is subtracted from pixels in 0..255: (3,) or (size, size, 3).
        std: what the rest is divided by: (3,) or a number.
    """

    builder: str
    arguments: dict
    classes: tuple[str, ...]
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
    arrays, counters = read_checkpoint(path)
    if "network" not in counters:
        return None
    fields = counters["network"] | {"mean": arrays["extra/mean"], "std": arrays["extra/std"]}
    return NetworkConfig(**fields | {"classes": tuple(fields["classes"])})  # JSON made a list of it


def torchvision_config(model: str, weights: str | Path, names: str | Path | None = None) -> NetworkConfig:
    """For weights of a network in IMAGENET_MODELS that do not say more: images as torchvision's networks want them.

    `names` is a file as for `minidl.data.read_names`, with a line for each class, in the order of their WordNet ids.
    """
    builder, arguments = IMAGENET_MODELS[model]
    arrays, _ = read_checkpoint(weights)
    last = "classifier.6.bias" if builder == "vgg" else "fc.bias"
    if last not in arrays:
        raise ValueError(f"--model {model}: {weights} holds no such network, as there is no {last} in it")
    count = len(arrays[last])
    classes = tuple(f"class {number}" for number in range(count))
    if names is not None:
        classes = tuple(name for _, name in sorted(read_names(names).items()))
    if len(classes) != count:
        raise ValueError(f"--names: expected {count} classes as in {weights}, got {len(classes)} in {names}")
    arguments = arguments | {"num_classes": count}
    return NetworkConfig(builder, arguments, classes, 256, 224, TORCHVISION_MEAN, TORCHVISION_STD)


def load_network(path: str | Path, otherwise: NetworkConfig | None = None) -> tuple[Module, NetworkConfig]:
    """The network with its weights, in evaluation mode, and its config; `otherwise` is for files that have none."""
    config = read_config(path) or otherwise
    if config is None:
        raise ValueError(f"load_network: {path} does not say which network it is for; name it with --model")
    model = config.build()
    load_checkpoint(path, model)
    return model.eval(), config
