"""cupy.RawKernel, with g++ for a compiler and the CPU for a GPU."""

import ctypes
import functools
import os
import threading

import numpy as np

from tests.stand_in import compiler, memory, stream
from tests.stand_in.array import ndarray

ORDERS = {"ascending": 0, "descending": 1}
ORDER = ORDERS[os.environ.get("STAND_IN_ORDER", "ascending")]  # of the blocks, and of the threads of a block

LARGEST_BLOCK, LARGEST_BLOCK_DIMENSIONS = 1024, (1024, 1024, 64)
LARGEST_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)
LARGEST_SHARED_MEMORY = 48 * 1024  # bytes that a kernel may have without asking

ONE_AT_A_TIME = threading.Lock()  # threadIdx and its like are global


class RawKernel:
    """A kernel from its source. As in CuPy, arrays are passed as addresses and numbers in their own width."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()):
        self.code, self.name, self.options = code, name, options

    @functools.cached_property
    def library(self) -> ctypes.CDLL:
        """Compiled when it is first used."""
        library = compiler.kernel(self.code, self.name, self.options)
        library.stand_in_signature.restype = ctypes.c_char_p
        library.stand_in_shared_memory.restype = ctypes.c_void_p
        return library

    @property
    def kernel(self) -> ctypes.CDLL:
        """In CuPy too, to ask for it compiles."""
        return self.library

    @functools.cached_property
    def parameters(self) -> list[str]:
        """For each parameter three letters: p(ointer) or v(alue), NumPy's kind, bytes."""
        letters = self.library.stand_in_signature().decode()
        count = len(letters) // 3
        return [letters[i] + letters[count + i] + letters[2 * count + i] for i in range(count)]

    @functools.cached_property
    def shared_memory(self) -> tuple[int | None, int]:
        """The address and the bytes of the memory that the threads of a block share."""
        size = ctypes.c_longlong()
        address = self.library.stand_in_shared_memory(ctypes.byref(size))
        if size.value > LARGEST_SHARED_MEMORY:
            raise RuntimeError(f"{self.name}: {size.value} bytes of shared memory, of {LARGEST_SHARED_MEMORY}")
        return address, size.value

    def __call__(self, grid: tuple, block: tuple, args: tuple, shared_mem: int = 0) -> None:
        grid, block = (tuple(size) + (1,) * (3 - len(size)) for size in (grid, block))
        _check_sizes(self.name, grid, block)
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name}: expected {len(self.parameters)} arguments, got {len(args)}")
        values = [_value(self.name, i, pair) for i, pair in enumerate(zip(args, self.parameters, strict=True))]
        stream.run(functools.partial(self._run, grid, block, args, values))

    def _run(self, grid: tuple, block: tuple, args: tuple, values: list[np.ndarray]) -> None:
        addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        with ONE_AT_A_TIME:
            error = compiler.runtime().stand_in_run(
                self.library.stand_in_call,
                addresses,
                (ctypes.c_uint * 3)(*grid),
                (ctypes.c_uint * 3)(*block),
                ORDER,
                *self.shared_memory,
            )
        if error:
            raise RuntimeError(f"{self.name}: {error.decode()}")
        for i, arg in enumerate(args):
            if isinstance(arg, ndarray) and not memory.is_intact(arg._host):
                raise RuntimeError(f"{self.name}: wrote beside the array that is argument {i}, of shape {arg.shape}")


def _check_sizes(name: str, grid: tuple, block: tuple) -> None:
    limits = LARGEST_GRID + LARGEST_BLOCK_DIMENSIONS
    fits = all(0 < size <= limit for size, limit in zip(grid + block, limits, strict=True))
    if not fits or block[0] * block[1] * block[2] > LARGEST_BLOCK:
        raise RuntimeError(f"{name}: cannot be launched on a grid of {grid} blocks of {block} threads")


def _value(name: str, i: int, pair: tuple) -> np.ndarray:
    """The bytes that a kernel gets for an argument."""
    arg, parameter = pair
    passed, dtype = _pass(arg)
    got = f"{'p' if isinstance(arg, ndarray) else 'v'}{dtype.kind}{dtype.itemsize}"
    # Another width, or another dtype of an array, would be read as garbage. Vectors and void may point at any numbers.
    if got != parameter and not (parameter[1] == "?" and got[0] == parameter[0] == "p"):
        raise TypeError(f"{name}: argument {i} is {got}, the kernel reads {parameter}")
    return passed


def _pass(arg) -> tuple[np.ndarray, np.dtype]:
    if isinstance(arg, ndarray):
        return np.array(arg._host.ctypes.data, np.uint64), arg.dtype
    if type(arg) in (bool, int, float):
        arg = {bool: np.bool_, int: np.int64, float: np.float64}[type(arg)](arg)
    if not isinstance(arg, np.generic):
        raise TypeError(f"Unsupported type {type(arg)}")
    return np.array(arg), arg.dtype
