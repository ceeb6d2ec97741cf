"""Batch normalisation with the statistics of the whole batch, of which each rank has a share."""

import numpy as np

from minidl.checks import check_batch_norm, expect
from minidl.distributed.communicator import Communicator, gather
from minidl.distributed.gradients import images_of_block
from minidl.kernels import kernels_for
from minidl.nn.layers import BatchNorm2d
from minidl.nn.module import Module
from minidl.ops.function import Function
from minidl.random import once
from minidl.tensor import Tensor, apply


class SyncBatchNorm(Function):
    """y = weight x_hat + bias,   x_hat = (x - mean) / sqrt(variance + eps), with mean and variance over all ranks.

    A channel has M elements on all ranks. With g_r the gradient dL_r/dy of this rank's loss L_r,
        dL_r/dbias = sum of g_r,   dL_r/dweight = sum of g_r x_hat,
    over this rank's elements: `AveragedGradients` averages them later. The loss of the whole batch is
    L = sum over r of (n_r / n) L_r, with n_r of n images on rank r, as L_r is a mean over them. Through mean and
    variance, x acts on the losses of all ranks. With b and w the sums of n_r dL_r/dbias and n_r dL_r/dweight over r,
        (n / n_r) dL/dx = weight / sqrt(variance + eps) * (g_r - (b + x_hat w) / (n_r M)).
    This is what backward returns: dL/dx in the scale of L_r, like all gradients of this rank. With a single rank it is
    the formula of `BatchNorm`. If a batch is computed in parts, M is that of the part, and n_r that of the batch.
    """

    kept_in_float32 = 1, 2

    @staticmethod
    def forward(ctx, x, weight, bias, *, mean, variance, eps: float, images: int, total: int, communicator):
        """Return y. `images` is n_r, `total` is M; mean and variance are those of all ranks."""
        ctx.save(x, mean, variance, weight, eps, images, total, communicator)
        return kernels_for(x).batch_norm_apply(x, mean, variance, weight, bias, eps)

    @staticmethod
    def backward(ctx, grad):
        """Return dL/dx, dL/dweight and dL/dbias, in the scale of the loss of this rank."""
        x, mean, variance, weight, eps, images, total, communicator = ctx.saved
        # First with mean and variance as constants: grad_x = weight / sqrt(variance + eps) * g_r.
        grad_x, grad_weight, grad_bias = kernels_for(grad).batch_norm_backward(
            grad, x, mean, variance, weight, eps, False
        )
        sums = np.stack([grad_weight, grad_bias]) * images
        if images == 0:  # 0 * NaN would reach all ranks
            sums[...] = 0
        communicator.all_reduce(sums)
        if images == 0:  # a rank without images, whose gradients are not used
            return grad_x, grad_weight, grad_bias
        # Then the terms through both, weight / sqrt(variance + eps) * (b + x_hat w) / (n_r M), as slope * x + offset.
        w, b = sums / (images * total)
        inverse_std = 1 / np.sqrt(variance + eps)
        slope = weight * inverse_std**2 * w
        offset = weight * inverse_std * b - slope * mean
        grad_x -= (x * slope + offset).astype(x.dtype)
        return grad_x, grad_weight, grad_bias


class SyncBatchNorm2d(BatchNorm2d):
    """A `BatchNorm2d` that in training takes its statistics over the images of all ranks; in evaluation it is the same.

    Every rank must call it equally often, even a rank without images: see `at_least_one`. Its gradients are right if
    each rank's loss is the mean over its images, and `AveragedGradients` averages the gradients.
    """

    communicator: Communicator

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, num_features) -> (N, H, W, num_features)."""
        if not self.training:
            return super().forward(x)
        running = self.running_mean, self.running_var
        check_batch_norm(x, self.weight, self.bias, *running)
        statistics = once(lambda: self._statistics(x.data))
        inputs = x, self.weight, self.bias
        return apply(SyncBatchNorm, *inputs, **statistics, eps=float(self.eps), communicator=self.communicator)

    def _statistics(self, x) -> dict:
        """Return mean, variance, the images here, the count on all ranks, and update the running statistics."""
        kernels, images = kernels_for(x), images_of_block.get()
        images = len(x) if images is None else images
        count = x.size // x.shape[-1] if images else 0
        mean, variance = kernels.batch_statistics(x)
        mean, variance, total = merge_statistics(self.communicator, mean, variance, count)
        expect("SyncBatchNorm2d", total > 1, "more than one number per channel on all ranks", "x", x.shape)
        kernels.update_running_statistics(
            self.running_mean.data, self.running_var.data, mean, variance, self.momentum, total
        )
        return {"mean": mean, "variance": variance, "images": images, "total": total}


def merge_statistics(communicator: Communicator, mean, variance, count: int) -> tuple:
    """Return (mean, variance, count) of the elements of all ranks, from those of the elements of this one.

    With n_r the count on rank r and M2_r = n_r variance_r, the sum of the squared distances from mean_r,
        n = sum of n_r,   mean = sum of n_r mean_r / n,
        M2 = sum of M2_r + sum of n_r (mean_r - mean)^2,   variance = M2 / n.
    Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", for any
    number of parts. Unlike E[x^2] - E[x]^2 it loses no digits where the mean is large. The sums run in float64.
    """
    channels = len(mean)
    row = np.zeros_like(mean, shape=(2 * channels + 1,), dtype=np.float64)
    if count:  # else 0 * NaN would reach all ranks
        row[:channels], row[channels:-1], row[-1] = mean, variance, count
    rows = gather(communicator, row)
    means, variances, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    total = int(counts.sum())
    merged = (counts * means).sum(axis=0) / max(total, 1)
    squares = (counts * (variances + (means - merged) ** 2)).sum(axis=0)
    return merged.astype(mean.dtype), (squares / max(total, 1)).astype(mean.dtype), total


def convert_sync_batch_norm(model: Module, communicator: Communicator) -> Module:
    """Turn each `BatchNorm2d` of the model into a `SyncBatchNorm2d`, with the same parameters. Return the model.

    The layers stay the same objects, so an optimiser or a hook that refers to them stays valid.
    A subclass of `BatchNorm2d` is a TypeError, as it may compute something else.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BatchNorm2d)]
    for name, layer in layers:  # all of them, before the first is changed
        if type(layer) not in (BatchNorm2d, SyncBatchNorm2d):
            raise TypeError(f"convert_sync_batch_norm: {name}: expected a BatchNorm2d, got a {type(layer).__name__}")
    for _, layer in layers:
        layer.__class__ = SyncBatchNorm2d
        layer.communicator = communicator
    return model
