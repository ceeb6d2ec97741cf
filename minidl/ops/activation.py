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


class GELU(Function):
    """y = x P(x), where P(x) is the probability that a standard normal variable is less than x.

    dL/dx = (P(x) + x p(x)) dL/dy with p = dP/dx, the normal density. Forward computes this slope together with y, since
    both need exp(-x^2 / 2), and saves it in place of x: as much memory, and backward is a single product.
    Hendrycks, Gimpel 2016, "Gaussian error linear units"; their approximation by tanh is `approximate="tanh"`.
    """

    floats_only = True

    @staticmethod
    def forward(ctx, x, *, approximate: str):
        y, slope = kernels_for(x).gelu_forward(x, approximate, ctx.needs_grad[0])
        ctx.save(slope)
        return y

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).gelu_backward(grad, *ctx.saved)
