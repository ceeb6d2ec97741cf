"""Mistakes in the updates: running statistics, SGD, Adam. What an update writes comes as one flat tuple of arrays."""

import numpy as np

from minidl.study.slips.tools import called_with, changed, swapped

RUNNING = {
    "the momentum as the weight of the old statistics instead of the new": called_with(
        momentum=lambda call: 1 - call.momentum
    ),
    "the new statistics alone: not averaged with the old": called_with(momentum=lambda call: 1.0),
    "the running variance of the biased variance: without count / (count - 1)": lambda call: (
        call()[0],
        (1 - call.momentum) * call.running_variance + call.momentum * call.variance,
    ),
    "the running variance with (count - 1) / count instead of count / (count - 1)": called_with(
        variance=lambda call: call.variance * ((call.count - 1) / call.count) ** 2
    ),
    "the running statistics without the factor 1 - momentum of the old": lambda call: (
        call()[0] + call.momentum * call.running_mean,
        call()[1] + call.momentum * call.running_variance,
    ),
    "the running variance of the standard deviation": called_with(variance=lambda call: np.sqrt(call.variance)),
    "mean and variance in each other's place": swapped(0, 1),
    "the running mean unchanged": changed(lambda mean, call: call.running_mean, 0),
    "the running variance unchanged": changed(lambda variance, call: call.running_variance, 1),
    "new arrays instead of the given ones: nothing is written": lambda c: (c.running_mean, c.running_variance),
}


def _sgd(rule):
    """An update by rule(call, p, g, v) -> (new p, new v), with g = grad + weight_decay * p."""

    def wrong(call):
        parameters, velocities = [], []
        for p, grad, v in zip(call.parameters, call.grads, call.velocities, strict=True):
            new_p, new_v = rule(call, p, grad + call.weight_decay * p, v)
            parameters.append(new_p)
            velocities.append(new_v if call.momentum else v)
        return (*parameters, *velocities)

    return wrong


def _step(call, p, g, v):
    v = call.momentum * v + g
    return p - call.lr * (g + call.momentum * v if call.nesterov else v), v


def _lr_in_velocity(call, p, g, v):
    v = call.momentum * v + call.lr * g
    return p - (call.lr * g + call.momentum * v if call.nesterov else v), v


def _dampened(call, p, g, v):
    v = call.momentum * v + (1 - call.momentum) * g
    return p - call.lr * (g + call.momentum * v if call.nesterov else v), v


def _decoupled(call, p, g, v):
    """g without the decay, and p multiplied by 1 - lr * weight_decay."""
    new_p, new_v = _step(call, p, g - call.weight_decay * p, v)
    return new_p - call.lr * call.weight_decay * p, new_v


def _two_steps_of_momentum(call, p, g, v):
    v = call.momentum * v + g
    return p - call.lr * (g + call.momentum * (call.momentum * v + g)), v


SGD = {
    "p + lr * v: the step goes uphill": _sgd(
        lambda call, p, g, v: (2 * p - _step(call, p, g, v)[0], _step(call, p, g, v)[1])
    ),
    "no momentum: p - lr * g": _sgd(lambda call, p, g, v: (p - call.lr * g, call.momentum * v + g)),
    "the velocity not kept for the next step": _sgd(lambda call, p, g, v: (_step(call, p, g, v)[0], v)),
    "v = momentum * v, without the gradient": _sgd(
        lambda call, p, g, v: (p - call.lr * (call.momentum * v if call.momentum else g), call.momentum * v)
    ),
    "weight decay left out": called_with(weight_decay=lambda call: 0.0),
    "weight decay subtracted from the gradient": called_with(weight_decay=lambda call: -call.weight_decay),
    "weight decay decoupled from the gradient, as in AdamW": _sgd(_decoupled),
    "nesterov ignored": called_with(nesterov=lambda call: False),
    "nesterov always": called_with(nesterov=lambda call: call.momentum != 0),
    "nesterov with the momentum applied twice": _sgd(
        lambda call, p, g, v: _two_steps_of_momentum(call, p, g, v) if call.nesterov else _step(call, p, g, v)
    ),
    "the learning rate inside of the velocity: v = momentum * v + lr * g": _sgd(_lr_in_velocity),
    "the velocity dampened: v = momentum * v + (1 - momentum) * g": _sgd(_dampened),
    "the first parameter alone is updated": lambda call: (
        call()[0],
        *call.parameters[1:],
        call()[len(call.parameters)],
        *call.velocities[1:],
    ),
    "no learning rate: p - v": called_with(lr=lambda call: 1.0),
    "new arrays instead of the given ones: nothing is written": lambda call: (*call.parameters, *call.velocities),
}


def _adam(rule=None, decay=None, step_of=lambda t: t + 1, g_of=None):
    """An update by the paper's formula, with another rule(call, mean, square, t) for the step, or another g."""

    def wrong(call):
        written = [], [], [], []
        for p, grad, mean, square, t in zip(
            call.parameters, call.grads, call.means, call.squares, call.steps, strict=True
        ):
            g = grad if call.decoupled else grad + call.weight_decay * p
            if g_of:
                g = g_of(call, grad, p)
            mean = call.beta1 * mean + (1 - call.beta1) * g
            square = call.beta2 * square + (1 - call.beta2) * g**2
            step = (rule or _rule)(call, mean, square, float(step_of(t)))
            decayed = p * (1 - call.lr * call.weight_decay) if call.decoupled else p
            if decay:
                decayed = decay(call, p, step)
            for place, array in zip(written, (decayed - call.lr * step, mean, square, t + 1), strict=True):
                place.append(array)
        return tuple(array for place in written for array in place)

    return wrong


def _rule(call, mean, square, t):
    mean_hat, square_hat = mean / (1 - call.beta1**t), square / (1 - call.beta2**t)
    return mean_hat / (np.sqrt(square_hat) + call.eps)


def _hats(mean_power=None, square_power=None, divide=lambda m, s, eps: m / (np.sqrt(s) + eps)):
    """A step with other corrections of the bias, given as powers of beta; None for t."""

    def rule(call, mean, square, t):
        b1 = call.beta1 ** (t if mean_power is None else mean_power)
        b2 = call.beta2 ** (t if square_power is None else square_power)
        return divide(mean / (1 - b1), square / (1 - b2), call.eps)

    return rule


NEVER = np.inf  # beta^infinity = 0: no correction

ADAM = {
    "no correction of the bias: mean and square as they are": _adam(_hats(NEVER, NEVER)),
    "the bias of the mean not corrected": _adam(_hats(NEVER)),
    "the bias of the square not corrected": _adam(_hats(None, NEVER)),
    "the bias corrected as in the first step always: beta instead of beta^step": _adam(_hats(1, 1)),
    "the bias corrected by the steps before: step instead of step + 1": _adam(step_of=lambda t: t),
    "eps inside of the root": _adam(_hats(divide=lambda m, s, eps: m / np.sqrt(s + eps))),
    "without eps": called_with(eps=lambda call: 0.0),
    "divided by the square: without the root": _adam(_hats(divide=lambda m, s, eps: m / (s + eps))),
    "not divided by the root of the square: the mean alone": _adam(_hats(divide=lambda m, s, eps: m)),
    "the sign of the mean alone": _adam(_hats(divide=lambda m, s, eps: np.sign(m))),
    "the step uphill: p + lr * step": _adam(
        _hats(divide=lambda m, s, eps: -m / (np.sqrt(s) + eps)),
    ),
    "beta1 and beta2 in each other's place": called_with(beta1=lambda c: c.beta2, beta2=lambda c: c.beta1),
    "weight decay in the gradient, though it is decoupled": called_with(decoupled=lambda call: False),
    "weight decay decoupled, though it belongs to the gradient": called_with(decoupled=lambda call: True),
    "weight decay left out": called_with(weight_decay=lambda call: 0.0),
    "weight decay not times the learning rate": _adam(
        decay=lambda call, p, step: p * (1 - call.weight_decay) if call.decoupled else p
    ),
    "the square of the mean instead of the mean of the squares": lambda call: _square_of_mean(call),
    "the steps not increased by 1": lambda call: (*call()[: -len(call.steps)], *call.steps),
    "mean and square not kept for the next step": lambda call: (
        *call()[: len(call.parameters)],
        *call.means,
        *call.squares,
        *call()[-len(call.steps) :],
    ),
    "the first parameter alone is updated": lambda call: _first_alone(call),
    "no learning rate": called_with(lr=lambda call: 1.0),
}


def _square_of_mean(call):
    written = list(call())
    count = len(call.parameters)
    for i in range(count):
        mean, step = written[count + i], float(call.steps[i]) + 1
        square = call.beta2 * call.squares[i] + (1 - call.beta2) * mean**2
        decayed = call.parameters[i] * (1 - call.lr * call.weight_decay * call.decoupled)
        written[2 * count + i] = square
        written[i] = decayed - call.lr * _rule(call, mean, square, step)
    return tuple(written)


def _first_alone(call):
    count, right = len(call.parameters), call()
    before = (*call.parameters, *call.means, *call.squares, *call.steps)
    return tuple(right[i] if i % count == 0 else before[i] for i in range(len(right)))


MISTAKES = {"update_running_statistics": RUNNING, "sgd_update": SGD, "adam_update": ADAM}
