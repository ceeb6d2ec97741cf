"""Batch normalisation.

In every kernel a thread works on one channel, in every n-th row: see `_slabs`.
"""

import math

import cupy

from minidl.kernels.cuda._launch import CudaKernel, contiguous, real_dtype
from minidl.kernels.cuda._slabs import SLABS, cut, cut_for_sums, one_slab

ROWS_PER_THREAD = 4  # in kernels without sums: all four rows are read at once, and the channel's parameters only once
MOST_BLOCKS = 65535  # CUDA's limit for the second dimension of a grid, the slabs

MOMENTS = (
    SLABS
    + """
// Of some values of a channel: their count, their mean, and the sum of their squared distances from the mean.
struct Moments {
    real count, mean, squares;
};

// The moments of two sets of values together: Chan, Golub, LeVeque 1979. If b is a single value: Welford's formula.
__device__ Moments operator+(Moments a, Moments b) {
    real count = a.count + b.count;
    real share = b.count / (count > 0 ? count : 1);
    real difference = b.mean - a.mean;
    return {count, a.mean + difference * share, a.squares + b.squares + difference * difference * (a.count * share)};
}
"""
)

SLAB_MOMENTS = CudaKernel(
    "slab_moments",
    MOMENTS
    + """
// A block for each slab of rows and group of channels; x is read once. The first value of a channel is subtracted from
// all its values, so that their differences keep all digits even if the mean is large.
extern "C" __global__ void slab_moments(
    const stored* x, Moments* slabs, index rows, index channels, index rows_per_thread
) {
    Walk walk = walk_down(rows, channels, rows_per_thread);
    real first = walk.count ? (real)x[thread_number()] : (real)0;
    Moments moments = {0, 0, 0};
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        moments = moments + Moments{1, (real)x[walk.first + k * walk.stride] - first, 0};
    }
    moments = sum_over_rows(moments);
    if (writes(channels)) slabs[(index)blockIdx.y * channels + thread_number()] = moments;
}
""",
)

MERGE_MOMENTS = CudaKernel(
    "merge_moments",
    MOMENTS
    + """
// A block for each group of channels. Its rows are the slabs.
extern "C" __global__ void merge_moments(
    const Moments* slabs, const stored* x, real* mean, real* variance,
    index count, index channels, index rows_per_thread
) {
    Walk walk = walk_down(count, channels, rows_per_thread);
    Moments moments = {0, 0, 0};
    for (index k = 0; k < walk.count; k++) moments = moments + slabs[walk.first + k * walk.stride];
    moments = sum_over_rows(moments);
    if (writes(channels)) {
        index channel = thread_number();
        mean[channel] = (real)x[channel] + moments.mean;
        variance[channel] = moments.squares / moments.count;
    }
}
""",
)


def batch_statistics(x):
    """(mean, variance) of each channel over the batch, (C,). The variance is the biased one, divided by the count."""
    x = contiguous(x)
    rows, channels = math.prod(x.shape[:-1]), x.shape[-1]
    slabs = cut_for_sums(rows, channels)
    moments = cupy.empty((slabs.count, channels, 3), real_dtype(x.dtype))
    SLAB_MOMENTS.launch(slabs.blocks, slabs.threads, (x, moments, rows, channels, slabs.rows_per_thread), x.dtype)
    mean, variance = (cupy.empty(channels, moments.dtype) for _ in range(2))
    merging = one_slab(slabs.count, channels)
    arguments = moments, x, mean, variance, slabs.count, channels, merging.rows_per_thread
    MERGE_MOMENTS.launch(merging.blocks, merging.threads, arguments, x.dtype)
    return mean, variance


BATCH_NORM_APPLY = CudaKernel(
    "batch_norm_apply",
    SLABS
    + """
// A thread for each channel of a few rows. The mean is subtracted first: x * scale + shift loses digits if it is large.
extern "C" __global__ void batch_norm_apply(
    const stored* __restrict__ x, const real* __restrict__ mean, const real* __restrict__ variance,
    const real* __restrict__ weight, const real* __restrict__ bias,
    stored* __restrict__ y, real eps, index rows, index channels, index rows_per_thread
) {
    Walk walk = walk_down(rows, channels, rows_per_thread);
    if (!walk.count) return;
    index channel = thread_number();
    real centre = mean[channel], shift = bias[channel];
    real scale = weight[channel] / sqrt(variance[channel] + eps);
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        index i = walk.first + k * walk.stride;
        y[i] = scale * ((real)x[i] - centre) + shift;
    }
}
""",
)


def batch_norm_apply(x, mean, variance, weight, bias, eps):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias."""
    x = contiguous(x)
    channel_arrays = map(contiguous, (mean, variance, weight, bias))
    y = cupy.empty_like(x)
    rows, channels = math.prod(x.shape[:-1]), x.shape[-1]
    slabs = cut(rows, channels, ROWS_PER_THREAD, MOST_BLOCKS)
    arguments = x, *channel_arrays, y, float(eps), rows, channels, slabs.rows_per_thread
    BATCH_NORM_APPLY.launch(slabs.blocks, slabs.threads, arguments, x.dtype)
    return y


GRAD_SUMS = (
    SLABS
    + """
// Over some values of a channel: the sum of g = dL/dy, and the sum of g * (x - mean).
struct GradSums {
    real g, g_deviation;
};

__device__ GradSums operator+(GradSums a, GradSums b) {
    return {a.g + b.g, a.g_deviation + b.g_deviation};
}
"""
)

SLAB_GRAD_SUMS = CudaKernel(
    "slab_grad_sums",
    GRAD_SUMS
    + """
// A block for each slab of rows and group of channels.
extern "C" __global__ void slab_grad_sums(
    const stored* grad, const stored* x, const real* mean, GradSums* slabs,
    index rows, index channels, index rows_per_thread
) {
    Walk walk = walk_down(rows, channels, rows_per_thread);
    real centre = walk.count ? mean[thread_number()] : (real)0;
    GradSums sums = {0, 0};
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        index i = walk.first + k * walk.stride;
        real g = grad[i];
        sums = sums + GradSums{g, g * ((real)x[i] - centre)};
    }
    sums = sum_over_rows(sums);
    if (writes(channels)) slabs[(index)blockIdx.y * channels + thread_number()] = sums;
}
""",
)

MERGE_GRAD_SUMS = CudaKernel(
    "merge_grad_sums",
    GRAD_SUMS
    + """
// A block for each group of channels. Its rows are the slabs.
extern "C" __global__ void merge_grad_sums(
    const GradSums* slabs, const real* variance, real* grad_weight, real* grad_bias, real eps,
    index count, index channels, index rows_per_thread
) {
    Walk walk = walk_down(count, channels, rows_per_thread);
    GradSums sums = {0, 0};
    for (index k = 0; k < walk.count; k++) sums = sums + slabs[walk.first + k * walk.stride];
    sums = sum_over_rows(sums);
    if (writes(channels)) {
        index channel = thread_number();
        grad_weight[channel] = sums.g_deviation / sqrt(variance[channel] + eps);
        grad_bias[channel] = sums.g;
    }
}
""",
)

BATCH_NORM_BACKWARD_X = CudaKernel(
    "batch_norm_backward_x",
    SLABS
    + """
// A thread for each channel of a few rows.
extern "C" __global__ void batch_norm_backward_x(
    const stored* __restrict__ grad, const stored* __restrict__ x,
    const real* __restrict__ mean, const real* __restrict__ variance, const real* __restrict__ weight,
    const real* __restrict__ grad_weight, const real* __restrict__ grad_bias,
    stored* __restrict__ grad_x,
    real eps, int through_statistics, index rows, index channels, index rows_per_thread
) {
    Walk walk = walk_down(rows, channels, rows_per_thread);
    if (!walk.count) return;
    index channel = thread_number();
    real centre = mean[channel], inverse_std = 1 / sqrt(variance[channel] + eps);
    real scale = weight[channel] * inverse_std;
    real mean_g = 0, slope = 0;  // the gradient through the mean and through the variance
    if (through_statistics) {
        mean_g = grad_bias[channel] / rows;
        slope = inverse_std * grad_weight[channel] / rows;
    }
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        index i = walk.first + k * walk.stride;
        real g = grad[i];
        if (through_statistics) g -= mean_g + slope * ((real)x[i] - centre);  // 0 * NaN would be NaN
        grad_x[i] = scale * g;
    }
}
""",
)


def batch_norm_backward(grad, x, mean, variance, weight, eps, through_statistics):
    """(dL/dx, dL/dweight, dL/dbias). If not `through_statistics`, mean and variance are constants (eval mode)."""
    grad, x, mean, variance, weight = map(contiguous, (grad, x, mean, variance, weight))
    grad_weight, grad_bias = _backward_parameters(grad, x, mean, variance, eps)
    grad_x = cupy.empty_like(x)
    rows, channels = math.prod(x.shape[:-1]), x.shape[-1]
    slabs = cut(rows, channels, ROWS_PER_THREAD, MOST_BLOCKS)
    arguments = (
        *(grad, x, mean, variance, weight, grad_weight, grad_bias, grad_x),
        *(float(eps), bool(through_statistics)),
        *(rows, channels, slabs.rows_per_thread),
    )
    BATCH_NORM_BACKWARD_X.launch(slabs.blocks, slabs.threads, arguments, x.dtype)
    return grad_x, grad_weight, grad_bias


def _backward_parameters(grad, x, mean, variance, eps):
    """(dL/dweight, dL/dbias)."""
    rows, channels = math.prod(x.shape[:-1]), x.shape[-1]
    slabs = cut_for_sums(rows, channels)
    sums = cupy.empty((slabs.count, channels, 2), real_dtype(x.dtype))
    arguments = grad, x, mean, sums, rows, channels, slabs.rows_per_thread
    SLAB_GRAD_SUMS.launch(slabs.blocks, slabs.threads, arguments, x.dtype)
    grad_weight, grad_bias = (cupy.empty(channels, sums.dtype) for _ in range(2))
    merging = one_slab(slabs.count, channels)
    arguments = sums, variance, grad_weight, grad_bias, float(eps), slabs.count, channels, merging.rows_per_thread
    MERGE_GRAD_SUMS.launch(merging.blocks, merging.threads, arguments, sums.dtype)
    return grad_weight, grad_bias
