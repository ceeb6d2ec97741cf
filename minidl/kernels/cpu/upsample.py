"""Bilinear interpolation as two matrix products: y = A x B^T for each channel of each image.

A (OH, H) has the weights of the rows, B (OW, W) those of the columns. Most are 0, but BLAS multiplies by them in less
time than NumPy takes to gather the two nearest pixels. (measured, one thread, from 16 x 16 to 64 x 64 with 6 channels:
0.8 and 0.4 ms forward and backward, where PyTorch takes 1.0 and 2.2. With 64 channels PyTorch's forward is 4 times as
fast.) As 0 * inf = NaN, an infinity or a NaN reaches all pixels of its channel.
"""

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, rows_of, scratch, slices
from minidl.kernels.cpu._threads import map_pieces


def upsample_bilinear2d_forward(x, output_size, step):
    """y = A x B^T: (N, H, W, C) -> (N, OH, OW, C)."""
    size = x.shape[1:3]
    a, b = (_weights(size[axis], output_size[axis], step[axis], x.dtype) for axis in (0, 1))
    return _products(a, x, b)


def upsample_bilinear2d_backward(grad, x_shape, step):
    """dL/dx = A^T dL/dy B: (N, OH, OW, C) -> (N, H, W, C)."""
    size, output_size = x_shape[1:3], grad.shape[1:3]
    a, b = (_weights(size[axis], output_size[axis], step[axis], grad.dtype) for axis in (0, 1))
    return _products(a.T, grad, b.T)


def _weights(size, output_size, step, dtype):
    """(output_size, size): the weight max(0, 1 - |s - h|) of each input pixel h for the output pixel at s."""
    s = np.clip((np.arange(output_size) + 0.5) * step - 0.5, 0, size - 1)
    return np.maximum(0, 1 - abs(s[:, None] - np.arange(size))).astype(dtype)


def _products(a, x, b):
    """a x b^T over the axes 1 and 2 of x."""
    (n, h, w, c), oh, ow = x.shape, len(a), len(b)
    y = np.empty((n, oh, ow, c), x.dtype)

    def multiply(piece):
        images = x[piece]
        rows = scratch("rows", (len(images), oh, w * c), x.dtype)
        np.matmul(a, images.reshape(len(images), h, w * c), out=rows)
        np.matmul(b, rows.reshape(len(images), oh, w, c), out=y[piece])

    pieces = slices(n, rows_of(PIECE_ELEMENTS, max(h, oh) * max(w, ow) * c))
    map_pieces(multiply, pieces, multiplications=oh * w * c * max(h, ow))
    return y
