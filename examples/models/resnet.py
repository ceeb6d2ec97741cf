"""Residual networks and their plain counterparts (He, Zhang, Ren, Sun 2015, arXiv 1512.03385).

CIFAR (section 4.2), depth 6n + 2, option A          ImageNet (table 1), option B

    depth   parameters   error in the paper              depth   parameters   blocks of the four stages
       20      269,722   8.75 %                             18   11,689,512   2, 2,  2, 2  basic
       32      464,154   7.51 %                             34   21,797,672   3, 4,  6, 3  basic
       44      658,586   7.17 %                             50   25,557,032   3, 4,  6, 3  bottleneck
       56      853,018   6.97 %                            101   44,549,160   3, 4, 23, 3  bottleneck
      110    1,727,962   6.43 %                            152   60,192,808   3, 8, 36, 3  bottleneck
     1202   19,421,274   7.93 %

Modules have the same names as in torchvision. Images are (N, H, W, 3).
"""

import functools
import math
from collections.abc import Callable

from minidl import Tensor, fork_rng, recompute
from minidl.functional import pad_channels, relu
from minidl.nn import BatchNorm2d, Conv2d, GlobalAvgPool, Linear, MaxPool2d, Module, Sequential

IMAGENET_BLOCKS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


class PaddedShortcut(Module):
    """Option A: subsample the pixels by `stride` and pad the new channels with zeros. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        self.new_channels, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, out_channels)."""
        return pad_channels(x[:, :: self.stride, :: self.stride], 0, self.new_channels)


class ProjectionShortcut(Sequential):
    """Options B and C: a 1x1 convolution and batch-norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels))


def make_shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> Module | None:
    """The module on the shortcut of a block, or None for the identity: section 3.3 and table 3 of the paper."""
    grows = stride != 1 or in_channels != out_channels
    if option == "none":
        return None
    if option == "A":
        return PaddedShortcut(in_channels, out_channels, stride) if grows else None
    if option == "B":
        return ProjectionShortcut(in_channels, out_channels, stride) if grows else None
    if option == "C":
        return ProjectionShortcut(in_channels, out_channels, stride)
    raise ValueError(f"resnet: expected shortcut 'A', 'B', 'C' or 'none', got {option!r}")


class Block(Module):
    """Base class of residual blocks, relu(F(x) + shortcut(x)). Subclasses define F."""

    expansion = 1  # a block has channels * expansion outputs
    downsample: Module | None  # torchvision's name for a shortcut that is not the identity

    def shortcut(self, x: Tensor) -> Tensor:
        """The term that is added to F(x)."""
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(Block):
    """F = 3x3 convolution, 3x3 convolution (figure 5, left)."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str):
        self.conv1 = Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.downsample = make_shortcut(shortcut, in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        y = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(Block):
    """F = 1x1 convolution to fewer channels, 3x3, 1x1 to four times as many (figure 5, right).

    The paper has the stride in the first 1x1, torchvision in the 3x3, which is slightly more accurate and slower.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str, variant: str):
        strides = (stride, 1) if variant == "he2015" else (1, stride)
        self.conv1 = Conv2d(in_channels, channels, 1, strides[0], bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, strides[1], padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.conv3 = Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = BatchNorm2d(4 * channels)
        self.downsample = make_shortcut(shortcut, in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, 4 channels)."""
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        return relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class PlainBasicBlock(BasicBlock):
    """relu(F(x)), without a shortcut: the block of a plain network."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        y = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(y)))


class PlainBottleneck(Bottleneck):
    """relu(F(x)), without a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, 4 channels)."""
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        return relu(self.bn3(self.conv3(y)))


MakeBlock = Callable[[int, int, int], Block]


class Stage(Sequential):
    """A sequence of blocks of equal width. The first one changes the image size and the number of channels.

    With `recompute`, the n blocks form groups of about sqrt(n). Only the input of each group is kept; its activations
    are computed again in the backward pass. See `minidl.recompute`.
    """

    recompute = False

    def __init__(
        self, make_block: MakeBlock, in_channels: int, channels: int, expansion: int, blocks: int, stride: int
    ):
        first = make_block(in_channels, channels, stride)
        super().__init__(first, *(make_block(channels * expansion, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels * expansion)."""
        if not self.recompute:
            return super().forward(x)
        size = math.isqrt(len(self))
        for start in range(0, len(self), size):
            x = recompute(Sequential(*self.modules[start : start + size]), x)
        return x


class CifarResNet(Module):
    """A 3x3 convolution, stages at 32x32/16, 16x16/32 and 8x8/64 channels, global average pooling, a linear layer."""

    def __init__(self, make_block: MakeBlock, blocks: int, num_classes: int):
        self.conv1 = Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(16)
        self.layer1 = Stage(make_block, 16, 16, 1, blocks, stride=1)
        self.layer2 = Stage(make_block, 16, 32, 1, blocks, stride=2)
        self.layer3 = Stage(make_block, 32, 64, 1, blocks, stride=2)
        self.avgpool = GlobalAvgPool()
        self.fc = Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, num_classes)."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x))


class ImageNetResNet(Module):
    """7x7 stride 2, max-pool, four stages at 56/28/14/7 pixels for 224, global average pooling, a linear layer."""

    def __init__(self, make_block: MakeBlock, expansion: int, blocks: tuple[int, int, int, int], num_classes: int):
        self.conv1 = Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(64)
        self.maxpool = MaxPool2d(3, stride=2, padding=1)
        self.layer1 = Stage(make_block, 64, 64, expansion, blocks[0], stride=1)
        self.layer2 = Stage(make_block, 64 * expansion, 128, expansion, blocks[1], stride=2)
        self.layer3 = Stage(make_block, 128 * expansion, 256, expansion, blocks[2], stride=2)
        self.layer4 = Stage(make_block, 256 * expansion, 512, expansion, blocks[3], stride=2)
        self.avgpool = GlobalAvgPool()
        self.fc = Linear(512 * expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, num_classes)."""
        x = self.maxpool(relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x))


def cifar_resnet(
    depth: int, shortcut: str = "A", num_classes: int = 10, seed: int = 0, recompute: bool = False
) -> CifarResNet:
    """The network of section 4.2 with depth = 6n + 2 layers. shortcut: 'A', 'B', 'C', or 'none' for the plain network.

    With `recompute` a training step needs far less memory and about a third more time (see Stage).
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(
            f"cifar_resnet: expected a depth of 6n + 2 (8, 14, 20, 32, 44, 56, 110, 1202, ...), got {depth}"
        )
    block = PlainBasicBlock if shortcut == "none" else BasicBlock
    make_block = functools.partial(block, shortcut=shortcut)
    with fork_rng(seed):
        model = CifarResNet(make_block, (depth - 2) // 6, num_classes)
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.recompute = recompute
    return model


def imagenet_resnet(
    depth: int, shortcut: str = "B", variant: str = "torchvision", num_classes: int = 1000, seed: int = 0
) -> ImageNetResNet:
    """The network of table 1. shortcut: 'A', 'B', 'C', 'none'; variant: 'torchvision' or 'he2015' (see Bottleneck)."""
    if depth not in IMAGENET_BLOCKS:
        raise ValueError(f"imagenet_resnet: expected a depth of {', '.join(map(str, IMAGENET_BLOCKS))}, got {depth}")
    if variant not in ("torchvision", "he2015"):
        raise ValueError(f"imagenet_resnet: expected variant 'torchvision' or 'he2015', got {variant!r}")
    kind, blocks = IMAGENET_BLOCKS[depth]
    if kind == "basic":
        block = PlainBasicBlock if shortcut == "none" else BasicBlock
        make_block = functools.partial(block, shortcut=shortcut)
    else:
        block = PlainBottleneck if shortcut == "none" else Bottleneck
        make_block = functools.partial(block, shortcut=shortcut, variant=variant)
    with fork_rng(seed):
        return ImageNetResNet(make_block, block.expansion, blocks, num_classes)
