"""The networks of examples/models once more, in PyTorch: its layers, its layout, and torchvision's names.

What tests compare results with, and benchmarks the speed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows


class Padding(nn.Module):
    """Option A: every stride-th pixel, and channels of zeros behind."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def make_downsample(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """The way around a block; None for the identity."""
    if option != "C" and stride == 1 and in_channels == out_channels:
        return None
    if option == "A":
        return Padding(out_channels - in_channels, stride)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class Block(nn.Module):
    """3x3, 3x3; or, if it is a bottleneck, 1x1, 3x3, 1x1."""

    def __init__(self, in_channels: int, channels: int, stride: int, option: str, bottleneck: bool, he2015: bool):
        super().__init__()
        if bottleneck:
            first, second = (stride, 1) if he2015 else (1, stride)
            shapes = [
                (in_channels, channels, 1, first),
                (channels, channels, 3, second),
                (channels, 4 * channels, 1, 1),
            ]
        else:
            shapes = [(in_channels, channels, 3, stride), (channels, channels, 3, 1)]
        self.count, self.option = len(shapes), option
        for number, (c, o, kernel, s) in enumerate(shapes, 1):
            self.add_module(f"conv{number}", nn.Conv2d(c, o, kernel, s, kernel // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(o))
        if option != "none":
            self.downsample = make_downsample(option, in_channels, shapes[-1][1], stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.count:
                y = self.relu(y)
        if self.option != "none":
            y = y + (x if self.downsample is None else self.downsample(x))
        return self.relu(y)


class ResNet(nn.Module):
    """A stem, stages that double the channels and halve the size, the mean over all pixels, and a linear layer."""

    def __init__(self, blocks, width, option, num_classes, bottleneck=False, he2015=False, imagenet=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False) if imagenet else nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        self.stages = len(blocks)
        channels = width
        for number, count in enumerate(blocks):
            stage, width_now = nn.Sequential(), width * 2**number
            for position in range(count):
                stride = 2 if number > 0 and position == 0 else 1
                stage.append(Block(channels, width_now, stride, option, bottleneck, he2015))
                channels = width_now * (4 if bottleneck else 1)
            self.add_module(f"layer{number + 1}", stage)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        for number in range(self.stages):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.fc(x.mean((2, 3)))


def cifar_resnet(depth: int, shortcut: str = "A", num_classes: int = 10) -> ResNet:
    return ResNet([(depth - 2) // 6] * 3, 16, shortcut, num_classes)


def imagenet_resnet(depth: int, shortcut: str, variant: str, num_classes: int) -> ResNet:
    blocks = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}[depth]
    return ResNet(blocks, 64, shortcut, num_classes, depth >= 50, variant == "he2015", imagenet=True)


# Table 1 of the VGG paper, by columns.
VGG_COLUMNS = {
    "A": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "A-LRN": "64 LRN M 128 M 256 256 M 512 512 M 512 512 M",
    "B": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "C": "64 64 M 128 128 M 256 256 256/1 M 512 512 512/1 M 512 512 512/1 M",
    "D": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "E": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}


class VGG(nn.Module):
    """Without dropout, whose draws differ; it keeps its numbers in the classifier."""

    def __init__(self, column: str, batch_norm: bool, image_size: int, num_classes: int):
        super().__init__()
        self.features, channels = nn.Sequential(), 3
        for word in VGG_COLUMNS[column].split():
            if word == "M":
                self.features.append(nn.MaxPool2d(2, 2))
            elif word == "LRN":
                self.features.append(nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2))  # it divides alpha by 5
            else:
                out_channels, kernel = (int(part) for part in f"{word}/3".split("/")[:2])
                self.features.append(nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(out_channels))
                self.features.append(nn.ReLU())
                channels = out_channels
        inputs = 512 * (image_size // 32) ** 2
        if image_size == 32:
            self.classifier = nn.Sequential(nn.Identity(), nn.Linear(inputs, num_classes))
        else:
            hidden = [
                nn.Linear(inputs, 4096),
                nn.ReLU(),
                nn.Identity(),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Identity(),
            ]
            self.classifier = nn.Sequential(*hidden, nn.Linear(4096, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class ConvGroup(nn.Module):
    """Of the speedrun: conv, max-pool, batch-norm, GELU, conv, batch-norm, GELU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels, 1e-12, 0.4)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels, 1e-12, 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class SpeedrunNet(nn.Module):
    """Of Jordan 2024. The first weight and batch-norm's weights are not learned."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.groups = nn.Sequential(ConvGroup(24, 64), ConvGroup(64, 256), ConvGroup(256, 256))
        self.head = nn.Linear(256, num_classes, bias=False)
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name != "whitening.weight" and not name.endswith(("norm1.weight", "norm2.weight"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.whitening(x)))
        return self.head(F.max_pool2d(x, 3).flatten(1)) / 9


def make(kind: str, arguments: tuple, image_size: int, num_classes: int) -> nn.Module:
    """The network that the same words name in examples/models."""
    if kind == "vgg":
        column, batch_norm = (*arguments, False)[:2]
        return VGG(column, batch_norm, image_size, num_classes)
    if kind == "speedrun":
        return SpeedrunNet(num_classes)
    return {"cifar_resnet": cifar_resnet, "imagenet_resnet": imagenet_resnet}[kind](*arguments, num_classes)


def twin_of(model, make, *arguments) -> nn.Module:
    """make(*arguments) with the weights of our model, every one of which must fit, and nothing may be left over."""
    with torch.device("meta"):  # no weights are drawn, only to be replaced
        twin = make(*arguments)
    state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
    twin.load_state_dict(state, strict=True, assign=True)
    learned = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(learned[name])
    return twin
