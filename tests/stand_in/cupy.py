"""The names of CuPy that minidl uses. What is missing here is refused: add what a kernel needs, if CuPy has it."""

import numpy as np

from tests.stand_in import memory, stream
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
    order = np.argsort(-np.abs(a.strides), kind="stable").tolist()
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
    """A copy, which may come from the host; a number comes as an argument of the kernel that fills the array."""
    if isinstance(obj, ndarray):
        result = empty(obj.shape, obj.dtype if dtype is None else dtype)
        result[...] = obj
        return result
    numbers = np.array(obj, dtype)
    if numbers.ndim:
        stream.refuse_in_capture("H2D transfers")
    return _computed(numbers)


def _computed(numbers: np.ndarray) -> ndarray:
    """An array that a kernel fills with these numbers."""
    result = empty(numbers.shape, numbers.dtype)
    stream.run(lambda: np.copyto(result._host, numbers))
    return result


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
    return _computed(np.arange(*args, dtype=dtype))


def asnumpy(a) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


# -- functions of arrays -----------------------------------------------------------------------------------------------

abs, absolute, add, clip, divide, exp = map(on_device, (np.abs, np.absolute, np.add, np.clip, np.divide, np.exp))
log, maximum, minimum, multiply, sqrt = map(on_device, (np.log, np.maximum, np.minimum, np.multiply, np.sqrt))
square, subtract, tanh, where, isnan = map(on_device, (np.square, np.subtract, np.tanh, np.where, np.isnan))
isfinite, logical_and, negative = map(on_device, (np.isfinite, np.logical_and, np.negative))
sum, max, min, mean = map(on_device, (np.sum, np.max, np.min, np.mean))
argmax, argsort = map(on_device, (np.argmax, np.argsort))
amax, amin, all, any, var = map(on_device, (np.amax, np.amin, np.all, np.any, np.var))
matmul, dot, tensordot, take = map(on_device, (np.matmul, np.dot, np.tensordot, np.take))
broadcast_to, concatenate, moveaxis, pad = map(on_device, (np.broadcast_to, np.concatenate, np.moveaxis, np.pad))
ravel, repeat, reshape, roll, split = map(on_device, (np.ravel, np.repeat, np.reshape, np.roll, np.split))
squeeze, stack, tile, transpose, flip = map(on_device, (np.squeeze, np.stack, np.tile, np.transpose, np.flip))
expand_dims, swapaxes, cumsum = map(on_device, (np.expand_dims, np.swapaxes, np.cumsum))

# -- the device --------------------------------------------------------------------------------------------------------


class MemoryPool:
    """Nothing is kept here for later; it counts what it gave."""

    def __init__(self):
        self.bytes = 0

    def malloc(self, size: int) -> memory.Memory:
        self.bytes += size
        return memory.Memory(size)

    def free_all_blocks(self) -> None:
        self.bytes = 0

    def used_bytes(self) -> int:
        return self.bytes

    def total_bytes(self) -> int:
        return self.bytes


DEFAULT_POOL = MemoryPool()


def get_default_memory_pool() -> MemoryPool:
    return DEFAULT_POOL


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class cuda:  # noqa: N801 - CuPy's name
    """What is asked about a GPU, and of it."""

    Event, Graph, MemoryPool, Stream = stream.Event, stream.Graph, MemoryPool, stream.Stream
    get_current_stream = staticmethod(stream.get_current_stream)
    get_elapsed_time = staticmethod(stream.get_elapsed_time)
    using_allocator = staticmethod(memory.using_allocator)
    alloc_pinned_memory = bytearray

    class compiler:  # noqa: N801
        CompileException = type("CompileException", (Exception,), {})

    class memory:  # noqa: N801
        OutOfMemoryError = OutOfMemoryError

    class runtime:  # noqa: N801
        CUDARuntimeError = stream.CUDARuntimeError
        deviceSynchronize = staticmethod(stream.synchronize)  # noqa: N815

        @staticmethod
        def getDevice() -> int:  # noqa: N802
            return 0

        @staticmethod
        def getDeviceCount() -> int:  # noqa: N802
            return 1

        @staticmethod
        def getDeviceProperties(device: int) -> dict:  # noqa: N802
            return {"name": b"stand-in"}

        @staticmethod
        def driverGetVersion() -> int:  # noqa: N802
            return 0

    class Device:
        compute_capability = "90"
        mem_info = 2**30, 2**30  # bytes: free, and in all

        def __init__(self, device: int = 0):
            self.id = device

        def synchronize(self) -> None:
            stream.synchronize()
