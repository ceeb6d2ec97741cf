"""Tests for a layer and an operation of your own. Copy this file and put your layer in.

    python -m pytest examples/test_my_layer.py

`check_layer` checks gradients, dtypes and modes of a whole layer, `gradcheck` the gradients of one operation.
"""

import numpy as np
import pytest

import minidl
from minidl import Function, Tensor, apply
from minidl.functional import relu
from minidl.nn import BatchNorm2d, Conv2d, GlobalAvgPool, Linear, Module
from minidl.testing import check_layer, gradcheck


class Swish(Function):
    """y = x s(x), where s is the sigmoid; dL/dx = dL/dy (s + y (1 - s)). Ramachandran et al. 2017, arXiv 1710.05941."""

    @staticmethod
    def forward(ctx, x):
        s = 1 / (1 + np.exp(-x))
        ctx.save(s, x * s)
        return x * s

    @staticmethod
    def backward(ctx, grad):
        s, y = ctx.saved
        return grad * (s + y * (1 - s))


class SqueezeExcite(Module):
    """Scales each channel of an image by a number that all channels decide. Hu et al. 2018, arXiv 1709.01507."""

    def __init__(self, channels: int, hidden: int):
        self.pool = GlobalAvgPool()
        self.squeeze, self.excite = Linear(channels, hidden), Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        scale = self.excite(relu(self.squeeze(self.pool(x)))).sigmoid()  # (N, C)
        return x * scale.reshape(len(x), 1, 1, -1)


class MyBlock(Module):
    """x + F(x), where F is a convolution, batch-norm, swish, and squeeze-and-excite."""

    def __init__(self, channels: int):
        self.conv, self.bn = Conv2d(channels, channels, 3, padding=1, bias=False), BatchNorm2d(channels)
        self.scale = SqueezeExcite(channels, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        return x + self.scale(apply(Swish, self.bn(self.conv(x))))


def test_swish():
    x = Tensor(np.linspace(-4, 4, 12), requires_grad=True)
    gradcheck(lambda x: apply(Swish, x), [x])


@pytest.mark.parametrize("shape", [(2, 6, 6, 4), (1, 5, 3, 4), (3, 1, 1, 4)], ids=str)  # odd sizes too
def test_squeeze_excite(shape):
    check_layer(SqueezeExcite(4, 2), shape)


@pytest.mark.parametrize("shape", [(4, 6, 6, 4), (3, 5, 3, 4)], ids=str)
def test_my_block(shape):
    minidl.manual_seed(0)
    check_layer(MyBlock(4), shape)
