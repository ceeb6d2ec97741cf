"""Initial weights: random float32 arrays, reproducible with `minidl.manual_seed`.

A weight is (KH, KW, C, O) or (in, out): the outputs are the last axis, the inputs the one before, and the kernel, if
any, comes first. fan_in is the number of inputs of one output, fan_out the number of outputs that one input feeds.
"""

import math

import numpy as np

from minidl.random import next_generator


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight: (KH KW C, KH KW O) or (in, out)."""
    *kernel, inputs, outputs = shape
    return math.prod(kernel) * inputs, math.prod(kernel) * outputs


def normal(shape: tuple[int, ...], std: float, mean: float = 0.0) -> np.ndarray:
    """Draw from the normal distribution N(mean, std^2)."""
    draws = next_generator().standard_normal(shape, np.float32)
    draws *= std
    draws += mean
    return draws


def uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Draw from the uniform distribution over [-bound, bound)."""
    draws = next_generator().random(shape, np.float32)
    draws *= 2 * bound
    draws -= bound
    return draws


def he_normal(shape: tuple[int, ...], mode: str = "fan_in") -> np.ndarray:
    """Draw from N(0, 2 / fan). Through ReLUs, fan_in preserves the variance of activations, fan_out that of gradients.

    He, Zhang, Ren, Sun 2015, "Delving deep into rectifiers", equations 10 and 14.
    """
    return normal(shape, math.sqrt(2 / _fan(shape, mode)))


def he_uniform(shape: tuple[int, ...], mode: str = "fan_in") -> np.ndarray:
    """Draw uniformly with he_normal's variance, 2 / fan: the bound is sqrt(6 / fan)."""
    return uniform(shape, math.sqrt(6 / _fan(shape, mode)))


def xavier_normal(shape: tuple[int, ...]) -> np.ndarray:
    """Draw from N(0, 2 / (fan_in + fan_out)) (Glorot, Bengio 2010, eq. 12)."""
    return normal(shape, math.sqrt(2 / sum(fans(shape))))


def xavier_uniform(shape: tuple[int, ...]) -> np.ndarray:
    """Draw uniformly, same variance: the bound is sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio 2010, eq. 16)."""
    return uniform(shape, math.sqrt(6 / sum(fans(shape))))


def _fan(shape: tuple[int, ...], mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"he: expected mode 'fan_in' or 'fan_out', got {mode!r}")
    fan_in, fan_out = fans(shape)
    return fan_in if mode == "fan_in" else fan_out
