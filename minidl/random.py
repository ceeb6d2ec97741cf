"""Counted randomness: every draw is a function of (seed, number of the draw), so two integers restore any state.

And `once`, for what must not be drawn or counted a second time when a part of a network is computed again.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import numpy as np

_thread = threading.local()


def manual_seed(seed: int) -> None:
    """Start this thread's draws anew from the seed: initial weights, `randn`, and the seeds of dropout layers."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ValueError(f"manual_seed: expected a whole number from 0 to 2**64 - 1, got {seed!r}")
    _thread.state = (int(seed), 0)


def draws_so_far() -> tuple[int, int]:
    """(this thread's seed, how many draws were made from it)."""
    return getattr(_thread, "state", (0, 0))


def next_draw() -> tuple[int, int]:
    """(seed, number of the draw), and counts on."""
    seed, number = draws_so_far()
    _thread.state = (seed, number + 1)
    return seed, number


def next_generator() -> np.random.Generator:
    """The generator of the next draw."""
    return np.random.default_rng(next_draw())


def next_key() -> np.ndarray:
    """The next draw as the key of a dropout layer: uint32 (seed low, seed high, step 0, number of the draw)."""
    seed, number = next_draw()
    return np.array([seed & 0xFFFFFFFF, seed >> 32, 0, number], np.uint32)


@contextlib.contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Draw from that seed inside the `with` block, and go on afterwards as if nothing had been drawn."""
    before = draws_so_far()
    manual_seed(seed)
    try:
        yield
    finally:
        _thread.state = before


def once(compute: Callable[[], object]):
    """compute(); but where `minidl.recompute` runs a function the second time, what compute() gave the first time.

    For what a layer does besides computing its output: batch-norm updates its running statistics, dropout counts its
    steps. The results are kept until backward, so they should be small::

        key = minidl.once(self.next_key)
    """
    outer = getattr(_thread, "once", None)
    return compute() if outer is None else outer(compute)


@contextlib.contextmanager
def once_through(function: Callable) -> Iterator[None]:
    """Inside the `with` block `once(compute)` is function(outer, compute), with the `outer` once of this thread."""
    before = getattr(_thread, "once", None)
    _thread.once = functools.partial(function, before or (lambda compute: compute()))
    try:
        yield
    finally:
        _thread.once = before
