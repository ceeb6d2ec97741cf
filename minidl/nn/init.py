"""Initial weights, as float32 arrays drawn by `minidl.manual_seed`'s counted randomness.

A weight's last axis is its outputs, the one before its inputs, and what stands before them is the kernel:
(KH, KW, C, O) and (in, out). fan_in is how many numbers make one output, fan_out how many outputs one number goes to.
"""

import math

import numpy as np

from minidl.random import next_generator


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight."""
    *kernel, inputs, outputs = shape
    return math.prod(kernel) * inputs, math.prod(kernel) * outputs


def normal(shape: tuple[int, ...], std: float, mean: float = 0.0) -> np.ndarray:
    """N(mean, std^2)."""
    draws = next_generator().standard_normal(shape, np.float32)
    draws *= std
    draws += mean
    return draws


def uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Evenly from [-bound, bound)."""
    draws = next_generator().random(shape, np.float32)
    draws *= 2 * bound
    draws -= bound
    return draws


def he_normal(shape: tuple[int, ...], mode: str = "fan_in") -> np.ndarray:
    """N(0, 2 / fan), which keeps the variance through a ReLU: forward for fan_in, backward for fan_out.

    He, Zhang, Ren, Sun 2015, "Delving deep into rectifiers", equations 10 and 14.
    """
    return normal(shape, math.sqrt(2 / _fan(shape, mode)))


def he_uniform(shape: tuple[int, ...], mode: str = "fan_in") -> np.ndarray:
    """Uniform with the same variance, 2 / fan: the bound is sqrt(6 / fan)."""
    return uniform(shape, math.sqrt(6 / _fan(shape, mode)))


def xavier_normal(shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 2 / (fan_in + fan_out)) (Glorot, Bengio 2010, eq. 12)."""
    return normal(shape, math.sqrt(2 / sum(fans(shape))))


def xavier_uniform(shape: tuple[int, ...]) -> np.ndarray:
    """Uniform with the same variance: the bound is sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio 2010, eq. 16)."""
    return uniform(shape, math.sqrt(6 / sum(fans(shape))))


def _fan(shape: tuple[int, ...], mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"he: expected mode 'fan_in' or 'fan_out', got {mode!r}")
    fan_in, fan_out = fans(shape)
    return fan_in if mode == "fan_in" else fan_out
