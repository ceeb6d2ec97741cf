"""Convolution as one matrix product, a piece of the output at a time so that its columns stay in the cache."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu._im2col import Patches, output_size
from minidl.kernels.cpu._parallel import map_chunks, scratch, sum_chunks

# (measured) OpenBLAS multiplies small matrices, up to a million multiplications, without packing copies of them first:
# 150 instead of 124 GFLOP/s a core for 144 columns and 16 outputs. Blocks of fewer rows than these do not pay.
SMALL_PRODUCT, LEAST_ROWS = 10**6, 64
# dL/dweight is summed in parts, each as large as the weights: many if they are small, and if they are large so few that
# together they have no more numbers than these, but enough that several threads have work.
MOST_PARTS, PART_ELEMENTS, LEAST_PARTS = 16, 2**21, 4


def forward(x, weight, bias, stride, padding):
    """y = columns weight + bias."""
    kh, kw, c, o = weight.shape
    size = output_size(x.shape[1:3], (kh, kw), stride, padding)
    patches = Patches(x.shape, (kh, kw), stride, padding, size, o)
    matrix = weight.reshape(kh * kw * c, o)
    y = np.empty((len(x), *size, o), x.dtype)

    def convolve(number, _):
        piece = patches.pieces[number]
        rows = piece.of(y)
        multiply(patches.columns(x, piece), matrix, out=rows)
        if bias is not None:
            rows += bias

    map_chunks(convolve, len(patches.pieces), 1)
    return y


def backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx, phase by phase: the columns of dL/dy times the turned kernel."""
    phases = list(phases_of_x(x_shape, grad.shape, weight.shape, stride, padding))
    grad_x = make_gradient(x_shape, grad.dtype, phases, stride)
    for phase in phases:
        _backward_x_of_a_phase(grad, weight[phase.taps], phase.patches, grad_x[phase.pixels])
    return grad_x


def _backward_x_of_a_phase(grad, weight, patches, grad_x):
    turned = turned_matrix(weight)

    def convolve(number, _):
        piece = patches.pieces[number]
        put_product(patches.columns(grad, piece), turned, grad_x, piece)

    map_chunks(convolve, len(patches.pieces), 1)


def backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight = columns^T dL/dy."""
    kh, kw, c, o = weight_shape
    patches = Patches(x.shape, (kh, kw), stride, padding, grad.shape[1:3], o)

    def correlate(first, last):
        total = np.empty((kh * kw * c, o), grad.dtype)
        for number in range(first, last):
            piece = patches.pieces[number]
            add_product(patches.columns(x, piece).T, piece.of(grad), total, is_first=number == first)
        return total

    return sum_chunks(correlate, len(patches.pieces), pieces_of_a_part(patches, o)).reshape(weight_shape)


def backward(grad, x, weight, stride, padding):
    """(dL/dx, dL/dweight), phase by phase, both from one im2col, that of dL/dy.

    A row of its columns holds what a pixel of x meets through each tap, so dL/dweight is x^T columns. (measured) 40 %
    less time than with a second im2col, that of x, for 16 channels, 25 % for 32.
    """
    phases = list(phases_of_x(x.shape, grad.shape, weight.shape, stride, padding))
    grad_x = make_gradient(x.shape, grad.dtype, phases, stride)
    grad_weight = make_gradient(weight.shape, grad.dtype, phases, stride)
    for phase in phases:
        grad_weight[phase.taps] = _backward_of_a_phase(
            grad, x[phase.pixels], weight[phase.taps], phase.patches, grad_x[phase.pixels]
        )
    return grad_x, grad_weight


def _backward_of_a_phase(grad, x, weight, patches, grad_x):
    kh, kw, c, o = weight.shape
    turned = turned_matrix(weight)

    def from_columns(first, last):
        total = np.empty((c, kh * kw * o), grad.dtype)
        for number in range(first, last):
            piece = patches.pieces[number]
            columns = patches.columns(grad, piece)
            put_product(columns, turned, grad_x, piece)
            add_product(piece.of(x).T, columns, total, is_first=number == first)
        return total

    total = sum_chunks(from_columns, len(patches.pieces), pieces_of_a_part(patches, c))
    return total.reshape(c, kh, kw, o)[:, ::-1, ::-1].transpose(1, 2, 0, 3)  # to (KH, KW, C, O)


class Phase(NamedTuple):
    """The pixels x[:, i::s, j::s], the taps of the kernel that they meet, and the patches of dL/dy that they see.

    Along one axis, with stride s and padding p, x[h] reached y[k] through the tap u = h + p - s k. Let h = s q + i and
    k = q + offset: then u = i + p - s offset, whatever q is. So the pixels that start at i meet every s-th tap from
    (i + p) % s on, the first at the offset (i + p) // s and each next one at an offset smaller by one: their dL/dx is
    dL/dy convolved with the turned kernel of these taps, with stride 1. If s = 1, one phase meets all taps.
    """

    pixels: tuple[slice, slice, slice]  # of x
    taps: tuple[slice, slice]  # of the weight
    patches: Patches


def phases_of_x(x_shape, grad_shape, weight_shape, stride, padding) -> Iterator[Phase]:
    """The phases that have pixels and meet a tap."""
    for start in itertools.product(range(stride[0]), range(stride[1])):
        pixels = [range(start[i], x_shape[1 + i], stride[i]) for i in (0, 1)]
        taps = [range((start[i] + padding[i]) % stride[i], weight_shape[i], stride[i]) for i in (0, 1)]
        if not all([*pixels, *taps]):
            continue
        kernel_size, size = [len(each) for each in taps], [len(each) for each in pixels]
        before = [kernel_size[i] - 1 - (start[i] + padding[i]) // stride[i] for i in (0, 1)]
        yield Phase(
            (slice(None), *(slice(each.start, None, each.step) for each in pixels)),
            tuple(slice(each.start, None, each.step) for each in taps),
            Patches(grad_shape, kernel_size, (1, 1), before, size, weight_shape[2]),
        )


def make_gradient(shape, dtype, phases, stride) -> np.ndarray:
    """An array for dL/dx or dL/dweight. Pixels that meet no tap belong to no phase, nor do such taps: there it is 0."""
    return (np.empty if len(phases) == stride[0] * stride[1] else np.zeros)(shape, dtype)


def turned_matrix(weight) -> np.ndarray:
    """The kernel turned by 180 degrees, as a matrix (KH*KW*O, C)."""
    kh, kw, c, o = weight.shape
    matrix = weight[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, kh * kw * o).T  # (KH, KW, C, O) -> (C, KH*KW*O)^T
    # (measured) Small products are faster if it lies in memory like that, large ones if BLAS transposes it itself.
    return np.ascontiguousarray(matrix) if matrix.size * LEAST_ROWS <= SMALL_PRODUCT else matrix


def put_product(a, b, y, piece) -> None:
    """The piece's pixels of y = a b; with a stride y is a view, and its pixels are no matrix in memory."""
    pixels = y[piece.images, piece.rows]
    if pixels.flags.c_contiguous:
        multiply(a, b, out=piece.of(y))
    else:
        product = scratch("product", (len(a), b.shape[1]), a.dtype)
        multiply(a, b, out=product)
        pixels[...] = product.reshape(pixels.shape)


def multiply(a, b, out) -> None:
    """out = a b, a block of rows at a time where that is faster."""
    block = rows_of_a_block(len(a), b.size)
    np.matmul(a.reshape(-1, block, a.shape[1]), b, out=out.reshape(-1, block, out.shape[1]))


def add_product(a, b, total, is_first: bool) -> None:
    """total += a b, or total = a b if it is the first; the sum over blocks where that is faster."""
    block = rows_of_a_block(len(b), total.size)
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


def rows_of_a_block(rows: int, multiplications_of_a_row: int) -> int:
    """The largest power of two that divides the rows and makes a small product; else all rows."""
    block = rows & -rows
    while block * multiplications_of_a_row > SMALL_PRODUCT:
        block //= 2
    return block if block >= LEAST_ROWS else rows


def pieces_of_a_part(patches: Patches, other_channels: int) -> int:
    """How many pieces are summed before the sums of the threads are added."""
    parts = min(MOST_PARTS, max(LEAST_PARTS, PART_ELEMENTS // (patches.length * other_channels)))
    return math.ceil(len(patches.pieces) / parts)
