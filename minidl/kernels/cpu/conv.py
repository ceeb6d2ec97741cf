"""Convolution as one matrix product, by im2col.

Every patch of x that the kernel sees is a row of a matrix, the columns, so that

    y = columns weight,   dL/dweight = columns^T dL/dy,   with weight as a (KH*KW*C, O) matrix.

dL/dx is a convolution again: that of dL/dy with the kernel turned by 180 degrees. A piece of the output is computed at
a time, so that its columns stay in the cache. 3x3 kernels with many channels go to `_winograd`, which needs a quarter
of the multiplications.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu import _winograd
from minidl.kernels.cpu._im2col import Patches
from minidl.kernels.cpu._pieces import scratch
from minidl.kernels.cpu._threads import map_pieces, sum_pieces
from minidl.kernels.shapes import output_size


def conv2d_forward(x, weight, bias, stride, padding):
    """y = columns weight + bias: (N, H, W, C), (KH, KW, C, O), (O,) or None -> (N, OH, OW, O)."""
    if winograd_pays(x.shape, weight.shape, stride, padding, FORWARD_TILES):
        return _winograd.forward(x, weight, bias, padding)
    kh, kw, c, o = weight.shape
    patches = Patches((kh, kw), stride, padding, output_size(x.shape[1:3], (kh, kw), stride, padding))
    matrix = weight.reshape(kh * kw * c, o)
    y = np.empty((len(x), *patches.output_size, o), x.dtype)

    def convolve(piece):
        pixels = y[piece]
        _put_product(patches.columns(x, piece), matrix, out=pixels)
        if bias is not None:
            pixels += bias

    map_pieces(convolve, patches.cut(len(x), c, o), multiplications=y.size * kh * kw * c)
    return y


def conv2d_backward(grad, x, weight, stride, padding, needs_x, needs_weight):
    """(dL/dx, dL/dweight) of dL/dy, (N, OH, OW, O); None for one that is not needed.

    dL/dx is computed phase by phase, see `Phase`. With stride 1 there is one phase: all pixels and all taps.
    """
    if winograd_pays(x.shape, weight.shape, stride, padding, BACKWARD_TILES):
        grad_x = _winograd.backward_x(grad, weight, padding) if needs_x else None
        return grad_x, _winograd.backward_weight(grad, x, padding) if needs_weight else None
    if not needs_x:
        return None, _backward_weight(grad, x, weight.shape, stride, padding) if needs_weight else None
    vertical = _phases_along(x.shape[1], weight.shape[0], stride[0], padding[0])
    horizontal = _phases_along(x.shape[2], weight.shape[1], stride[1], padding[1])
    # Pixels that meet no tap belong to no phase, and neither do taps that meet no pixel: there the gradient is 0.
    new_array = np.empty if (len(vertical), len(horizontal)) == stride else np.zeros
    grad_x = new_array(x.shape, grad.dtype)
    grad_weight = new_array(weight.shape, grad.dtype) if needs_weight else None
    for v, h in itertools.product(vertical, horizontal):
        pixels, taps = (slice(None), v.pixels, h.pixels), (v.taps, h.taps)
        patches = Patches(*zip(v.patches, h.patches, strict=True))
        grad_taps = grad_weight[taps] if needs_weight else None
        _backward_of_a_phase(grad, x[pixels], weight[taps], patches, grad_x[pixels], grad_taps)
    return grad_x, grad_weight


def _backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight alone: columns^T dL/dy."""
    kh, kw, c, o = weight_shape
    patches = Patches((kh, kw), stride, padding, grad.shape[1:3])

    def correlate(part):
        total = np.empty((kh * kw * c, o), grad.dtype)
        for piece in part:
            _add_product(patches.columns(x, piece).T, grad[piece].reshape(-1, o), total, is_first=piece is part[0])
        return total

    parts = _parts_of(patches.cut(len(x), c, o), elements=kh * kw * c * o)
    return sum_pieces(correlate, parts, multiplications=grad.size * kh * kw * c).reshape(weight_shape)


def _backward_of_a_phase(grad, x, weight, patches, grad_x, grad_weight):
    """Write dL/dx for the pixels of a phase, and dL/dweight for its taps, unless `grad_weight` is None.

    Both come from one im2col, that of dL/dy. A row of its columns holds what a pixel of x meets through each tap:

        dL/dx = columns turned,   dL/dweight = (x^T columns), turned back.

    (measured) 40 % less time than with a second im2col, that of x, for 16 channels, 25 % for 32.
    """
    kh, kw, c, o = weight.shape
    # The kernel turned by 180 degrees, as a matrix (KH*KW*O, C). (measured) Small products are faster if it lies in
    # memory like that, large ones if it lies as (C, KH*KW*O) and BLAS transposes it itself.
    turned = weight[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, kh * kw * o).T
    if turned.size * LEAST_ROWS <= SMALL_PRODUCT:
        turned = np.ascontiguousarray(turned)
    needs_weight = grad_weight is not None

    def backward(part):
        total = np.empty((c, kh * kw * o) if needs_weight else 0, grad.dtype)
        for piece in part:
            columns = patches.columns(grad, piece)
            _put_product(columns, turned, out=grad_x[piece])
            if needs_weight:
                _add_product(x[piece].reshape(-1, c).T, columns, total, is_first=piece is part[0])
        return total

    parts = _parts_of(patches.cut(len(x), o, c), elements=kh * kw * o * c)
    total = sum_pieces(backward, parts, multiplications=x.size * kh * kw * o)
    if needs_weight:
        grad_weight[...] = total.reshape(c, kh, kw, o)[:, ::-1, ::-1].transpose(1, 2, 0, 3)


class Phase(NamedTuple):
    """Along one axis, the pixels x[r::S] and the taps of the kernel that they meet.

    x[h] reached y[i] through the tap u = h + P - S i. Let h = S q + r and i = q + k: then u = r + P - S k, for every q.
    So the pixels that begin at r meet every S-th tap from (r + P) % S on, the first at k = (r + P) // S and each next
    one at a k smaller by one: their dL/dx is dL/dy convolved with the turned kernel of these taps, with stride 1.
    If S = 1, there is one phase, with all taps.
    """

    pixels: slice  # of x
    taps: slice  # of the weight
    patches: tuple[int, int, int, int]  # of dL/dy: kernel size, stride, padding, output size


def _phases_along(size: int, kernel_size: int, stride: int, padding: int) -> list[Phase]:
    """The phases that have pixels and meet a tap."""
    phases = []
    for r in range(min(stride, size)):
        k, first = divmod(r + padding, stride)
        taps = len(range(first, kernel_size, stride))
        if taps:
            patches = taps, 1, taps - 1 - k, len(range(r, size, stride))
            phases.append(Phase(slice(r, None, stride), slice(first, None, stride), patches))
    return phases


# -- sums of products --------------------------------------------------------------------------------------------------

# dL/dweight is summed in up to 16 parts, each as large as the weights; in fewer where the weights are large, so that
# all parts together hold at most 2^21 numbers; but in 4 at least, so that several threads have work.
MOST_PARTS, PART_ELEMENTS, LEAST_PARTS = 16, 2**21, 4

# (measured) OpenBLAS multiplies small matrices, up to a million multiplications, without packing copies of them first:
# 150 instead of 124 GFLOP/s a core for 144 columns and 16 outputs. Blocks of fewer rows than these do not pay.
SMALL_PRODUCT, LEAST_ROWS = 10**6, 64


def _parts_of(pieces: list, elements: int) -> list[list]:
    """The pieces in parts; the sum of each part has that many elements."""
    parts = min(MOST_PARTS, max(LEAST_PARTS, PART_ELEMENTS // elements))
    length = math.ceil(len(pieces) / parts)
    return [pieces[start : start + length] for start in range(0, len(pieces), length)]


def _put_product(a, b, out) -> None:
    """out = a b, a block of rows at a time where that is faster. The rows of out are pixels: (n, OH, OW, columns)."""
    block = _rows_of_a_block(len(a), b.size)
    product = out if out.flags.c_contiguous else scratch("product", out.shape, out.dtype)
    np.matmul(a.reshape(-1, block, a.shape[1]), b, out=product.reshape(-1, block, b.shape[1]))
    if product is not out:
        out[...] = product


def _add_product(a, b, total, is_first: bool) -> None:
    """total += a b, or total = a b if it is the first; the sum over blocks where that is faster."""
    block = _rows_of_a_block(len(b), total.size)
    blocks = len(b) // block
    if is_first and blocks == 1:
        np.matmul(a, b, out=total)
        return
    products = scratch("products", (blocks, *total.shape), total.dtype)
    a_blocks = a.reshape(len(a), blocks, block).transpose(1, 0, 2)
    np.matmul(a_blocks, b.reshape(blocks, block, -1), out=products)
    product = products.sum(axis=0) if blocks > 1 else products[0]
    if is_first:
        total[...] = product
    else:
        total += product


def _rows_of_a_block(rows: int, multiplications_of_a_row: int) -> int:
    """The largest power of two that divides the rows and makes a small product; else all rows."""
    block = rows & -rows
    while block * multiplications_of_a_row > SMALL_PRODUCT:
        block //= 2
    return block if block >= LEAST_ROWS else rows


# -- which algorithm ---------------------------------------------------------------------------------------------------

# (measured) Winograd's transforms cost more than they save for fewer channels, or for fewer tiles: those of the weights
# cost the same for one tile as for a thousand. Backward they compete with im2col's two gradients from one matrix.
WINOGRAD_CHANNELS, FORWARD_TILES, BACKWARD_TILES = 32, 128, 256
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
