"""How arrays are cut into pieces, by functions of shapes alone, never of the dtype or of the number of threads.

And two things that work on pieces needs: buffers that stay in the cache, and functions of each number alone.
"""

import math
import threading
from collections.abc import Callable

import numpy as np

from minidl.kernels.cpu._threads import map_pieces

# (measured) A megabyte of float32: in smaller pieces the threads wait for each other and the GIL between the passes.
PIECE_ELEMENTS = 2**18


def rows_of(elements: int, row: int) -> int:
    """How many rows of `row` elements make a piece of about `elements` elements; at least 1."""
    return max(1, elements // max(1, row))


def slices(total: int, length: int) -> list[slice]:
    """0:total in slices of that length; the last one may be shorter."""
    return [slice(start, min(start + length, total)) for start in range(0, total, length)]


def even_slices(total: int, longest: int) -> list[slice]:
    """0:total in as few slices of at most that length as possible, all of one length but the last."""
    return slices(total, math.ceil(total / math.ceil(total / longest)))


_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """This thread's own buffer of that name, contents undefined; valid until the thread asks for the name again."""
    buffers = _buffers.__dict__
    size = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.size < size:
        buffer = buffers[name, dtype] = np.empty(size, dtype)
    return buffer[:size].reshape(shape)


def elementwise(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """function(*pieces, out=piece) for pieces of arrays of one shape: a new array of the first one's dtype."""
    flat = [array.reshape(-1) for array in arrays]
    result = np.empty(flat[0].shape, flat[0].dtype)
    if result.size <= PIECE_ELEMENTS:
        function(*flat, out=result)
    else:
        pieces = slices(result.size, PIECE_ELEMENTS)
        map_pieces(lambda some: function(*(array[some] for array in flat), out=result[some]), pieces)
    return result.reshape(arrays[0].shape)
