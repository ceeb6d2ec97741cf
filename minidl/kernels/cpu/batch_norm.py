"""Batch normalisation, and the ReLU that follows it."""

import numpy as np

from minidl.kernels.cpu._channels import as_rows, pieces_of, relu_gradient, repeated, summed_rows, sums_and_dots
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
        part = rows[some]
        deviations = np.subtract(part, centre, out=scratch("deviations", part.shape, x.dtype))
        return sums_and_dots(deviations, deviations, channels)

    mean, squares = sum_pieces(sums, pieces_of(rows)) * (channels / x.size)
    variance = np.maximum(squares - mean**2, 0)  # rounding may make it negative
    return (shift + mean).astype(x.dtype), variance.astype(x.dtype)


def batch_norm_apply(x, mean, variance, weight, bias, eps, relu):
    """y = weight (x - mean) / sqrt(variance + eps) + bias, then max(y, 0) if relu."""
    rows = as_rows(x)
    y = np.empty(rows.shape, x.dtype)
    centre = repeated(mean, rows)
    scale = repeated(weight / np.sqrt(variance + eps), rows)
    shift = repeated(bias, rows)
    zeros = np.zeros_like(shift)  # (measured) a row of zeros makes maximum twice as fast as the number 0

    def apply(some):
        out = np.subtract(rows[some], centre, out=y[some])
        out *= scale
        out += shift
        if relu:
            np.maximum(out, zeros, out=out)

    map_pieces(apply, pieces_of(rows))
    return y.reshape(x.shape)


def batch_norm_backward(grad, x, y, mean, variance, weight, eps, relu, through_statistics):
    """(dL/dx, dL/dweight, dL/dbias). With g = dL/dy where y > 0 or NaN,

    dL/dx = weight / sqrt(variance + eps) (g - dL/dbias / M - x_hat dL/dweight / M),  M numbers in each channel.
    Where the statistics are constants (eval mode) it is only the first term.
    """
    rows, grad_rows, channels = as_rows(x), as_rows(grad), x.shape[-1]
    g, y_rows = (np.empty(rows.shape, x.dtype), as_rows(y)) if relu else (grad_rows, None)
    centre = repeated(mean, rows)

    def sums(some):
        part = g[some]
        if relu:
            relu_gradient(grad_rows[some], y_rows[some], out=part)
        deviations = np.subtract(rows[some], centre, out=scratch("deviations", part.shape, x.dtype))
        return sums_and_dots(part, deviations, channels)

    pieces = pieces_of(rows)
    inverse_std = 1 / np.sqrt(variance + eps)
    grad_bias, sum_grad_deviations = sum_pieces(sums, pieces).astype(x.dtype)
    grad_weight = sum_grad_deviations * inverse_std

    # dL/dx = scale g + slope (x - mean) + offset: the formula above, its brackets multiplied out.
    scale = weight * inverse_std
    count = x.size // channels
    slope, offset = -scale * inverse_std * grad_weight / count, -scale * grad_bias / count
    scale, slope, offset = (repeated(vector, rows) for vector in (scale, slope, offset))
    grad_x = g if relu else np.empty(rows.shape, x.dtype)  # a g of our own becomes dL/dx in place

    def apply(some):
        out = np.multiply(g[some], scale, out=grad_x[some])
        if through_statistics:
            correction = np.subtract(rows[some], centre, out=scratch("deviations", out.shape, x.dtype))
            correction *= slope
            correction += offset
            out += correction

    map_pieces(apply, pieces)
    return grad_x.reshape(x.shape), grad_weight, grad_bias
