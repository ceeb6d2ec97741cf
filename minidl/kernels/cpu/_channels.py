"""Work per channel, the last axis. A handful of channels makes rows too short to be fast, so a whole row of pixels is
taken as one row of numbers, and the channel vectors are repeated to its length."""

import math

import numpy as np

from minidl.kernels.cpu._parallel import chunk_length, sum_chunks

# (measured) A megabyte of float32: in smaller chunks the threads wait for each other and the GIL between the passes.
CHUNK_ELEMENTS = 2**18
# A chunk is summed in float32, one row after the other, and the chunks' sums are added in float64. Over this many rows
# the error stays near 1e-6; of short rows, 100,000 would otherwise be in a chunk.
MOST_ROWS_PER_CHUNK = 512


def keep_where(mask: np.ndarray, array: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = array where the mask holds, and 0 elsewhere.

    The bits are multiplied by 1 or 0 as integers: as floats, an inf or a nan that is masked out would leave a nan.
    """
    bits = np.dtype(f"i{array.itemsize}")
    np.multiply(array.view(bits), mask, out=out.view(bits))
    return out


def relu_gradient(grad: np.ndarray, y: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = grad where the ReLU that gave y let a number through: not where y <= 0, which a NaN is not."""
    mask = y <= 0
    return keep_where(np.logical_not(mask, out=mask), grad, out)


def as_rows(x: np.ndarray) -> np.ndarray:
    """(N, H, W, C) -> (N*H, W*C), and (N, C) as it is."""
    return x.reshape(math.prod(x.shape[:-2]), -1) if x.ndim > 2 else x


def rows_per_chunk(rows: np.ndarray) -> int:
    """How many such rows are worked on at a time."""
    return min(chunk_length(rows.shape[1], CHUNK_ELEMENTS), MOST_ROWS_PER_CHUNK)


def repeated(vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(C,) -> (W*C,): the vector once for each pixel of a row."""
    return np.tile(vector, rows.shape[1] // len(vector))


def channel_sums(rows: np.ndarray, channels: int) -> np.ndarray:
    """(rows, W*C) -> (C,) float64. The product with a row of ones is the fastest sum over rows that NumPy has."""
    return (np.ones((1, len(rows)), rows.dtype) @ rows).reshape(-1, channels).sum(axis=0, dtype=np.float64)


def summed_rows(rows: np.ndarray, channels: int) -> np.ndarray:
    """The channel sums of all chunks together."""
    return sum_chunks(lambda start, stop: channel_sums(rows[start:stop], channels), len(rows), rows_per_chunk(rows))


def sums_and_dots(a: np.ndarray, b: np.ndarray, channels: int) -> np.ndarray:
    """(2, C) float64: the channel sums of a, and of a * b without the product in memory."""
    dots = np.einsum("ij,ij->j", a, b).reshape(-1, channels).sum(axis=0, dtype=np.float64)
    return np.stack([channel_sums(a, channels), dots])
