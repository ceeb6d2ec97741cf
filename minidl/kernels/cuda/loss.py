"""Losses: a scalar, the mean over the batch."""

import cupy

from minidl.kernels.cuda._launch import THREADS, CudaKernel, contiguous
from minidl.kernels.cuda.softmax import ROWS, launch_block_per_row

MOST_BLOCKS = 256  # about two per multiprocessor (an H200 has 132), and few partial sums for MEAN to add up

MEAN = CudaKernel(
    "mean",
    """
// One block, so that the order of the sum is always the same: each thread adds up every blockDim.x-th value, and
// block_sum adds up their sums. The sum is divided by `count`.
extern "C" __global__ void mean(const real* values, real* y, index length, index count) {
    real sum = 0;
    for (index i = threadIdx.x; i < length; i += blockDim.x) sum += values[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *y = sum / (real)count;
}
""",
)


def mean(values, count):
    """A 0-d array: the sum of the values, divided by `count`."""
    y = cupy.empty((), values.dtype)
    MEAN.launch(1, THREADS, (values, y, values.size, count), values.dtype)
    return y


CROSS_ENTROPY_FORWARD = CudaKernel(
    "cross_entropy_forward",
    ROWS
    + """
// A block for each row of logits; thread 0 writes the row's loss. The target is `others` for each class, plus `more`
// for the label. The labels have not been checked, because the host would have to wait for them: a label that is not a
// class makes the loss NaN.
extern "C" __global__ void cross_entropy_forward(const real* logits, const long long* labels, real* losses,
                                                 real* probabilities, real others, real more, index K) {
    index n = blockIdx.x, start = n * K;
    real largest = row_max(logits + start, K), sum = 0;
    for (index k = threadIdx.x; k < K; k += blockDim.x) sum += exp(logits[start + k] - largest);
    real log_sum = log(block_sum(sum)), log_product = 0;
    for (index k = threadIdx.x; k < K; k += blockDim.x) {
        real log_probability = logits[start + k] - largest - log_sum;
        log_product += log_probability;
        probabilities[start + k] = exp(log_probability);
    }
    log_product = block_sum(log_product);
    if (threadIdx.x == 0) {
        bool is_class = 0 <= labels[n] && labels[n] < K;
        real loss = is_class ? -more * (logits[start + labels[n]] - largest - log_sum) : (real)0 / (real)0;
        // Without smoothing a logit of -inf is allowed, but 0 * -inf would be NaN.
        losses[n] = others > 0 ? loss - others * log_product : loss;
    }
}
""",
)


def cross_entropy_forward(logits, labels, label_smoothing):
    """(loss, p): the mean of -sum_k t_k log p_k, p = softmax(logits). t = (1-s) onehot(label) + s/K, s = smoothing."""
    logits, labels = contiguous(logits), contiguous(labels.astype("int64", copy=False))
    n, classes = logits.shape
    losses, probabilities = cupy.empty(n, logits.dtype), cupy.empty_like(logits)
    others, more = label_smoothing / classes, 1.0 - label_smoothing
    launch_block_per_row(CROSS_ENTROPY_FORWARD, logits, logits, labels, losses, probabilities, others, more)
    return mean(losses, n), probabilities


CROSS_ENTROPY_BACKWARD = CudaKernel(
    "cross_entropy_backward",
    """
// A thread for each logit, number i = n*K + k.
extern "C" __global__ void cross_entropy_backward(const real* grad, const real* probabilities, const long long* labels,
                                                  real* grad_logits, real others, real more, index N, index K) {
    index i = thread_number();
    if (i >= N * K) return;
    real difference = probabilities[i] - others;
    if (i % K == labels[i / K]) difference -= more;
    grad_logits[i] = difference * (*grad / (real)N);
}
""",
)


def cross_entropy_backward(grad, probabilities, labels, label_smoothing):
    """dL/dlogits = dL/dloss * (p - t) / N."""
    probabilities = contiguous(probabilities)
    labels = contiguous(labels.astype("int64", copy=False))
    n, classes = probabilities.shape
    grad_logits = cupy.empty_like(probabilities)
    others, more = label_smoothing / classes, 1.0 - label_smoothing
    arguments = grad, probabilities, labels, grad_logits, others, more, n, classes
    CROSS_ENTROPY_BACKWARD.for_each(grad_logits.size, *arguments, dtype=probabilities.dtype)
    return grad_logits


SQUARED_ERRORS = CudaKernel(
    "squared_errors",
    """
// Thread t adds up the elements t, t + (number of threads) ..., and each block adds up the sums of its threads.
extern "C" __global__ void squared_errors(const real* x, const real* target, real* sums, index count) {
    index threads = (index)gridDim.x * blockDim.x;
    real sum = 0;
    for (index i = thread_number(); i < count; i += threads) sum += (x[i] - target[i]) * (x[i] - target[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
""",
)


def mse_loss_forward(x, target):
    """The mean of (x - target)^2 over all elements."""
    x, target = contiguous(x), contiguous(target)
    blocks = min(-(-x.size // THREADS), MOST_BLOCKS)
    sums = cupy.empty(blocks, x.dtype)
    SQUARED_ERRORS.launch(blocks, THREADS, (x, target, sums, x.size), x.dtype)
    return mean(sums, x.size)


MSE_LOSS_BACKWARD = CudaKernel(
    "mse_loss_backward",
    """
// A thread for each element.
extern "C" __global__ void mse_loss_backward(const real* grad, const real* x, const real* target, real* grad_x,
                                             index count) {
    index i = thread_number();
    if (i < count) grad_x[i] = (x[i] - target[i]) * (2 * *grad / (real)count);
}
""",
)


def mse_loss_backward(grad, x, target):
    """dL/dx = dL/dloss * 2 * (x - target) / count; dL/dtarget is its negative."""
    grad_x = cupy.empty(x.shape, x.dtype)
    x, target = contiguous(x), contiguous(target)
    MSE_LOSS_BACKWARD.for_each(x.size, grad, x, target, grad_x, x.size, dtype=x.dtype)
    return grad_x
