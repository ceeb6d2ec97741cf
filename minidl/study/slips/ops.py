"""Mistakes in the backward of ops that have no kernel of their own. A call has `grad`, and `saved` of forward."""

import numpy as np

from minidl.ops.arithmetic import sum_to_shape
from minidl.study.slips.tools import called_with, changed, scaled, swapped


def one(change):
    """Another gradient of an op's single input: change(call)."""
    return lambda call: (change(call),)


def not_times_grad(call):
    """1 for dL/dy."""
    return np.ones_like(call.grad)


def _factors_not_transposed(call):
    a, b = call.saved
    return call.grad @ b, a @ call.grad


def _not_summed(part):
    """The gradient at the first place along the axes that were broadcast, instead of the sum over them."""

    def wrong(call):
        grads = list(call())
        full, shape = call.grad, grads[part].shape
        index = tuple(slice(0, n) for n in (1,) * (full.ndim - len(shape)) + shape)
        grads[part] = full[index].reshape(shape)
        return tuple(grads)

    return wrong


def _max_to_all(call):
    x, y, _ = call.saved
    return np.broadcast_to(call.grad.reshape(y.shape), x.shape).copy()


def _max_not_shared(call):
    x, y, _ = call.saved
    return np.where(x == y, call.grad.reshape(y.shape), 0)


def _assigned(call):
    shape, index = call.saved
    grad_x = np.zeros(shape)
    grad_x[index] = call.grad
    return grad_x


def _permuted_again(call):
    (dims,) = call.saved
    (right,) = call()
    return call.grad.transpose(dims).copy().reshape(right.shape)


def _y(call):
    (y,) = call.saved
    return y


def _div_once(call):
    _, b, y = call.saved
    return call()[0], sum_to_shape(-call.grad * y, b.shape)


def _derivative_of_power(without):
    def wrong(call):
        x, p = call.saved
        return call.grad * {"p": x ** (p - 1), "-1": p * x**p}[without]

    return wrong


TWO_SWAPPED = "dL/da and dL/db in each other's place"
NOT_SUMMED = "not summed over what was broadcast: dL/d"

MISTAKES = {
    "Add": {
        f"{NOT_SUMMED}b of its first place": _not_summed(1),
        f"{NOT_SUMMED}a of its first place": _not_summed(0),
        "dL/db with the sign of a difference": scaled(-1, 1),
    },
    "Sub": {"dL/db with the sign of dL/da": scaled(-1, 1), TWO_SWAPPED: swapped(0, 1)},
    "Mul": {
        TWO_SWAPPED: swapped(0, 1),
        "dL/da and dL/db not multiplied by dL/dy": called_with(grad=not_times_grad),
    },
    "Div": {
        "dL/db without the sign": scaled(-1, 1),
        "dL/db divided by b once instead of twice": _div_once,
        TWO_SWAPPED: swapped(0, 1),
    },
    "Pow": {
        "dL/dx without the factor p": one(_derivative_of_power("p")),
        "dL/dx with x^p in the place of x^(p - 1)": one(_derivative_of_power("-1")),
        "dL/dx not multiplied by dL/dy": called_with(grad=not_times_grad),
    },
    "MatMul": {
        "dL/da and dL/db with the factors not transposed": _factors_not_transposed,
        TWO_SWAPPED: swapped(0, 1),
        "dL/da transposed": changed(lambda right, call: right.swapaxes(-1, -2), 0),
        "dL/db transposed": changed(lambda right, call: right.swapaxes(-1, -2), 1),
    },
    "Exp": {
        "dL/dx with x in the place of y": one(lambda call: call.grad * np.log(_y(call))),
        "dL/dx not multiplied by dL/dy": called_with(grad=not_times_grad),
        "dL/dx of dL/dy alone": one(lambda call: call.grad),
    },
    "Log": {
        "dL/dx times x instead of divided by it": one(lambda call: call.grad * call.saved[0]),
        "dL/dx divided by y instead of x": one(lambda call: call.grad / np.log(call.saved[0])),
        "dL/dx not multiplied by dL/dy": called_with(grad=not_times_grad),
    },
    "Sqrt": {
        "dL/dx without the 2": scaled(2, 0),
        "dL/dx divided by 2 x instead of 2 y": one(lambda call: call.grad / (2 * _y(call) ** 2)),
        "dL/dx times 2 y instead of divided by it": one(lambda call: call.grad * 2 * _y(call)),
    },
    "Sigmoid": {
        "dL/dx of 1 - y: without the factor y": one(lambda call: call.grad * (1 - _y(call))),
        "dL/dx of y: without the factor 1 - y": one(lambda call: call.grad * _y(call)),
        "dL/dx of 1 - y^2, as for tanh": one(lambda call: call.grad * (1 - _y(call) ** 2)),
        "dL/dx not multiplied by dL/dy": called_with(grad=not_times_grad),
    },
    "Tanh": {
        "dL/dx with x in the place of y": one(lambda call: call.grad * (1 - np.arctanh(_y(call)) ** 2)),
        "dL/dx of 1 - y: not squared": one(lambda call: call.grad * (1 - _y(call))),
        "dL/dx of y (1 - y), as for a sigmoid": one(lambda call: call.grad * _y(call) * (1 - _y(call))),
        "dL/dx not multiplied by dL/dy": called_with(grad=not_times_grad),
    },
    "Clip": {
        "dL/dx everywhere: no mask": one(lambda call: call.grad),
        "dL/dx outside of the bounds instead of between them": changed(lambda right, call: call.grad - right, 0),
        "dL/dx of 1 between the bounds: not multiplied by dL/dy": called_with(grad=not_times_grad),
    },
    "Maximum": {
        TWO_SWAPPED: swapped(0, 1),
        "all of dL/dy in both dL/da and dL/db": lambda call: (
            sum_to_shape(call.grad, call.saved[0].shape),
            sum_to_shape(call.grad, call.saved[1].shape),
        ),
    },
    "Where": {TWO_SWAPPED: swapped(0, 1)},
    "MSELoss": {
        "dL/dtarget with the sign of dL/dx": scaled(-1, 1),
        "dL/dx with the sign of dL/dtarget": scaled(-1, 0),
    },
    "Sum": {
        "dL/dx not spread: dL/dy as it is": one(lambda call: call.grad),
        "dL/dx divided by the number of summed elements, as for the mean": changed(
            lambda right, call: right * (call.grad.size / right.size), 0
        ),
    },
    "Max": {
        "dL/dx to all elements instead of the largest": one(_max_to_all),
        "dL/dx to each of equal elements in full: not shared": one(_max_not_shared),
    },
    "Reshape": {
        "dL/dx with the elements in Fortran's order": one(lambda c: c.grad.reshape(c.saved[0], order="F")),
    },
    "Permute": {
        "dL/dx permuted once more instead of back": one(_permuted_again),
        "dL/dx with dL/dy only reshaped, not permuted": changed(lambda right, c: c.grad.reshape(right.shape), 0),
    },
    "GetItem": {
        "dL/dx with repeats assigned instead of added": one(_assigned),
    },
    "Cat": {
        "the gradients one element further along the last axis": lambda call: tuple(
            np.roll(grad, 1, axis=-1) for grad in call()
        ),
        "the gradient of the first input alone, one element further": changed(
            lambda right, call: np.roll(right, 1, axis=-1), 0
        ),
        "the gradients in the reversed order": lambda call: call()[::-1],
    },
}
