"""Norms of dL/dx at the input of each block: ResNet-56 and its plain counterpart before training, one backward pass."""

import functools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from models.resnet import BasicBlock, cifar_resnet

from minidl import Function, Tensor, apply
from minidl.data import make_shapes, normalize
from minidl.functional import cross_entropy, relu
from minidl.nn import Module

Norms = dict[str, list[float]]


class Probe(Function):
    """y = x. backward appends the norm of the gradient to a list, and passes the gradient on."""

    @staticmethod
    def forward(ctx, x, *, norms: list):
        """A copy, as an operation returns a new array."""
        ctx.save(norms)
        return x.copy()

    @staticmethod
    def backward(ctx, grad):
        """The gradient as it is."""
        (norms,) = ctx.saved
        norms.append(float(np.linalg.norm(grad)))
        return grad


def probed(block: BasicBlock, norms: Norms, is_residual: bool, x: Tensor) -> Tensor:
    """What the block computes, with a probe at its input and one on each of the two ways from there."""
    x = apply(Probe, x, norms=norms["sum"])
    branch = apply(Probe, x, norms=norms["through F"])
    y = block.bn2(block.conv2(relu(block.bn1(block.conv1(branch)))))
    if not is_residual:
        return relu(y)
    skip = apply(Probe, x, norms=norms["through the skip connection"])
    return relu(y + block.shortcut(skip))


def blocks_of(model: Module) -> list[BasicBlock]:
    """All blocks, from the image to the loss."""
    return [module for _, module in model.named_modules() if isinstance(module, BasicBlock)]


def measure(depth: int, shortcut: str) -> Norms:
    """The norms at each block, from the image to the loss, for a batch of 32 shapes."""
    dataset, model = make_shapes(32), cifar_resnet(depth, shortcut)
    norms: Norms = {"sum": [], "through F": [], "through the skip connection": []}
    for block in blocks_of(model):
        block.forward = functools.partial(probed, block, norms, shortcut != "none")
    cross_entropy(model(Tensor(normalize(dataset.images, 128, 64))), dataset.labels).backward()
    return {name: values[::-1] for name, values in norms.items()}  # backward comes from the loss


def draw() -> Figure:
    """Left: plain and residual. Right: the two contributions in the residual network."""
    plain, residual = measure(56, "none"), measure(56, "A")
    number = np.arange(1, len(plain["sum"]) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.semilogy(number, plain["sum"], "o-C0", ms=3, label="plain, 56 layers")
    left.semilogy(number, residual["sum"], "o-C1", ms=3, label="residual, 56 layers")
    for name, style in (("through the skip connection", "o-C2"), ("through F", "o-C3"), ("sum", "o-C1")):
        right.semilogy(number, residual[name], style, ms=3, label=name)
    left.set_ylabel("norm of dL/dx at the block's input")
    for axes in (left, right):
        axes.set_xlabel("block (1 is next to the image)")
        axes.legend()
    return figure
