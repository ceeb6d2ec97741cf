"""Adding a bias, which a matrix product leaves to be done."""

from minidl.kernels.cuda._launch import CudaKernel, contiguous

ADD_BIAS = CudaKernel(
    "add_bias",
    """
// A thread for each number of y, whose channels lie innermost: a warp reads and writes neighbours.
extern "C" __global__ void add_bias(const real* bias, stored* y, index channels, index count) {
    index i = thread_number();
    if (i < count) y[i] = (real)y[i] + bias[i % channels];
}
""",
)


def add_bias(y, bias) -> None:
    """y += bias, in place, over the last axis; nothing if bias is None. For a y that the caller has just made."""
    if bias is not None:
        ADD_BIAS.for_each(y.size, contiguous(bias), y, len(bias), y.size, dtype=y.dtype)
