"""From many numbers to fewer: sums and maxima along axes."""

import numpy as np

from minidl.ops.function import Function


def sum_over(array, dim: tuple[int, ...] | None):
    """The sum over `dim`, which keeps its axes, of length 1. Floats smaller than float64 are added in float64.

    Its dtype is the array's, or int64 for whole numbers.

    Along any axis but the last NumPy adds one number after the other: in float32 the sum of a million times 0.1 has an
    error of 1 %, and in bfloat16 256 + 1 is 256.
    """
    if array.dtype.kind in "biu" or array.itemsize == 8:
        return array.sum(axis=dim, keepdims=True)
    return array.sum(axis=dim, keepdims=True, dtype=np.float64).astype(array.dtype)


class Sum(Function):
    """y = sum of x over `dim`.   dL/dx repeats dL/dy along the summed axes."""

    @staticmethod
    def forward(ctx, x, *, dim: tuple[int, ...] | None, keepdim: bool):
        y = sum_over(x, dim)
        ctx.save(x.shape, y.shape)
        return y if keepdim else y.squeeze(dim)

    @staticmethod
    def backward(ctx, grad):
        shape, kept_shape = ctx.saved
        return np.broadcast_to(grad.reshape(kept_shape), shape).copy()


class Max(Function):
    """y = max of x over `dim`.   dL/dx is dL/dy at the maximum, shared equally among equals, and 0 elsewhere.

    A NaN counts as larger than any number, and as equal to another NaN (as in torch.max).
    """

    @staticmethod
    def forward(ctx, x, *, dim: tuple[int, ...] | None, keepdim: bool):
        y = x.max(axis=dim, keepdims=True)
        ctx.save(x, y, dim)
        return y if keepdim else y.squeeze(dim)

    @staticmethod
    def backward(ctx, grad):
        x, y, dim = ctx.saved
        winners = (x == y) | (x != x)  # a NaN is not equal to itself
        count = winners.sum(axis=dim, keepdims=True)  # a whole number, as bfloat16 cannot count to 257
        return np.where(winners, grad.reshape(y.shape) / count.astype(x.dtype), 0)
