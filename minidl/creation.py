"""Functions that create tensors: zeros, ones, randn, arange."""

import numpy as np

from minidl.dtypes import as_dtype, float32, float64
from minidl.random import next_draw, once
from minidl.tensor import Tensor


def zeros(*shape: int, dtype=float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of the given shape, filled with zeros."""
    return Tensor(np.zeros(_shape(shape), as_dtype(dtype)), device=device, requires_grad=requires_grad)


def ones(*shape: int, dtype=float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of the given shape, filled with ones."""
    return Tensor(np.ones(_shape(shape), as_dtype(dtype)), device=device, requires_grad=requires_grad)


def randn(*shape: int, dtype=float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of the given shape, drawn from N(0, 1); `manual_seed` makes the draws repeatable."""
    generator = np.random.default_rng(once(next_draw))
    draws = generator.standard_normal(_shape(shape), np.float64 if as_dtype(dtype) == float64 else np.float32)
    return Tensor(draws, dtype, device, requires_grad)


def arange(start: float, stop: float | None = None, step: float = 1, dtype=None, device: str = "cpu") -> Tensor:
    """The numbers start, start + step, ... below stop; arange(n) is 0 ... n - 1. Default dtypes: int64, float32."""
    start, stop = (0, start) if stop is None else (start, stop)
    numbers = np.arange(start, stop, step)
    default = float32 if numbers.dtype.kind == "f" else np.int64
    return Tensor(numbers.astype(as_dtype(dtype or default)), device=device)


def _shape(shape: tuple) -> tuple[int, ...]:
    """Accept zeros(2, 3) and zeros((2, 3)) alike."""
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
