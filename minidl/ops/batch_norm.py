"""Batch normalisation (Ioffe, Szegedy 2015), with the addition and the ReLU of a residual block."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class BatchNorm(Function):
    """y = weight x_hat + bias, x_hat = (x - mean) / sqrt(variance + eps); then y + residual; then max(y, 0) if `relu`.

    x (N, ..., C); everything else has one number for each channel, and M = N H W numbers share it. With g = dL/dy where
    the ReLU let y through and 0 elsewhere, the channel sums are
        dL/dbias = sum of g,   dL/dweight = sum of g x_hat,
    and x acts on y directly, through the mean and through the variance:
        dL/dx = weight / sqrt(variance + eps) (g - dL/dbias / M - x_hat dL/dweight / M),   dL/dresidual = g.

    `mean` and `variance` must be those of x (the population's, divided by M): backward differentiates through them, and
    so their derivatives are part of dL/dx. Saves y for the ReLU alone; the next layer keeps it anyway.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, residual=None, *, mean, variance, eps: float, relu: bool):
        y = kernels_for(x).batch_norm_apply(x, mean, variance, weight, bias, residual, eps, relu)
        ctx.save(x, y if relu else None, weight, mean, variance, eps, relu)
        return y

    @staticmethod
    def backward(ctx, grad):
        sums = _channel_sums(ctx, grad)
        return _all_gradients(ctx, grad, sums, corrections=sums)


class FixedBatchNorm(BatchNorm):
    """The same y with a given mean and variance, which are constants: a scale and a shift for each channel (eval mode).

    dL/dx = weight / sqrt(variance + eps) g: what is left of BatchNorm's when the two sums that correct it are 0.
    """

    @staticmethod
    def backward(ctx, grad):
        sums = _channel_sums(ctx, grad)
        return _all_gradients(ctx, grad, sums, corrections=[0 * total for total in sums])


def _channel_sums(ctx, grad):
    x, y, _, mean, variance, eps, relu = ctx.saved
    return kernels_for(x).batch_norm_backward_sums(grad, x, y, mean, variance, eps, relu)


def _all_gradients(ctx, grad, sums, corrections):
    x, y, weight, mean, variance, eps, relu = ctx.saved
    has_residual = len(ctx.needs_grad) == 4
    grad_x, grad_residual = kernels_for(x).batch_norm_backward_apply(
        grad, x, y, mean, variance, weight, *corrections, eps, relu, has_residual
    )
    grad_bias, grad_weight = sums
    return (grad_x, grad_weight, grad_bias, grad_residual) if has_residual else (grad_x, grad_weight, grad_bias)
