"""Losses: a scalar, the mean over the batch."""

import numpy as np

from minidl.kernels.cpu.softmax import log_softmax_forward


def cross_entropy_forward(logits, labels, label_smoothing):
    """(loss, p): the mean of -sum_k t_k log p_k, p = softmax(logits). t = (1-s) onehot(label) + s/K, s = smoothing."""
    log_probabilities = log_softmax_forward(logits)
    of_label = log_probabilities[np.arange(len(labels)), labels]
    loss = -of_label.mean()
    if label_smoothing:  # without smoothing a logit of -inf is allowed, but 0 * -inf would be NaN
        loss = (1 - label_smoothing) * loss - label_smoothing * log_probabilities.mean()
    return np.asarray(loss, logits.dtype), np.exp(log_probabilities)


def cross_entropy_backward(grad, probabilities, labels, label_smoothing):
    """dL/dlogits = dL/dloss * (p - t) / N."""
    n, classes = probabilities.shape
    grad_logits = np.ascontiguousarray(probabilities) - label_smoothing / classes
    grad_logits[np.arange(n), labels] -= 1 - label_smoothing
    grad_logits *= grad / n
    return grad_logits


def mse_loss_forward(x, target):
    """The mean of (x - target)^2 over all elements."""
    return np.asarray(((x - target) ** 2).mean(), x.dtype)


def mse_loss_backward(grad, x, target):
    """dL/dx = dL/dloss * 2 * (x - target) / count; dL/dtarget is its negative."""
    return np.subtract(x, target, order="C") * (2 * grad / x.size)
