"""How many parameters a network has and how many multiply-adds it does, without doing them."""

import math

import numpy as np

import minidl
from minidl import Tensor
from minidl.kernels import cpu
from minidl.nn import Conv2d, Module, init


def no_draws(monkeypatch) -> None:
    """Initial weights of zeros, which cost nothing until they are read."""
    monkeypatch.setattr(init, "normal", lambda shape, std: np.zeros(shape, np.float32))


def count_parameters(model: Module) -> int:
    """All of them."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_conv_parameters(model: Module) -> int:
    """Those of the convolutions."""
    return sum(count_parameters(module) for _, module in model.named_modules() if isinstance(module, Conv2d))


def count_macs(model: Module, image_size: int, monkeypatch) -> int:
    """The multiply-adds of all convolutions, those of shortcuts too, and linear layers, for one image; biases are not.

    Both kernels are replaced by ones that count, and return zeros of the right shape.
    """
    counts = []

    def conv2d_forward(x, weight, bias, stride, padding):
        kh, kw, channels, out_channels = weight.shape
        oh = (x.shape[1] + 2 * padding[0] - kh) // stride[0] + 1
        ow = (x.shape[2] + 2 * padding[1] - kw) // stride[1] + 1
        counts.append(oh * ow * out_channels * kh * kw * channels)
        return np.zeros((1, oh, ow, out_channels), np.float32)

    def linear_forward(x, weight, bias):
        counts.append(math.prod(weight.shape))
        return np.zeros((1, weight.shape[1]), np.float32)

    monkeypatch.setattr(cpu, "conv2d_forward", conv2d_forward)
    monkeypatch.setattr(cpu, "linear_forward", linear_forward)
    with minidl.no_grad():
        model.eval()(Tensor(np.zeros((1, image_size, image_size, 3), np.float32)))
    return sum(counts)
