"""Activation functions that have a kernel of their own."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class ReLU(Function):
    """y = max(x, 0).   dL/dx = dL/dy where x > 0, and 0 where x <= 0.   Saves y, which the next layer saves anyway.

    Where x is NaN, y is NaN and dL/dx = dL/dy, as in PyTorch: a NaN is not hidden in either direction.
    """

    reads = "itself"

    @staticmethod
    def forward(ctx, x):
        y = kernels_for(x).relu_forward(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return kernels_for(y).relu_backward(grad, y)
