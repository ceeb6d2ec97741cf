"""Buffers that are used again and again, so that they stay in the cache."""

import math
import threading

import numpy as np

_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """This thread's own buffer of that name, contents undefined; valid until the thread asks for the name again."""
    buffers = _buffers.__dict__
    size = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.size < size:
        buffer = buffers[name, dtype] = np.empty(size, dtype)
    return buffer[:size].reshape(shape)
