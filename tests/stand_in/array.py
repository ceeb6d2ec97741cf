"""The array that stands for cupy.ndarray: NumPy's numbers behind the doors that CuPy has, and no others."""

import functools
import operator

import numpy as np

from tests.stand_in import memory, stream
from tests.stand_in.stream import refuse_in_capture

CUBLAS = {np.matmul, np.dot, np.tensordot}
COMPARISONS = {np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal}


def to_host(value):
    """What NumPy gets in place of an argument: our arrays' numbers. Arrays of NumPy's own are refused, as by CuPy."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray}: CuPy takes arrays on the device only")
    if isinstance(value, list | tuple):
        return type(value)(map(to_host, value))
    return value


def to_device(value):
    """What NumPy has returned as our arrays; a scalar as an array without dimensions, as CuPy has no scalars."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, list | tuple):
        return type(value)(map(to_device, value))
    return value


def on_device(function):
    """NumPy's function for our arrays."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        if function in CUBLAS and stream.is_capturing():
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        on_host = functools.partial(function, *to_host(args), **{name: to_host(kwargs[name]) for name in kwargs})
        if isinstance(kwargs.get("out"), ndarray):
            stream.run(on_host)
            return kwargs["out"]
        return to_device(compute(on_host))

    return call


def compute(on_host: functools.partial):
    """The result; in a capture an array of garbage, which gets its numbers when the graph is launched.

    A view of an argument is one at once. To know the shape NumPy is asked in a capture too, though of garbage.
    """
    if not stream.is_capturing():
        return on_host()
    with np.errstate(all="ignore"):
        result = on_host()
    if isinstance(result, list) or is_view(result, on_host.args):
        return result
    result = np.asarray(result)
    result[...] = np.frombuffer(bytes([memory.GARBAGE]) * result.itemsize, result.dtype)[0]
    stream.run(lambda: np.copyto(result, on_host()))
    return result


def is_view(result, arguments: tuple) -> bool:
    """Whether it lies in the memory of one of the arguments."""
    return any(isinstance(x, np.ndarray) and np.may_share_memory(result, x) for x in arguments)


def method(name: str):
    """NumPy's method of that name."""

    def call(self, *args, **kwargs):
        return on_device(getattr(np.ndarray, name))(self, *args, **kwargs)

    return call


def number(convert):
    """The only number of an array as a number of Python's."""

    def call(self):
        if self.size != 1:
            raise TypeError(f"only arrays of one element can be converted to Python scalars, got shape {self.shape}")
        return convert(self.item())

    return call


def as_index(index):
    """CuPy copies NumPy's arrays and lists to the device if they are indices, and waits to count a mask's places."""
    if isinstance(index, tuple):
        return tuple(map(as_index, index))
    if isinstance(index, np.ndarray | list):
        refuse_in_capture("H2D transfers")
    if isinstance(index, ndarray) and index.dtype == np.bool_:
        refuse_in_capture("synchronous API calls")
    return index._host if isinstance(index, ndarray) else index


class MemoryPointer:
    """Where the numbers of an array begin."""

    def __init__(self, host: np.ndarray):
        self.ptr = host.ctypes.data


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801 - CuPy's name
    """An array "on the device"."""

    __slots__ = ("__weakref__", "_host")
    __hash__ = None

    def __init__(self, host: np.ndarray):
        self._host = host

    # -- the way to the host -------------------------------------------------------------------------------------------

    def get(self) -> np.ndarray:
        """A copy for the host."""
        refuse_in_capture("D2H transfers")
        return self._host.copy()

    def set(self, arr: np.ndarray, stream: object = None) -> None:
        """Copy an array from the host; done at once, whatever the stream."""
        refuse_in_capture("H2D transfers")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if (arr.shape, arr.dtype) != (self.shape, self.dtype):
            raise ValueError(f"{arr.dtype} {arr.shape} cannot be set to {self.dtype} {self.shape}")
        self._host[...] = arr

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    __float__, __int__, __bool__ = number(float), number(int), number(bool)
    __index__ = number(operator.index)

    def __repr__(self) -> str:
        return f"stand_in.{self.get()!r}"

    def __format__(self, spec: str) -> str:
        return format(self.get() if self.ndim else self.item(), spec)

    # -- NumPy's functions ---------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if method == "at":
            array, index, *values = inputs
            stream.run(functools.partial(ufunc.at, to_host(array), as_index(index), *map(to_host, values)))
            return None
        if method != "__call__":
            return NotImplemented
        if ufunc in COMPARISONS:  # to which NumPy hands its scalars as arrays: numpy/numpy#12142
            inputs = [x.item() if isinstance(x, np.ndarray) and not x.ndim else x for x in inputs]
        if out is not None:
            kwargs["out"] = out[0]
        return on_device(ufunc)(*inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        from tests.stand_in import cupy

        ours = getattr(cupy, function.__name__, None)
        if ours is None or function.__module__ != "numpy":
            return NotImplemented
        return ours(*args, **kwargs)

    # -- what it is ----------------------------------------------------------------------------------------------------

    data = property(lambda self: MemoryPointer(self._host))
    dtype = property(lambda self: self._host.dtype)
    flags = property(lambda self: self._host.flags)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    ndim = property(lambda self: self._host.ndim)
    shape = property(lambda self: self._host.shape)
    size = property(lambda self: self._host.size)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: ndarray(self._host.T))

    def __len__(self) -> int:
        return len(self._host)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def __getitem__(self, index) -> "ndarray":
        return to_device(compute(functools.partial(operator.getitem, self._host, as_index(index))))

    def __setitem__(self, index, value) -> None:
        stream.run(functools.partial(operator.setitem, self._host, as_index(index), to_host(value)))

    def fill(self, value) -> None:
        self[...] = value

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    # -- methods -------------------------------------------------------------------------------------------------------

    all, any = method("all"), method("any")
    argmax, argmin = method("argmax"), method("argmin")
    argsort, take = method("argsort"), method("take")
    astype, view = method("astype"), method("view")
    clip, repeat = method("clip"), method("repeat")
    cumsum, max, mean, min = method("cumsum"), method("max"), method("mean"), method("min")
    prod, std, sum, var = method("prod"), method("std"), method("sum"), method("var")
    ravel, reshape, squeeze = method("ravel"), method("reshape"), method("squeeze")
    swapaxes, transpose = method("swapaxes"), method("transpose")

    def copy(self, order: str = "C") -> "ndarray":
        if order != "C":
            raise NotImplementedError("the stand-in copies in C order only")
        result = ndarray(memory.allocate(self.shape, self.dtype))
        result[...] = self
        return result
