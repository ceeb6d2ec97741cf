"""Batch normalisation (Ioffe, Szegedy 2015)."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class BatchNorm(Function):
    """y = weight x_hat + bias,   x_hat = (x - mean) / sqrt(variance + eps).

    x is (N, ..., C), everything else (C,). Each channel of x has M elements (M = N H W for images). With g = dL/dy,
        dL/dbias = sum of g,   dL/dweight = sum of g x_hat,
    where the sums run over the elements of a channel. x acts on y directly, through the mean and through the variance:
        dL/dx = weight / sqrt(variance + eps) * (g - dL/dbias / M - x_hat dL/dweight / M).

    `mean` and `variance` must be those of x, with the variance divided by M: backward differentiates through them.
    """

    kept_in_float32 = 1, 2

    @staticmethod
    def forward(ctx, x, weight, bias, *, mean, variance, eps: float):
        ctx.save(x, mean, variance, weight, eps)
        return kernels_for(x).batch_norm_apply(x, mean, variance, weight, bias, eps)

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).batch_norm_backward(grad, *ctx.saved, True)  # through the statistics too


class BatchNormEval(Function):
    """The same y, but mean and variance are constants (eval mode): a scale and a shift for each channel.

    dL/dx = g weight / sqrt(variance + eps); dL/dweight and dL/dbias are as in `BatchNorm`.
    """

    kept_in_float32 = 1, 2
    forward = BatchNorm.forward

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).batch_norm_backward(grad, *ctx.saved, False)
