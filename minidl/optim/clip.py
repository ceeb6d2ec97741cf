"""Gradient clipping."""

import math
from collections.abc import Iterable

from minidl.optim.optimizer import as_list
from minidl.tensor import Parameter


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint L2 norm is at most max_norm. Return the norm before.

    Pascanu, Mikolov, Bengio 2013, algorithm 1. The norm is computed in float64.

    Raises:
        ValueError: a gradient has a NaN or infinity. Then no gradient is changed. (PyTorch scales all to NaN or 0.)
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: expected max_norm > 0, got {max_norm}")
    given = as_list("clip_grad_norm_", parameters)
    with_grads = {number: parameter for number, parameter in enumerate(given) if parameter.grad is not None}
    squares = {n: float((p.grad.data.astype("float64") ** 2).sum()) for n, p in with_grads.items()}
    for number, square in squares.items():
        if not math.isfinite(square):
            raise ValueError(
                f"clip_grad_norm_: expected finite gradients, got norm {math.sqrt(square)} for parameter {number} "
                f"{with_grads[number].shape}; no gradient was changed: skip this step, or lower the learning rate"
            )
    norm = math.sqrt(sum(squares.values()))
    if norm > max_norm:
        for parameter in with_grads.values():
            parameter.grad = parameter.grad * (max_norm / norm)  # type: ignore[operator, assignment]
    return norm
