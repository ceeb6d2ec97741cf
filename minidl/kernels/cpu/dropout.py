"""Dropout. The mask is a function of the key, so backward draws it again instead of keeping it."""

import numpy as np

from minidl.kernels.cpu._channels import CHUNK_ELEMENTS
from minidl.kernels.cpu._parallel import map_chunks
from minidl.kernels.cpu._philox import uniform


def dropout_forward(x, probability, key):
    """y = x / (1 - p) with probability 1 - p, else 0; `key` is (seed low, seed high, step, layer) in uint32."""
    flat = x.reshape(-1)
    y = np.empty(flat.shape, x.dtype)

    def drop(start, stop):
        keep = uniform(start, stop, key) >= probability
        np.multiply(flat[start:stop], keep * x.dtype.type(1 / (1 - probability)), out=y[start:stop])

    map_chunks(drop, x.size, CHUNK_ELEMENTS)
    return y.reshape(x.shape)


def dropout_backward(grad, probability, key):
    """dL/dx: the same numbers are kept, and scaled the same way."""
    return dropout_forward(grad, probability, key)
