"""Mistakes in sums, ReLU, GELU, softmax, losses and dropout."""

import math

import numpy as np

from minidl.study.slips.tools import called_with, changed, scaled

# -- addition, ReLU ----------------------------------------------------------------------------------------------------

ADD = {
    "a - b instead of a + b": lambda call: call.a - call.b,
    "a * b instead of a + b": lambda call: call.a * call.b,
    "a alone": lambda call: call.a,
    "b alone": lambda call: call.b,
    "the mean of a and b": lambda call: (call.a + call.b) / 2,
}
RELU_FORWARD = {
    "x itself: nothing is cut off": lambda call: call.x,
    "|x| instead of max(x, 0)": lambda call: abs(call.x),
    "min(x, 0) instead of max(x, 0)": lambda call: np.minimum(call.x, 0),
    "1 where x > 0 instead of x": lambda call: (call.x > 0).astype(call.x.dtype),
    "a leaky ReLU: 0.01 x where x < 0": lambda call: np.where(call.x > 0, call.x, 0.01 * call.x),
    "max(-x, 0) instead of max(x, 0)": lambda call: np.maximum(-call.x, 0),
    "cut off at 1 too": lambda call: np.clip(call.x, 0, 1),
    "max(x, 1) instead of max(x, 0)": lambda call: np.maximum(call.x, 1),
}
RELU_BACKWARD = {
    "dL/dx everywhere: no mask, or one of y >= 0, which is always true": lambda call: call.grad,
    "dL/dx where y = 0 instead of where y > 0": changed(lambda right, call: call.grad - right),
    "dL/dx of 1 where y > 0: not multiplied by dL/dy": called_with(grad=lambda call: np.ones_like(call.grad)),
    "dL/dx as dL/dy times y: the values for their mask": lambda call: call.grad * call.y,
    "dL/dx masked by the sign of dL/dy instead of y": lambda call: np.maximum(call.grad, 0),
    "dL/dx masked by the signs of both dL/dy and y": changed(lambda right, call: np.maximum(right, 0)),
    "y instead of dL/dx": lambda call: call.y,
    "dL/dx with half of dL/dy where y = 0": changed(lambda right, call: (right + call.grad) / 2),
    "dL/dx with 0.01 dL/dy where y = 0: that of a leaky ReLU": changed(
        lambda right, call: right + 0.01 * (call.grad - right)
    ),
}

# -- GELU --------------------------------------------------------------------------------------------------------------

_erf = np.vectorize(math.erf, otypes=[float])


def _probability(x):
    return (1 + _erf(x / math.sqrt(2))) / 2


def _density(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_y(wrong):
    """A wrong y beside the right slope."""
    return changed(lambda y, call: wrong(call.x), 0)


def _gelu_slope(wrong):
    """A wrong slope beside the right y."""
    return changed(lambda slope, call: wrong(call.x), 1)


GELU_FORWARD = {
    "y as P(x) alone: not multiplied by x": changed(lambda y, call: y / call.x, 0),
    "y with erf(x) instead of erf(x / sqrt(2))": _gelu_y(lambda x: x * (1 + _erf(x)) / 2),
    "y without the half: x (1 + erf(x / sqrt(2)))": scaled(2, 0),
    "y without the 1: x erf(x / sqrt(2)) / 2": changed(lambda y, call: y - call.x / 2, 0),
    "y with the density p(x) in the place of P(x)": _gelu_y(lambda x: x * _density(x)),
    "y by the sigmoid: x sigmoid(1.702 x), another approximation": _gelu_y(lambda x: x / (1 + np.exp(-1.702 * x))),
    "y as x sigmoid(x): SiLU": _gelu_y(lambda x: x / (1 + np.exp(-x))),
    "y as max(x, 0): a ReLU": _gelu_y(lambda x: np.maximum(x, 0)),
    "y and slope by the other formula: erf and tanh exchanged": called_with(
        approximate=lambda call: "none" if call.approximate == "tanh" else "tanh"
    ),
    "slope as P(x) alone: x p(x) is missing": changed(lambda slope, call: call()[0] / call.x, 1),
    "slope as x p(x) alone: P(x) is missing": changed(lambda slope, call: slope - call()[0] / call.x, 1),
    "slope as P(x) + p(x): p not multiplied by x": _gelu_slope(lambda x: _probability(x) + _density(x)),
    "slope as P(x) - x p(x): the other sign": changed(lambda slope, call: 2 * call()[0] / call.x - slope, 1),
    "slope with exp(-x^2) instead of exp(-x^2 / 2)": _gelu_slope(lambda x: _probability(x) + x * _density(x * 2**0.5)),
    "slope with the density not divided by sqrt(2 pi)": _gelu_slope(
        lambda x: _probability(x) + x * _density(x) * math.sqrt(2 * math.pi)
    ),
    "slope of 1 where x > 0 and 0 elsewhere: that of a ReLU": _gelu_slope(lambda x: np.where(x > 0, 1.0, 0.0)),
}
GELU_BACKWARD = {
    "dL/dx as dL/dy: not multiplied by the slope": lambda call: call.grad,
    "dL/dx as the slope: not multiplied by dL/dy": lambda call: call.slope,
    "dL/dx with dL/dy divided by the slope": lambda call: call.grad / call.slope,
    "dL/dx where the slope is positive alone": lambda call: call.grad * np.maximum(call.slope, 0),
    "dL/dx with a mask in the place of the slope": lambda call: call.grad * (call.slope > 0),
    "dL/dx with the slope's square": lambda call: call.grad * call.slope**2,
}

# -- softmax -----------------------------------------------------------------------------------------------------------


def _shifted(x):
    return np.exp(x - x.max(axis=-1, keepdims=True))


def _softmax_naive(x):
    exponentials = np.exp(x)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


SOFTMAX_FORWARD = {
    "y without the row's maximum subtracted first: exp overflows": lambda call: _softmax_naive(call.x),
    "y normalised over the batch, axis 0, instead of each row": lambda call: call(x=call.x.T).T,
    "y normalised over the whole batch instead of each row": lambda call: (
        np.exp(call.x - call.x.max()) / np.exp(call.x - call.x.max()).sum()
    ),
    "exp(x - max) instead of y: not divided by its sum": lambda call: _shifted(call.x),
    "y with exp(max - x): the wrong sign of x": called_with(x=lambda call: -call.x),
    "y divided by the largest exponential instead of by their sum": lambda call: (
        _shifted(call.x) / _shifted(call.x).max(axis=-1, keepdims=True) / call.x.shape[1]
    ),
    "y by powers of 2 instead of e": called_with(x=lambda call: call.x * np.log(2)),
    "log y instead of y": changed(lambda y, call: np.log(np.maximum(y, 1e-300))),
    "1 at the largest number and 0 elsewhere: argmax": lambda call: (
        call.x == call.x.max(axis=-1, keepdims=True)
    ).astype(call.x.dtype),
}


def _dot(call, axis=-1):
    return (call.grad * call.y).sum(axis=axis, keepdims=True)


SOFTMAX_BACKWARD = {
    "dL/dx without the sum: y * dL/dy": lambda call: call.y * call.grad,
    "dL/dx with the diagonal of the Jacobian alone: y * (1 - y) * dL/dy": lambda c: c.y * (1 - c.y) * c.grad,
    "dL/dx not multiplied by y": lambda call: call.grad - _dot(call),
    "dL/dx with the sum of dL/dy instead of dL/dy * y": lambda call: (
        call.y * (call.grad - call.grad.sum(axis=-1, keepdims=True))
    ),
    "dL/dx with the mean of dL/dy * y instead of the sum": lambda call: (
        call.y * (call.grad - _dot(call) / call.y.shape[-1])
    ),
    "dL/dx with the sum over the batch, axis 0, instead of each row": lambda call: (
        call.y * (call.grad - _dot(call, axis=0))
    ),
    "dL/dx with the sum over everything instead of each row": lambda c: c.y * (c.grad - _dot(c, axis=None)),
    "dL/dx with the sum added instead of subtracted": lambda call: call.y * (call.grad + _dot(call)),
    "dL/dx as for log_softmax: dL/dy - y * the sum of dL/dy": lambda call: (
        call.grad - call.y * call.grad.sum(axis=-1, keepdims=True)
    ),
    "dL/dx with y for the sum: y * (dL/dy - y)": lambda call: call.y * (call.grad - call.y),
}


LOG_SOFTMAX_FORWARD = {
    "the logarithm of a softmax that is rounded to 0: -infinity": lambda call: np.log(
        _shifted(call.x) / _shifted(call.x).sum(axis=-1, keepdims=True)
    ),
    "y without the row's maximum subtracted first: exp overflows": lambda call: (
        call.x - np.log(np.exp(call.x).sum(axis=-1, keepdims=True))
    ),
    "y over the batch, axis 0, instead of each row": lambda call: call(x=call.x.T).T,
    "softmax instead of its logarithm": changed(lambda y, call: np.exp(y)),
    "y without the logarithm of the sum: x - max": lambda call: call.x - call.x.max(axis=-1, keepdims=True),
    "y with the sum itself in the place of its logarithm": lambda call: (
        call.x - call.x.max(axis=-1, keepdims=True) - _shifted(call.x).sum(axis=-1, keepdims=True)
    ),
    "y with the logarithm to the base 10": lambda call: (
        call.x - call.x.max(axis=-1, keepdims=True) - np.log10(_shifted(call.x).sum(axis=-1, keepdims=True))
    ),
    "y with the maximum not added again: x - log(sum of exp(x - max))": lambda call: (
        call.x - np.log(_shifted(call.x).sum(axis=-1, keepdims=True))
    ),
    "y with the logarithm of the sum added instead of subtracted": lambda call: (
        call.x - call.x.max(axis=-1, keepdims=True) + np.log(_shifted(call.x).sum(axis=-1, keepdims=True))
    ),
    "y with the mean of the exponentials instead of their sum": changed(lambda y, c: y + np.log(c.x.shape[1])),
}


def _sum(call, axis=-1):
    return call.grad.sum(axis=axis, keepdims=True)


LOG_SOFTMAX_BACKWARD = {
    "dL/dx without the sum: dL/dy": lambda call: call.grad,
    "dL/dx with y in the place of softmax: exp(y) is missing": lambda call: call.grad - call.y * _sum(call),
    "dL/dx with exp(y) * dL/dy: not summed over the row": lambda call: call.grad - np.exp(call.y) * call.grad,
    "dL/dx with the mean of dL/dy instead of the sum": lambda call: (
        call.grad - np.exp(call.y) * _sum(call) / call.y.shape[1]
    ),
    "dL/dx with the sum over the batch, axis 0, instead of each row": lambda call: (
        call.grad - np.exp(call.y) * _sum(call, axis=0)
    ),
    "dL/dx with the sum over everything instead of each row": lambda c: c.grad - np.exp(c.y) * _sum(c, axis=None),
    "dL/dx with the sum added instead of subtracted": lambda call: call.grad + np.exp(call.y) * _sum(call),
    "dL/dx as for softmax: y * (dL/dy - the sum of dL/dy * y), with exp(y) for y": lambda call: (
        np.exp(call.y) * (call.grad - (call.grad * np.exp(call.y)).sum(axis=-1, keepdims=True))
    ),
    "dL/dx without dL/dy itself: -exp(y) times the sum": lambda call: -np.exp(call.y) * _sum(call),
    "dL/dx with softmax alone, not times the sum of dL/dy": lambda call: call.grad - np.exp(call.y),
}

# -- cross-entropy -----------------------------------------------------------------------------------------------------


def _k(call):
    return (call.logits if "logits" in call.arguments else call.probabilities).shape[1]


def _loss_by_log(call, probabilities):
    """log(probabilities), which is -infinity where a probability is rounded to 0."""
    targets = _targets(call, probabilities)
    products = np.where(targets > 0, targets * np.log(probabilities), 0)
    return np.asarray(-products.sum() / len(products)), probabilities


def _targets(call, like, smoothing=None):
    s = call.label_smoothing if smoothing is None else smoothing
    return np.eye(like.shape[1])[call.labels] * (1 - s) + s / like.shape[1]


def _smoothed_to_others(call, like):
    """s / (K - 1) for each other class, and 1 - s for the label."""
    onehot, s = np.eye(like.shape[1])[call.labels], call.label_smoothing
    return onehot * (1 - s) + (1 - onehot) * s / (like.shape[1] - 1)


def _loss_of(targets):
    """The loss for other targets."""

    def wrong(call):
        log_probabilities = call.logits - call.logits.max(axis=1, keepdims=True)
        log_probabilities -= np.log(np.exp(log_probabilities).sum(axis=1, keepdims=True))
        loss = -(targets(call, log_probabilities) * log_probabilities).sum() / len(log_probabilities)
        return np.asarray(loss), call()[1]

    return wrong


CROSS_ENTROPY_FORWARD = {
    "the loss summed over the batch: not divided by N": scaled(lambda call: len(call.logits), 0),
    "the loss divided by the number of classes too": scaled(lambda call: 1 / _k(call), 0),
    "the loss divided by the number of classes instead of N": scaled(lambda call: len(call.logits) / _k(call), 0),
    "the loss by log(probabilities), which is infinite where they are rounded to 0": lambda call: _loss_by_log(
        call, call()[1]
    ),
    "the loss without the row's maximum subtracted first: exp overflows": lambda call: _loss_by_log(
        call, _softmax_naive(call.logits)
    ),
    "the loss with the labels not smoothed": called_with(0, label_smoothing=lambda call: 0.0),
    "the loss with s / (K - 1) for the other classes instead of s / K for all": _loss_of(_smoothed_to_others),
    "the loss with 1 - s for the label, without its share s / K": _loss_of(
        lambda call, like: _targets(call, like) - np.eye(like.shape[1])[call.labels] * call.label_smoothing / _k(call)
    ),
    "the loss of the logits: softmax and logarithm left out": changed(
        lambda loss, call: -(_targets(call, call.logits) * call.logits).sum() / len(call.logits), 0
    ),
    "the loss of the probabilities: the logarithm left out": changed(
        lambda loss, call: -(_targets(call, call.logits) * call()[1]).sum() / len(call.logits), 0
    ),
    "the loss with the logarithm to the base 2": scaled(1 / np.log(2), 0),
    "the loss of the first image alone": changed(lambda loss, c: c(logits=c.logits[:1], labels=c.labels[:1])[0], 0),
    "a loss for each image: not averaged": changed(
        lambda loss, call: np.array(
            [call(logits=call.logits[n : n + 1], labels=call.labels[n : n + 1])[0] for n in range(len(call.logits))]
        ),
        0,
    ),
    "the loss with the labels counted from 1": called_with(0, labels=lambda call: (call.labels - 1) % _k(call)),
    "the logits instead of the probabilities": changed(lambda probabilities, call: call.logits, 1),
    "the gradient, probabilities - targets, instead of the probabilities": changed(
        lambda probabilities, call: probabilities - _targets(call, probabilities), 1
    ),
}
CROSS_ENTROPY_BACKWARD = {
    "dL/dlogits not divided by N": scaled(lambda call: len(call.probabilities)),
    "dL/dlogits divided by the number of classes instead of N": scaled(lambda c: len(c.probabilities) / _k(c)),
    "dL/dlogits divided by the number of classes too": scaled(lambda call: 1 / _k(call)),
    "dL/dlogits with the labels not smoothed": called_with(label_smoothing=lambda call: 0.0),
    "dL/dlogits with s / (K - 1) for the other classes instead of s / K for all": lambda call: (
        call.grad * (call.probabilities - _smoothed_to_others(call, call.probabilities)) / len(call.probabilities)
    ),
    "dL/dlogits of p instead of p - t: the targets are missing": lambda call: (
        call.grad * call.probabilities / len(call.probabilities)
    ),
    "dL/dlogits of -t instead of p - t: the probabilities are missing": lambda call: (
        -call.grad * _targets(call, call.probabilities) / len(call.probabilities)
    ),
    "dL/dlogits not multiplied by dL/dloss": called_with(grad=lambda call: 1.0),
    "dL/dlogits at the labels alone, and 0 elsewhere": changed(
        lambda right, call: right * np.eye(_k(call))[call.labels]
    ),
    "dL/dlogits with 1 subtracted from all classes instead of the label": lambda call: (
        call.grad * (call.probabilities - 1) / len(call.probabilities)
    ),
    "dL/dprobabilities, -t/p, instead of dL/dlogits": lambda call: (
        -call.grad * _targets(call, call.probabilities) / call.probabilities / len(call.probabilities)
    ),
    "dL/dlogits of p * (1 - p), the derivative of a sigmoid": lambda call: (
        call.grad * call.probabilities * (1 - call.probabilities) / len(call.probabilities)
    ),
    "dL/dlogits with the labels counted from 1": called_with(labels=lambda call: (call.labels - 1) % _k(call)),
}

# -- the mean square ---------------------------------------------------------------------------------------------------


def _difference(call):
    return call.x - call.target


MSE_FORWARD = {
    "the sum instead of the mean": scaled(lambda call: call.x.size),
    "the sum divided by N alone": scaled(lambda call: call.x.size / len(call.x)),
    "half the mean of the squares": scaled(0.5),
    "the root of the mean of the squares": changed(lambda loss, call: np.sqrt(loss)),
    "the mean of |x - target|: not squared": lambda call: np.asarray(abs(_difference(call)).mean()),
    "the square of the mean difference": lambda call: np.asarray(_difference(call).mean() ** 2),
    "the mean of x - target: not squared": lambda call: np.asarray(_difference(call).mean()),
    "the squares themselves: not averaged": lambda call: _difference(call) ** 2,
    "the mean of x^2 - target^2": lambda call: np.asarray((call.x**2 - call.target**2).mean()),
    "the mean of (x + target)^2": lambda call: np.asarray(((call.x + call.target) ** 2).mean()),
}
MSE_BACKWARD = {
    "dL/dx without the 2": scaled(0.5),
    "dL/dx not divided by the number of elements": scaled(lambda call: call.x.size),
    "dL/dx divided by N alone": scaled(lambda call: call.x.size / len(call.x)),
    "dL/dx not multiplied by dL/dloss": called_with(grad=lambda call: 1.0),
    "dL/dx by the sign of x - target alone": lambda call: call.grad * 2 * np.sign(_difference(call)) / call.x.size,
    "dL/dx with x in the place of x - target": called_with(target=lambda call: 0 * call.target),
    "dL/dx with the square of x - target": lambda call: call.grad * 2 * _difference(call) ** 2 / call.x.size,
    "dL/dx without the 2 and without the division": scaled(lambda call: call.x.size / 2),
    "dL/dx with x + target in the place of x - target": called_with(target=lambda call: -call.target),
}

# -- dropout -----------------------------------------------------------------------------------------------------------


def _what(call):
    return call.x if "x" in call.arguments else call.grad


def _next(word: int):
    return lambda call: call.key + np.eye(4, dtype=np.uint32)[word]


def dropout(result: str) -> dict:
    """Forward and backward have the same slips, because they do the same."""
    return {
        f"{result} not divided by 1 - p": scaled(lambda call: 1 - call.probability),
        f"{result} multiplied by 1 - p instead of divided": scaled(lambda call: (1 - call.probability) ** 2),
        f"{result} divided by p instead of 1 - p": scaled(lambda c: (1 - c.probability) / c.probability),
        f"{result} with the mask of the next step": called_with(key=_next(2)),
        f"{result} with the mask of the next layer": called_with(key=_next(3)),
        f"{result} with the mask of another seed": called_with(key=_next(0)),
        f"{result} with the mask inverted: what should be kept is dropped": changed(
            lambda right, call: _what(call) / (1 - call.probability) - right
        ),
        f"{result} with no mask": lambda call: _what(call) / (1 - call.probability),
        f"{result} unchanged: neither mask nor division": _what,
        f"{result} with p and 1 - p exchanged": called_with(probability=lambda call: 1 - call.probability),
        f"the mask instead of {result}": changed(lambda right, call: (right != 0).astype(right.dtype)),
        f"{result} with the mask of the first image for all": lambda call: (
            _what(call) * (call()[:1] != 0) / (1 - call.probability)
        ),
    }


MISTAKES = {
    "add": ADD,
    "relu_forward": RELU_FORWARD,
    "relu_backward": RELU_BACKWARD,
    "gelu_forward": GELU_FORWARD,
    "gelu_backward": GELU_BACKWARD,
    "softmax_forward": SOFTMAX_FORWARD,
    "softmax_backward": SOFTMAX_BACKWARD,
    "log_softmax_forward": LOG_SOFTMAX_FORWARD,
    "log_softmax_backward": LOG_SOFTMAX_BACKWARD,
    "cross_entropy_forward": CROSS_ENTROPY_FORWARD,
    "cross_entropy_backward": CROSS_ENTROPY_BACKWARD,
    "mse_loss_forward": MSE_FORWARD,
    "mse_loss_backward": MSE_BACKWARD,
    "dropout_forward": dropout("y"),
    "dropout_backward": dropout("dL/dx"),
}
