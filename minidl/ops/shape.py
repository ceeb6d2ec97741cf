"""The same elements in another arrangement. Every result is C-contiguous: its memory is in the order of its shape."""

import math

import numpy as np

from minidl.kernels import is_capturing, kernels_for
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
    def forward(ctx, x, *, index: tuple):
        if is_capturing(x) and _needs_host(index):
            raise RuntimeError("the index is a list, NumPy array or mask; use integers on the device, or minidl.where")
        # A copy of the index, as the caller may write the next one there before backward.
        ctx.save(x.shape, tuple(np.array(part) if isinstance(part, list | np.ndarray) else part for part in index))
        return x[index].copy()

    @staticmethod
    def backward(ctx, grad):
        shape, index = ctx.saved
        if not _is_basic(index):  # an index array may select an element several times
            positions = np.arange(math.prod(shape), like=grad).reshape(shape)[index]
            return kernels_for(grad).scatter_add(grad, positions, shape)
        grad_x = np.zeros(shape, grad.dtype, like=grad)
        grad_x[index] = grad[...]  # a captured step may pass what only looks like an array
        return grad_x


def _is_basic(index: tuple) -> bool:
    """True if the index has only integers, slices, None and ..., which select every element at most once."""
    return all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in index)


def _needs_host(index: tuple) -> bool:
    """True if CuPy copies a part of the index to the device, or has to count the elements that a mask selects."""
    return any(isinstance(part, list | np.ndarray) or str(getattr(part, "dtype", "")) == "bool" for part in index)


class Cat(Function):
    """y = the inputs joined along `dim`.   dL/d(input) is that input's slice of dL/dy."""

    @staticmethod
    def forward(ctx, *arrays, dim: int):
        ends = np.cumsum([array.shape[dim] for array in arrays]).tolist()
        ctx.save(ends[:-1], dim)
        shape = list(arrays[0].shape)
        shape[dim] = ends[-1]
        y = np.empty(shape, arrays[0].dtype, like=arrays[0])
        # np.concatenate cannot be captured: CuPy copies a list of many addresses from the host.
        for part, array in zip(np.split(y, ends[:-1], axis=dim), arrays, strict=True):
            part[...] = array
        return y

    @staticmethod
    def backward(ctx, grad):
        ends, dim = ctx.saved
        return tuple(part.copy() for part in np.split(grad, ends, axis=dim))
