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


def batch_norm_backward_sums(grad, x, y, mean, variance, eps, relu):
    """(sum of g, sum of g x_hat) per channel: dL/dbias and dL/dweight. g is dL/dy, or 0 where the ReLU cut y off."""
    rows, grad_rows, channels = as_rows(x), as_rows(grad), x.shape[-1]
    y_rows = as_rows(y) if relu else None
    centre = repeated(mean, rows)

    def sums(start, stop):
        g = _through_relu(grad_rows[start:stop], y_rows[start:stop]) if relu else grad_rows[start:stop]
        deviations = scratch("deviations", g.shape, x.dtype)
        np.subtract(rows[start:stop], centre, out=deviations)
        return np.stack([channel_sums(g, channels), channel_dots(g, deviations, channels)])

    sum_grad, sum_grad_deviations = sum(map_chunks(sums, len(rows), rows_per_chunk(rows)))
    return sum_grad, sum_grad_deviations / np.sqrt(variance + eps)


def batch_norm_backward_apply(grad, x, y, mean, variance, weight, sum_grad, sum_grad_normalised, eps, relu, residual):
    """(dL/dx, dL/dresidual): dL/dx = weight/sqrt(variance + eps) (g - sum_grad/M - x_hat sum_grad_normalised/M).

    M is the count that the statistics were taken over; with both sums 0 this is the gradient in eval mode.
    """
    rows, grad_rows, channels = as_rows(x), as_rows(grad), x.shape[-1]
    y_rows = as_rows(y) if relu else None
    count = x.size // channels
    inverse_std = 1 / np.sqrt(variance + eps)
    # dL/dx = scale g + slope (x - mean) + offset: the formula above, its brackets multiplied out.
    scale = weight * inverse_std
    slope, offset = -scale * inverse_std * sum_grad_normalised / count, -scale * sum_grad / count
    centre, scale, slope, offset = (repeated(vector, rows) for vector in (mean, scale, slope, offset))
    grad_x = np.empty(rows.shape, x.dtype)
    grad_residual = np.empty(rows.shape, x.dtype) if residual and relu else None

    def apply(start, stop):
        kept = None if grad_residual is None else grad_residual[start:stop]
        g = _through_relu(grad_rows[start:stop], y_rows[start:stop], kept) if relu else grad_rows[start:stop]
        out = np.subtract(rows[start:stop], centre, out=grad_x[start:stop])
        out *= slope
        out += offset
        out += np.multiply(g, scale, out=scratch("scaled_grad", g.shape, g.dtype))

    map_chunks(apply, len(rows), rows_per_chunk(rows))
    if residual and not relu:
        return grad_x.reshape(x.shape), np.ascontiguousarray(grad)
    return grad_x.reshape(x.shape), None if grad_residual is None else grad_residual.reshape(x.shape)


def _through_relu(grad, y, out=None):
    """grad where y > 0, else 0: into `out`, or into this thread's scratch."""
    out = scratch("masked_grad", grad.shape, grad.dtype) if out is None else out
    return keep_where(y > 0, grad, out=out)
