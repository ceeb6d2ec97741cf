"""Padding with channels of zeros."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class PadChannels(Function):
    """y = (`before` zeros, x, `after` zeros) along the channels.   dL/dx = the slice of dL/dy at x's channels."""

    @staticmethod
    def forward(ctx, x, *, before: int, after: int):
        ctx.save(before, after)
        return kernels_for(x).pad_channels_forward(x, before, after)

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).pad_channels_backward(grad, *ctx.saved)
