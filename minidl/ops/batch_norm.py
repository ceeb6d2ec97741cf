"""Batch normalisation (Ioffe, Szegedy 2015), and the ReLU that follows it."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class BatchNorm(Function):
    """y = weight x_hat + bias, x_hat = (x - mean) / sqrt(variance + eps); then max(y, 0) if `relu`.

    x (N, ..., C); everything else has one number for each channel, and M = N H W numbers share it. With g = dL/dy where
    the ReLU let y through (y > 0 or NaN) and 0 elsewhere, the channel sums are
        dL/dbias = sum of g,   dL/dweight = sum of g x_hat,
    and x acts on y directly, through the mean and through the variance:
        dL/dx = weight / sqrt(variance + eps) (g - dL/dbias / M - x_hat dL/dweight / M).

    `mean` and `variance` must be those of x (the population's, divided by M): backward differentiates through them, and
    so their derivatives are part of dL/dx. Saves y for the ReLU alone; the next layer keeps it anyway.
    """

    kept_in_float32 = 1, 2

    @staticmethod
    def forward(ctx, x, weight, bias, *, mean, variance, eps: float, relu: bool):
        y = kernels_for(x).batch_norm_apply(x, mean, variance, weight, bias, eps, relu)
        ctx.save(x, y if relu else None, mean, variance, weight, eps, relu)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, *saved = ctx.saved
        return kernels_for(x).batch_norm_backward(grad, x, *saved, True)  # through the statistics too


class BatchNormEval(Function):
    """The same y with a given mean and variance, which are constants: a scale and a shift for each channel (eval mode).

    dL/dx = weight / sqrt(variance + eps) g, and the others as above.
    """

    kept_in_float32 = 1, 2
    forward = BatchNorm.forward

    @staticmethod
    def backward(ctx, grad):
        x, *saved = ctx.saved
        return kernels_for(x).batch_norm_backward(grad, x, *saved, False)
