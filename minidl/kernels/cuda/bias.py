"""The bias of a convolution or a linear layer: one value for each channel."""

import math

import cupy

from minidl.kernels.cuda._launch import CudaKernel, contiguous, real_dtype
from minidl.kernels.cuda._slabs import SLABS, cut_for_sums, one_slab

CHANNEL_SUMS = CudaKernel(
    "channel_sums",
    SLABS
    + """
// A block for each slab of rows and group of channels: threads of neighbouring channels read neighbouring elements.
// Blocks cannot wait for each other, so each slab has a partial sum. A second launch adds up the partial sums.
extern "C" __global__ void channel_sums(
    const stored* x, real* sums, index rows, index channels, index rows_per_thread
) {
    Walk walk = walk_down(rows, channels, rows_per_thread);
    real sum = 0;
    #pragma unroll 8
    for (index k = 0; k < walk.count; k++) sum += (real)x[walk.first + k * walk.stride];
    sum = sum_over_rows(sum);
    if (writes(channels)) sums[(index)blockIdx.y * channels + thread_number()] = sum;
}
""",
)


def bias_backward(grad):
    """dL/dbias, (O,): the sum of dL/dy over all axes but the last."""
    channels = grad.shape[-1]
    rows = math.prod(grad.shape[:-1])
    slabs = cut_for_sums(rows, channels)
    sums = _sums(contiguous(grad), rows, channels, slabs)  # (slabs, O)
    if slabs.count > 1:
        sums = _sums(sums, slabs.count, channels, one_slab(slabs.count, channels))
    return sums.reshape(channels)


def _sums(x, rows, channels, slabs):
    """(slabs, O): the sum over the rows of each slab."""
    sums = cupy.empty((slabs.count, channels), real_dtype(x.dtype))
    CHANNEL_SUMS.launch(slabs.blocks, slabs.threads, (x, sums, rows, channels, slabs.rows_per_thread), x.dtype)
    return sums
