"""Checks of arguments: by a function when it is called, and by a layer where it is made, before it sees a batch."""

import math

import numpy as np

Pair = int | tuple[int, int]


def expect(function: str, holds: bool, expected: str, got) -> None:
    """A ValueError that says what was expected and what was given, unless it holds."""
    if not holds:
        raise ValueError(f"{function}: expected {expected}, got {got}")


def check_whole(function: str, least: int, **numbers: int) -> None:
    """Each is a whole number, and none is below `least`."""
    for name, number in numbers.items():
        is_one = isinstance(number, int | np.integer) and number >= least
        expect(function, is_one, f"{name} to be a whole number >= {least}", number)


def check_batch_norm_options(function: str, eps: float, momentum: float) -> None:
    """The constants of batch normalisation."""
    expect(function, 0 <= eps < math.inf, "a finite eps >= 0", eps)
    expect(function, 0 <= momentum <= 1, "momentum in [0, 1]", momentum)


def as_windows(function: str, kernel_size: Pair, stride: Pair | None, padding: Pair):
    """The three pairs of a pooling; the stride is the kernel's size unless given."""
    kernel_size = as_pair(function, "kernel_size", kernel_size, 1)
    stride = kernel_size if stride is None else as_pair(function, "stride", stride, 1)
    padding = as_pair(function, "padding", padding, 0)
    fits = 2 * padding[0] <= kernel_size[0] and 2 * padding[1] <= kernel_size[1]
    expect(function, fits, f"padding of at most half the kernel {kernel_size}", padding)
    return kernel_size, stride, padding


def as_pair(function: str, name: str, value: Pair, least: int) -> tuple[int, int]:
    """3 -> (3, 3), and (2, 3) as it is; no number below `least`."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    is_one = len(pair) == 2 and all(isinstance(number, int | np.integer) and number >= least for number in pair)
    expect(function, is_one, f"{name} to be a whole number >= {least} or a pair of them", repr(value))
    return int(pair[0]), int(pair[1])
