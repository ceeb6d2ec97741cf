"""How arrays are cut into pieces; scratch buffers that stay in the cache; elementwise functions, piece by piece.

The cuts depend on shapes alone, never on the dtype or the number of threads. The one exception is MINIDL_WORKSPACE_MB,
which bounds the scratch memory that all threads keep from one kernel to the next: pieces of convolutions are then
smaller, so a weight's gradient is summed in another order. A kernel that needs more takes it, and frees it afterwards.
"""

import math
import os
import threading
from collections.abc import Callable

import numpy as np

from minidl.kernels.cpu._threads import get_num_threads, map_pieces

# (measured) 1 MB of float32. With smaller pieces the threads spend their time waiting for each other and for the GIL.
PIECE_ELEMENTS = 2**18


def rows_of(elements: int, row: int) -> int:
    """The number of rows, `row` elements each, in a piece of about `elements` elements; at least 1."""
    return max(1, elements // max(1, row))


def slices(total: int, length: int) -> list[slice]:
    """0:total cut into slices of `length`. The last one may be shorter."""
    return [slice(start, min(start + length, total)) for start in range(0, total, length)]


def even_slices(total: int, longest: int) -> list[slice]:
    """0:total cut into as few slices as possible, at most `longest` long. All but the last have the same length."""
    return slices(total, math.ceil(total / math.ceil(total / longest)))


class _Scratch(threading.local):
    """What a thread keeps from one kernel to the next."""

    def __init__(self):
        self.buffers: dict[tuple, np.ndarray] = {}
        self.views: dict[tuple, object] = {}


_scratch = _Scratch()
MOST_VIEWS = 1000


def scratch(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """This thread's buffer called `name`, with undefined contents. The next call with this name reuses its memory."""
    size = math.prod(shape)
    buffer = _scratch.buffers.get((name, dtype))
    if buffer is None or buffer.size < size:
        _scratch.views.clear()  # they may be views of the smaller buffer
        buffer = _scratch.buffers[name, dtype] = np.empty(size, dtype)
        if workspace() < math.inf:
            _keep_within(workspace() / get_num_threads())
    return buffer[:size].reshape(shape)


def _keep_within(limit: float) -> None:
    """Forget this thread's buffers, the oldest first, until those left have `limit` bytes. One in use stays valid."""
    buffers = _scratch.buffers
    while buffers and sum(buffer.nbytes for buffer in buffers.values()) > limit:
        del buffers[next(iter(buffers))]


def workspace() -> float:
    """The bytes of scratch that all threads together may keep: MINIDL_WORKSPACE_MB, or else infinitely many."""
    return _workspace


def _workspace_in_bytes() -> float:
    wanted = os.environ.get("MINIDL_WORKSPACE_MB")
    if wanted is None:
        return math.inf
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"MINIDL_WORKSPACE_MB: expected a whole number of megabytes >= 1, got {wanted!r}")
    return int(wanted) * 2**20


_workspace = _workspace_in_bytes()


def remembered(make: Callable, *key):
    """make(*key), which makes views of scratch. This thread makes them once for each key, and uses them again."""
    views = _scratch.views.get(key)
    if views is None:
        views = make(*key)
        if len(_scratch.views) == MOST_VIEWS:
            _scratch.views.clear()
        _scratch.views[key] = views
    return views


def elementwise(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """A new array, filled by function(*pieces, out=piece). The arrays have the same shape; the first sets the dtype."""
    flat = [array.reshape(-1) for array in arrays]
    result = np.empty(flat[0].shape, flat[0].dtype)
    if result.size <= PIECE_ELEMENTS:
        function(*flat, out=result)
    else:
        pieces = slices(result.size, PIECE_ELEMENTS)
        map_pieces(
            lambda piece: function(*(array[piece] for array in flat), out=result[piece]), pieces, multiplications=0
        )
    return result.reshape(arrays[0].shape)
