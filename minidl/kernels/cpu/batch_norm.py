"""Batch normalisation, with the addition and the ReLU that follow it in a residual block."""

import numpy as np

from minidl.kernels.cpu._channels import as_rows, channel_dots, channel_sums, keep_where, repeated, rows_per_chunk
from minidl.kernels.cpu._parallel import map_chunks, scratch


def batch_statistics(x):
    """(mean, variance) of each channel over the batch; the variance is the population's, divided by the count.

    Each chunk's deviations are taken from its own mean while it is in the cache, and the chunks are merged by the
    formula of Chan, Golub, LeVeque 1979. The textbook's E[x^2] - E[x]^2 would lose the variance of channels with a
    large mean.
    """
    rows, channels = as_rows(x), x.shape[-1]

    def statistics(start, stop):
        part = rows[start:stop]
        count = part.size // channels
        mean = channel_sums(part, channels) / count
        deviations = np.subtract(part, repeated(mean, part), out=scratch("deviations", part.shape, x.dtype))
        return count, mean, channel_dots(deviations, deviations, channels)

    (count, mean, squares), *others = map_chunks(statistics, len(rows), rows_per_chunk(rows))
    for other_count, other_mean, other_squares in others:
        total = count + other_count
        difference = other_mean - mean
        mean = mean + difference * (other_count / total)
        squares = squares + other_squares + difference**2 * (count * other_count / total)
        count = total
    return mean, squares / count


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
    """(dL/dx, dL/dweight, dL/dbias, dL/dresidual), the last None without a residual. With g = dL/dy where y > 0,

    dL/dx = weight / sqrt(variance + eps) (g - dL/dbias / M - x_hat dL/dweight / M),  M numbers in each channel.
    Where the statistics are constants (eval mode) it is only the first term.
    """
    rows, grad_rows, channels = as_rows(x), as_rows(grad), x.shape[-1]
    g, y_rows = (np.empty(rows.shape, x.dtype), as_rows(y)) if relu else (grad_rows, None)
    centre = repeated(mean, rows)

    def sums(start, stop):
        part = g[start:stop]
        if relu:
            keep_where(y_rows[start:stop] > 0, grad_rows[start:stop], out=part)
        deviations = np.subtract(rows[start:stop], centre, out=scratch("deviations", part.shape, x.dtype))
        return np.stack([channel_sums(part, channels), channel_dots(part, deviations, channels)])

    chunk = rows_per_chunk(rows)
    inverse_std = 1 / np.sqrt(variance + eps)
    grad_bias, sum_grad_deviations = sum(map_chunks(sums, len(rows), chunk))
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
