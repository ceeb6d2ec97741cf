"""Batch normalisation, piece by piece over the rows of `_channels`: (N, H, W, C) -> (N*H, W*C)."""

import numpy as np

from minidl.kernels.cpu._channels import as_rows, pieces_of, repeated, sums_and_dots
from minidl.kernels.cpu._pieces import scratch
from minidl.kernels.cpu._threads import map_pieces, sum_pieces

# As long as |mean| <= 4 standard deviations, x replaces x - mean, and a constant makes up for it. This saves a pass
# over the memory. Rounding then costs little more than one decimal digit.
MOST_DEVIATIONS = 4


def batch_statistics(x):
    """(mean, variance) of each channel over the batch, (C,). The variance is the biased one, divided by the count.

    mean = E[x], variance = E[x^2] - E[x]^2. For a channel with a large mean, rounding would leave no digit of this
    variance, and a constant channel would not be normalised to 0. Then both are taken again, from d = x - mean:
    mean + E[d] and E[d^2] - E[d]^2.
    """
    rows, channels, count = as_rows(x), x.shape[-1], x.size // x.shape[-1]
    mean, squares = _sums(lambda piece: sums_and_dots(rows[piece], rows[piece], channels), rows) / count
    variance = np.maximum(squares - mean**2, 0)  # rounding may make it negative
    if not _is_near_zero(mean, variance):
        shift = mean.astype(x.dtype)
        centre = repeated(shift, rows)

        def sums(piece):
            d = _deviations(rows[piece], centre)
            return sums_and_dots(d, d, channels)

        rest, squares = _sums(sums, rows) / count
        mean, variance = shift + rest, np.maximum(squares - rest**2, 0)
    return mean.astype(x.dtype), variance.astype(x.dtype)


def batch_norm_apply(x, mean, variance, weight, bias, eps):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias."""
    rows = as_rows(x)
    scale = weight / np.sqrt(variance + eps)
    near_zero = _is_near_zero(mean, variance)
    centre, shift = repeated(mean, rows), repeated(bias - mean * scale if near_zero else bias, rows)
    scale = repeated(scale, rows)
    y = np.empty(rows.shape, x.dtype)

    def apply(piece):
        out = y[piece]
        np.multiply(rows[piece] if near_zero else np.subtract(rows[piece], centre, out=out), scale, out=out)
        out += shift

    map_pieces(apply, pieces_of(rows), multiplications=0)
    return y.reshape(x.shape)


def batch_norm_backward(grad, x, mean, variance, weight, eps, through_statistics):
    """(dL/dx, dL/dweight, dL/dbias). If not `through_statistics`, mean and variance are constants (eval mode)."""
    rows, g, channels = as_rows(x), as_rows(grad), x.shape[-1]
    centre, inverse_std = repeated(mean, rows), 1 / np.sqrt(variance + eps)
    near_zero = _is_near_zero(mean, variance)

    def centred(piece):
        return rows[piece] if near_zero else _deviations(rows[piece], centre)

    # Step 1: two sums for each channel, of g and of g * (x - mean) = g * x - g * mean.
    grad_bias, dots = _sums(lambda piece: sums_and_dots(g[piece], centred(piece), channels), rows)
    dots = dots - mean * grad_bias if near_zero else dots
    grad_bias, grad_weight = grad_bias.astype(x.dtype), (dots * inverse_std).astype(x.dtype)

    # Step 2: dL/dx = scale * g + slope * (x - mean) + offset, the formula of ops/batch_norm.py multiplied out.
    count, scale = x.size // channels, weight * inverse_std
    slope, offset = -scale * inverse_std * grad_weight / count, -scale * grad_bias / count
    offset = offset - slope * mean if near_zero else offset
    scale, slope, offset = repeated(scale, rows), repeated(slope, rows), repeated(offset, rows)
    grad_x = np.empty(rows.shape, x.dtype)

    def add_terms(piece):
        out = np.multiply(g[piece], scale, out=grad_x[piece])  # the direct term
        if through_statistics:
            # The gradient through the variance, and through the mean.
            out += np.multiply(centred(piece), slope, out=scratch("correction", out.shape, out.dtype))
            out += offset

    map_pieces(add_terms, pieces_of(rows), multiplications=0)
    return grad_x.reshape(x.shape), grad_weight, grad_bias


def _sums(sums_of, rows):
    """sums_of(piece) for all pieces of the rows, added."""
    return sum_pieces(sums_of, pieces_of(rows), multiplications=rows.size)


def _deviations(rows, centre):
    """rows - centre, in this thread's scratch."""
    return np.subtract(rows, centre, out=scratch("deviations", rows.shape, rows.dtype))


def _is_near_zero(mean, variance) -> bool:
    """True if the mean of every channel is at most `MOST_DEVIATIONS` standard deviations away from 0."""
    return bool((np.isfinite(variance) & (np.abs(mean) <= MOST_DEVIATIONS * np.sqrt(variance))).all())
