"""Functions of each number alone, on all threads."""

from collections.abc import Callable

import numpy as np

from minidl.kernels.cpu._slices import PIECE_ELEMENTS, slices
from minidl.kernels.cpu._threads import map_pieces


def elementwise(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """function(*pieces, out=piece) for pieces of arrays of one shape: a new array of the first one's dtype."""
    flat = [array.reshape(-1) for array in arrays]
    result = np.empty(flat[0].shape, flat[0].dtype)
    if result.size <= PIECE_ELEMENTS:
        function(*flat, out=result)
        return result.reshape(arrays[0].shape)
    map_pieces(
        lambda some: function(*(array[some] for array in flat), out=result[some]), slices(result.size, PIECE_ELEMENTS)
    )
    return result.reshape(arrays[0].shape)
