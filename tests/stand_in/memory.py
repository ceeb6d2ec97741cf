"""Memory between two guards, which tell when a kernel has written beside an array."""

import math

import numpy as np

GUARD = 256  # bytes
GARBAGE = 0xFF  # four or eight of these bytes are a NaN


class Memory(bytearray):
    """The bytes of an array, with GUARD bytes before and behind."""


def allocate(shape, dtype) -> np.ndarray:
    """An array full of garbage: NaN, or -1."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    memory = Memory(math.prod(shape) * dtype.itemsize + 2 * GUARD)
    _bytes(memory).fill(GARBAGE)
    return np.ndarray(shape, dtype, buffer=memory, offset=GUARD)


def copy(array: np.ndarray) -> np.ndarray:
    """The same numbers, C-contiguous, in memory of their own."""
    result = allocate(array.shape, array.dtype)
    result[...] = array
    return result


def is_intact(array: np.ndarray) -> bool:
    """Whether nothing was written beside the array; of memory without guards that is not known."""
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, Memory):
        return True
    guards = _bytes(owner)[:GUARD], _bytes(owner)[-GUARD:]
    return all(bool((guard == GARBAGE).all()) for guard in guards)


def _bytes(memory: Memory) -> np.ndarray:
    return np.frombuffer(memory, np.uint8)
