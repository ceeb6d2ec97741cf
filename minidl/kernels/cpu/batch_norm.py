"""Batch normalisation, with the addition and the ReLU that follow it in a residual block."""

import numpy as np

from minidl.kernels.cpu._channels import as_rows, relu_gradient, repeated, rows_per_chunk, summed_rows, sums_and_dots
from minidl.kernels.cpu._parallel import map_chunks, scratch, sum_chunks

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

    def sums(start, stop):
        part = rows[start:stop]
        deviations = np.subtract(part, centre, out=scratch("deviations", part.shape, x.dtype))
        return sums_and_dots(deviations, deviations, channels)

    mean, squares = sum_chunks(sums, len(rows), rows_per_chunk(rows)) * (channels / x.size)
    variance = np.maximum(squares - mean**2, 0)  # rounding may make it negative
    return (shift + mean).astype(x.dtype), variance.astype(x.dtype)


def batch_norm_apply(x, mean, variance, weight, bias, residual, eps, relu):
    """y = weight (x - mean) / sqrt(variance + eps) + bias, then + residual if there is one, then max(., 0) if relu."""
    rows = as_rows(x)
    y = np.empty(rows.shape, x.dtype)
    residual_rows = None if residual is None else as_rows(residual)
    centre = repeated(mean, rows)
    scale = repeated(weight / np.sqrt(variance + eps), rows)
    shift = repeated(bias, rows)
    zeros = np.zeros_like(shift)  # (measured) a row of zeros makes maximum twice as fast as the number 0

    def apply(start, stop):
        out = np.subtract(rows[start:stop], centre, out=y[start:stop])
        out *= scale
        out += shift
        if residual is not None:
            out += residual_rows[start:stop]
        if relu:
            np.maximum(out, zeros, out=out)

    map_chunks(apply, len(rows), rows_per_chunk(rows))
    return y.reshape(x.shape)


def batch_norm_backward(grad, x, y, mean, variance, weight, eps, relu, has_residual, through_statistics):
    """(dL/dx, dL/dweight, dL/dbias, dL/dresidual), the last None without a residual. With g = dL/dy where y > 0 or NaN,

    dL/dx = weight / sqrt(variance + eps) (g - dL/dbias / M - x_hat dL/dweight / M),  M numbers in each channel.
    Where the statistics are constants (eval mode) it is only the first term.
    """
    rows, grad_rows, channels = as_rows(x), as_rows(grad), x.shape[-1]
    g, y_rows = (np.empty(rows.shape, x.dtype), as_rows(y)) if relu else (grad_rows, None)
    centre = repeated(mean, rows)

    def sums(start, stop):
        part = g[start:stop]
        if relu:
            relu_gradient(grad_rows[start:stop], y_rows[start:stop], out=part)
        deviations = np.subtract(rows[start:stop], centre, out=scratch("deviations", part.shape, x.dtype))
        return sums_and_dots(part, deviations, channels)

    chunk = rows_per_chunk(rows)
    inverse_std = 1 / np.sqrt(variance + eps)
    grad_bias, sum_grad_deviations = sum_chunks(sums, len(rows), chunk).astype(x.dtype)
    grad_weight = sum_grad_deviations * inverse_std

    # dL/dx = scale g + slope (x - mean) + offset: the formula above, its brackets multiplied out.
    scale = weight * inverse_std
    count = x.size // channels
    slope, offset = -scale * inverse_std * grad_weight / count, -scale * grad_bias / count
    scale, slope, offset = (repeated(vector, rows) for vector in (scale, slope, offset))
    # A g that nobody else needs becomes dL/dx in place.
    grad_x = g if relu and not has_residual else np.empty(rows.shape, x.dtype)

    def apply(start, stop):
        out = np.multiply(g[start:stop], scale, out=grad_x[start:stop])
        if through_statistics:
            correction = np.subtract(rows[start:stop], centre, out=scratch("deviations", out.shape, x.dtype))
            correction *= slope
            correction += offset
            out += correction

    map_chunks(apply, len(rows), chunk)
    grad_residual = (g.reshape(x.shape) if relu else grad.copy()) if has_residual else None
    return grad_x.reshape(x.shape), grad_weight, grad_bias, grad_residual
