"""Sums of the elements with the same position: the gradient of indexing with an array."""

import math

import cupy
import numpy as np

from minidl.kernels.cuda._launch import CudaKernel, contiguous

SCATTER_ADD = CudaKernel(
    "scatter_add",
    """
// A thread for each element of grad, sorted by position. The first thread of each position adds up all elements with
// that position, in the order they have in grad: atomics would add them in a different order each time.
extern "C" __global__ void scatter_add(
    const stored* grad, const long long* positions, const long long* order, stored* y, index count
) {
    index i = thread_number();
    if (i >= count) return;
    long long position = positions[order[i]];
    if (i > 0 && positions[order[i - 1]] == position) return;
    double sum = 0;  // a position may have a million elements
    for (index k = i; k < count && positions[order[k]] == position; k++) sum += (real)grad[order[k]];
    y[position] = (real)sum;
}
""",
)


def scatter_add(grad, positions, shape):
    """y of the given shape. In the flattened y, y[p] is the sum of the elements of grad with position p, in order."""
    grad, positions = contiguous(grad).ravel(), contiguous(positions.astype(np.int64, copy=False)).ravel()
    count = grad.size
    # Sorted by position, then by index in grad: CuPy's sort need not keep the order of equal positions.
    order = cupy.argsort(positions * count + cupy.arange(count, dtype=np.int64))
    y = cupy.zeros(math.prod(shape), grad.dtype)
    SCATTER_ADD.for_each(count, grad, positions, order, y, count, dtype=grad.dtype)
    return y.reshape(shape)
