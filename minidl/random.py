"""Counted randomness: every draw is a function of (seed, number of the draw), so two integers restore any state."""

import contextlib
import threading
from collections.abc import Iterator

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


@contextlib.contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Draw from that seed inside the `with` block, and go on afterwards as if nothing had been drawn."""
    before = draws_so_far()
    manual_seed(seed)
    try:
        yield
    finally:
        _thread.state = before
