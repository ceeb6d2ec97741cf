"""Standard deviations through 30 convolutions with ReLUs, for three initial weights: activations and gradients."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import minidl
from minidl import Parameter, Tensor, randn
from minidl.functional import conv2d, relu
from minidl.nn import init

DEPTH, CHANNELS = 30, 64
SHAPE = (3, 3, CHANNELS, CHANNELS)
INITS = {
    "he_normal": lambda: init.he_normal(SHAPE),
    "xavier_normal": lambda: init.xavier_normal(SHAPE),
    "normal, std 0.01": lambda: init.normal(SHAPE, 0.01),
}


def std(x: Tensor) -> float:
    """The standard deviation, in float64: the square of 1e-23 is 0 in float32."""
    return float(x.numpy().std(dtype=np.float64))


def measure(make_weight) -> tuple[list[float], list[float]]:
    """(std of the output of each layer, std of dL/d(its input)), for random images and a random gradient.

    Each layer's input is a leaf, which keeps its gradient. This gradient is passed to the layer before.
    """
    minidl.manual_seed(0)
    inputs, outputs = [], []
    y = randn(4, 16, 16, CHANNELS)
    for _ in range(DEPTH):
        inputs.append(Tensor(y.data, requires_grad=True))
        y = relu(conv2d(inputs[-1], Parameter(make_weight()), padding=1))
        outputs.append(y)
    grad = randn(*y.shape)
    for x, y in zip(reversed(inputs), reversed(outputs), strict=True):
        y.backward(grad)
        grad = x.grad
    return [std(y) for y in outputs], [std(x.grad) for x in inputs]


def draw() -> Figure:
    """Activations on the left, gradients on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    layer = np.arange(1, DEPTH + 1)
    for name, make_weight in INITS.items():
        activations, gradients = measure(make_weight)
        left.semilogy(layer, activations, label=name)
        right.semilogy(layer, gradients, label=name)
    left.set_ylabel("std of the layer's output")
    right.set_ylabel("std of dL/d(the layer's input)")
    left.legend()
    for axes in (left, right):
        axes.set_xlabel("layer (1 is next to the image)")
    return figure
