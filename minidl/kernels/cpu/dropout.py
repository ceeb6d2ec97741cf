"""Dropout. The mask is a function of the key, so backward draws it again instead of keeping it."""

import numpy as np

from minidl.kernels.cpu._philox import uniform
from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, slices
from minidl.kernels.cpu._threads import map_pieces


def dropout_forward(x, probability, key):
    """y = x / (1 - p) with probability 1 - p, else 0; `key` is (seed low, seed high, step, layer) in uint32."""
    flat = x.reshape(-1)
    y = np.empty(flat.shape, x.dtype)

    def drop(some):
        keep = uniform(some.start, some.stop, key) >= probability
        np.multiply(flat[some], keep * x.dtype.type(1 / (1 - probability)), out=y[some])

    map_pieces(drop, slices(x.size, PIECE_ELEMENTS))
    return y.reshape(x.shape)


def dropout_backward(grad, probability, key):
    """dL/dx: the same numbers are kept, and scaled the same way."""
    return dropout_forward(grad, probability, key)
