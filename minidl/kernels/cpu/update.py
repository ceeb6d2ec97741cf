"""The kernels that work in place: parameters, optimiser states and running statistics keep their arrays."""

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, scratch, slices
from minidl.kernels.cpu._threads import map_pieces


def sgd_update(parameters, grads, velocities, lr, momentum, weight_decay, nesterov):
    """One step of `optim.SGD` for each parameter p, in place. `velocities` are not read if momentum is 0."""
    rate = float(lr)

    def plain(p, grad):
        _descend(p, _decayed(grad, p, weight_decay), rate)

    def with_momentum(p, grad, v):
        g = _decayed(grad, p, weight_decay)
        v *= momentum
        v += g
        _descend(p, g + momentum * v if nesterov else v, rate)

    if momentum:
        _in_pieces(with_momentum, parameters, grads, velocities)
    else:
        _in_pieces(plain, parameters, grads)


def _descend(p, direction, rate):
    """p -= rate * direction, with the product in this thread's scratch."""
    p -= np.multiply(direction, rate, out=scratch("scaled_step", p.shape, p.dtype))


def adam_update(parameters, grads, means, squares, steps, lr, beta1, beta2, eps, weight_decay, decoupled):
    """One step of `optim.Adam`, or of AdamW if `decoupled`, in place. `steps` counts the updates of each parameter."""
    rate = float(lr)
    for step in steps:
        step += 1  # in place: step is an array

    def update(p, grad, m, v, step):
        t = int(step[0])
        if decoupled:
            p *= 1 - rate * weight_decay
        g = grad if decoupled else _decayed(grad, p, weight_decay)
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        p -= (rate / (1 - beta1**t)) * m / (np.sqrt(v / (1 - beta2**t)) + eps)

    counts = [np.broadcast_to(step, p.shape) for step, p in zip(steps, parameters, strict=True)]
    _in_pieces(update, parameters, grads, means, squares, counts)


def update_running_statistics(running_mean, running_variance, mean, variance, momentum, count):
    """r = (1 - momentum) * r + momentum * new, in place, with the unbiased variance * count / (count - 1)."""
    unbiased = variance * (count / (count - 1)) if count > 1 else variance
    for running, new in ((running_mean, mean), (running_variance, unbiased)):
        running *= 1 - momentum
        running += momentum * new


def _decayed(grad, p, weight_decay):
    """grad + weight_decay * p, in this thread's scratch."""
    if not weight_decay:
        return grad
    decayed = np.multiply(p, weight_decay, out=scratch("decayed", p.shape, p.dtype))
    decayed += grad
    return decayed


def _in_pieces(update, parameters, grads, *states):
    """Call update(parameter, grad, *state) for pieces of all parameters."""
    # copy=False: an array that is not contiguous raises an error, where otherwise a copy would be updated.
    flat = [[np.reshape(array, -1, copy=False) for array in arrays] for arrays in (parameters, *states)]
    flat.insert(1, [grad.reshape(-1) for grad in grads])

    def update_all(batch):
        for arrays in batch:
            update(*arrays)

    map_pieces(update_all, _batches(flat), multiplications=0)


def _batches(flat) -> list[list[list]]:
    """Pieces [parameter, grad, *state] of the arrays. Large arrays are cut; small ones share a batch."""
    batches, room = [], 0
    for arrays in zip(*flat, strict=True):
        for elements in slices(arrays[0].size, PIECE_ELEMENTS):
            piece = [array[elements] for array in arrays]
            if piece[0].size > room:
                batches.append([])
                room = PIECE_ELEMENTS
            batches[-1].append(piece)
            room -= piece[0].size
    return batches
