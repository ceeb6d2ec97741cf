"""Dropout. The mask is a function of the key, so backward computes it again instead of storing it."""

import math

import cupy
import numpy as np

from minidl.kernels.cuda._launch import CudaKernel, contiguous
from minidl.kernels.cuda._philox import PHILOX

DROPOUT = CudaKernel(
    "dropout",
    PHILOX
    + """
// A thread for every four elements, because Philox returns four words at a time. The upper 24 bits of a word decide.
extern "C" __global__ void dropout(
    const stored* x, const unsigned int* key, stored* y, index threshold, real scale, index count
) {
    index block = thread_number();
    if (block >= (count + 3) / 4) return;
    Words words = philox4x32(block, key);
    for (int k = 0; k < 4; k++) {
        index i = 4 * block + k;
        bool keep = (words.word[k] >> 8) >= threshold;
        if (i < count) y[i] = (real)x[i] * (keep ? scale : (real)0);
    }
}
""",
)


def dropout_forward(x, probability, key):
    """y = x / (1 - p) with probability 1 - p, else 0. `key` is uint32 (seed low, seed high, step, layer)."""
    x, key = contiguous(x), contiguous(cupy.asarray(key, np.uint32))
    y = cupy.empty_like(x)
    threshold = math.ceil(probability * 2**24)  # word / 2^24 >= p as a comparison of integers, without rounding
    DROPOUT.for_each(-(-x.size // 4), x, key, y, threshold, float(1 / (1 - probability)), x.size, dtype=x.dtype)
    return y


def dropout_backward(grad, probability, key):
    """dL/dx: dL/dy with the same mask and the same scale."""
    return dropout_forward(grad, probability, key)
