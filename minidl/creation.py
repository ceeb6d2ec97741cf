"""Tensors made from a shape."""

import numpy as np

from minidl.dtypes import float32
from minidl.random import next_draw, once
from minidl.tensor import Tensor


def zeros(*shape: int, dtype=float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of that shape, full of zeros."""
    return Tensor(np.zeros(_shape(shape), dtype), device=device, requires_grad=requires_grad)


def ones(*shape: int, dtype=float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of that shape, full of ones."""
    return Tensor(np.ones(_shape(shape), dtype), device=device, requires_grad=requires_grad)


def randn(*shape: int, dtype=float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of that shape, drawn from N(0, 1); `manual_seed` decides the draws."""
    generator = np.random.default_rng(once(next_draw))
    draws = generator.standard_normal(_shape(shape), np.dtype(dtype).type)
    return Tensor(draws, device=device, requires_grad=requires_grad)


def arange(start: float, stop: float | None = None, step: float = 1, dtype=None, device: str = "cpu") -> Tensor:
    """start, start + step, ... below stop; arange(n) is 0 ... n - 1. Integers are int64, floats float32."""
    start, stop = (0, start) if stop is None else (start, stop)
    numbers = np.arange(start, stop, step)
    default = float32 if numbers.dtype.kind == "f" else np.int64
    return Tensor(numbers.astype(dtype or default), device=device)


def _shape(shape: tuple) -> tuple[int, ...]:
    """zeros(2, 3) and zeros((2, 3)) mean the same."""
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
