"""The names of CuPy that minidl uses. What is missing here is refused: add what a kernel needs, if CuPy has it."""

import contextlib
import time

import numpy as np

from tests.stand_in import capture, memory
from tests.stand_in.array import ndarray, on_device
from tests.stand_in.kernel import RawKernel  # noqa: F401 - one of the names

__version__ = "stand-in"

bool_, int8, uint8, int32, uint32, int64 = np.bool_, np.int8, np.uint8, np.int32, np.uint32, np.int64
float32, float64 = np.float32, np.float64
inf, nan, newaxis = np.inf, np.nan, np.newaxis

# -- making arrays -----------------------------------------------------------------------------------------------------


def empty(shape, dtype=float) -> ndarray:
    return ndarray(memory.allocate(shape, dtype))


def full(shape, fill_value, dtype=None) -> ndarray:
    array = empty(shape, np.result_type(fill_value) if dtype is None else dtype)
    array[...] = fill_value
    return array


def zeros(shape, dtype=float) -> ndarray:
    return full(shape, 0, dtype)


def ones(shape, dtype=float) -> ndarray:
    return full(shape, 1, dtype)


def empty_like(a: ndarray, dtype=None, shape=None) -> ndarray:
    """As CuPy's, an array with a's order of strides, if no shape is given."""
    shape_of_a, dtype = a.shape, a.dtype if dtype is None else dtype
    if shape is not None:
        return empty(shape, dtype)
    order = sorted(range(a.ndim), key=lambda axis: -np.abs(a.strides[axis]))
    return empty([shape_of_a[axis] for axis in order], dtype).transpose(np.argsort(order).tolist())


def full_like(a: ndarray, fill_value, dtype=None, shape=None) -> ndarray:
    array = empty_like(a, dtype, shape)
    array[...] = fill_value
    return array


def zeros_like(a: ndarray, dtype=None, shape=None) -> ndarray:
    return full_like(a, 0, dtype, shape)


def ones_like(a: ndarray, dtype=None, shape=None) -> ndarray:
    return full_like(a, 1, dtype, shape)


def array(obj, dtype=None) -> ndarray:
    """A copy, which may come from the host."""
    if isinstance(obj, ndarray):
        return obj.astype(obj.dtype if dtype is None else dtype).copy()
    capture.refuse("a copy from the host")
    return ndarray(memory.copy(np.asarray(obj._host if isinstance(obj, ndarray) else obj, dtype)))


def asarray(a, dtype=None) -> ndarray:
    """The array itself if it is on the device already."""
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(a, dtype)


def ascontiguousarray(a: ndarray, dtype=None) -> ndarray:
    """The array itself if it is contiguous already; one without dimensions comes back with one, as from CuPy."""
    if not isinstance(a, ndarray):
        raise TypeError(f"Argument 'a' has incorrect type (expected cupy.ndarray, got {type(a).__name__})")
    a = asarray(a, dtype)
    a = a if a.ndim else a.reshape(1)
    return a if a.flags.c_contiguous else a.copy()


def arange(*args, dtype=None) -> ndarray:
    return array(np.arange(*args, dtype=dtype))


def asnumpy(a) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


# -- functions of arrays -----------------------------------------------------------------------------------------------

abs, absolute, add, clip, divide, exp = map(on_device, (np.abs, np.absolute, np.add, np.clip, np.divide, np.exp))
log, maximum, minimum, multiply, sqrt = map(on_device, (np.log, np.maximum, np.minimum, np.multiply, np.sqrt))
square, subtract, tanh, where, isnan = map(on_device, (np.square, np.subtract, np.tanh, np.where, np.isnan))
isfinite, logical_and, negative = map(on_device, (np.isfinite, np.logical_and, np.negative))
sum, max, min, mean, argmax = map(on_device, (np.sum, np.max, np.min, np.mean, np.argmax))
amax, amin, all, any, var = map(on_device, (np.amax, np.amin, np.all, np.any, np.var))
take = on_device(np.take)
broadcast_to, concatenate, moveaxis, pad = map(on_device, (np.broadcast_to, np.concatenate, np.moveaxis, np.pad))
ravel, repeat, reshape, roll, split = map(on_device, (np.ravel, np.repeat, np.reshape, np.roll, np.split))
squeeze, stack, tile, transpose, flip = map(on_device, (np.squeeze, np.stack, np.tile, np.transpose, np.flip))
expand_dims, swapaxes, cumsum = map(on_device, (np.expand_dims, np.swapaxes, np.cumsum))


def by_cublas(function):
    """A product of matrices, which CuPy does not capture."""

    def call(*args, **kwargs):
        if capture.is_capturing():
            raise NotImplementedError(capture.NO_CUBLAS)
        return on_device(function)(*args, **kwargs)

    call.__name__ = function.__name__
    return call


matmul, dot, tensordot = map(by_cublas, (np.matmul, np.dot, np.tensordot))

# -- the device --------------------------------------------------------------------------------------------------------


class MemoryPool:
    """Nothing is kept here for later."""

    def malloc(self, size: int) -> None:
        pass

    def free_all_blocks(self) -> None:
        pass

    def used_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class cuda:  # noqa: N801 - CuPy's name
    """What is asked about a GPU."""

    class runtime:  # noqa: N801
        class CUDARuntimeError(RuntimeError):
            pass

        @staticmethod
        def getDeviceCount() -> int:  # noqa: N802
            return 1

        @staticmethod
        def getDeviceProperties(device: int) -> dict:  # noqa: N802
            return {"name": b"stand-in"}

        @staticmethod
        def driverGetVersion() -> int:  # noqa: N802
            return 0

        @staticmethod
        def deviceSynchronize() -> None:  # noqa: N802
            pass

    class Device:
        compute_capability = "90"
        mem_info = 2**30, 2**30  # bytes: free, and in all

        def __init__(self, device: int = 0):
            self.id = device

        def synchronize(self) -> None:
            capture.refuse("waiting for the device")

    Stream, Graph = capture.Stream, capture.Graph

    class Event:
        """What it stands for has happened already."""

        def __init__(self, block: bool = False, disable_timing: bool = False):
            pass

        def record(self, stream: "cuda.Stream | None" = None) -> None:
            self.seconds = time.perf_counter()

        def synchronize(self) -> None:
            capture.refuse("waiting for the device")

    @staticmethod
    def get_elapsed_time(start: Event, end: Event) -> float:
        return 1000 * (end.seconds - start.seconds)

    @staticmethod
    def alloc_pinned_memory(size: int) -> bytearray:
        return bytearray(size)

    @staticmethod
    def get_current_stream() -> capture.Stream:
        return capture.current_stream()

    MemoryPool = MemoryPool

    class memory:  # noqa: N801
        OutOfMemoryError = OutOfMemoryError

    @staticmethod
    def using_allocator(allocator) -> contextlib.AbstractContextManager:
        """There is one memory, and no choice."""
        return contextlib.nullcontext()


def get_default_memory_pool() -> MemoryPool:
    return MemoryPool()
