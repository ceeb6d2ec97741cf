"""The network that is looked at: it takes pixels in 0..1, and its layers are known by name, size and order."""

import numpy as np

from minidl import Tensor, no_grad, watch
from minidl.nn import Conv2d, Module


class UnsuitedError(ValueError):
    """The network lacks the layers that a method needs."""


class OnPixels(Module):
    """A trained network that takes pixels p in 0..1: it computes network((255 p - mean) / std).

    The network is put into evaluation mode, and its parameters are frozen: only the image has a gradient. The layers
    keep the names that they have in the network.

    Args:
        network: takes normalised images.
        mean: subtracted from pixels in 0..255: (3,), or (H, W, 3) for images of that size.
        std: divides the difference: (3,) or a number.
    """

    def __init__(self, network: Module, mean: np.ndarray, std: np.ndarray | float):
        self.network = network.eval()
        self.mean, self.std = Tensor(np.float32(mean)), Tensor(np.float32(std))
        self.training = False
        for parameter in network.parameters():
            parameter.requires_grad = False

    def children(self):
        """The layers of the network, so that a layer is "layer1" here too and not "network.layer1"."""
        return self.network.children()

    def forward(self, images: Tensor) -> Tensor:
        """Pixels (N, H, W, 3) in 0..1 -> logits (N, classes)."""
        return self.network((images * 255 - self.mean) / self.std)


def feature_maps(model: Module, images: np.ndarray) -> dict[str, tuple[int, int, int]]:
    """The (H, W, C) of each layer's output, in the order of computation. Layers without pixels are left out."""
    names = [name for name, _ in model.named_modules() if name]
    with no_grad(), watch(model, *names) as outputs:
        model(Tensor(images))
    return {name: output.shape[1:] for name, output in outputs.items() if output.ndim == 4}


def last_of_each_size(maps: dict[str, tuple[int, int, int]]) -> list[str]:
    """The last layer at each image size, the largest size first: layer1, layer2 and layer3 of a CIFAR ResNet."""
    return list({shape[:2]: name for name, shape in maps.items()}.values())


def layers_of_style(maps: dict[str, tuple[int, int, int]]) -> list[str]:
    """Four layers of the first half of the network, at equal distances, beginning with the second layer.

    Gatys et al. take five layers of VGG-19 by hand. What the second layer computes keeps the colours of the style.
    """
    names = list(maps)
    return [names[min(1 + len(names) * i // 8, len(names) - 1)] for i in range(4)]


def last_convolution(model: Module, maps: dict[str, tuple[int, int, int]]) -> str:
    """The layer whose output Grad-CAM weights: the last one that has as many pixels as the last convolution.

    This is the last residual block, or the ReLU after the last convolution of a VGG.
    """
    layers = dict(model.named_modules())
    convolutions = [name for name in maps if isinstance(layers[name], Conv2d)]
    if not convolutions:
        raise UnsuitedError("gradcam: expected a network with a convolution, got one without; choose other methods")
    size = maps[convolutions[-1]][:2]
    return [name for name, shape in maps.items() if shape[:2] == size][-1]
