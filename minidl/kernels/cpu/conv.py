"""Convolution as one matrix product, by im2col.

Every patch of x that the kernel sees becomes a row of a matrix called `columns`, (N*OH*OW, KH*KW*C), so that

    y = columns weight,   dL/dweight = columns^T dL/dy,   with weight as a (KH*KW*C, O) matrix.

dL/dx is a convolution too: dL/dy convolved with the kernel turned by 180 degrees. The output is computed piece by
piece, so that the columns of a piece stay in the cache. 3x3 kernels with many channels use `_winograd` instead, which
needs a quarter of the multiplications; large kernels with few pixels use `_taps`, which reads the weights once; and
forward with few output channels computes two pixels at once, see `_forward_in_pairs`.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu import _taps, _winograd
from minidl.kernels.cpu._im2col import Patches
from minidl.kernels.cpu._pieces import scratch
from minidl.kernels.cpu._threads import map_pieces, sum_pieces
from minidl.kernels.shapes import output_size


def conv2d_forward(x, weight, bias, stride, padding):
    """y = columns weight + bias: (N, H, W, C), (KH, KW, C, O), (O,) or None -> (N, OH, OW, O)."""
    algorithm = algorithm_for(x.shape, weight.shape, stride, padding, backward=False)
    if algorithm == "taps":
        return _taps.forward(x, weight, bias, stride, padding)
    if algorithm == "winograd":
        return _winograd.forward(x, weight, bias, padding)
    if algorithm == "pairs":
        return _forward_in_pairs(x, weight, bias, stride, padding)
    return _forward(x, weight, bias, stride, padding)


def _forward(x, weight, bias, stride, padding):
    """`conv2d_forward` by im2col."""
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


def _forward_in_pairs(x, weight, bias, stride, padding):
    """`conv2d_forward` for an even OW: two neighbouring pixels of y at once.

    In memory they are one pixel of 2*O channels. The kernel for it has KW + 1 columns and moves by 2 pixels. Its first
    O outputs use the columns 0:KW, the others 1:KW+1, and a column that is not used has weights of 0. For KW = 3 this
    takes a third more multiplications, but a third less to copy, and products that are twice as wide.
    """
    kh, kw, c, o = weight.shape
    wide = np.zeros((kh, kw + 1, c, 2, o), weight.dtype)
    wide[:, :-1, :, 0] = wide[:, 1:, :, 1] = weight
    bias = None if bias is None else np.tile(bias, 2)
    y = _forward(x, wide.reshape(kh, kw + 1, c, 2 * o), bias, (stride[0], 2), padding)
    return y.reshape(*y.shape[:2], -1, o)  # (N, OH, OW/2, 2*O) -> (N, OH, OW, O)


def conv2d_backward(grad, x, weight, stride, padding, needs_x, needs_weight):
    """(dL/dx, dL/dweight) from dL/dy, (N, OH, OW, O). A gradient that is not needed is None.

    dL/dx is computed phase by phase, see `Phase`. With stride 1 there is one phase, with all pixels and all taps.
    """
    algorithm = algorithm_for(x.shape, weight.shape, stride, padding, backward=True)
    if algorithm == "taps":
        return _taps.backward(grad, x, weight, stride, padding, needs_x, needs_weight)
    if algorithm == "winograd":
        grad_x = _winograd.backward_x(grad, weight, padding) if needs_x else None
        return grad_x, _winograd.backward_weight(grad, x, padding) if needs_weight else None
    if not needs_x:
        return None, _backward_weight(grad, x, weight.shape, stride, padding) if needs_weight else None
    phases_h = _phases_along(x.shape[1], weight.shape[0], stride[0], padding[0])
    phases_w = _phases_along(x.shape[2], weight.shape[1], stride[1], padding[1])
    # Pixels that no tap reaches, and taps that reach no pixel, are in no phase. Their gradient is 0.
    new_array = np.empty if (len(phases_h), len(phases_w)) == stride else np.zeros
    grad_x = new_array(x.shape, grad.dtype)
    grad_weight = new_array(weight.shape, grad.dtype) if needs_weight else None
    for along_h, along_w in itertools.product(phases_h, phases_w):
        pixels, taps = (slice(None), along_h.pixels, along_w.pixels), (along_h.taps, along_w.taps)
        patches = Patches(*zip(along_h.patches, along_w.patches, strict=True))
        grad_taps = grad_weight[taps] if needs_weight else None
        _backward_of_a_phase(grad, x[pixels], weight[taps], patches, grad_x[pixels], grad_taps)
    return grad_x, grad_weight


def _backward_weight(grad, x, weight_shape, stride, padding):
    """Only dL/dweight: columns^T dL/dy, (KH*KW*C, N*OH*OW) @ (N*OH*OW, O) -> (KH, KW, C, O)."""
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
    """Write dL/dx for the pixels of a phase and dL/dweight for its taps, or only dL/dx if `grad_weight` is None.

    Both use the same columns, those of dL/dy. Row (n, h, w) holds the part of dL/dy that pixel (h, w) reached:

        dL/dx = columns turned,   dL/dweight = (x^T columns), turned back.

    (measured) This takes 40 % less time than a second im2col of x for 16 channels, 25 % less for 32.
    """
    kh, kw, c, o = weight.shape
    # The kernel turned by 180 degrees: (KH, KW, C, O) -> (KH*KW*O, C). (measured) For small products a contiguous copy
    # is faster. For large ones the transpose of a (C, KH*KW*O) array is: BLAS transposes it itself.
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
        grad_weight[...] = total.reshape(c, kh, kw, o)[:, ::-1, ::-1].transpose(1, 2, 0, 3)  # -> (KH, KW, C, O)


class Phase(NamedTuple):
    """The pixels x[r::SH] along one axis, and the taps that reach them. (Along the other axis w, j, v, SW and PW.)

    x[h] reached y[i] through the tap u = h + PH - SH*i. Write h = SH*m + r and i = m + k, then u = r + PH - SH*k for
    every m: all pixels of the phase see the same taps, which are every SH-th tap from (r + PH) % SH on. The first tap
    has k = (r + PH) // SH, the next one k - 1, and so on. So dL/dx of the phase is dL/dy convolved, with stride 1, with
    these taps turned. With SH = 1 there is one phase, with all taps.
    """

    pixels: slice  # of x
    taps: slice  # of the weight
    patches: tuple[int, int, int, int]  # of dL/dy: kernel size, stride, padding, output size


def _phases_along(size: int, kernel_size: int, stride: int, padding: int) -> list[Phase]:
    """The phases that have at least one pixel and one tap."""
    phases = []
    for r in range(min(stride, size)):
        k, first = divmod(r + padding, stride)
        taps = len(range(first, kernel_size, stride))
        if taps:
            patches = taps, 1, taps - 1 - k, len(range(r, size, stride))
            phases.append(Phase(slice(r, None, stride), slice(first, None, stride), patches))
    return phases


# -- sums of products --------------------------------------------------------------------------------------------------

# dL/dweight is the sum of up to 16 partial sums, each as large as the weights. Large weights get fewer, so that all of
# them together hold at most 2^21 elements, but never fewer than 4, so that several threads have work.
MOST_PARTS, PART_ELEMENTS, LEAST_PARTS = 16, 2**21, 4

# (measured) For products of up to a million multiplications OpenBLAS skips the packed copies of both matrices: 150
# instead of 124 GFLOP/s per core for 144 columns and 16 outputs. Blocks of fewer than 64 rows are not worth it.
SMALL_PRODUCT, LEAST_ROWS = 10**6, 64


def _parts_of(pieces: list, elements: int) -> list[list]:
    """The pieces grouped into parts. The partial sum of each part has `elements` elements."""
    parts = min(MOST_PARTS, max(LEAST_PARTS, PART_ELEMENTS // elements))
    length = math.ceil(len(pieces) / parts)
    return [pieces[start : start + length] for start in range(0, len(pieces), length)]


def _put_product(a, b, out) -> None:
    """out = a b, block by block where that is faster: (n*OH*OW, KH*KW*C) @ (KH*KW*C, O) -> (n, OH, OW, O)."""
    block = _rows_of_a_block(len(a), b.size)
    product = out if out.flags.c_contiguous else scratch("product", out.shape, out.dtype)
    np.matmul(a.reshape(-1, block, a.shape[1]), b, out=product.reshape(-1, block, b.shape[1]))
    if product is not out:
        out[...] = product


def _add_product(a, b, total, is_first: bool) -> None:
    """total += a b, or total = a b if `is_first`. Where it is faster, the sum of the products of blocks."""
    block = _rows_of_a_block(len(b), total.size)
    blocks = len(b) // block
    if is_first and blocks == 1:
        np.matmul(a, b, out=total)
        return
    products = scratch("products", (blocks, *total.shape), total.dtype)
    a_blocks = a.reshape(len(a), blocks, block).transpose(1, 0, 2)  # -> (blocks, len(a), block)
    np.matmul(a_blocks, b.reshape(blocks, block, -1), out=products)
    product = products.sum(axis=0) if blocks > 1 else products[0]
    if is_first:
        total[...] = product
    else:
        total += product


def _rows_of_a_block(rows: int, multiplications_of_a_row: int) -> int:
    """The largest power of two that divides `rows` and makes a small product, if it is at least 64; else `rows`."""
    block = rows & -rows
    while block * multiplications_of_a_row > SMALL_PRODUCT:
        block //= 2
    return block if block >= LEAST_ROWS else rows


# -- which algorithm ---------------------------------------------------------------------------------------------------

# (measured) Winograd's least number of tiles, for 32 channels and for 64 or more. To transform the weights takes as
# long for one tile as for a thousand. Backward needs more tiles, as im2col computes both gradients from one matrix.
WINOGRAD_CHANNELS, FORWARD_TILES, BACKWARD_TILES = 32, (256, 48), (2048, 96)
ALGORITHMS = "auto", "im2col"


def set_convolution(algorithm: str) -> None:
    """Set how the CPU computes convolutions: "im2col" always, or "auto" (the default), the fastest way for the shapes.

    "auto" uses Winograd's F(4x4, 3x3) for 3x3 kernels with stride 1, at least 32 channels and enough pixels. It
    computes 4x4 outputs together from 6x6 inputs, by sums in which the inputs outside an output's window cancel. In
    float32 they cancel only up to rounding, 5e-6 of max |x| times max |weight| at most: with the initial weights of
    `nn.Conv2d`, an input of 1e6 adds an error of about 0.3 to outputs up to 5 pixels away. One NaN or infinity makes up
    to 8x8 outputs NaN instead of 3x3. With up to 16 output channels, "auto" computes two neighbouring outputs together:
    a NaN or infinity in the window of one makes the other NaN too. With "im2col", an output depends only on the inputs
    in its window.

    The two differ by about 1e-6 of the largest output. Each one is reproducible bit for bit, with any number of
    threads. The setting applies to the whole process and has no effect on a GPU.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"set_convolution: expected one of {', '.join(map(repr, ALGORITHMS))}, got {algorithm!r}")
    global _choice
    _choice = algorithm


def get_convolution() -> str:
    """The setting of `set_convolution`: "auto" or "im2col"."""
    return _choice


_choice = "auto"


# (measured) Pairs of pixels take 0.72 to 0.89 of im2col's time for 3, 8 or 16 channels in and up to 16 out, with 3x3
# kernels. In backward they take 0.9 of it for a batch of 16, but as long for 128.
PAIR_CHANNELS = 16
# (measured) With few pixels for each channel, im2col spends its time reading the weights, and in backward turning them.
# The most pixels for each channel are for one tap and for several. With fewer channels the products are too small.
TAP_CHANNELS, FORWARD_TAP_PIXELS, BACKWARD_TAP_PIXELS = 128, (1, 2), (1, 3)


def algorithm_for(x_shape, weight_shape, stride, padding, backward: bool) -> str:
    """The fastest of "im2col", "pairs", "taps", "winograd". Depends on shapes and the setting, not on the machine."""
    if _choice != "auto":
        return _choice
    n, h, w, _ = x_shape
    kh, kw, c, o = weight_shape
    oh, ow = output_size((h, w), (kh, kw), stride, padding)
    channels, pixels = min(c, o), n * oh * ow
    if not backward and o <= PAIR_CHANNELS and kw >= 3 and stride[1] == 1 and ow % 2 == 0:
        return "pairs"
    pixels_per_channel = (BACKWARD_TAP_PIXELS if backward else FORWARD_TAP_PIXELS)[kh * kw > 1]
    if channels >= TAP_CHANNELS and pixels <= pixels_per_channel * channels:
        return "taps"
    least_tiles = (BACKWARD_TILES if backward else FORWARD_TILES)[channels >= 64]
    fits = (kh, kw) == (3, 3) and stride == (1, 1) and max(padding) <= 2 and channels >= WINOGRAD_CHANNELS
    return "winograd" if fits and n * math.ceil(h / 4) * math.ceil(w / 4) >= least_tiles else "im2col"
