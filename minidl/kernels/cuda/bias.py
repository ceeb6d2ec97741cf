"""The bias of a convolution or a linear layer: one value for each channel."""

import cupy

from minidl.kernels.cuda._launch import CudaKernel, real_dtype
from minidl.kernels.cuda._slabs import ONE_CHANNEL, SLABS, columns_of, cut_for_sums, one_slab
from minidl.kernels.cuda._vectors import EXAMPLES, aligned

CHANNEL_SUMS = CudaKernel(
    "channel_sums",
    SLABS
    + """
// A block for each slab of rows and group of columns: threads of neighbouring columns read neighbouring elements.
// Blocks cannot wait for each other, so each slab has a partial sum. A second launch adds up the partial sums.
extern "C" __global__ void channel_sums(
    const stored* x, real* sums, index rows, index columns, index rows_per_thread
) {
    Walk walk = walk_down(rows, columns, rows_per_thread);
    Numbers sum = 0;
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) sum = sum + load(x, walk.first + k * walk.stride);
    sum = sum_over_rows(sum);
    if (writes(columns)) store(sums, (index)blockIdx.y * columns + thread_number(), sum);
}
""",
    examples=EXAMPLES,
)


def bias_backward(grad):
    """dL/dbias, (O,): the sum of dL/dy over all axes but the last."""
    grad = aligned(grad)
    rows, columns, constants = columns_of(grad)
    channels = grad.shape[-1]
    slabs = cut_for_sums(rows, columns)
    sums = _sums(grad, channels, rows, columns, slabs, constants)  # (slabs, O)
    if slabs.count > 1:
        sums = _sums(sums, channels, slabs.count, channels, one_slab(slabs.count, channels), ONE_CHANNEL)
    return sums.reshape(channels)


def _sums(x, channels, rows, columns, slabs, constants):
    """(slabs, O): the sum over the rows of each slab."""
    sums = cupy.empty((slabs.count, channels), real_dtype(x.dtype))
    arguments = x, sums, rows, columns, slabs.rows_per_thread
    CHANNEL_SUMS.launch(slabs.blocks, slabs.threads, arguments, x.dtype, constants)
    return sums
