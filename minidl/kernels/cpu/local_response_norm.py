"""Local response normalisation across channels (Krizhevsky, Sutskever, Hinton 2012, section 3.3)."""

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, rows_of, slices
from minidl.kernels.cpu._threads import map_pieces


def local_response_norm_forward(x, size, alpha, beta, k):
    """(y, scale): scale_c = k + alpha * (sum of x^2 over the `size` channels around c), and y = x scale^-beta."""
    rows = x.reshape(-1, x.shape[-1])  # (N, H, W, C) -> (N*H*W, C)
    y, scale = np.empty(rows.shape, x.dtype), np.empty(rows.shape, x.dtype)

    def normalise(piece):
        part = rows[piece]
        scale[piece] = k + alpha * _sum_near(part * part, size // 2, (size - 1) // 2)
        np.multiply(part, scale[piece] ** -beta, out=y[piece])

    map_pieces(normalise, slices(len(rows), rows_of(PIECE_ELEMENTS, rows.shape[1])), multiplications=0)
    return y.reshape(x.shape), scale.reshape(x.shape)


def local_response_norm_backward(grad, x, y, scale, size, alpha, beta):
    """dL/dx_c = g_c scale_c^-beta - 2 alpha beta x_c * (sum of g_d y_d / scale_d over the d that have c near)."""
    grads, xs, ys, scales = (array.reshape(-1, x.shape[-1]) for array in (grad, x, y, scale))
    grad_x = np.empty(xs.shape, grad.dtype)

    def backward(piece):
        g, s = grads[piece], scales[piece]
        # `before` and `after` change places: channel d has c near if and only if d is in the mirrored range around c.
        through_scale = _sum_near(g * ys[piece] / s, (size - 1) // 2, size // 2)
        grad_x[piece] = g * s**-beta - (2 * alpha * beta) * xs[piece] * through_scale

    map_pieces(backward, slices(len(xs), rows_of(PIECE_ELEMENTS, xs.shape[1])), multiplications=0)
    return grad_x.reshape(x.shape)


def _sum_near(rows, before, after):
    """out[:, c] = the sum of rows[:, c - before .. c + after], over the channels that exist."""
    channels = rows.shape[1]
    total = rows.copy()
    for offset in range(1, min(before, channels - 1) + 1):
        total[:, offset:] += rows[:, :-offset]
    for offset in range(1, min(after, channels - 1) + 1):
        total[:, :-offset] += rows[:, offset:]
    return total
