"""The same elements in another arrangement. Every result is C-contiguous: its memory is in the order of its shape."""

import math

import numpy as np

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class Reshape(Function):
    """y = x in another shape, with the elements in the same order.   dL/dx = dL/dy in x's shape."""

    @staticmethod
    def forward(ctx, x, *, shape: tuple[int, ...]):
        ctx.save(x.shape)
        return x.reshape(shape)

    @staticmethod
    def backward(ctx, grad):
        (shape,) = ctx.saved
        return grad.reshape(shape)


class Permute(Function):
    """y[i_dims[0], i_dims[1], ...] = x[i_0, i_1, ...].   dL/dx is dL/dy with the inverse permutation."""

    @staticmethod
    def forward(ctx, x, *, dims: tuple[int, ...]):
        ctx.save(dims)
        return x.transpose(dims).copy()

    @staticmethod
    def backward(ctx, grad):
        (dims,) = ctx.saved
        inverse = np.argsort([dim % grad.ndim for dim in dims])
        return grad.transpose(*inverse.tolist()).copy()


class GetItem(Function):
    """y = x[index].   dL/dx sums dL/dy at each element that the index selects, and is 0 elsewhere."""

    @staticmethod
    def forward(ctx, x, *, index):
        ctx.save(x.shape, index)
        return x[index].copy()

    @staticmethod
    def backward(ctx, grad):
        shape, index = ctx.saved
        if not _is_basic(index):  # an index array may select an element several times
            positions = np.arange(math.prod(shape), like=grad).reshape(shape)[index]
            return kernels_for(grad).scatter_add(grad, positions, shape)
        grad_x = np.zeros(shape, grad.dtype, like=grad)
        grad_x[index] = grad
        return grad_x


def _is_basic(index) -> bool:
    """True if the index has only integers, slices, None and ..., which select every element at most once."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)


class Cat(Function):
    """y = the inputs joined along `dim`.   dL/d(input) is that input's slice of dL/dy."""

    @staticmethod
    def forward(ctx, *arrays, dim: int):
        ctx.save([array.shape[dim] for array in arrays], dim)
        return np.concatenate(arrays, axis=dim)

    @staticmethod
    def backward(ctx, grad):
        sizes, dim = ctx.saved
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        return tuple(part.copy() for part in np.split(grad, ends, axis=dim))
