"""Pooling over windows of pixels, separately for each channel."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class MaxPool2d(Function):
    """y = the maximum of each window.   dL/dy goes to the maximum (of equal ones, the first), and 0 to the others.

    Padding counts as -inf. Saves the tap (position in the window) of each maximum, one byte for each output.
    """

    @staticmethod
    def forward(ctx, x, *, kernel_size, stride, padding, ceil_mode: bool):
        y, best_tap = kernels_for(x).max_pool2d_forward(x, kernel_size, stride, padding, ceil_mode)
        ctx.save(best_tap, x.shape, kernel_size, stride, padding)
        return y

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).max_pool2d_backward(grad, *ctx.saved)


class AvgPool2d(Function):
    """y = the mean of each window.   Each pixel of the window receives an equal share of dL/dy."""

    @staticmethod
    def forward(ctx, x, *, kernel_size, stride, padding, ceil_mode: bool, count_include_pad: bool):
        ctx.save(x.shape, kernel_size, stride, padding, ceil_mode, count_include_pad)
        return kernels_for(x).avg_pool2d_forward(x, kernel_size, stride, padding, ceil_mode, count_include_pad)

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).avg_pool2d_backward(grad, *ctx.saved)


class GlobalAvgPool(Function):
    """y[n,c] = the mean of x[n,:,:,c].   dL/dx = dL/dy / (H W) at every pixel."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x.shape)
        return kernels_for(x).global_avg_pool_forward(x)

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).global_avg_pool_backward(grad, *ctx.saved)
