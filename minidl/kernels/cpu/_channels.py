"""Work per channel, the last axis. A handful of channels makes rows too short to be fast, so a whole row of pixels is
taken as one row of numbers, and the channel vectors are repeated to its length."""

import math

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, rows_of, slices
from minidl.kernels.cpu._threads import sum_pieces

# A piece is summed in float32, one row after the other, and the pieces' sums are added in float64. Over this many rows
# the error stays near 1e-6; of short rows, 100,000 would otherwise be in a piece.
MOST_ROWS = 512


def keep_where(mask: np.ndarray, array: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = array where the mask holds, and 0 elsewhere.

    The bits are multiplied by 1 or 0 as integers: [inf, 2.5] with the mask [0, 1] gives [0, 2.5]. As floats, inf * 0
    would be NaN.
    """
    bits = np.dtype(f"i{array.itemsize}")
    np.multiply(array.view(bits), mask, out=out.view(bits))
    return out


def as_rows(x: np.ndarray) -> np.ndarray:
    """(N, H, W, C) -> (N*H, W*C), and (N, C) as it is."""
    return x.reshape(math.prod(x.shape[:-2]), -1) if x.ndim > 2 else x


def pieces_of(rows: np.ndarray) -> list[slice]:
    """Such rows, in pieces that are worked on at a time."""
    return slices(len(rows), min(rows_of(PIECE_ELEMENTS, rows.shape[1]), MOST_ROWS))


def repeated(vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(C,) -> (W*C,): the vector once for each pixel of a row."""
    return np.tile(vector, rows.shape[1] // len(vector))


def channel_sums(rows: np.ndarray, channels: int) -> np.ndarray:
    """(rows, W*C) -> (C,) float64. The product with a row of ones is the fastest sum over rows that NumPy has."""
    return (np.ones((1, len(rows)), rows.dtype) @ rows).reshape(-1, channels).sum(axis=0, dtype=np.float64)


def summed_rows(rows: np.ndarray, channels: int) -> np.ndarray:
    """The channel sums of all pieces together."""
    return sum_pieces(lambda some: channel_sums(rows[some], channels), pieces_of(rows))


def sums_and_dots(a: np.ndarray, b: np.ndarray, channels: int) -> np.ndarray:
    """(2, C) float64: the channel sums of a, and of a * b without the product in memory."""
    dots = np.einsum("ij,ij->j", a, b).reshape(-1, channels).sum(axis=0, dtype=np.float64)
    return np.stack([channel_sums(a, channels), dots])
