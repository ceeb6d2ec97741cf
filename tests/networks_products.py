"""Prints the products that training of some networks launches on a GPU: names, sources and constants. Needs no GPU.

    python -m tests.networks_products bfloat16

No number is computed. Arrays are NumPy's, as large as they would be but never touched; what would be launched is noted.
"""

import json
import sys
from types import SimpleNamespace
from unittest import mock

import ml_dtypes  # noqa: F401 - so that NumPy knows bfloat16
import numpy as np

cupy = sys.modules["cupy"] = mock.MagicMock()


class Array(np.ndarray):
    """As large as an array of CuPy's, at an address that all copies fit."""

    data = SimpleNamespace(ptr=0)


cupy.ndarray = Array
cupy.empty = lambda shape, dtype: np.empty(shape, dtype).view(Array)

from examples.models.resnet import cifar_resnet, imagenet_resnet  # noqa: E402 - after cupy
from examples.models.vgg import vgg  # noqa: E402
from minidl import Tensor, nn  # noqa: E402
from minidl.kernels.cuda import _launch, conv  # noqa: E402
from minidl.kernels.shapes import output_size  # noqa: E402

# (network, images in a batch, their height and width)
TRAINED = (
    (lambda: cifar_resnet(20), 128, 32),
    (lambda: imagenet_resnet(50), 256, 224),
    (lambda: vgg("D", True), 64, 224),
)


def convolutions(model, size: int):
    """(shape of x, shape of the weight, stride, padding) of each convolution; a linear layer is one of 1 x 1."""
    found = []

    def convolve(layer, x):
        found.append((x.shape, layer.weight.shape, layer.stride, layer.padding))
        y_size = output_size(x.shape[1:3], layer.weight.shape[:2], layer.stride, layer.padding)
        return Tensor(np.zeros((1, *y_size, layer.weight.shape[3]), np.float32))

    def multiply(layer, x):
        found.append(((1, 1, 1, x.shape[1]), (1, 1, *layer.weight.shape), (1, 1), (0, 0)))
        return Tensor(np.zeros((1, layer.weight.shape[1]), np.float32))

    with mock.patch.object(nn.Conv2d, "forward", convolve), mock.patch.object(nn.Linear, "forward", multiply):
        model.eval()(Tensor(np.zeros((1, size, size, 3), np.float32)))
    return found


def launch_all(model, batch: int, size: int, dtype: str) -> None:
    """The convolutions of a training step; the first one has no gradient of x."""
    for x_shape, weight_shape, stride, padding in convolutions(model, size):
        x_shape = (batch, *x_shape[1:]) if x_shape[1] > 1 else (1, 1, batch, x_shape[3])
        x, weight = cupy.empty(x_shape, dtype), cupy.empty(weight_shape, dtype)
        y = conv.conv2d_forward(x, weight, None, stride, padding)
        conv.conv2d_backward(y, x, weight, stride, padding, needs_x=x_shape[3] != 3, needs_weight=True)


def variants(dtype: str) -> list:
    """[name, source, lowest architecture, whether it has code for Hopper] of each product."""
    noted = {}

    def note(kernel, blocks, threads, arguments, dtype, constants=(), shared_bytes=0):
        constants = tuple(dict(constants).items())
        source = kernel.source_for(dtype, False, constants)
        noted[kernel.name, constants] = [kernel.name, source, kernel.needs(dtype), kernel.for_hopper]

    with mock.patch.object(_launch.CudaKernel, "launch", note):
        for make, batch, size in TRAINED:
            launch_all(make(), batch, size, dtype)
    return [variant for (name, _), variant in noted.items() if name.startswith("conv_")]


if __name__ == "__main__":
    print(json.dumps(variants(sys.argv[1])))
