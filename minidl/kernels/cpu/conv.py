"""Convolution as one matrix product, by im2col.

Every patch of x that the kernel sees is a row of a matrix, the columns, so that

    y = columns weight,   dL/dweight = columns^T dL/dy,   with weight as a (KH*KW*C, O) matrix.

dL/dx is a convolution again: that of dL/dy with the kernel turned by 180 degrees. A piece of the output is computed at
a time, so that its columns stay in the cache. 3x3 kernels with many channels go to `_winograd`, which needs a quarter
of the multiplications.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu import _winograd
from minidl.kernels.cpu._im2col import Patches
from minidl.kernels.cpu._matmul import LEAST_ROWS, SMALL_PRODUCT, add_product, multiply
from minidl.kernels.cpu._scratch import scratch
from minidl.kernels.cpu._slices import slices
from minidl.kernels.cpu._threads import map_pieces, sum_pieces
from minidl.kernels.shapes import output_size

# dL/dweight is summed in up to 16 parts, each as large as the weights; in fewer where the weights are large, so that
# all parts together hold at most 2^21 numbers; but in 4 at least, so that several threads have work.
MOST_PARTS, PART_ELEMENTS, LEAST_PARTS = 16, 2**21, 4

# (measured) Winograd's transforms cost more than they save for fewer channels, or for fewer tiles: those of the weights
# cost the same for one tile as for a thousand. Backward they compete with im2col's two gradients from one matrix.
WINOGRAD_CHANNELS, FORWARD_TILES, BACKWARD_TILES = 32, 128, 256


def conv2d_forward(x, weight, bias, stride, padding):
    """y = columns weight + bias: (N, H, W, C), (KH, KW, C, O), (O,) or None -> (N, OH, OW, O)."""
    if winograd_pays(x.shape, weight.shape, stride, padding, FORWARD_TILES):
        return _winograd.forward(x, weight, bias, padding)
    kh, kw, c, o = weight.shape
    patches = Patches((kh, kw), stride, padding, output_size(x.shape[1:3], (kh, kw), stride, padding))
    matrix = weight.reshape(kh * kw * c, o)
    y = np.empty((len(x), *patches.output_size, o), x.dtype)

    def convolve(piece):
        rows = piece.of(y)
        multiply(patches.columns(x, piece), matrix, out=rows)
        if bias is not None:
            rows += bias

    map_pieces(convolve, patches.cut(len(x), c, o))
    return y


def conv2d_backward(grad, x, weight, stride, padding, needs_x, needs_weight):
    """(dL/dx, dL/dweight) of dL/dy, (N, OH, OW, O); None for one that is not needed."""
    if winograd_pays(x.shape, weight.shape, stride, padding, BACKWARD_TILES):
        grad_x = _winograd.backward_x(grad, weight, padding) if needs_x else None
        return grad_x, _winograd.backward_weight(grad, x, padding) if needs_weight else None
    if needs_x:
        return _backward_by_phases(grad, x, weight, stride, padding, needs_weight)
    return None, _backward_weight(grad, x, weight.shape, stride, padding) if needs_weight else None


def _backward_weight(grad, x, weight_shape, stride, padding):
    """columns^T dL/dy."""
    kh, kw, c, o = weight_shape
    patches = Patches((kh, kw), stride, padding, grad.shape[1:3])

    def correlate(part):
        total = np.empty((kh * kw * c, o), grad.dtype)
        for piece in part:
            add_product(patches.columns(x, piece).T, piece.of(grad), total, is_first=piece is part[0])
        return total

    parts = _parts_of(patches.cut(len(x), c, o), elements=kh * kw * c * o)
    return sum_pieces(correlate, parts).reshape(weight_shape)


def _backward_by_phases(grad, x, weight, stride, padding, needs_weight):
    """(dL/dx, dL/dweight or None), both from one im2col, that of dL/dy; see `Phase` for strides above 1.

    A row of its columns holds what a pixel of x meets through each tap, so dL/dweight is x^T columns. (measured) 40 %
    less time than with a second im2col, that of x, for 16 channels, 25 % for 32.
    """
    phases = list(_phases_of_x(x.shape, weight.shape, stride, padding))
    # Pixels that meet no tap belong to no phase, and neither do taps that meet no pixel: there the gradient is 0.
    new_array = np.empty if len(phases) == stride[0] * stride[1] else np.zeros
    grad_x = new_array(x.shape, grad.dtype)
    grad_weight = new_array(weight.shape, grad.dtype) if needs_weight else None
    for pixels, taps, patches in phases:
        grad_taps = _backward_of_a_phase(grad, x[pixels], weight[taps], patches, grad_x[pixels], needs_weight)
        if needs_weight:
            grad_weight[taps] = grad_taps
    return grad_x, grad_weight


def _backward_of_a_phase(grad, x, weight, patches, grad_x, needs_weight):
    """Write the phase's part of dL/dx; returns that of dL/dweight."""
    kh, kw, c, o = weight.shape
    turned = _turned_matrix(weight)

    def from_columns(part):
        total = np.empty((c, kh * kw * o), grad.dtype) if needs_weight else np.zeros(0)
        for piece in part:
            columns = patches.columns(grad, piece)
            _put_product(columns, turned, grad_x, piece)
            if needs_weight:
                add_product(piece.of(x).T, columns, total, is_first=piece is part[0])
        return total

    total = sum_pieces(from_columns, _parts_of(patches.cut(len(x), o, c), elements=kh * kw * o * c))
    return total.reshape(c, kh, kw, o)[:, ::-1, ::-1].transpose(1, 2, 0, 3) if needs_weight else None


class Phase(NamedTuple):
    """The pixels x[:, r::SH], the taps of the kernel that they meet, and the patches of dL/dy that they see.

    Along one axis, x[h] reached y[i] through the tap u = h + PH - SH i. Let h = SH q + r and i = q + k: then
    u = r + PH - SH k, for every q. So the pixels that begin at r meet every SH-th tap from (r + PH) % SH on, the
    first at k = (r + PH) // SH and each next one at a k smaller by one: their dL/dx is dL/dy convolved with the turned
    kernel of these taps, with stride 1. If SH = 1, there is one phase, with all taps.
    """

    pixels: tuple[slice, slice, slice]  # of x
    taps: tuple[slice, slice]  # of the weight
    patches: Patches  # of dL/dy


def _phases_of_x(x_shape, weight_shape, stride, padding) -> Iterator[Phase]:
    """The phases that have pixels and meet a tap."""
    for start in itertools.product(range(stride[0]), range(stride[1])):
        k, first = zip(*(divmod(start[axis] + padding[axis], stride[axis]) for axis in (0, 1)), strict=True)
        pixels = [range(start[axis], x_shape[1 + axis], stride[axis]) for axis in (0, 1)]
        taps = [range(first[axis], weight_shape[axis], stride[axis]) for axis in (0, 1)]
        if not all([*pixels, *taps]):
            continue
        kernel_size, size = [len(each) for each in taps], [len(each) for each in pixels]
        before = [kernel_size[axis] - 1 - k[axis] for axis in (0, 1)]
        yield Phase(
            (slice(None), *(slice(each.start, None, each.step) for each in pixels)),
            tuple(slice(each.start, None, each.step) for each in taps),
            Patches(kernel_size, (1, 1), before, size),
        )


def _turned_matrix(weight) -> np.ndarray:
    """The kernel turned by 180 degrees, as a matrix (KH*KW*O, C)."""
    kh, kw, c, o = weight.shape
    matrix = weight[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, kh * kw * o).T  # (KH, KW, C, O) -> (C, KH*KW*O)^T
    # (measured) Small products are faster if it lies in memory like that, large ones if BLAS transposes it itself.
    return np.ascontiguousarray(matrix) if matrix.size * LEAST_ROWS <= SMALL_PRODUCT else matrix


def _put_product(a, b, y, piece) -> None:
    """The piece's pixels of y = a b; with a stride y is a view, and its pixels are no matrix in memory."""
    pixels = y[piece.images, piece.rows]
    if pixels.flags.c_contiguous:
        multiply(a, b, out=piece.of(y))
    else:
        product = scratch("product", (len(a), b.shape[1]), a.dtype)
        multiply(a, b, out=product)
        pixels[...] = product.reshape(pixels.shape)


def _parts_of(pieces: list, elements: int) -> list[list]:
    """The pieces in parts; the sum of each part has that many elements."""
    parts = min(MOST_PARTS, max(LEAST_PARTS, PART_ELEMENTS // elements))
    return [pieces[some] for some in slices(len(pieces), math.ceil(len(pieces) / parts))]


# -- which algorithm ---------------------------------------------------------------------------------------------------

ALGORITHMS = "auto", "im2col"


def set_convolution(algorithm: str) -> None:
    """Compute convolutions on the CPU by "im2col" alone, or by Winograd's algorithm too where it is faster ("auto").

    "auto" is the default. Winograd's F(4x4, 3x3) serves 3x3 kernels with stride 1 and at least 32 channels. It computes
    4x4 outputs together from 6x6 inputs, by sums in which inputs outside of an output's window cancel. In float32 they
    cancel up to rounding: an input of 1e6 adds an error of about 0.3 to outputs as far as 5 pixels away, where the
    weights are those of `nn.Conv2d` (up to 5e-6 of the largest |x| times the largest |weight|). One NaN or infinity
    makes up to 8x8 outputs NaN, not 3x3. With "im2col" only the outputs whose window holds an input depend on it.

    The two give different bits, about 1e-6 of the largest output apart. Each gives the same bits on every run and with
    any number of threads. The setting holds for the whole process, and has no effect on a GPU.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"set_convolution: expected one of {', '.join(map(repr, ALGORITHMS))}, got {algorithm!r}")
    global _choice
    _choice = algorithm


def get_convolution() -> str:
    """The algorithms that convolutions on the CPU may use: "auto" or "im2col"."""
    return _choice


_choice = "auto"


def winograd_pays(x_shape, weight_shape, stride, padding, least_tiles: int) -> bool:
    """A function of the shapes and the setting, so that the same bits come out wherever it runs."""
    n, h, w, _ = x_shape
    kh, kw, c, o = weight_shape
    fits = (kh, kw) == (3, 3) and stride == (1, 1) and max(padding) <= 2
    pays = min(c, o) >= WINOGRAD_CHANNELS and n * math.ceil(h / 4) * math.ceil(w / 4) >= least_tiles
    return fits and pays and _choice == "auto"
