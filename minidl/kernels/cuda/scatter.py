"""Adding up where numbers came from: the gradient of picking them by an array of indices."""

import math

import cupy
import numpy as np

from minidl.kernels.cuda._launch import CudaKernel, contiguous

SCATTER_ADD = CudaKernel(
    "scatter_add",
    """
// A thread for each number of grad, in the order of their positions. The first of those with one position adds them all
// up, in the order they have in grad: atomics would add in another order each time.
extern "C" __global__ void scatter_add(
    const stored* grad, const long long* positions, const long long* order, stored* y, index count
) {
    index i = thread_number();
    if (i >= count) return;
    long long position = positions[order[i]];
    if (i > 0 && positions[order[i - 1]] == position) return;
    double sum = 0;  // one position may have a million numbers
    for (index k = i; k < count && positions[order[k]] == position; k++) sum += (real)grad[order[k]];
    y[position] = (real)sum;
}
""",
)


def scatter_add(grad, positions, shape):
    """y of that shape, flattened: y[p] is the sum of the numbers of grad whose position is p, in their order."""
    grad, positions = contiguous(grad).ravel(), contiguous(positions.astype(np.int64, copy=False)).ravel()
    count = grad.size
    # Sorted by position and then by place, as CuPy's sort alone need not keep the order of equal ones.
    order = cupy.argsort(positions * count + cupy.arange(count, dtype=np.int64))
    y = cupy.zeros(math.prod(shape), grad.dtype)
    SCATTER_ADD.for_each(count, grad, positions, order, y, count, dtype=grad.dtype)
    return y.reshape(shape)
