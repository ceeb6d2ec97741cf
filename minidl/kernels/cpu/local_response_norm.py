"""Local response normalisation across channels (Krizhevsky, Sutskever, Hinton 2012, section 3.3)."""

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, rows_of, slices
from minidl.kernels.cpu._threads import map_pieces


def local_response_norm_forward(x, size, alpha, beta, k):
    """(y, scale): scale_c = k + alpha * the sum of x^2 over the `size` channels around c, and y = x scale^-beta."""
    rows = x.reshape(-1, x.shape[-1])
    y, scale = np.empty(rows.shape, x.dtype), np.empty(rows.shape, x.dtype)

    def normalise(some):
        part = rows[some]
        scale[some] = k + alpha * _window_sum(part * part, size // 2, (size - 1) // 2)
        np.multiply(part, scale[some] ** -beta, out=y[some])

    map_pieces(normalise, slices(len(rows), rows_of(PIECE_ELEMENTS, rows.shape[1])))
    return y.reshape(x.shape), scale.reshape(x.shape)


def local_response_norm_backward(grad, x, y, scale, size, alpha, beta):
    """dL/dx_c = g_c scale_c^-beta - 2 alpha beta x_c * the sum of g_d y_d / scale_d over the d whose window holds c."""
    grads, xs, ys, scales = (array.reshape(-1, x.shape[-1]) for array in (grad, x, y, scale))
    grad_x = np.empty(xs.shape, grad.dtype)

    def backward(some):
        g, s = grads[some], scales[some]
        # c lies in d's window when d lies in c's mirrored window.
        through_scale = _window_sum(g * ys[some] / s, (size - 1) // 2, size // 2)
        grad_x[some] = g * s**-beta - (2 * alpha * beta) * xs[some] * through_scale

    map_pieces(backward, slices(len(xs), rows_of(PIECE_ELEMENTS, xs.shape[1])))
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
