"""Gradient clipping."""

import math
from collections.abc import Iterable

from minidl.tensor import Parameter


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients together so that their common norm is at most max_norm; returns the norm before.

    Pascanu, Mikolov, Bengio 2013, algorithm 1.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: expected max_norm > 0, got {max_norm}")
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum(float((parameter.grad.data**2).sum()) for parameter in parameters))
    if norm > max_norm:
        for parameter in parameters:
            parameter.grad = parameter.grad * (max_norm / norm)
    return norm
