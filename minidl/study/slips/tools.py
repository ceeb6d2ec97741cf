"""What the tables of mistakes are written with.

A mistake is a function of a `Call`: from the arguments and the right result it computes the wrong one.
"""

from collections.abc import Callable, Iterator

import numpy as np

from minidl.study.calls import Call

Wrong = Callable[[Call], object]


def changed(change: Callable, part: int | None = None) -> Wrong:
    """The right result after `change(result, call)`; with `part`, only that one of several results is changed.

    A result that was not asked for, None, stays None.
    """

    def wrong(call):
        right = call()
        if part is None:
            return change(right, call)
        return tuple(
            change(result, call) if i == part and result is not None else result for i, result in enumerate(right)
        )

    return wrong


def scaled(factor: float | Callable[[Call], float], part: int | None = None) -> Wrong:
    """The right result times a factor, which may depend on the call."""
    return changed(lambda right, call: right * (factor(call) if callable(factor) else factor), part)


def called_with(part: int | None = None, **changes: Callable[[Call], object]) -> Wrong:
    """The right result for other arguments, each computed from the call; with `part`, that result alone."""

    def wrong(call):
        other = call(**{name: change(call) for name, change in changes.items()})
        if part is None:
            return other
        return tuple(theirs if i == part else ours for i, (ours, theirs) in enumerate(zip(call(), other, strict=True)))

    return wrong


def cut(wrong: Wrong) -> Wrong:
    """The first rows, columns, ... of a wrong result: as many as the right one has."""

    def cut_one(result, right):
        if isinstance(right, tuple):
            return tuple(map(cut_one, result, right))
        return result[tuple(map(slice, right.shape))]

    return lambda call: cut_one(wrong(call), call())


def swapped(first: int, second: int) -> Wrong:
    """Two results in each other's place."""

    def wrong(call):
        results = list(call())
        results[first], results[second] = results[second], results[first]
        return tuple(results)

    return wrong


def only(index, array: np.ndarray) -> np.ndarray:
    """The array with 0 everywhere but at the index."""
    kept = np.zeros_like(array)
    kept[index] = array[index]
    return kept


def without(index, array: np.ndarray) -> np.ndarray:
    """The array with 0 at the index."""
    return array - only(index, array)


def taps(size, output_size, kernel_size, stride, padding, least=0) -> Iterator[tuple[int, ...]]:
    """(i, j, u, v, h, w): window (i, j) sees pixel (h, w) through tap (u, v), with h and w of at least `least`."""
    for i, j, u, v in np.ndindex(*output_size, *kernel_size):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if least <= h < size[0] and least <= w < size[1]:
            yield i, j, u, v, h, w


def wrapped_image(x: np.ndarray, padding) -> np.ndarray:
    """Padded so that a negative index counts from the end, as in Python; beyond the other end are zeros."""
    (ph, pw), padded = padding, pad_image(x, padding)
    height, width = x.shape[1:3]
    padded[:, :ph] = padded[:, height : height + ph]
    padded[:, :, :pw] = padded[:, :, width : width + pw]
    return padded


def pad_image(x: np.ndarray, padding, **options) -> np.ndarray:
    """(N, H + 2 PH, W + 2 PW, C)."""
    (ph, pw) = padding
    return np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), **options)
