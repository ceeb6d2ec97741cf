"""Softmax over the last axis. The largest logit is subtracted first: exp cannot overflow, the result is the same."""

import cupy

from minidl.kernels.cuda._launch import THREADS, CudaKernel, contiguous

WARP = 32  # threads that a GPU runs in lockstep

# In all kernels here a block works on a row of K elements, and thread t on its elements t, t + blockDim.x,
# t + 2 * blockDim.x ..., so that neighbouring threads read neighbouring elements.
ROWS = """
// The largest `value` of the block's threads; all threads receive it. For the number of threads see block_sum.
__device__ real block_max(real value) {
    __shared__ real largest[1024];
    largest[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) largest[threadIdx.x] = max(largest[threadIdx.x], largest[threadIdx.x + half]);
        __syncthreads();
    }
    real result = largest[0];
    __syncthreads();  // before `largest` is written again
    return result;
}

// The maximum of a row.
__device__ real row_max(const real* row, index K) {
    real largest = row[0];
    for (index k = threadIdx.x; k < K; k += blockDim.x) largest = max(largest, row[k]);
    return block_max(largest);
}
"""


def launch_block_per_row(kernel, rows, *arrays):
    """Launch a block for each row of (N, K), with K threads rounded up to a power of two from 32 to 256."""
    n, classes = rows.shape
    threads = min(THREADS, max(WARP, 1 << (classes - 1).bit_length()))
    kernel.launch(n, threads, (*arrays, classes), rows.dtype)


SOFTMAX_FORWARD = CudaKernel(
    "softmax_forward",
    ROWS
    + """
// A block for each row.
extern "C" __global__ void softmax_forward(const real* x, real* y, index K) {
    index start = (index)blockIdx.x * K;
    real largest = row_max(x + start, K), sum = 0;
    for (index k = threadIdx.x; k < K; k += blockDim.x) {
        real exponential = exp(x[start + k] - largest);
        y[start + k] = exponential;
        sum += exponential;
    }
    sum = block_sum(sum);
    for (index k = threadIdx.x; k < K; k += blockDim.x) y[start + k] /= sum;
}
""",
)


def softmax_forward(x):
    """y_i = exp(x_i) / sum_j exp(x_j), for each row of x, (N, K)."""
    x = contiguous(x)
    y = cupy.empty_like(x)
    launch_block_per_row(SOFTMAX_FORWARD, x, x, y)
    return y


SOFTMAX_BACKWARD = CudaKernel(
    "softmax_backward",
    """
// A block for each row.
extern "C" __global__ void softmax_backward(const real* grad, const real* y, real* grad_x, index K) {
    index start = (index)blockIdx.x * K;
    real sum = 0;
    for (index k = threadIdx.x; k < K; k += blockDim.x) sum += grad[start + k] * y[start + k];
    sum = block_sum(sum);
    for (index k = threadIdx.x; k < K; k += blockDim.x) grad_x[start + k] = y[start + k] * (grad[start + k] - sum);
}
""",
)


def softmax_backward(grad, y):
    """dL/dx_i = y_i (g_i - sum_j g_j y_j)."""
    grad, y = contiguous(grad), contiguous(y)
    grad_x = cupy.empty_like(grad)
    launch_block_per_row(SOFTMAX_BACKWARD, grad, grad, y, grad_x)
    return grad_x


LOG_SOFTMAX_FORWARD = CudaKernel(
    "log_softmax_forward",
    ROWS
    + """
// A block for each row.
extern "C" __global__ void log_softmax_forward(const real* x, real* y, index K) {
    index start = (index)blockIdx.x * K;
    real largest = row_max(x + start, K), sum = 0;
    for (index k = threadIdx.x; k < K; k += blockDim.x) sum += exp(x[start + k] - largest);
    real log_sum = log(block_sum(sum));
    for (index k = threadIdx.x; k < K; k += blockDim.x) y[start + k] = x[start + k] - largest - log_sum;
}
""",
)


def log_softmax_forward(x):
    """y_i = x_i - log sum_j exp(x_j), for each row of x, (N, K)."""
    x = contiguous(x)
    y = cupy.empty_like(x)
    launch_block_per_row(LOG_SOFTMAX_FORWARD, x, x, y)
    return y


LOG_SOFTMAX_BACKWARD = CudaKernel(
    "log_softmax_backward",
    """
// A block for each row.
extern "C" __global__ void log_softmax_backward(const real* grad, const real* y, real* grad_x, index K) {
    index start = (index)blockIdx.x * K;
    real sum = 0;
    for (index k = threadIdx.x; k < K; k += blockDim.x) sum += grad[start + k];
    sum = block_sum(sum);
    for (index k = threadIdx.x; k < K; k += blockDim.x) grad_x[start + k] = grad[start + k] - exp(y[start + k]) * sum;
}
""",
)


def log_softmax_backward(grad, y):
    """dL/dx_i = g_i - softmax(x)_i sum_j g_j."""
    grad, y = contiguous(grad), contiguous(y)
    grad_x = cupy.empty_like(grad)
    launch_block_per_row(LOG_SOFTMAX_BACKWARD, grad, grad, y, grad_x)
    return grad_x
