"""Work per channel, the last axis. Rows of a few channels are too short to be fast, so a whole row of pixels becomes
one row, (N, H, W, C) -> (N*H, W*C), and vectors (C,) are repeated to its length."""

import math

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, rows_of, slices
from minidl.kernels.cpu._threads import sum_pieces

# The rows of a piece are summed in float32, and the sums of the pieces in float64. Up to 512 rows the error stays near
# 1e-6. Without this limit a piece of short rows would have 100,000 of them.
MOST_ROWS = 512


def keep_where(mask: np.ndarray, array: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = array where the mask is True, and 0 elsewhere.

    The bits are multiplied by 0 or 1 as integers. Example: [inf, 2.5] with the mask [0, 1] becomes [0, 2.5]. With
    floats, inf * 0 would be NaN.
    """
    bits = np.dtype(f"i{array.itemsize}")
    np.multiply(array.view(bits), mask, out=out.view(bits))
    return out


def as_rows(x: np.ndarray) -> np.ndarray:
    """(N, H, W, C) -> (N*H, W*C). An x of shape (N, C) is returned unchanged."""
    return x.reshape(math.prod(x.shape[:-2]), -1) if x.ndim > 2 else x


def pieces_of(rows: np.ndarray) -> list[slice]:
    """The rows that `as_rows` returns, cut into pieces."""
    return slices(len(rows), min(rows_of(PIECE_ELEMENTS, rows.shape[1]), MOST_ROWS))


def repeated(vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(C,) -> (W*C,): the vector repeated for each pixel of a row. (measured) np.tile takes ten times as long."""
    pixels = np.empty((rows.shape[1] // len(vector), len(vector)), vector.dtype)
    pixels[...] = vector
    return pixels.reshape(-1)


def channel_sums(rows: np.ndarray, channels: int) -> np.ndarray:
    """(rows, W*C) -> (C,) in float64. A product with a row of ones is the fastest sum over rows in NumPy."""
    return (np.ones((1, len(rows)), rows.dtype) @ rows).reshape(-1, channels).sum(axis=0, dtype=np.float64)


def summed_rows(rows: np.ndarray, channels: int) -> np.ndarray:
    """`channel_sums` of all rows, computed piece by piece."""
    return sum_pieces(lambda piece: channel_sums(rows[piece], channels), pieces_of(rows), multiplications=rows.size)


def sums_and_dots(a: np.ndarray, b: np.ndarray, channels: int) -> np.ndarray:
    """(2, C) in float64: the channel sums of a and those of a * b, without storing the product."""
    result = np.empty((2, channels))
    result[0] = channel_sums(a, channels)
    np.einsum("ij,ij->j", a, b).reshape(-1, channels).sum(axis=0, out=result[1], dtype=np.float64)
    return result
