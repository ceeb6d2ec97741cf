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
// A thread for every four elements, because Philox returns four words at a time. The upper 24 bits of a word decide. x
// begins at word WORD of block `block` of the random stream, so the four words are of two blocks unless WORD is 0.
extern "C" __global__ void dropout(
    const stored* x, const unsigned int* key, stored* y, index threshold, real scale, index block, index vectors
) {
    constexpr int mine = 4 / VECTOR;
    index first = thread_number() * mine;
    if (first >= vectors) return;
    Words words = philox4x32(block + thread_number(), key), next = words;
    if (WORD) next = philox4x32(block + thread_number() + 1, key);
    for (index i = first; i < first + mine && i < vectors; i++) {
        Numbers result = load(x, i);
        for (int k = 0; k < VECTOR; k++) {
            int word = WORD + (i - first) * VECTOR + k;
            bool keep = ((word < 4 ? words.word[word] : next.word[word - 4]) >> 8) >= threshold;
            result.number[k] *= keep ? scale : (real)0;
        }
        store(y, i, result);
    }
}
""",
    examples=({"VECTOR": 1, "WORD": 1}, {"VECTOR": WORDS, "WORD": 0}),
)


def dropout_forward(x, probability, key, first=0):
    """y = x / (1 - p) with probability 1 - p, else 0. `key` is uint32 (seed low, seed high, step, layer).

    Element k of x uses number `first` + k of the random stream.
    """
    x, key = aligned(x), contiguous(cupy.asarray(key, np.uint32))
    y = cupy.empty_like(x)
    threshold = math.ceil(probability * 2**24)  # word / 2^24 >= p as a comparison of integers, without rounding
    vector = math.gcd(vector_size(x.size, x.dtype), WORDS)
    arguments = x, key, y, threshold, float(1 / (1 - probability)), first // WORDS, x.size // vector
    blocks = -(-x.size // (WORDS * THREADS))
    DROPOUT.launch(blocks, THREADS, arguments, x.dtype, {"VECTOR": vector, "WORD": first % WORDS})
    return y


def dropout_backward(grad, probability, key, first=0):
    """dL/dx: dL/dy with the same mask and the same scale."""
    return dropout_forward(grad, probability, key, first)
