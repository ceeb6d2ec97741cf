"""VGG, configurations A to E (Simonyan and Zisserman 2014, arXiv 1409.1556, table 1).

    config   layers   parameters    with batch-norm   top-5 error in the paper (table 3, best single scale)
    A            11   132,863,336       132,868,840   10.4 %
    A-LRN        11   132,863,336                 -   10.5 %
    B            13   133,047,848       133,053,736    9.9 %
    C            16   133,638,952       133,647,400    8.8 %
    D            16   138,357,544       138,365,992    8.1 %
    E            19   143,667,240       143,678,248    8.0 %

Modules have the same names as in torchvision. Images are (N, H, W, 3).
"""

import math

import numpy as np

from minidl import Tensor, fork_rng
from minidl.functional import conv2d, global_avg_pool
from minidl.nn import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)

# n is a 3x3 convolution with n channels, "1x1-n" a 1x1 convolution with n channels, "LRN" local response normalisation,
# "M" a 2x2 max-pool.
CONFIGS = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "A-LRN": [64, "LRN", "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "C": [64, 64, "M", 128, 128, "M", 256, 256, "1x1-256", "M", 512, 512, "1x1-512", "M", 512, 512, "1x1-512", "M"],
    "D": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "E": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}


class VGG(Module):
    """Convolutions and pooling (`features`), then fully connected layers (`classifier`)."""

    def __init__(self, features: Sequential, classifier: Sequential):
        self.features = features
        self.flatten = Flatten()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, num_classes)."""
        return self.classifier(self.flatten(self.features(x)))


class DenseVGG(Module):
    """A VGG for images of any size: its fully connected layers run as convolutions (section 3.2, "dense" evaluation).

    The first of them takes side x side pixels of 512 channels, so its weight becomes a side x side kernel. The others
    become 1x1 convolutions. The class scores are averaged over all positions. The parameters are shared with the VGG.
    """

    def __init__(self, network: VGG):
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, num_classes)."""
        return global_avg_pool(self.places(x))

    def places(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, rows, columns, num_classes): the scores at each position (one for the VGG's own size)."""
        x = self.network.features(x)
        for layer in self.network.classifier.modules:
            x = convolve(layer, x) if isinstance(layer, Linear) else layer(x)
        return x


def convolve(layer: Linear, x: Tensor) -> Tensor:
    """Apply a linear layer at each position of (N, H, W, C): its weight (side^2 C, O) becomes a side x side kernel."""
    inputs, outputs = layer.weight.shape
    side = math.isqrt(inputs // x.shape[3])
    return conv2d(x, layer.weight.reshape(side, side, x.shape[3], outputs), layer.bias)


def convolution(in_channels: int, entry: int | str, batch_norm: bool) -> list[Module]:
    """The layers for one convolution entry of a configuration."""
    kernel_size, channels = (1, int(entry[4:])) if isinstance(entry, str) else (3, entry)
    conv = Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2)
    return [conv, BatchNorm2d(channels), ReLU()] if batch_norm else [conv, ReLU()]


def make_features(config: list[int | str], batch_norm: bool) -> Sequential:
    """The convolution and pooling layers of a configuration."""
    layers, channels = [], 3
    for entry in config:
        if entry == "M":
            layers.append(MaxPool2d(2))
        elif entry == "LRN":
            layers.append(LocalResponseNorm())
        else:
            conv, *others = convolution(channels, entry, batch_norm)
            layers += [conv, *others]
            channels = conv.weight.shape[-1]
    return Sequential(*layers)


def make_classifier(side: int, num_classes: int) -> Sequential:
    """The three fully connected layers, for features of side x side pixels."""
    return Sequential(
        Linear(side * side * 512, 4096, flattened_from=(side, side, 512)),
        ReLU(),
        Dropout(0.5),
        Linear(4096, 4096),
        ReLU(),
        Dropout(0.5),
        Linear(4096, num_classes),
    )


def make_small_classifier(num_classes: int) -> Sequential:
    """Dropout and one linear layer, for 32x32 images, whose features are a single pixel."""
    return Sequential(Dropout(0.5), Linear(512, num_classes))


A_CONVOLUTIONS = "features.0", "features.3", "features.6", "features.8"  # the first four of net A
CLASSIFIER = "classifier.0", "classifier.3", "classifier.6"


def start_from_a(network: VGG, weights: dict[str, np.ndarray]) -> None:
    """Initialise a deeper net with the first four convolutions and the fully connected layers of net A (section 3.1).

    The paper does not say into which layers the convolutions go. They fit where the channels agree: the first
    convolution of stages 1 and 2, and the first two of stage 3.
    """
    missing = [name for name in (*A_CONVOLUTIONS, *CLASSIFIER) if f"{name}.weight" not in weights]
    if missing:
        raise ValueError(f"start_from_a: expected the weights of VGG-A, got none of its layer {missing[0]}")
    state = network.state_dict()
    free = [name for name, layer in network.named_modules() if isinstance(layer, Conv2d)]
    targets = {name: name for name in CLASSIFIER}
    for name in A_CONVOLUTIONS:
        shape = weights[f"{name}.weight"].shape
        fitting = [target for target in free if state[f"{target}.weight"].shape == shape]
        if not fitting:
            raise ValueError(f"start_from_a: no convolution fits {name} of the weights, {shape}; pass those of VGG-A")
        targets[name] = fitting[0]
        free.remove(fitting[0])
    for name, target in targets.items():
        state |= {f"{target}.{part}": weights[f"{name}.{part}"] for part in ("weight", "bias")}
    network.load_state_dict(state)


def vgg(config: str, batch_norm: bool = False, num_classes: int = 1000, image_size: int = 224, seed: int = 0) -> VGG:
    """Build the network of one column of table 1: config 'A', 'A-LRN', 'B', 'C', 'D' (VGG-16) or 'E' (VGG-19).

    With image_size 32 to 63 the features are a single pixel, and one small linear layer replaces the three large ones.
    """
    if config not in CONFIGS:
        raise ValueError(f"vgg: expected config {', '.join(CONFIGS)}, got {config!r}")
    if image_size < 32:
        raise ValueError(f"vgg: expected image_size >= 32, as five poolings halve it, got {image_size}")
    with fork_rng(seed):
        features = make_features(CONFIGS[config], batch_norm)
        side = image_size // 32
        classifier = make_small_classifier(num_classes) if side == 1 else make_classifier(side, num_classes)
        return VGG(features, classifier)
