"""Counted random numbers: each draw depends only on (seed, number of the draw), so two integers restore any state.

Also `once`, for side effects that must not be repeated when a part of a network is recomputed.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

Result = TypeVar("Result")

_thread = threading.local()


def manual_seed(seed: int) -> None:
    """Restart this thread's draws from `seed`: initial weights, `randn`, and the seeds of dropout layers."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ValueError(f"manual_seed: expected a whole number from 0 to 2**64 - 1, got {seed!r}")
    _thread.state = (int(seed), 0)


def draws_so_far() -> tuple[int, int]:
    """Return (this thread's seed, the number of draws made from it)."""
    return getattr(_thread, "state", (0, 0))


def next_draw() -> tuple[int, int]:
    """Return (seed, number of the draw), and increment the number."""
    seed, number = draws_so_far()
    _thread.state = (seed, number + 1)
    return seed, number


def next_generator() -> np.random.Generator:
    """Return a new generator, seeded with the next draw."""
    return np.random.default_rng(next_draw())


def next_key() -> np.ndarray:
    """The next draw as the key of a dropout layer: uint32 (seed low, seed high, step 0, number of the draw)."""
    seed, number = next_draw()
    return np.array([seed & 0xFFFFFFFF, seed >> 32, 0, number], np.uint32)


@contextlib.contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Draw from `seed` inside the `with` block, then restore this thread's random state."""
    before = draws_so_far()
    manual_seed(seed)
    try:
        yield
    finally:
        _thread.state = before


def first_row() -> int:
    """Return the number of the batch's first row here, in the whole batch: 0 outside of `rows_from`."""
    return getattr(_thread, "first_row", 0)


@contextlib.contextmanager
def rows_from(first: int) -> Iterator[None]:
    """Inside the `with` block, batches are rows `first`, `first + 1`, ... of a larger batch.

    Dropout layers then draw for each row what they would draw for it in the larger batch. So the masks do not depend
    on how a batch is divided among processes.
    """
    if not isinstance(first, int | np.integer) or first < 0:
        raise ValueError(f"rows_from: expected the number of a row >= 0, got {first!r}")
    before = first_row()
    _thread.first_row = int(first)
    try:
        yield
    finally:
        _thread.first_row = before


def once(compute: Callable[[], Result]) -> Result:
    """Return compute(). When `minidl.recompute` runs a function again, return the result of the first run instead.

    Use it for the side effects of a layer: batch-norm updates its running statistics, dropout counts its steps. The
    results are kept until backward, so they should be small::

        key = minidl.once(self.next_key)
    """
    outer = getattr(_thread, "once", None)
    return compute() if outer is None else outer(compute)


@contextlib.contextmanager
def once_through(function: Callable) -> Iterator[None]:
    """Inside the `with` block `once(compute)` calls function(outer, compute), where `outer` is the previous `once`."""
    before = getattr(_thread, "once", None)
    _thread.once = functools.partial(function, before or (lambda compute: compute()))
    try:
        yield
    finally:
        _thread.once = before
