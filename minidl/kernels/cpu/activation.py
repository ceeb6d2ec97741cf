"""Elementwise functions, computed piece by piece."""

import numpy as np

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
    """dL/dx = dL/dy where y > 0 or NaN, else 0.

    As integers, the bits of y are 0 where y = 0 and larger elsewhere: the output of a ReLU is never negative. So
    min(bits, 1) is 0 or 1, and multiplied by the bits of dL/dy as integers it keeps or clears them. Example: y = [0, 2]
    and dL/dy = [inf, 3] give [0, 3]. With floats, 0 * inf would be NaN.
    """
    bits = np.dtype(f"u{y.itemsize}")
    ones = np.ones(min(y.size, PIECE_ELEMENTS), bits)  # (measured) as in relu_forward

    def keep(grad, y, out):
        np.minimum(y.view(bits), ones[: y.size], out=out.view(bits))
        np.multiply(out.view(bits), grad.view(bits), out=out.view(bits))

    return elementwise(keep, grad, y)
