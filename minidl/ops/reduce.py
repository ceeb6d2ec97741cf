"""From many numbers to fewer: sums and maxima along axes."""

import numpy as np

from minidl.ops.function import Function


def with_kept_dims(array, shape: tuple[int, ...], dim: tuple[int, ...] | None):
    """A reduced array with the axes it lost put back as 1, so that it broadcasts against the shape it came from."""
    lost = range(len(shape)) if dim is None else [axis % len(shape) for axis in dim]
    return array.reshape([1 if axis in lost else size for axis, size in enumerate(shape)])


def sum_over(array, dim: tuple[int, ...] | None, keepdim: bool = False):
    """The sum over `dim`, of the array's dtype, or int64 for whole numbers. Smaller floats are added in float64.

    Along any axis but the last NumPy adds one number after the other: in float32 the sum of a million times 0.1 has an
    error of 1 %, and in bfloat16 256 + 1 is 256.
    """
    if array.dtype.kind in "biu" or array.itemsize == 8:
        return array.sum(axis=dim, keepdims=keepdim)
    return array.sum(axis=dim, keepdims=keepdim, dtype=np.float64).astype(array.dtype)


class Sum(Function):
    """y = sum of x over `dim`.   dL/dx repeats dL/dy along the summed axes."""

    @staticmethod
    def forward(ctx, x, *, dim: tuple[int, ...] | None, keepdim: bool):
        ctx.save(x.shape, dim)
        return sum_over(x, dim, keepdim)

    @staticmethod
    def backward(ctx, grad):
        shape, dim = ctx.saved
        return np.broadcast_to(with_kept_dims(grad, shape, dim), shape).copy()


class Max(Function):
    """y = max of x over `dim`.   dL/dx is dL/dy at the maximum, shared equally among equals, and 0 elsewhere.

    A NaN counts as larger than any number, and as equal to another NaN (as in torch.max).
    """

    @staticmethod
    def forward(ctx, x, *, dim: tuple[int, ...] | None, keepdim: bool):
        y = x.max(axis=dim, keepdims=keepdim)
        ctx.save(x, y, dim)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, dim = ctx.saved
        winners = (x == with_kept_dims(y, x.shape, dim)) | (x != x)  # a NaN is not equal to itself
        count = winners.sum(axis=dim, keepdims=True)  # a whole number, as bfloat16 cannot count to 257
        return np.where(winners, with_kept_dims(grad, x.shape, dim) / count.astype(x.dtype), 0)
