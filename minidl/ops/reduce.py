"""Reductions: sums and maxima along axes."""

import numpy as np

from minidl.ops.function import Function


def sum_over(array, dim: tuple[int, ...] | None):
    """Return the sum over the axes `dim`, kept with length 1, in the array's dtype (integers: int64).

    float32 and smaller floats are added up in float64.

    Along any axis but the last, NumPy adds one element after the other: a float32 sum of a million times 0.1 has an
    error of 1 %, and in bfloat16 256 + 1 is 256.
    """
    if array.dtype.kind in "biu":
        return array.sum(axis=dim, keepdims=True, dtype=np.int64)
    if array.itemsize == 8:
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
    """y = max of x over `dim`.   dL/dx is dL/dy at the maximum, shared equally by equal maxima, and 0 elsewhere.

    A NaN counts as larger than any number, as in torch.amax, and as equal to other NaNs.
    """

    in_float32 = True

    @staticmethod
    def forward(ctx, x, *, dim: tuple[int, ...] | None, keepdim: bool):
        y = x.max(axis=dim, keepdims=True)
        ctx.save(x, y, dim)
        return y if keepdim else y.squeeze(dim)

    @staticmethod
    def backward(ctx, grad):
        x, y, dim = ctx.saved
        winners = (x == y) | (x != x)  # a NaN is not equal to itself
        count = winners.sum(axis=dim, keepdims=True)
        return np.where(winners, grad.reshape(y.shape) / count.astype(x.dtype), 0)
