"""Softmax and its logarithm, over the last axis. In the formulas, g is dL/dy."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class Softmax(Function):
    """y_i = exp(x_i) / sum_j exp(x_j).   dy_i/dx_k = y_i (1[i=k] - y_k), so dL/dx_i = y_i (g_i - sum_j g_j y_j)."""

    @staticmethod
    def forward(ctx, x):
        y = kernels_for(x).softmax_forward(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return kernels_for(y).softmax_backward(grad, y)


class LogSoftmax(Function):
    """y_i = x_i - log sum_j exp(x_j).   dy_i/dx_k = 1[i=k] - softmax(x)_k, so dL/dx_i = g_i - exp(y_i) sum_j g_j."""

    @staticmethod
    def forward(ctx, x):
        y = kernels_for(x).log_softmax_forward(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return kernels_for(y).log_softmax_backward(grad, y)
