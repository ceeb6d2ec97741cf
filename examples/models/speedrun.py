"""The network of "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (Jordan 2024, arXiv 2404.00498), called airbench94.

Eight layers for 32x32 images, 1,972,792 parameters. Seven are convolutions, in the style of VGG:

    whiten    2x2, 24 channels, of which only the bias is learned; GELU                32x32 -> 31x31
    groups    three groups of 3x3, 64, 256 and 256 channels: see `ConvGroup`           -> 15x15 -> 7x7 -> 3x3
    head      max-pool 3x3, and a linear layer whose logits are divided by 9           -> classes

The numbers are those of airbench94.py in the author's repository, github.com/KellerJordan/cifar10-airbench, at commit
f1c599c ("legacy/airbench94.py"). Images are (N, 32, 32, 3).
"""

import math
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minidl import Tensor, fork_rng
from minidl.nn import GELU, BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, Module, init

WIDTHS = 64, 256, 256  # channels of the three groups
WHITENING_SIZE = 2  # side of the patches that the first layer whitens
WHITENING_EPS = 5e-4  # added to their variances
LOGIT_SCALE = 1 / 9
# Batch-norm keeps 0.6 of its running statistics in each step. In PyTorch's convention, and ours, that is momentum 0.4.
NORM_MOMENTUM, NORM_EPS = 0.4, 1e-12


class ConvGroup(Module):
    """conv, max-pool, batch-norm, GELU, conv, batch-norm, GELU: (N, H, W, in) -> (N, H // 2, W // 2, out).

    The pooling comes directly after the convolution, so that batch-norm and GELU have a quarter of the work.
    """

    def __init__(self, in_channels: int, out_channels: int):
        self.conv1 = dirac_conv(in_channels, out_channels)
        self.pool = MaxPool2d(2)
        self.norm1 = norm(out_channels)
        self.conv2 = dirac_conv(out_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.activ = GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H // 2, W // 2, out_channels)."""
        x = self.activ(self.norm1(self.pool(self.conv1(x))))
        return self.activ(self.norm2(self.conv2(x)))


class SpeedrunNet(Module):
    """The network. Call `whiten` with training images before it is trained."""

    def __init__(self, num_classes: int):
        channels = 2 * WHITENING_SIZE**2 * 3
        self.whitening = Conv2d(3, channels, WHITENING_SIZE)
        self.whitening.weight.requires_grad = False
        self.activ = GELU()
        self.groups = [ConvGroup(*pair) for pair in pairwise((channels, *WIDTHS))]
        self.pool, self.flatten = MaxPool2d(3), Flatten()
        self.head = Linear(WIDTHS[-1], num_classes, bias=False)
        self.head.weight.data[...] = init.uniform(self.head.weight.shape, 1 / math.sqrt(WIDTHS[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 32, 32, 3) -> (N, num_classes)."""
        x = self.activ(self.whitening(x))
        for group in self.groups:
            x = group(x)
        return self.head(self.flatten(self.pool(x))) * LOGIT_SCALE

    def whiten(self, images: np.ndarray) -> None:
        """Set the weight of the first layer, for normalised training images (N, H, W, 3): see `whitening_weight`."""
        weight = self.whitening.weight
        weight.data[...] = Tensor(whitening_weight(images), device=weight.device).data


def dirac_conv(in_channels: int, out_channels: int) -> Conv2d:
    """A 3x3 convolution without bias that starts as the identity (Zagoruyko, Komodakis 2017, "DiracNets").

    Output channel i shows input channel i, as far as there are that many. The other outputs start as PyTorch's do,
    uniform with the bound 1 / sqrt(fan_in).
    """
    layer = Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    weight = init.uniform(layer.weight.shape, 1 / math.sqrt(9 * in_channels))
    same = np.arange(min(in_channels, out_channels))
    weight[:, :, :, same] = 0
    weight[1, 1, same, same] = 1
    layer.weight.data[...] = weight
    return layer


def norm(channels: int) -> BatchNorm2d:
    """Batch-norm that learns its bias, but not its weight, which stays 1."""
    layer = BatchNorm2d(channels, NORM_EPS, NORM_MOMENTUM)
    layer.weight.requires_grad = False
    return layer


def whitening_weight(images: np.ndarray, size: int = WHITENING_SIZE, eps: float = WHITENING_EPS) -> np.ndarray:
    """The weight (size, size, C, 2 D) of a convolution that whitens size x size patches of the images, D = size^2 C.

    Output i < D is the patch's component along eigenvector i of the patches' second moments E[p p^T], divided by
    sqrt(eigenvalue + eps). Over all patches these outputs are uncorrelated and have a mean square of nearly 1.
    The outputs after D are the same with the other sign, as a GELU keeps one sign only. Page 2019, "How to train your
    ResNet 8: bag of tricks".
    """
    patches = sliding_window_view(images, (size, size), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)  # (N, ., ., KH, KW, C)
    moments, count = 0.0, 0
    for part in np.array_split(patches, -(-len(images) // 256)):  # 256 images are 12 MB of patches
        rows = part.reshape(-1, size * size * images.shape[3]).astype(np.float64)
        moments, count = moments + rows.T @ rows, count + len(rows)
    eigenvalues, eigenvectors = np.linalg.eigh(moments / count)  # ascending; the eigenvectors are columns
    filters = (eigenvectors / np.sqrt(eigenvalues + eps))[:, ::-1]
    both = np.concatenate([filters, -filters], axis=1)
    return both.reshape(size, size, images.shape[3], -1).astype(np.float32)


def speedrun(num_classes: int = 10, seed: int = 0) -> SpeedrunNet:
    """Build the network, with a first layer that is not yet whitening: see `SpeedrunNet.whiten`."""
    with fork_rng(seed):
        return SpeedrunNet(num_classes)
