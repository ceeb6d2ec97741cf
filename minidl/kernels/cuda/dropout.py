"""Dropout. The mask is a function of the key, so backward computes it again instead of storing it."""

import math

import cupy
import numpy as np

from minidl.kernels.cuda._launch import THREADS, CudaKernel, contiguous
from minidl.kernels.cuda._philox import PHILOX
from minidl.kernels.cuda._vectors import VECTORS, aligned, vector_size

WORDS = 4  # that Philox returns at a time

DROPOUT = CudaKernel(
    "dropout",
    PHILOX
    + VECTORS
    + """
// A thread for every four elements, because Philox returns four words at a time. The upper 24 bits of a word decide.
extern "C" __global__ void dropout(
    const stored* x, const unsigned int* key, stored* y, index threshold, real scale, index vectors
) {
    constexpr int mine = 4 / VECTOR;
    index first = thread_number() * mine;
    if (first >= vectors) return;
    Words words = philox4x32(thread_number(), key);
    for (index i = first; i < first + mine && i < vectors; i++) {
        Numbers result = load(x, i);
        for (int k = 0; k < VECTOR; k++) {
            bool keep = (words.word[(i - first) * VECTOR + k] >> 8) >= threshold;
            result.number[k] *= keep ? scale : (real)0;
        }
        store(y, i, result);
    }
}
""",
    examples=({"VECTOR": 1}, {"VECTOR": WORDS}),
)


def dropout_forward(x, probability, key):
    """y = x / (1 - p) with probability 1 - p, else 0. `key` is uint32 (seed low, seed high, step, layer)."""
    x, key = aligned(x), contiguous(cupy.asarray(key, np.uint32))
    y = cupy.empty_like(x)
    threshold = math.ceil(probability * 2**24)  # word / 2^24 >= p as a comparison of integers, without rounding
    vector = math.gcd(vector_size(x.size, x.dtype), WORDS)
    arguments = x, key, y, threshold, float(1 / (1 - probability)), x.size // vector
    blocks = -(-x.size // (WORDS * THREADS))
    DROPOUT.launch(blocks, THREADS, arguments, x.dtype, {"VECTOR": vector})
    return y


def dropout_backward(grad, probability, key):
    """dL/dx: dL/dy with the same mask and the same scale."""
    return dropout_forward(grad, probability, key)
