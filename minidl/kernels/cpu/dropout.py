"""Dropout. The mask is a function of the key, so backward computes it again instead of storing it."""

import numpy as np

from minidl.kernels.cpu._philox import uniform
from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, slices
from minidl.kernels.cpu._threads import map_pieces


def dropout_forward(x, probability, key, first=0):
    """y = x / (1 - p) with probability 1 - p, else 0. `key` is uint32 (seed low, seed high, step, layer).

    Element k of x uses number `first` + k of the random stream.
    """
    flat = x.reshape(-1)
    y = np.empty(flat.shape, x.dtype)

    def drop(piece):
        keep = uniform(first + piece.start, first + piece.stop, key) >= probability
        np.multiply(flat[piece], keep * x.dtype.type(1 / (1 - probability)), out=y[piece])

    map_pieces(drop, slices(x.size, PIECE_ELEMENTS), multiplications=0)
    return y.reshape(x.shape)


def dropout_backward(grad, probability, key, first=0):
    """dL/dx: dL/dy with the same mask and the same scale."""
    return dropout_forward(grad, probability, key, first)
