"""Checks of arguments. Functions run them when called, layers when constructed; the code below relies on them.

Each error message states the operation, what it expected, what it got, and the remedy.
"""

import math
from typing import Any

import numpy as np

from minidl.kernels import device_of
from minidl.tensor import Tensor, check_alike, check_dim, check_floats, check_tensors

Pair = int | tuple[int, int]
Scale = float | tuple[float, float]


def expect(function: str, holds: bool, expected: str, *got) -> None:
    """Raise a ValueError with what was expected and what was given, unless the condition `holds`."""
    if not holds:
        raise ValueError(f"{function}: expected {expected}, got {' '.join(map(str, got))}")


def check_whole(function: str, least: int, **numbers: int) -> None:
    """Raise ValueError unless each argument is a whole number >= least."""
    for name, number in numbers.items():
        is_whole = isinstance(number, int | np.integer) and number >= least
        expect(function, is_whole, f"{name} to be a whole number >= {least}", number)


def check_range(function: str, low: float, high: float, closed: bool = False, **numbers: float) -> None:
    """Raise ValueError unless each argument is a number in [low, high), or in [low, high] if `closed`. NaN is not."""
    for name, number in numbers.items():
        is_inside = hasattr(number, "__float__") and (low <= number < high or (closed and number == high))
        expect(function, is_inside, f"{name} in [{low}, {high}{']' if closed else ')'}", repr(number))


def check_batch_norm_options(function: str, eps: float, momentum: float) -> None:
    """Raise ValueError unless eps is in [0, inf) and momentum in [0, 1]."""
    check_range(function, 0, math.inf, eps=eps)
    check_range(function, 0, 1, closed=True, momentum=momentum)


def as_windows(function: str, kernel_size: Pair, stride: Pair | None, padding: Pair):
    """Return kernel_size, stride and padding of a pooling as checked pairs; stride=None means the kernel size."""
    kernel_size = as_pair(function, "kernel_size", kernel_size, 1)
    stride = kernel_size if stride is None else as_pair(function, "stride", stride, 1)
    padding = as_pair(function, "padding", padding, 0)
    fits = 2 * padding[0] <= kernel_size[0] and 2 * padding[1] <= kernel_size[1]
    expect(function, fits, f"padding of at most half the kernel {kernel_size}", padding)
    return kernel_size, stride, padding


def as_pair(function: str, name: str, value: Pair, least: int) -> tuple[int, int]:
    """Return 3 as (3, 3), and (2, 3) as it is. Raise ValueError unless both are whole numbers >= least."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    is_pair = len(pair) == 2 and all(isinstance(number, int | np.integer) and number >= least for number in pair)
    expect(function, is_pair, f"{name} to be a whole number >= {least} or a pair of them", repr(value))
    return int(pair[0]), int(pair[1])


def check_batch(function: str, x: Tensor, layout: str, *ndim: int) -> None:
    """Raise an error unless x holds floats, has one of these numbers of dimensions, and is not empty."""
    check_floats(function, x)
    expect(function, x.ndim in ndim, f"x {layout}", "shape", x.shape)
    expect(function, 0 not in x.shape, "a batch that is not empty", "shape", x.shape)


def nchw_hint(x: Tensor, channels: int) -> str:
    """Return a hint for an error about the number of channels if x looks like (N, C, H, W), the usual reason."""
    return "; this looks like (N, C, H, W): use x.permute(0, 2, 3, 1)" if x.shape[1] == channels else ""


def check_same_shape(function: str, tensors: list[Tensor], except_dim: int | None = None) -> None:
    """Raise ValueError unless all shapes are equal, apart from the dimension `except_dim` if that is given."""
    if not isinstance(tensors, list | tuple):
        got = type(tensors).__name__
        raise TypeError(f"{function}: expected a list of tensors, got {got}; write {function}([a, b])")
    expect(function, len(tensors) > 0, "at least one tensor", "none")
    check_tensors(function, *tensors)
    if except_dim is not None:
        check_dim(function, except_dim, tensors[0].shape)
    ignored = None if except_dim is None else except_dim % tensors[0].ndim
    compared = {tuple(size for i, size in enumerate(tensor.shape) if i != ignored) for tensor in tensors}
    if len(compared) > 1 or len({tensor.ndim for tensor in tensors}) > 1:
        where = "" if except_dim is None else f" except along dim {except_dim}"
        raise ValueError(f"{function}: expected equal shapes{where}, got {', '.join(str(t.shape) for t in tensors)}")


def check_per_channel(function: str, name: str, vector: Tensor | None, channels: int) -> None:
    """Raise ValueError unless `vector` is None or has the shape (channels,)."""
    if vector is None:
        return
    check_tensors(function, vector)
    expected = f"{name} of shape ({channels},), one number per channel"
    expect(function, vector.shape == (channels,), expected, vector.shape)


def check_fits(function: str, x: Tensor, kernel_size: tuple[int, int], padding: tuple[int, int]) -> None:
    """Raise ValueError if the kernel is larger than the padded image."""
    padded = x.shape[1] + 2 * padding[0], x.shape[2] + 2 * padding[1]
    if kernel_size[0] > padded[0] or kernel_size[1] > padded[1]:
        raise ValueError(
            f"{function}: a kernel of {kernel_size} is larger than the padded input, {padded}; x is {x.shape}"
        )


def check_pooling(function: str, x: Tensor, kernel_size: Pair, stride: Pair | None, padding: Pair) -> dict:
    """Return the arguments kernel_size, stride and padding as pairs, after checking them and x (N, H, W, C)."""
    check_batch(function, x, "(N, H, W, C)", 4)
    size, step, zeros = as_windows(function, kernel_size, stride, padding)
    check_fits(function, x, size, zeros)
    return {"kernel_size": size, "stride": step, "padding": zeros}


def as_interpolation(function: str, size: Pair | None, scale_factor: Scale | None, mode: str) -> tuple:
    """Return (size, scale_factor) as checked pairs. One of them is None, as exactly one must be given."""
    expect(function, mode == "bilinear", "mode='bilinear'", repr(mode))
    given = f"size={size} and scale_factor={scale_factor}"
    expect(function, (size is None) != (scale_factor is None), "either size or scale_factor", given)
    if size is not None:
        return as_pair(function, "size", size, 1), None
    factors: Any = scale_factor if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
    are_positive = all(hasattr(factor, "__float__") and 0 < factor < math.inf for factor in factors)
    expected = "scale_factor to be a number > 0 or a pair of them"
    expect(function, len(factors) == 2 and are_positive, expected, repr(scale_factor))
    return None, factors


def check_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, running_mean, running_var) -> None:
    """Raise an error unless x is (N, C) or (N, H, W, C), and each vector has one element per channel."""
    check_batch("batch_norm", x, "(N, C) or (N, H, W, C)", 2, 4)
    check_tensors("batch_norm", weight)
    channels = weight.numel()
    if x.shape[-1] != channels:
        raise ValueError(
            f"batch_norm: x has {x.shape[-1]} channels, weight expects {channels} (x {x.shape})"
            + (nchw_hint(x, channels) if x.ndim == 4 else "")
        )
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in vectors.items():
        check_per_channel("batch_norm", name, vector, channels)
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: expected both running_mean and running_var, or neither")
    check_alike("batch_norm", x, running_mean, running_var, kept_in_float32=(1, 2))


def check_labels(labels, logits: Tensor) -> None:
    """Raise an error unless `labels` is (N,) and holds integers in [0, K), for logits (N, K)."""
    n, classes = logits.shape
    if getattr(labels, "dtype", None) is None or labels.dtype.kind not in "iu":
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"cross_entropy: expected integer labels, got {kind}; convert them to int64")
    expected = f"{n} labels, one for each row of logits {logits.shape}"
    expect("cross_entropy", labels.shape == (n,), expected, "shape", labels.shape)
    # On a GPU, reading the labels would make the host wait for the device in every step.
    if device_of(labels) == "cpu" and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"cross_entropy: expected labels in [0, {classes}), got labels from {labels.min()} to {labels.max()}"
        )
