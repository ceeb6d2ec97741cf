"""Batch normalisation.

In every kernel a thread works on a few neighbouring channels, in every n-th row: see `_slabs`.
"""

import cupy

from minidl.kernels.cuda._fusion import Deferred, Term, is_fusing
from minidl.kernels.cuda._launch import CudaKernel, real_dtype
from minidl.kernels.cuda._slabs import ONE_CHANNEL, SLABS, columns_of, cut_for_sums, cut_without_sums, one_slab
from minidl.kernels.cuda._vectors import EXAMPLES, aligned

MOMENTS = (
    SLABS
    + """
// Of some values of each channel: their count, their mean, and the sum of their squared distances from the mean.
struct Moments {
    real count;
    Numbers mean, squares;
};

// The moments of two sets of values together: Chan, Golub, LeVeque 1979.
__device__ Moments operator+(Moments a, Moments b) {
    real count = a.count + b.count;
    real share = b.count / (count > 0 ? count : 1);
    Numbers difference = b.mean - a.mean;
    return {count, a.mean + difference * share, a.squares + b.squares + difference * difference * (a.count * share)};
}
"""
)

SLAB_MOMENTS = CudaKernel(
    "slab_moments",
    MOMENTS
    + """
// A block for each slab of rows and group of columns; x is read once. A thread sums up the distances d of its values
// from the first of them, and their squares, which takes no division for each number. If the first value lies far from
// the others, rounding errors grow with its d^2, but so does the sum of squares, which keeps its digits as the rows are
// few. Means are counted from the channel's first value, so that they keep all digits where they are large.
extern "C" __global__ void slab_moments(
    const stored* x, real* means, real* squares, index rows, index columns, index rows_per_thread
) {
    Walk walk = walk_down(rows, columns, rows_per_thread);
    Moments moments = {0, 0, 0};
    if (walk.count) {
        Numbers first = load(x, walk.first), sum = 0, sum_of_squares = 0;
        #pragma unroll 4
        for (index k = 0; k < walk.count; k++) {
            Numbers d = load(x, walk.first + k * walk.stride) - first;
            sum = sum + d;
            sum_of_squares = sum_of_squares + d * d;
        }
        Numbers mean = sum * (1 / (real)walk.count), origin = load(x, thread_number());
        moments = {(real)walk.count, first - origin + mean, sum_of_squares - sum * mean};
    }
    moments = sum_over_rows(moments);
    if (writes(columns)) {
        index i = (index)blockIdx.y * columns + thread_number();
        store(means, i, moments.mean);
        store(squares, i, moments.squares);
    }
}
""",
    examples=EXAMPLES,
)

MERGE_MOMENTS = CudaKernel(
    "merge_moments",
    MOMENTS
    + """
// A block for each group of channels. The rows of `means` and `squares` are the slabs; all but the last have
// `rows_per_slab` of the `rows` of x.
extern "C" __global__ void merge_moments(
    const real* means, const real* squares, const stored* x, real* mean, real* variance,
    index rows, index rows_per_slab, index slabs, index channels, index slabs_per_thread
) {
    Walk walk = walk_down(slabs, channels, slabs_per_thread);
    Moments moments = {0, 0, 0};
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        index slab = threadIdx.y + k * blockDim.y, i = walk.first + k * walk.stride;
        real count = min(rows_per_slab, rows - slab * rows_per_slab);
        moments = moments + Moments{count, load(means, i), load(squares, i)};
    }
    moments = sum_over_rows(moments);
    if (writes(channels)) {
        index channel = thread_number();
        store(mean, channel, load(x, channel) + moments.mean);
        store(variance, channel, moments.squares * (1 / moments.count));
    }
}
""",
    examples=(ONE_CHANNEL,),
)


def batch_statistics(x):
    """(mean, variance) of each channel over the batch, (C,). The variance is the biased one, divided by the count."""
    x = aligned(x)
    rows, columns, constants = columns_of(x)
    channels = x.shape[-1]
    slabs = cut_for_sums(rows, columns)
    means, squares = cupy.empty((2, slabs.count, channels), real_dtype(x.dtype))
    arguments = x, means, squares, rows, columns, slabs.rows_per_thread
    SLAB_MOMENTS.launch(slabs.blocks, slabs.threads, arguments, x.dtype, constants)
    mean, variance = (cupy.empty(channels, means.dtype) for _ in range(2))
    merging = one_slab(slabs.count, channels)
    sizes = rows, slabs.rows, slabs.count, channels, merging.rows_per_thread
    arguments = means, squares, x, mean, variance, *sizes
    MERGE_MOMENTS.launch(merging.blocks, merging.threads, arguments, x.dtype, ONE_CHANNEL)
    return mean, variance


BATCH_NORM_APPLY = CudaKernel(
    "batch_norm_apply",
    SLABS
    + """
// A thread for each column of a few rows. The mean is subtracted first: x * scale + shift loses digits if it is large.
extern "C" __global__ void batch_norm_apply(
    const stored* __restrict__ x, const real* __restrict__ mean, const real* __restrict__ variance,
    const real* __restrict__ weight, const real* __restrict__ bias,
    stored* __restrict__ y, real eps, index rows, index columns, index rows_per_thread
) {
    Walk walk = walk_down(rows, columns, rows_per_thread);
    if (!walk.count) return;
    index column = thread_number();
    Numbers centre = load(mean, column), shift = load(bias, column);
    Numbers scale = load(weight, column) * inverse_sqrt(load(variance, column) + eps);
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        index i = walk.first + k * walk.stride;
        store(y, i, scale * (load(x, i) - centre) + shift);
    }
}
""",
    examples=EXAMPLES,
)


def batch_norm_apply(x, mean, variance, weight, bias, eps):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias."""
    x, mean, variance, weight, bias = map(aligned, (x, mean, variance, weight, bias))
    if is_fusing():
        return Deferred(Term(x, (mean, variance, weight, bias, float(eps))))
    y = cupy.empty_like(x)
    rows, columns, constants = columns_of(x)
    slabs = cut_without_sums(rows, columns)
    arguments = x, mean, variance, weight, bias, y, float(eps), rows, columns, slabs.rows_per_thread
    BATCH_NORM_APPLY.launch(slabs.blocks, slabs.threads, arguments, x.dtype, constants)
    return y


GRAD_SUMS = (
    SLABS
    + """
// Over some values of each channel: the sum of g = dL/dy, and the sum of g * (x - mean).
struct GradSums {
    Numbers g, g_deviation;
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
// A block for each slab of rows and group of columns.
extern "C" __global__ void slab_grad_sums(
    const stored* grad, const stored* x, const real* mean, real* slab_sums,
    index rows, index columns, index rows_per_thread
) {
    Walk walk = walk_down(rows, columns, rows_per_thread);
    Numbers centre = walk.count ? load(mean, thread_number()) : Numbers(0);
    GradSums sums = {0, 0};
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        index i = walk.first + k * walk.stride;
        Numbers g = load(grad, i);
        sums = sums + GradSums{g, g * (load(x, i) - centre)};
    }
    sums = sum_over_rows(sums);
    if (writes(columns)) {
        index row = 2 * blockIdx.y, column = thread_number();
        store(slab_sums, row * columns + column, sums.g);
        store(slab_sums, (row + 1) * columns + column, sums.g_deviation);
    }
}
""",
    examples=EXAMPLES,
)

MERGE_GRAD_SUMS = CudaKernel(
    "merge_grad_sums",
    GRAD_SUMS
    + """
// A block for each group of channels. A slab has two rows of sums.
extern "C" __global__ void merge_grad_sums(
    const real* slab_sums, const real* variance, real* grad_weight, real* grad_bias, real eps,
    index slabs, index channels, index slabs_per_thread
) {
    Walk walk = walk_down(slabs, 2 * channels, slabs_per_thread);
    GradSums sums = {0, 0};
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        index i = walk.first + k * walk.stride;
        sums = sums + GradSums{load(slab_sums, i), load(slab_sums, i + channels)};
    }
    sums = sum_over_rows(sums);
    if (writes(channels)) {
        index channel = thread_number();
        store(grad_weight, channel, sums.g_deviation * inverse_sqrt(load(variance, channel) + eps));
        store(grad_bias, channel, sums.g);
    }
}
""",
    examples=(ONE_CHANNEL,),
)

BATCH_NORM_BACKWARD_X = CudaKernel(
    "batch_norm_backward_x",
    SLABS
    + """
// A thread for each column of a few rows. `share` is 1 / rows.
extern "C" __global__ void batch_norm_backward_x(
    const stored* __restrict__ grad, const stored* __restrict__ x,
    const real* __restrict__ mean, const real* __restrict__ variance, const real* __restrict__ weight,
    const real* __restrict__ grad_weight, const real* __restrict__ grad_bias,
    stored* __restrict__ grad_x,
    real eps, real share, index rows, index columns, index rows_per_thread
) {
    Walk walk = walk_down(rows, columns, rows_per_thread);
    if (!walk.count) return;
    index column = thread_number();
    Numbers centre = load(mean, column), inverse_std = inverse_sqrt(load(variance, column) + eps);
    Numbers scale = load(weight, column) * inverse_std;
    // The gradient through the mean, and that through the variance for each unit of x - mean.
    Numbers offset = scale * share * load(grad_bias, column);
    Numbers slope = scale * share * load(grad_weight, column) * inverse_std;
    #pragma unroll 4
    for (index k = 0; k < walk.count; k++) {
        index i = walk.first + k * walk.stride;
        Numbers sum = scale * load(grad, i);
        if (THROUGH_STATISTICS) sum = sum - (offset + slope * (load(x, i) - centre));
        store(grad_x, i, sum);
    }
}
""",
    examples=tuple({**constants, "THROUGH_STATISTICS": through} for constants in EXAMPLES for through in (0, 1)),
)


def batch_norm_backward(grad, x, mean, variance, weight, eps, through_statistics):
    """(dL/dx, dL/dweight, dL/dbias). If not `through_statistics`, mean and variance are constants (eval mode)."""
    grad, x, mean, variance, weight = map(aligned, (grad, x, mean, variance, weight))
    grad_weight, grad_bias = _backward_parameters(grad, x, mean, variance, eps)
    grad_x = cupy.empty_like(x)
    rows, columns, constants = columns_of(x)
    slabs = cut_without_sums(rows, columns)
    arguments = (
        *(grad, x, mean, variance, weight, grad_weight, grad_bias, grad_x),
        *(float(eps), 1 / rows, rows, columns, slabs.rows_per_thread),
    )
    constants = {**constants, "THROUGH_STATISTICS": int(through_statistics)}
    BATCH_NORM_BACKWARD_X.launch(slabs.blocks, slabs.threads, arguments, x.dtype, constants)
    return grad_x, grad_weight, grad_bias


def _backward_parameters(grad, x, mean, variance, eps):
    """(dL/dweight, dL/dbias)."""
    rows, columns, constants = columns_of(x)
    channels = x.shape[-1]
    slabs = cut_for_sums(rows, columns)
    sums = cupy.empty((slabs.count, 2, channels), real_dtype(x.dtype))
    arguments = grad, x, mean, sums, rows, columns, slabs.rows_per_thread
    SLAB_GRAD_SUMS.launch(slabs.blocks, slabs.threads, arguments, x.dtype, constants)
    grad_weight, grad_bias = (cupy.empty(channels, sums.dtype) for _ in range(2))
    merging = one_slab(slabs.count, channels)
    arguments = sums, variance, grad_weight, grad_bias, float(eps), slabs.count, channels, merging.rows_per_thread
    MERGE_GRAD_SUMS.launch(merging.blocks, merging.threads, arguments, sums.dtype, ONE_CHANNEL)
    return grad_weight, grad_bias
