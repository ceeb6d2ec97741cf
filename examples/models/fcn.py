"""A fully convolutional network on a ResNet (Long, Shelhamer, Darrell 2014, arXiv 1411.4038).

A classifier averages its features over the image and scores the classes once. An FCN scores them at every position, by
1x1 convolutions. The last features are coarse, so their scores are interpolated, and the scores of finer features are
added: the skips of section 4.2. The paper's FCN-32s, 16s and 8s have 0, 1 and 2 skips; the strides here are smaller:

    image -> conv1, layer1 ---> layer2 ------> layer3            features at strides 2, 4 and 8
                   |               |              |
                score1          score2         score3            1x1 convolutions to the scores of the classes
                   |               |              |
    scores <- x2 - + <---- x2 ---- + <---- x2 --- +              bilinear interpolation

The paper starts from a trained classifier, and learns the interpolation; here all starts from random weights, and the
interpolation is fixed.
"""

import functools

from minidl import Tensor, fork_rng
from minidl.functional import interpolate, relu
from minidl.nn import BatchNorm2d, Conv2d, Module
from models.resnet import BasicBlock, Stage

NAMES = "FCN-8s", "FCN-4s", "FCN-2s"  # with 0, 1 and 2 skips


class FCN(Module):
    """Three stages of residual blocks, of `width`, 2 `width` and 4 `width` channels, and the scores of the classes."""

    def __init__(self, num_classes: int, skips: int, blocks: int, width: int):
        make_block = functools.partial(BasicBlock, shortcut="B")
        self.conv1 = Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.layer1 = Stage(make_block, width, width, 1, blocks, stride=1)
        self.layer2 = Stage(make_block, width, 2 * width, 1, blocks, stride=2)
        self.layer3 = Stage(make_block, 2 * width, 4 * width, 1, blocks, stride=2)
        self.score1 = Conv2d(width, num_classes, 1) if skips == 2 else None
        self.score2 = Conv2d(2 * width, num_classes, 1) if skips >= 1 else None
        self.score3 = Conv2d(4 * width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, H, W, num_classes), for any H and W."""
        fine = self.layer1(relu(self.bn1(self.conv1(x))))
        middle = self.layer2(fine)
        scores = self.score3(self.layer3(middle))
        if self.score2 is not None:
            scores = resized(scores, middle) + self.score2(middle)
        if self.score1 is not None:
            scores = resized(scores, fine) + self.score1(fine)
        return resized(scores, x)


def resized(scores: Tensor, features: Tensor) -> Tensor:
    """The scores at the size of the features, which is twice theirs, or one less if it is odd."""
    return interpolate(scores, size=features.shape[1:3], mode="bilinear")


def fcn(num_classes: int, skips: int = 2, blocks: int = 1, width: int = 32, seed: int = 0) -> FCN:
    """FCN-8s, FCN-4s or FCN-2s for 0, 1 or 2 skips, with `blocks` residual blocks in each stage."""
    if skips not in (0, 1, 2):
        raise ValueError(f"fcn: expected 0, 1 or 2 skips, got {skips}")
    with fork_rng(seed):
        return FCN(num_classes, skips, blocks, width)
