"""Softmax over the last axis. The largest logit is subtracted first: exp cannot overflow, the result is the same."""

import numpy as np


def softmax_forward(x):
    """y_i = exp(x_i) / sum_j exp(x_j), for each row of x, (N, K)."""
    x = np.ascontiguousarray(x)
    y = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y


def softmax_backward(grad, y):
    """dL/dx_i = y_i (g_i - sum_j g_j y_j)."""
    grad, y = np.ascontiguousarray(grad), np.ascontiguousarray(y)
    return y * (grad - (grad * y).sum(axis=-1, keepdims=True))


def log_softmax_forward(x):
    """y_i = x_i - log sum_j exp(x_j), for each row of x, (N, K)."""
    x = np.ascontiguousarray(x)
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_softmax_backward(grad, y):
    """dL/dx_i = g_i - softmax(x)_i sum_j g_j."""
    grad, y = np.ascontiguousarray(grad), np.ascontiguousarray(y)
    return grad - np.exp(y) * grad.sum(axis=-1, keepdims=True)
