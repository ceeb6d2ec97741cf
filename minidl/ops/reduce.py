"""From many numbers to fewer: sums and maxima along axes."""

import numpy as np

from minidl.ops.function import Function


def as_kept(array, shape: tuple[int, ...], dim: tuple[int, ...] | None):
    """A reduced array with the axes it lost put back as 1, so that it broadcasts against the shape it came from."""
    lost = range(len(shape)) if dim is None else [axis % len(shape) for axis in dim]
    return array.reshape([1 if axis in lost else size for axis, size in enumerate(shape)])


class Sum(Function):
    """y = sum of x over `dim`.   dL/dx repeats dL/dy along the summed axes."""

    @staticmethod
    def forward(ctx, x, *, dim: tuple[int, ...] | None, keepdim: bool):
        ctx.save(x.shape, dim)
        return x.sum(axis=dim, keepdims=keepdim)

    @staticmethod
    def backward(ctx, grad):
        shape, dim = ctx.saved
        return np.broadcast_to(as_kept(grad, shape, dim), shape).copy()


class Max(Function):
    """y = max of x over `dim`.   dL/dx is dL/dy at the maximum, shared equally among equals, and 0 elsewhere."""

    @staticmethod
    def forward(ctx, x, *, dim: tuple[int, ...] | None, keepdim: bool):
        y = x.max(axis=dim, keepdims=keepdim)
        ctx.save(x, y, dim)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, dim = ctx.saved
        winners = x == as_kept(y, x.shape, dim)
        return winners * as_kept(grad, x.shape, dim) / winners.sum(axis=dim, keepdims=True, dtype=x.dtype)
