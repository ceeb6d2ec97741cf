"""Mistakes in batch normalisation and local response normalisation."""

import math

import numpy as np

from minidl.study.slips.tools import called_with, changed, only, scaled, swapped


def _axes(call):
    return tuple(range(call.x.ndim - 1))


def _rows(call):
    """M, the elements of a channel."""
    return math.prod(call.x.shape[:-1])


# -- batch normalisation -----------------------------------------------------------------------------------------------

STATISTICS = {
    "the variance divided by M - 1 instead of M": scaled(lambda call: _rows(call) / (_rows(call) - 1), 1),
    "the standard deviation instead of the variance": changed(lambda variance, call: np.sqrt(variance), 1),
    "the mean of x^2 instead of the variance: the mean is not subtracted": changed(
        lambda variance, call: (call.x**2).mean(axis=_axes(call)), 1
    ),
    "the sum of the squares instead of their mean": scaled(_rows, 1),
    "the sum instead of the mean": scaled(_rows, 0),
    "the mean absolute deviation instead of the variance": changed(
        lambda variance, call: abs(call.x - call.x.mean(axis=_axes(call))).mean(axis=_axes(call)), 1
    ),
    "the statistics over the batch alone, each pixel by itself": lambda c: (c.x.mean(axis=0), c.x.var(axis=0)),
    "the statistics over the last axis: of each pixel instead of each channel": lambda call: (
        call.x.mean(axis=-1),
        call.x.var(axis=-1),
    ),
    "the statistics over all channels together": lambda call: (call.x.mean(), call.x.var()),
    "the statistics of the first image alone": called_with(x=lambda call: call.x[:1]),
    "mean and variance in each other's place": swapped(0, 1),
    "the statistics with keepdims: of a wrong shape": lambda call: (
        call.x.mean(axis=_axes(call), keepdims=True),
        call.x.var(axis=_axes(call), keepdims=True),
    ),
}


def _std(call):
    return np.sqrt(call.variance + call.eps)


def _x_hat(call):
    return (call.x - call.mean) / _std(call)


APPLY = {
    "y with eps outside of the root": lambda call: (
        call.weight * (call.x - call.mean) / (np.sqrt(call.variance) + call.eps) + call.bias
    ),
    "y without eps": called_with(eps=lambda call: 0.0),
    "y divided by variance + eps: without the root": lambda call: call.weight * _x_hat(call) / _std(call) + call.bias,
    "y multiplied by the standard deviation instead of divided": lambda call: (
        call.weight * (call.x - call.mean) * _std(call) + call.bias
    ),
    "y with the mean not subtracted": called_with(mean=lambda call: 0 * call.mean),
    "y with the mean added instead of subtracted": called_with(mean=lambda call: -call.mean),
    "y without the weight": called_with(weight=lambda call: np.ones_like(call.weight)),
    "y without the bias": called_with(bias=lambda call: 0 * call.bias),
    "y with the weight times the bias too: weight * (x_hat + bias)": called_with(bias=lambda c: c.weight * c.bias),
    "y with weight and bias in each other's place": called_with(weight=lambda c: c.bias, bias=lambda c: c.weight),
    "y with the weight added to x_hat instead of multiplied": lambda call: _x_hat(call) + call.weight + call.bias,
    "x_hat instead of y: without weight and bias": _x_hat,
    "y with the statistics of x instead of those given": called_with(
        mean=lambda call: call.x.mean(axis=_axes(call)), variance=lambda call: call.x.var(axis=_axes(call))
    ),
}


def _terms(call):
    """What x does to dL/dx through the mean, and through the variance."""
    _, grad_weight, grad_bias = call()
    scale = call.weight / _std(call) if call.through_statistics else 0 * call.weight
    rows = _rows(call)
    return {"mean": scale * grad_bias / rows, "variance": scale * _x_hat(call) * (grad_weight / rows)}


def with_terms(**times):
    """dL/dx with each named term multiplied by its factor; 0 leaves the term out."""

    def wrong(grad_x, call):
        terms = _terms(call)
        return grad_x + sum((1 - _number(factor, call)) * terms[name] for name, factor in times.items())

    return changed(wrong, 0)


def _number(factor, call):
    return factor(call) if callable(factor) else factor


def _eps_outside(grad_x, call):
    return grad_x * _std(call) / (np.sqrt(call.variance) + call.eps)


NORM_BACKWARD = {
    "dL/dx without the term of the mean": with_terms(mean=0),
    "dL/dx without the term of the variance": with_terms(variance=0),
    "dL/dx without the terms of mean and variance: as in evaluation": called_with(through_statistics=lambda c: False),
    "dL/dx in evaluation with the terms of the mean and the variance: as in training": called_with(
        through_statistics=lambda call: True
    ),
    "dL/dx with the term of the mean not divided by M": with_terms(mean=_rows),
    "dL/dx with the term of the variance not divided by M": with_terms(variance=_rows),
    "dL/dx with neither term divided by M": with_terms(mean=_rows, variance=_rows),
    "dL/dx with the term of the mean added instead of subtracted": with_terms(mean=-1),
    "dL/dx with the term of the variance added instead of subtracted": with_terms(variance=-1),
    "dL/dx with twice the term of the variance": with_terms(variance=2),
    "dL/dx with half the term of the variance": with_terms(variance=0.5),
    "dL/dx with x_hat missing in the term of the variance": changed(
        lambda grad_x, call: grad_x + _terms(call)["variance"] * (1 - 1 / _x_hat(call)), 0
    ),
    "dL/dx with M the number of images instead of the elements of a channel": with_terms(
        mean=lambda call: _rows(call) / len(call.x), variance=lambda call: _rows(call) / len(call.x)
    ),
    "dL/dx with M - 1 instead of M": with_terms(
        mean=lambda call: _rows(call) / (_rows(call) - 1), variance=lambda call: _rows(call) / (_rows(call) - 1)
    ),
    "dL/dx with eps outside of the root": changed(_eps_outside, 0),
    "dL/dx without the weight": changed(lambda grad_x, call: grad_x / call.weight, 0),
    "dL/dx not divided by the standard deviation": changed(lambda grad_x, call: grad_x * _std(call), 0),
    "dL/dx divided by the variance: without the root": changed(lambda grad_x, call: grad_x / _std(call), 0),
    "dL/dx multiplied by the standard deviation instead of divided": changed(
        lambda grad_x, call: grad_x * _std(call) ** 2, 0
    ),
    "all gradients without eps": called_with(eps=lambda call: 0.0),
    "dL/dx as dL/dy: batch-norm left out": changed(lambda grad_x, call: call.grad, 0),
    "dL/dweight and dL/dbias in each other's place": swapped(1, 2),
    "dL/dweight with x in the place of x_hat": changed(
        lambda right, call: (call.grad * call.x).sum(axis=_axes(call)), 1
    ),
    "dL/dweight with x - mean in the place of x_hat": changed(lambda right, call: right * _std(call), 1),
    "dL/dweight divided by M": scaled(lambda call: 1 / _rows(call), 1),
    "dL/dbias divided by M": scaled(lambda call: 1 / _rows(call), 2),
    "dL/dweight of the first image alone": changed(
        lambda right, call: (only(0, call.grad) * _x_hat(call)).sum(axis=_axes(call)), 1
    ),
    "dL/dbias of the first image alone": changed(lambda right, c: only(0, c.grad).sum(axis=_axes(c)), 2),
    "dL/dweight times the weight": changed(lambda right, call: right * call.weight, 1),
    "dL/dweight of a wrong shape: not summed": changed(lambda right, call: call.grad * _x_hat(call), 1),
    "dL/dbias of a wrong shape: not summed": changed(lambda right, call: call.grad, 2),
    "dL/dbias of a wrong shape: summed over the batch alone": changed(lambda right, call: call.grad.sum(axis=0), 2),
}

# -- local response normalisation: Krizhevsky et al. 2012 --------------------------------------------------------------


def _windows(terms, before, after):
    """The sum over the channels from c - before to c + after."""
    padded = np.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(before, after)])
    return sum(padded[..., i : i + terms.shape[-1]] for i in range(before + after + 1))


def _with_squares(change):
    """(y, scale) of another sum of squares: change(call, squares)."""

    def wrong(call):
        scale = call.k + call.alpha * change(call, call.x**2)
        return call.x * scale**-call.beta, scale

    return wrong


RESPONSE_FORWARD = {
    "alpha times the mean of the squares instead of their sum, as in PyTorch": called_with(
        alpha=lambda call: call.alpha / call.size
    ),
    "the scale without k": called_with(k=lambda call: 0.0),
    "the scale without alpha": called_with(alpha=lambda call: 1.0),
    "y multiplied by scale^beta instead of divided": changed(lambda y, call: call.x * call()[1] ** call.beta, 0),
    "y without beta": changed(lambda y, call: call.x / call()[1], 0),
    "the scale of the values' sizes instead of their squares": _with_squares(
        lambda call, squares: _windows(abs(call.x), call.size // 2, (call.size - 1) // 2)
    ),
    "the window of an even size one channel too high": _with_squares(
        lambda call, squares: _windows(squares, (call.size - 1) // 2, call.size // 2)
    ),
    "the window with the channels before c alone: not centred": _with_squares(
        lambda call, squares: _windows(squares, call.size - 1, 0)
    ),
    "the window of the channel alone: without its neighbours": _with_squares(lambda call, squares: squares),
    "the window over all channels": _with_squares(
        lambda call, squares: np.broadcast_to(squares.sum(axis=-1, keepdims=True), squares.shape)
    ),
    "y and scale in each other's place": swapped(0, 1),
}


def _response_backward(change=lambda call, direct, through: direct - through, before=None):
    """dL/dx by its formula, with another window (the number of channels before c) or another end."""

    def wrong(call):
        first = (call.size - 1) // 2 if before is None else before(call)
        sums = _windows(call.grad * call.y / call.scale, first, call.size - 1 - first)
        through = 2 * call.alpha * call.beta * call.x * sums
        return change(call, call.grad * call.scale**-call.beta, through)

    return wrong


RESPONSE_BACKWARD = {
    "dL/dx by the direct path alone: without the sum over the neighbours": _response_backward(lambda c, d, t: d),
    "dL/dx with the window not mirrored: right for odd sizes alone": _response_backward(
        before=lambda call: call.size // 2
    ),
    "dL/dx without the 2": _response_backward(lambda call, direct, through: direct - through / 2),
    "dL/dx without beta": _response_backward(lambda call, direct, through: direct - through / call.beta),
    "dL/dx without alpha": _response_backward(lambda call, direct, through: direct - through / call.alpha),
    "dL/dx with the sum over the neighbours added": _response_backward(lambda c, d, t: d + t),
    "dL/dx with the sum over the neighbours not times x": _response_backward(lambda c, d, t: d - t / c.x),
    "dL/dx by the sum over the neighbours alone": _response_backward(lambda c, d, t: -t),
    "dL/dx with the channel's own term alone of the sum": lambda call: (
        call.grad * call.scale**-call.beta - 2 * call.alpha * call.beta * call.x * call.grad * call.y / call.scale
    ),
}

MISTAKES = {
    "batch_statistics": STATISTICS,
    "batch_norm_apply": APPLY,
    "batch_norm_backward": NORM_BACKWARD,
    "local_response_norm_forward": RESPONSE_FORWARD,
    "local_response_norm_backward": RESPONSE_BACKWARD,
}
