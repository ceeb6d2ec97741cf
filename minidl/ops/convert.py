"""Conversion to another dtype or device. Gradients are converted back."""

from minidl.kernels import device_of, to_device
from minidl.ops.function import Function


class Cast(Function):
    """y = x in another dtype.   dL/dx = dL/dy in x's dtype."""

    @staticmethod
    def forward(ctx, x, *, dtype):
        ctx.save(x.dtype)
        return x.astype(dtype)

    @staticmethod
    def backward(ctx, grad):
        (dtype,) = ctx.saved
        return grad.astype(dtype)


class Move(Function):
    """y = x on another device.   dL/dx = dL/dy on x's device."""

    @staticmethod
    def forward(ctx, x, *, device: str):
        ctx.save(device_of(x))
        return to_device(x, device)

    @staticmethod
    def backward(ctx, grad):
        (device,) = ctx.saved
        return to_device(grad, device)
