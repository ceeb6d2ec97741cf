"""Later residual networks: shortcuts, pre-activation, width, stochastic depth, squeeze-and-excitation.

    He, Zhang, Ren, Sun 2016, "Identity mappings in deep residual networks", arXiv 1603.05027
    Zagoruyko, Komodakis 2016, "Wide residual networks", arXiv 1605.07146
    Huang, Sun, Liu, Sedra, Weinberger 2016, "Deep networks with stochastic depth", arXiv 1603.09382
    Hu, Shen, Albanie, Sun, Wu 2017, "Squeeze-and-excitation networks", arXiv 1709.01507

CIFAR-10

    network             parameters   in the paper   error in the paper
    preact-110           1,730,522         1.7 M    6.37 %   1603.05027, tables 2 and 3
    preact-164           1,703,258         1.7 M    5.46 %   1603.05027, tables 3 and 4
    preact-1001         10,327,706        10.2 M    4.92 %   1603.05027, tables 3 and 4; batch-norm is not counted there
    wrn-40-4             8,949,210         8.9 M    4.53 %   1605.07146, table 5
    wrn-16-8            10,961,370        11.0 M    4.27 %   1605.07146, table 5
    wrn-28-10           36,479,194        36.5 M    4.00 %   1605.07146, table 5
    stochastic-1202     19,421,274        19.4 M    4.91 %   1603.09382, abstract
    se-preact-164        1,905,362           -      4.39 %   1709.01507, table 4: "SE-ResNet-164"

ImageNet: SE-ResNet-50 has 28,088,024 parameters (28.1 M in 1709.01507, table 10), 2.5 M more than ResNet-50.

In each class `forward` comes first: it is the block's figure in the paper. Images are (N, H, W, 3).
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from minidl import Tensor, fork_rng, once
from minidl.functional import global_avg_pool, relu
from minidl.nn import BatchNorm2d, Conv2d, Dropout, GlobalAvgPool, Linear, Module
from minidl.random import next_key
from minidl.tensor import Buffer
from models.resnet import (
    IMAGENET_BLOCKS,
    BasicBlock,
    Block,
    Bottleneck,
    CifarResNet,
    ImageNetResNet,
    MakeBlock,
    Stage,
)

GATE_BIAS = -6.0  # the initial bias of the gates; the best of those in table 1 of 1603.05027
REDUCTION = 16  # r in 1709.01507: the hidden layer has C / r units
LAST_SURVIVAL = 0.5  # p_L in 1603.09382: the probability that the last block is kept in a training step
FIRST_BOTTLENECK_DEPTH = 164  # 1603.05027 has two-layer blocks at 110 layers, bottlenecks at 164 and 1001

# -- what can stand on a shortcut: figure 2 of 1603.05027 --------------------------------------------------------------


class OriginalBlock(BasicBlock):
    """Figure 2(a): relu(F(x) + x), the block of the first paper. The other kinds change the shortcut of every block.

    Where the shape changes, x stands for option A of the first paper: subsampled pixels, zeros for the new channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        return relu(self.residual(x) + self.shortcut(x))

    def residual(self, x: Tensor) -> Tensor:
        """F(x): two 3x3 convolutions, each followed by batch-norm."""
        y = relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(y))

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str = "A"):
        super().__init__(in_channels, channels, stride, shortcut)


class ConstantScalingBlock(OriginalBlock):
    """Figure 2(b): relu(F(x) / 2 + x / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        return relu(0.5 * self.residual(x) + 0.5 * self.shortcut(x))


class ExclusiveGatingBlock(OriginalBlock):
    """Figure 2(c): relu(g F(x) + (1 - g) x) with g = sigmoid(W x + b), a 1x1 convolution: as in a highway network."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        g = self.gate(x).sigmoid()
        return relu(g * self.residual(x) + (1 - g) * self.shortcut(x))

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__(in_channels, channels, stride)
        self.gate = Conv2d(in_channels, channels, 1, stride)
        self.gate.bias.data[...] = GATE_BIAS


class ShortcutOnlyGatingBlock(ExclusiveGatingBlock):
    """Figure 2(d): relu(F(x) + (1 - g) x)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        g = self.gate(x).sigmoid()
        return relu(self.residual(x) + (1 - g) * self.shortcut(x))


class ConvShortcutBlock(OriginalBlock):
    """Figure 2(e): relu(F(x) + W x), W a 1x1 convolution with batch-norm: option C of the first paper."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__(in_channels, channels, stride, "C")


class DropoutShortcutBlock(OriginalBlock):
    """Figure 2(f): relu(F(x) + dropout(x)), with probability 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        return relu(self.residual(x) + self.dropout(self.shortcut(x)))

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__(in_channels, channels, stride)
        self.dropout = Dropout(0.5)


# Table 1 of 1603.05027: name -> (block, test error of 110 layers on CIFAR-10 in per cent; None for "fail", above 20).
SHORTCUT_KINDS = {
    "original": (OriginalBlock, 6.61),
    "constant-scaling": (ConstantScalingBlock, 12.35),
    "exclusive-gating": (ExclusiveGatingBlock, 8.70),
    "shortcut-only-gating": (ShortcutOnlyGatingBlock, 6.91),
    "conv-shortcut": (ConvShortcutBlock, 12.22),
    "dropout-shortcut": (DropoutShortcutBlock, None),
}

# -- pre-activation: figure 4(e) of 1603.05027, and wide networks ------------------------------------------------------


class PreActivationBlock(Block):
    """x + F(x), with batch-norm and ReLU before each convolution. Nothing stands on the shortcut or after the sum.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated x, as in the authors' code
    (github.com/KaimingHe/resnet-1k-layers). The first block of a network also has its activation before the paths
    split (appendix of 1603.05027).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels * expansion)."""
        activated = relu(self.bn1(x))
        return self.residual(activated) + self.shortcut(activated if self.splits_after_activation else x)

    def residual(self, activated: Tensor) -> Tensor:
        """The rest of F: 3x3 convolution, batch-norm, ReLU, 3x3 convolution."""
        y = self.conv1(activated)
        return self.conv2(relu(self.bn2(y)))

    def __init__(self, in_channels: int, channels: int, stride: int):
        self.bn1 = BatchNorm2d(in_channels)
        self._make_convolutions(in_channels, channels, stride)
        out_channels = channels * self.expansion
        grows = stride != 1 or in_channels != out_channels
        self.downsample = Conv2d(in_channels, out_channels, 1, stride, bias=False) if grows else None
        self.splits_after_activation = grows

    def _make_convolutions(self, in_channels: int, channels: int, stride: int) -> None:
        self.conv1 = Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=1, bias=False)


class PreActivationBottleneck(PreActivationBlock):
    """The same with F = 1x1, 3x3, 1x1 convolution. The stride is in the first 1x1, as in the first paper."""

    expansion = 4

    def residual(self, activated: Tensor) -> Tensor:
        """The rest of F: 1x1 convolution, and batch-norm, ReLU, convolution twice."""
        y = self.conv1(activated)
        y = self.conv2(relu(self.bn2(y)))
        return self.conv3(relu(self.bn3(y)))

    def _make_convolutions(self, in_channels: int, channels: int, stride: int) -> None:
        self.conv1 = Conv2d(in_channels, channels, 1, stride, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = BatchNorm2d(channels)
        self.conv3 = Conv2d(channels, 4 * channels, 1, bias=False)


class PreActivationResNet(Module):
    """A 3x3 convolution, three stages of pre-activation blocks, batch-norm, ReLU, average pooling, a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.avgpool(relu(self.bn(x))))

    def __init__(
        self, make_block: MakeBlock, expansion: int, blocks: int, channels: tuple[int, int, int], num_classes: int
    ):
        first, second, third = channels
        self.conv1 = Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = Stage(make_block, 16, first, expansion, blocks, stride=1)
        self.layer2 = Stage(make_block, first * expansion, second, expansion, blocks, stride=2)
        self.layer3 = Stage(make_block, second * expansion, third, expansion, blocks, stride=2)
        self.layer1[0].splits_after_activation = True
        self.bn = BatchNorm2d(third * expansion)
        self.avgpool = GlobalAvgPool()
        self.fc = Linear(third * expansion, num_classes)


# -- stochastic depth: 1603.09382 --------------------------------------------------------------------------------------


class StochasticDepthBlock(OriginalBlock):
    """In a training step, relu(F(x) + x) with probability p, else x, the output of a ReLU (equation 2).

    Then F is not computed at all, which saves a quarter of the training time. In evaluation, relu(p F(x) + x), with
    the expectation of F (equation 5). The draw depends on the seed, the step and the block alone. Python decides
    what is computed, so such a step cannot be captured in a CUDA graph.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        if not self.training:
            return relu(self.survival * self.residual(x) + self.shortcut(x))
        return relu(self.residual(x) + self.shortcut(x)) if once(self._survives) else self.shortcut(x)

    def _survives(self) -> bool:
        """Draw from the key (seed low, seed high, step, block), as `nn.Dropout` does, and count the step."""
        draw = np.random.default_rng(self.key.numpy()).random()
        self.key.data[2] += 1
        return bool(draw < self.survival)

    def __init__(self, in_channels: int, channels: int, stride: int, survival: float):
        super().__init__(in_channels, channels, stride)
        self.survival = survival
        self.key = Buffer(next_key(), persistent=False)


def linear_decay(blocks: int, last: float = LAST_SURVIVAL) -> Iterator[float]:
    """The survival probabilities p_l = 1 - l / L (1 - p_L) of blocks l = 1 to L (equation 4)."""
    return (1 - block / blocks * (1 - last) for block in range(1, blocks + 1))


# -- squeeze-and-excitation: 1709.01507 --------------------------------------------------------------------------------


class SqueezeExcitation(Module):
    """s x: each channel of x times a number s in (0, 1) that the means of all channels decide (section 3, figure 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        z = global_avg_pool(x).reshape(len(x), 1, 1, -1)  # squeeze: equation 2
        s = self.fc2(relu(self.fc1(z))).sigmoid()  # excitation: equation 3
        return s * x  # equation 4

    def __init__(self, channels: int):
        hidden = max(1, channels // REDUCTION)
        self.fc1 = Conv2d(channels, hidden, 1)  # of one pixel: a linear layer, named and stored as in torchvision
        self.fc2 = Conv2d(hidden, channels, 1)


class SEBasicBlock(OriginalBlock):
    """relu(SE(F(x)) + x): figure 3."""

    def residual(self, x: Tensor) -> Tensor:
        """SE(F(x))."""
        return self.se(super().residual(x))

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str = "A"):
        super().__init__(in_channels, channels, stride, shortcut)
        self.se = SqueezeExcitation(channels)


class SEBottleneck(Bottleneck):
    """relu(SE(F(x)) + x) with F = 1x1, 3x3, 1x1 convolution: table 1, SE-ResNet-50."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, 4 channels)."""
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return relu(self.se(y) + self.shortcut(x))

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str, variant: str):
        super().__init__(in_channels, channels, stride, shortcut, variant)
        self.se = SqueezeExcitation(4 * channels)


class SEPreActivationBlock(PreActivationBlock):
    """x + SE(F(x))."""

    def residual(self, activated: Tensor) -> Tensor:
        """SE of the rest of F."""
        return self.se(super().residual(activated))

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__(in_channels, channels, stride)
        self.se = SqueezeExcitation(channels * self.expansion)


class SEPreActivationBottleneck(SEPreActivationBlock, PreActivationBottleneck):
    """x + SE(F(x)) with F = 1x1, 3x3, 1x1 convolution."""


# -- building ----------------------------------------------------------------------------------------------------------


def blocks_of(name: str, depth: int, layers: int, others: int, example: str) -> int:
    """The blocks n of each stage, where depth = layers * n + others. Raises a ValueError if there is no such n."""
    if depth < layers + others or (depth - others) % layers:
        raise ValueError(f"{name}: expected a depth of {layers}n + {others} ({example}, ...), got {depth}")
    return (depth - others) // layers


def build(make: Callable[[], Module], seed: int, recompute: bool) -> Module:
    """make() with the draws of `seed`; with `recompute`, stages keep few activations (see models.resnet.Stage)."""
    with fork_rng(seed):
        model = make()
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.recompute = recompute
    return model


def cifar_shortcut_resnet(
    depth: int, kind: str, num_classes: int = 10, seed: int = 0, recompute: bool = False
) -> CifarResNet:
    """The network of 6n + 2 layers with one of SHORTCUT_KINDS in every block (figure 2 and table 1 of 1603.05027)."""
    if kind not in SHORTCUT_KINDS:
        raise ValueError(f"cifar_shortcut_resnet: expected kind {', '.join(SHORTCUT_KINDS)}, got {kind!r}")
    blocks = blocks_of("cifar_shortcut_resnet", depth, 6, 2, "20, 32, 44, 56, 110")
    block, _ = SHORTCUT_KINDS[kind]
    return build(lambda: CifarResNet(block, blocks, num_classes), seed, recompute)


def stochastic_resnet(depth: int, num_classes: int = 10, seed: int = 0, recompute: bool = False) -> CifarResNet:
    """The network of 6n + 2 layers with stochastic depth and the linear decay rule (section 3 of 1603.09382)."""
    blocks = blocks_of("stochastic_resnet", depth, 6, 2, "20, 56, 110, 1202")
    survival = linear_decay(3 * blocks)

    def make_block(in_channels: int, channels: int, stride: int) -> StochasticDepthBlock:
        return StochasticDepthBlock(in_channels, channels, stride, next(survival))

    return build(lambda: CifarResNet(make_block, blocks, num_classes), seed, recompute)


def cifar_se_resnet(depth: int, num_classes: int = 10, seed: int = 0, recompute: bool = False) -> CifarResNet:
    """The network of 6n + 2 layers with squeeze-and-excitation in every block."""
    blocks = blocks_of("cifar_se_resnet", depth, 6, 2, "20, 32, 44, 56, 110")
    return build(lambda: CifarResNet(SEBasicBlock, blocks, num_classes), seed, recompute)


def preact_resnet(
    depth: int,
    bottleneck: bool | None = None,
    se: bool = False,
    num_classes: int = 10,
    seed: int = 0,
    recompute: bool = False,
) -> PreActivationResNet:
    """The pre-activation network: 6n + 2 layers; with bottlenecks, the default from 164 layers on, 9n + 2."""
    if bottleneck is None:
        bottleneck = depth >= FIRST_BOTTLENECK_DEPTH
    if bottleneck:
        blocks = blocks_of("preact_resnet", depth, 9, 2, "with bottlenecks: 164, 1001")
        block = SEPreActivationBottleneck if se else PreActivationBottleneck
    else:
        blocks = blocks_of("preact_resnet", depth, 6, 2, "20, 32, 44, 56, 110")
        block = SEPreActivationBlock if se else PreActivationBlock
    make = functools.partial(PreActivationResNet, block, block.expansion, blocks, (16, 32, 64), num_classes)
    return build(make, seed, recompute)


def wide_resnet(
    depth: int, width: int, se: bool = False, num_classes: int = 10, seed: int = 0, recompute: bool = False
) -> PreActivationResNet:
    """WRN-depth-width of 1605.07146, table 1: 6n + 4 layers, 16, 32 and 64 channels times `width`; without dropout."""
    if width < 1:
        raise ValueError(f"wide_resnet: expected a width of 1 or more, got {width}")
    blocks = blocks_of("wide_resnet", depth, 6, 4, "16, 22, 28, 40")
    block, channels = SEPreActivationBlock if se else PreActivationBlock, (16 * width, 32 * width, 64 * width)
    return build(lambda: PreActivationResNet(block, 1, blocks, channels, num_classes), seed, recompute)


def imagenet_se_resnet(
    depth: int, shortcut: str = "B", variant: str = "torchvision", num_classes: int = 1000, seed: int = 0
) -> ImageNetResNet:
    """SE-ResNet-50, 101 or 152. shortcut: 'A', 'B', 'C'; variant: 'torchvision' or 'he2015' (see Bottleneck)."""
    depths = [depth for depth, (kind, _) in IMAGENET_BLOCKS.items() if kind == "bottleneck"]
    if depth not in depths:
        raise ValueError(f"imagenet_se_resnet: expected a depth of {', '.join(map(str, depths))}, got {depth}")
    if variant not in ("torchvision", "he2015"):
        raise ValueError(f"imagenet_se_resnet: expected variant 'torchvision' or 'he2015', got {variant!r}")
    if shortcut == "none":
        raise ValueError("imagenet_se_resnet: expected shortcut 'A', 'B' or 'C', got 'none'; a plain network has no SE")
    make_block = functools.partial(SEBottleneck, shortcut=shortcut, variant=variant)
    with fork_rng(seed):
        return ImageNetResNet(make_block, SEBottleneck.expansion, IMAGENET_BLOCKS[depth][1], num_classes)
