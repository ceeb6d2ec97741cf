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
    """So many times the right result; the factor may depend on the call."""
    return changed(lambda right, call: right * (factor(call) if callable(factor) else factor), part)


def called_with(part: int | None = None, **changes: Callable[[Call], object]) -> Wrong:
    """The right result for other arguments, each computed from the call; with `part`, that result alone."""

    def wrong(call):
        other = call(**{name: change(call) for name, change in changes.items()})
        if part is None:
            return other
        return tuple(theirs if i == part else ours for i, (ours, theirs) in enumerate(zip(call(), other, strict=True)))

    return wrong


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


def taps(size, output_size, kernel_size, stride, padding) -> Iterator[tuple[int, ...]]:
    """(i, j, u, v, h, w): window (i, j) sees pixel (h, w) through tap (u, v). Each pair may be a tuple or an array."""
    for i, j, u, v in np.ndindex(*output_size, *kernel_size):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if 0 <= h < size[0] and 0 <= w < size[1]:
            yield i, j, u, v, h, w


def pad_image(x: np.ndarray, padding, **options) -> np.ndarray:
    """(N, H + 2 PH, W + 2 PW, C)."""
    (ph, pw) = padding
    return np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), **options)
