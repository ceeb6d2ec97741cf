"""Convolution tap by tap, for few pixels and many weights: the deep layers of a network, and small batches.

Tap (u, v) of the kernel sees one pixel for each output, x_uv[n, i, j] = x[n, SH*i + u - PH, SW*j + v - PW]. As
matrices (N*OH*OW, C) and (N*OH*OW, O),

    y = sum_uv x_uv W[u, v],   dL/dx_uv = dL/dy W[u, v]^T,   dL/dW[u, v] = x_uv^T dL/dy,

and dL/dx is the sum of all dL/dx_uv, each put back to where its pixels came from. im2col cuts the pixels into pieces,
and each piece reads all the weights. Here the weights are cut, and each of them is read once.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu._im2col import LEAST_MULTIPLICATIONS
from minidl.kernels.cpu._pieces import even_slices
from minidl.kernels.cpu._threads import map_pieces
from minidl.kernels.shapes import output_size

# The channels of a kernel with fewer taps are cut, so that several threads have work.
LEAST_PIECES = 8


class Tap(NamedTuple):
    """A tap of the kernel, with some of the channels: the output's in forward, the input's in backward."""

    u: int
    v: int
    channels: slice


def taps_of(weight_shape, channels: int, pixels: int) -> list[Tap]:
    """All taps of the weights (KH, KW, C, O), for products with matrices of `pixels` rows."""
    kh, kw, c, o = weight_shape
    pieces = min(LEAST_PIECES, pixels * kh * kw * c * o // LEAST_MULTIPLICATIONS)
    cuts = max(1, math.ceil(pieces / (kh * kw)))  # of each tap
    return list(
        map(Tap._make, itertools.product(range(kh), range(kw), even_slices(channels, math.ceil(channels / cuts))))
    )


def forward(x, weight, bias, stride, padding):
    """`conv2d_forward`: the sum of one product for each tap."""
    kh, kw, _, o = weight.shape
    out_size = output_size(x.shape[1:3], (kh, kw), stride, padding)
    padded, y = padded_with_zeros(x, padding), np.empty((len(x), *out_size, o), x.dtype)

    def product(tap):
        u, v, some = tap
        pixels, out = matrix_of(seen(padded, u, v, stride, out_size)), matrix_of(y)[:, some]
        return np.matmul(pixels, weight[u, v, :, some], out=out if (u, v) == (0, 0) else None)

    taps = taps_of(weight.shape, o, math.prod(y.shape[:3]))
    for (u, v, some), part in zip(taps, map_pieces(product, taps), strict=True):
        if (u, v) != (0, 0):
            matrix_of(y)[:, some] += part
    if bias is not None:
        y += bias
    return y


def backward(grad, x, weight, stride, padding, needs_x, needs_weight):
    """`conv2d_backward`: two products for each tap."""
    out_size, g = grad.shape[1:3], matrix_of(grad)
    padded = padded_with_zeros(x, padding)
    grad_weight = np.empty(weight.shape, grad.dtype) if needs_weight else None

    def products(tap):
        u, v, some = tap
        if needs_weight:
            pixels = matrix_of(seen(padded[..., some], u, v, stride, out_size))
            np.matmul(pixels.T, g, out=grad_weight[tap])
        return g @ weight[tap].T if needs_x else None

    taps = taps_of(weight.shape, x.shape[3], len(g))
    parts = map_pieces(products, taps)
    return put_back(parts, taps, x.shape, stride, padding, out_size) if needs_x else None, grad_weight


def put_back(parts, taps, x_shape, stride, padding, out_size):
    """dL/dx: the sum of dL/dx_uv for all taps, each at the pixels that the tap saw."""
    (n, h, w, c), (ph, pw) = x_shape, padding
    total = np.zeros((n, h + 2 * ph, w + 2 * pw, c), parts[0].dtype)
    for (u, v, some), part in zip(taps, parts, strict=True):
        pixels = seen(total[..., some], u, v, stride, out_size)
        pixels += part.reshape(pixels.shape)
    return np.ascontiguousarray(total[:, ph : ph + h, pw : pw + w])


def padded_with_zeros(x, padding):
    """(N, H, W, C) -> (N, H + 2*PH, W + 2*PW, C)."""
    (n, h, w, c), (ph, pw) = x.shape, padding
    if ph == pw == 0:
        return x
    padded = np.zeros((n, h + 2 * ph, w + 2 * pw, c), x.dtype)
    padded[:, ph : ph + h, pw : pw + w] = x
    return padded


def seen(padded, u: int, v: int, stride, out_size):
    """The pixels that tap (u, v) sees, a view (N, OH, OW, C) of the padded images."""
    (sh, sw), (oh, ow) = stride, out_size
    return padded[:, u : u + sh * oh : sh, v : v + sw * ow : sw]


def matrix_of(pixels):
    """(N, OH, OW, C) -> (N*OH*OW, C), a copy if they are not contiguous."""
    return pixels.reshape(-1, pixels.shape[3])
