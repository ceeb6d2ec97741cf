"""Batch normalisation (Ioffe, Szegedy 2015), with the addition and the ReLU of a residual block."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class BatchNorm(Function):
    """y = weight x_hat + bias, x_hat = (x - mean) / sqrt(variance + eps); then y + residual; then max(y, 0) if `relu`.

    x (N, ..., C); everything else has one number for each channel, and M = N H W numbers share it. With g = dL/dy where
    the ReLU let y through (y > 0 or NaN) and 0 elsewhere, the channel sums are
        dL/dbias = sum of g,   dL/dweight = sum of g x_hat,
    and x acts on y directly, through the mean and through the variance:
        dL/dx = weight / sqrt(variance + eps) (g - dL/dbias / M - x_hat dL/dweight / M),   dL/dresidual = g.

    `mean` and `variance` must be those of x (the population's, divided by M): backward differentiates through them, and
    so their derivatives are part of dL/dx. Saves y for the ReLU alone; the next layer keeps it anyway.
    """

    parameters = 1, 2

    @staticmethod
    def forward(ctx, x, weight, bias, residual=None, *, mean, variance, eps: float, relu: bool):
        y = kernels_for(x).batch_norm_apply(x, mean, variance, weight, bias, residual, eps, relu)
        ctx.save(x, y if relu else None, weight, mean, variance, eps, relu)
        return y

    @staticmethod
    def backward(ctx, grad):
        return _gradients(ctx, grad, through_statistics=True)


class FixedBatchNorm(BatchNorm):
    """The same y with a given mean and variance, which are constants: a scale and a shift for each channel (eval mode).

    dL/dx = weight / sqrt(variance + eps) g, and the others as above.
    """

    @staticmethod
    def backward(ctx, grad):
        return _gradients(ctx, grad, through_statistics=False)


def _gradients(ctx, grad, through_statistics: bool):
    x, y, weight, mean, variance, eps, relu = ctx.saved
    has_residual = len(ctx.needs_grad) == 4
    *grads, grad_residual = kernels_for(x).batch_norm_backward(
        grad, x, y, mean, variance, weight, eps, relu, has_residual, through_statistics
    )
    return (*grads, grad_residual) if has_residual else tuple(grads)
