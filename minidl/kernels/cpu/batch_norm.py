"""Batch normalisation, piece by piece over the rows of `_channels`: (N, H, W, C) -> (N*H, W*C)."""

import numpy as np

from minidl.kernels.cpu._channels import as_rows, pieces_of, repeated, summed_rows, sums_and_dots
from minidl.kernels.cpu._pieces import scratch
from minidl.kernels.cpu._threads import map_pieces, sum_pieces

# For the statistics, the mean of every 16th row is first subtracted from x. For any x the mean of a sixteenth of the
# values is at most sqrt(16) standard deviations from the mean of all, so little more than one digit is lost.
SAMPLED_ROWS = 16


def batch_statistics(x):
    """(mean, variance) of each channel over the batch, (C,). The variance is the biased one, divided by the count.

    With d = x - shift, for a shift near the mean: mean = shift + E[d] and variance = E[d^2] - E[d]^2. With the textbook
    formula (shift = 0) the variance of a channel with a large mean would be lost to rounding. And a constant channel
    would not be normalised to 0: the rounding error of the mean is divided by sqrt(eps).
    """
    rows, channels = as_rows(x), x.shape[-1]
    sample = rows[::SAMPLED_ROWS]
    shift = (summed_rows(sample, channels) * (channels / sample.size)).astype(x.dtype)
    centre = repeated(shift, rows)

    def sums(piece):
        d = _deviations(rows[piece], centre)
        return sums_and_dots(d, d, channels)

    mean, squares = sum_pieces(sums, pieces_of(rows)) * (channels / x.size)  # E[d], E[d^2]
    variance = np.maximum(squares - mean**2, 0)  # rounding may make it negative
    return (shift + mean).astype(x.dtype), variance.astype(x.dtype)


def batch_norm_apply(x, mean, variance, weight, bias, eps):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias."""
    rows = as_rows(x)
    centre, shift = repeated(mean, rows), repeated(bias, rows)
    scale = repeated(weight / np.sqrt(variance + eps), rows)
    y = np.empty(rows.shape, x.dtype)

    def apply(piece):
        out = np.subtract(rows[piece], centre, out=y[piece])
        out *= scale
        out += shift

    map_pieces(apply, pieces_of(rows))
    return y.reshape(x.shape)


def batch_norm_backward(grad, x, mean, variance, weight, eps, through_statistics):
    """(dL/dx, dL/dweight, dL/dbias). If not `through_statistics`, mean and variance are constants (eval mode)."""
    rows, g, channels = as_rows(x), as_rows(grad), x.shape[-1]
    centre, inverse_std = repeated(mean, rows), 1 / np.sqrt(variance + eps)

    # Step 1: two sums for each channel, of g and of g * (x - mean).
    def sums(piece):
        return sums_and_dots(g[piece], _deviations(rows[piece], centre), channels)

    grad_bias, dots = sum_pieces(sums, pieces_of(rows)).astype(x.dtype)
    grad_weight = dots * inverse_std

    # Step 2: dL/dx = scale * g + slope * (x - mean) + offset, the formula of ops/batch_norm.py multiplied out.
    count, scale = x.size // channels, weight * inverse_std
    slope, offset = -scale * inverse_std * grad_weight / count, -scale * grad_bias / count
    scale, slope, offset = repeated(scale, rows), repeated(slope, rows), repeated(offset, rows)
    grad_x = np.empty(rows.shape, x.dtype)

    def add_terms(piece):
        out = np.multiply(g[piece], scale, out=grad_x[piece])  # the direct term
        if through_statistics:
            correction = _deviations(rows[piece], centre)
            correction *= slope  # the gradient through the variance
            correction += offset  # and through the mean
            out += correction

    map_pieces(add_terms, pieces_of(rows))
    return grad_x.reshape(x.shape), grad_weight, grad_bias


def _deviations(rows, centre):
    """rows - centre, in this thread's scratch."""
    return np.subtract(rows, centre, out=scratch("deviations", rows.shape, rows.dtype))
