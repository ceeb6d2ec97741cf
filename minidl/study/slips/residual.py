"""Mistakes at the end of a residual block, and in the gradient of what was broadcast."""

import numpy as np

from minidl.kernels.reference import batch_norm_backward, relu_backward
from minidl.study.slips.tools import called_with, changed, scaled, swapped


def _batch_norm(call, grad, through_statistics=True):
    return batch_norm_backward(grad, call.z, call.mean, call.variance, call.weight, call.eps, through_statistics)


def _to_branch(gradient, through_statistics=True):
    """What goes into batch-norm is gradient(call, dL/ds)."""

    def wrong(call):
        shortcut = relu_backward(call.grad, call.y)
        grad_z, *others = _batch_norm(call, gradient(call, shortcut), through_statistics)
        return grad_z, shortcut, *others

    return wrong


def _masked_by_z(call):
    """ReLU's mask by z instead of y."""
    masked = np.where(call.z > 0, call.grad, 0)
    grad_z, *others = _batch_norm(call, masked)
    return grad_z, masked, *others


FORWARD = {
    "y without the shortcut": called_with(shortcut=lambda call: 0 * call.shortcut),
    "y without the last ReLU": lambda call: _sum(call),
    "y with the ReLU before the sum: relu(batch_norm(z)) + shortcut": lambda call: (
        np.maximum(_sum(call) - call.shortcut, 0) + call.shortcut
    ),
    "y with batch-norm after the sum": lambda call: call(z=call.z + call.shortcut, shortcut=0 * call.shortcut),
    "y without batch-norm: relu(z + shortcut)": lambda call: np.maximum(call.z + call.shortcut, 0),
    "y with half of the sum": scaled(0.5),
}


def _sum(call):
    """batch_norm(z) + shortcut, from relu(s) - relu(-s)."""
    minus = {"weight": -call.weight, "bias": -call.bias, "shortcut": -call.shortcut}
    return call() - call(**minus)


BACKWARD = {
    "dL/dshortcut of dL/dy: not masked by the ReLU": changed(lambda right, call: call.grad, 1),
    "dL/dz of dL/dy: not masked by the ReLU": _to_branch(lambda call, shortcut: call.grad),
    "dL/dz and dL/dshortcut of dL/dy: not masked by the ReLU": called_with(y=lambda call: np.ones_like(call.y)),
    "dL/dshortcut of 0: the path around the block is forgotten": scaled(0, 1),
    "dL/dshortcut with the gradient through the block too: it is added to the shortcut's": lambda call: (
        call()[0],
        call()[1] + call()[0],
        *call()[2:],
    ),
    "dL/dy shared between the two paths: half to each": called_with(grad=lambda call: call.grad / 2),
    "dL/dshortcut of half of it": scaled(0.5, 1),
    "dL/dz without batch-norm: that of the shortcut": changed(lambda right, call: call()[1], 0),
    "dL/dz and dL/dshortcut in each other's place": swapped(0, 1),
    "dL/dweight and dL/dbias in each other's place": swapped(2, 3),
    "dL/dz without batch-norm's terms of mean and variance: as in evaluation": _to_branch(
        lambda call, shortcut: shortcut, through_statistics=False
    ),
    "all gradients masked by z > 0 instead of y > 0": _masked_by_z,
    "dL/dz of dL/dy times y instead of the mask y > 0": _to_branch(lambda call, shortcut: call.grad * call.y),
    "dL/dz with the other sign": scaled(-1, 0),
    "dL/dz ten times too large": scaled(10, 0),
}


def _repeated(call):
    """(axes that were added in front, axes along which the array was repeated) of dL/dy."""
    added = call.grad.ndim - len(call.shape)
    stretched = [axis for axis in range(added, call.grad.ndim) if call.shape[axis - added] != call.grad.shape[axis]]
    return list(range(added)), stretched


def _all_axes(call):
    """All axes along which the array was repeated."""
    added, stretched = _repeated(call)
    return tuple(added + stretched)


def _first_of(call, added=True, stretched=True):
    """The first place, instead of the sum, along some of the repeated axes; the others are summed."""
    in_front, of_length_1 = _repeated(call)
    first = in_front * added + of_length_1 * stretched
    grad = call.grad
    for axis in first:
        grad = np.take(grad, [0], axis)
    return grad.sum(axis=_all_axes(call), keepdims=True).reshape(call.shape)


def _times_repeated(call):
    return call.grad.size / max(1, call().size)


BROADCAST = {
    "dL/dy as it is: not summed": lambda call: call.grad,
    "the first place along the repeated axes instead of the sum": _first_of,
    "the first place along the axes added in front instead of the sum": lambda c: _first_of(c, stretched=False),
    "the first place along the axes of length 1 instead of the sum": lambda c: _first_of(c, added=False),
    "the mean instead of the sum": scaled(lambda call: 1 / _times_repeated(call)),
    "the sum over all axes, spread again": lambda call: np.full(call.shape, call.grad.sum()),
    "the sum without the axes of length 1: they are missing in its shape": lambda call: call.grad.sum(
        axis=_all_axes(call)
    ),
    "the sum with keepdims: the axes added in front are left on": lambda call: call.grad.sum(
        axis=_all_axes(call), keepdims=True
    ),
    "the sum over the axes added in front alone: those of length 1 are not summed": lambda call: call.grad.sum(
        axis=tuple(_repeated(call)[0])
    ),
    "the sum over the axes of length 1 alone: those added in front are not summed": lambda call: call.grad.sum(
        axis=tuple(_repeated(call)[1]), keepdims=True
    ),
    "the maximum instead of the sum": lambda call: call.grad.max(axis=_all_axes(call), keepdims=True).reshape(
        call.shape
    ),
}

MISTAKES = {"residual_end_forward": FORWARD, "residual_end_backward": BACKWARD, "sum_to_shape": BROADCAST}
