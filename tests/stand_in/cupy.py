"""The names of CuPy that minidl uses. What is missing here is refused: add what a kernel needs, if CuPy has it."""

import contextlib

import numpy as np

from tests.stand_in import memory
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
    """As CuPy's, an array with a's order of strides, if no shape is given; and CuPy takes () for none given."""
    dtype = a.dtype if dtype is None else dtype
    if shape:
        return empty(shape, dtype)
    order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
    return empty([a.shape[axis] for axis in order], dtype).transpose(np.argsort(order).tolist())


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
matmul, dot, tensordot, take = map(on_device, (np.matmul, np.dot, np.tensordot, np.take))
broadcast_to, concatenate, moveaxis, pad = map(on_device, (np.broadcast_to, np.concatenate, np.moveaxis, np.pad))
ravel, repeat, reshape, roll, split = map(on_device, (np.ravel, np.repeat, np.reshape, np.roll, np.split))
squeeze, stack, tile, transpose, flip = map(on_device, (np.squeeze, np.stack, np.tile, np.transpose, np.flip))
expand_dims, swapaxes, cumsum = map(on_device, (np.expand_dims, np.swapaxes, np.cumsum))

# -- the device --------------------------------------------------------------------------------------------------------


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

        def __init__(self, device: int = 0):
            self.id = device

        def synchronize(self) -> None:
            pass

    class Stream(contextlib.nullcontext):
        """Everything is done when the call returns."""

        def __init__(self, non_blocking: bool = False):
            super().__init__(self)

        def synchronize(self) -> None:
            pass

    @staticmethod
    def get_current_stream() -> Stream:
        return cuda.Stream()


class MemoryPool:
    """Nothing is kept here for later."""

    def used_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0


def get_default_memory_pool() -> MemoryPool:
    return MemoryPool()
