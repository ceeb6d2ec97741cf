"""Batch normalisation, a piece of the rows at a time: see `_channels` for the rows."""

import numpy as np

from minidl.kernels.cpu._channels import as_rows, pieces_of, repeated, summed_rows, sums_and_dots
from minidl.kernels.cpu._pieces import scratch
from minidl.kernels.cpu._threads import map_pieces, sum_pieces

# The statistics are taken from numbers less the mean of every 16th row. Whatever the numbers are, the mean of a 16th of
# them lies at most sqrt(16) standard deviations from the mean of all, so that little more than one digit is lost.
SAMPLED_ROWS = 16


def batch_statistics(x):
    """(mean, variance) of each channel over the batch; the variance is the population's, divided by the count.

    With d = x - shift, for a shift near the mean: mean = shift + E[d] and variance = E[d^2] - E[d]^2. With shift = 0,
    the textbook's formula, a channel with a large mean would lose its variance, and a channel of one value would not
    come out as 0: an error of the mean is divided by sqrt(eps).
    """
    rows, channels = as_rows(x), x.shape[-1]
    sample = rows[::SAMPLED_ROWS]
    shift = (summed_rows(sample, channels) * (channels / sample.size)).astype(x.dtype)
    centre = repeated(shift, rows)

    def sums(some):
        d = _deviations(rows[some], centre)
        return sums_and_dots(d, d, channels)

    mean, squares = sum_pieces(sums, pieces_of(rows)) * (channels / x.size)  # E[d], E[d^2]
    variance = np.maximum(squares - mean**2, 0)  # rounding may make it negative
    return (shift + mean).astype(x.dtype), variance.astype(x.dtype)


def batch_norm_apply(x, mean, variance, weight, bias, eps):
    """y = weight (x - mean) / sqrt(variance + eps) + bias."""
    rows = as_rows(x)
    centre, shift = repeated(mean, rows), repeated(bias, rows)
    scale = repeated(weight / np.sqrt(variance + eps), rows)
    y = np.empty(rows.shape, x.dtype)

    def apply(some):
        out = np.subtract(rows[some], centre, out=y[some])
        out *= scale
        out += shift

    map_pieces(apply, pieces_of(rows))
    return y.reshape(x.shape)


def batch_norm_backward(grad, x, mean, variance, weight, eps, through_statistics):
    """(dL/dx, dL/dweight, dL/dbias). Without `through_statistics`, mean and variance are constants (eval mode)."""
    rows, g, channels = as_rows(x), as_rows(grad), x.shape[-1]
    centre, inverse_std = repeated(mean, rows), 1 / np.sqrt(variance + eps)

    # First: the two sums of each channel, of g and of g (x - mean).
    def sums(some):
        return sums_and_dots(g[some], _deviations(rows[some], centre), channels)

    grad_bias, dots = sum_pieces(sums, pieces_of(rows)).astype(x.dtype)
    grad_weight = dots * inverse_std

    # Then: dL/dx = scale g + slope (x - mean) + offset, which is the formula of ops/batch_norm.py without its brackets.
    count, scale = x.size // channels, weight * inverse_std
    slope, offset = -scale * inverse_std * grad_weight / count, -scale * grad_bias / count
    scale, slope, offset = repeated(scale, rows), repeated(slope, rows), repeated(offset, rows)
    grad_x = np.empty(rows.shape, x.dtype)

    def add_terms(some):
        out = np.multiply(g[some], scale, out=grad_x[some])  # x acts on y directly,
        if through_statistics:
            correction = _deviations(rows[some], centre)
            correction *= slope  # through the variance,
            correction += offset  # and through the mean
            out += correction

    map_pieces(add_terms, pieces_of(rows))
    return grad_x.reshape(x.shape), grad_weight, grad_bias


def _deviations(part, centre):
    """part - centre, in this thread's scratch."""
    return np.subtract(part, centre, out=scratch("deviations", part.shape, part.dtype))
