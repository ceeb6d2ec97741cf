"""Local response normalisation across channels (Krizhevsky, Sutskever, Hinton 2012, section 3.3)."""

import numpy as np

from minidl.kernels.cpu._channels import CHUNK_ELEMENTS
from minidl.kernels.cpu._parallel import chunk_length, map_chunks


def local_response_norm_forward(x, size, alpha, beta, k):
    """(y, scale): scale_c = k + alpha * the sum of x^2 over the `size` channels around c, and y = x scale^-beta."""
    rows = x.reshape(-1, x.shape[-1])
    y, scale = np.empty(rows.shape, x.dtype), np.empty(rows.shape, x.dtype)

    def normalise(start, stop):
        part = rows[start:stop]
        scale[start:stop] = k + alpha * _window_sum(part * part, size // 2, (size - 1) // 2)
        np.multiply(part, scale[start:stop] ** -beta, out=y[start:stop])

    map_chunks(normalise, len(rows), chunk_length(rows.shape[1], CHUNK_ELEMENTS))
    return y.reshape(x.shape), scale.reshape(x.shape)


def local_response_norm_backward(grad, x, y, scale, size, alpha, beta):
    """dL/dx_c = g_c scale_c^-beta - 2 alpha beta x_c * the sum of g_d y_d / scale_d over the d whose window holds c."""
    grads, xs, ys, scales = (array.reshape(-1, x.shape[-1]) for array in (grad, x, y, scale))
    grad_x = np.empty(xs.shape, grad.dtype)

    def backward(start, stop):
        g, s = grads[start:stop], scales[start:stop]
        # c lies in d's window when d lies in c's mirrored window.
        through_scale = _window_sum(g * ys[start:stop] / s, (size - 1) // 2, size // 2)
        grad_x[start:stop] = g * s**-beta - (2 * alpha * beta) * xs[start:stop] * through_scale

    map_chunks(backward, len(xs), chunk_length(xs.shape[1], CHUNK_ELEMENTS))
    return grad_x.reshape(x.shape)


def _window_sum(rows, before, after):
    """out[:, c] = the sum of rows[:, c - before .. c + after], as far as there are such channels."""
    channels = rows.shape[1]
    total = rows.copy()
    for offset in range(1, min(before, channels - 1) + 1):
        total[:, offset:] += rows[:, :-offset]
    for offset in range(1, min(after, channels - 1) + 1):
        total[:, :-offset] += rows[:, offset:]
    return total
