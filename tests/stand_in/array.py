"""The array that stands for cupy.ndarray: NumPy's numbers behind the doors that CuPy has, and no others."""

import functools
import operator

import numpy as np

from tests.stand_in import capture, memory

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
        hosts, named = [to_host(arg) for arg in args], {name: to_host(value) for name, value in kwargs.items()}
        compute = functools.partial(function, *hosts, **named)
        if isinstance(kwargs.get("out"), ndarray):
            capture.do(compute)
            return kwargs["out"]
        return to_device(computed_later(compute, hosts) if capture.is_capturing() else compute())

    return call


def computed_later(compute, inputs):
    """An array with the shape and the dtype of what will be computed into it, or a view of what is there already."""
    with np.errstate(all="ignore"):  # of numbers that nobody has computed yet
        result = compute()
    is_view = any(isinstance(host, np.ndarray) and np.may_share_memory(result, host) for host in inputs)
    if isinstance(result, np.ndarray | np.generic) and not is_view:
        result = np.array(result)
        capture.do(lambda: np.copyto(result, compute()))
    return result


def method(name: str):
    """NumPy's method of that name."""

    def call(self, *args, **kwargs):
        return on_device(getattr(np.ndarray, name))(self, *args, **kwargs)

    return call


def number(convert):
    """The only number of an array as a number of Python's."""

    def call(self):
        capture.refuse("reading a number")
        if self.size != 1:
            raise TypeError(f"only arrays of one element can be converted to Python scalars, got shape {self.shape}")
        return convert(self._host.item())

    return call


def as_index(index):
    """CuPy copies NumPy's arrays to the device if they are indices."""
    if isinstance(index, tuple):
        return tuple(map(as_index, index))
    if isinstance(index, np.ndarray):
        capture.refuse("a copy from the host")
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
        capture.refuse("a copy to the host")
        return self._host.copy()

    def set(self, arr: np.ndarray, stream=None) -> None:
        """A copy from the host, of the same shape and dtype; done at once, whatever the stream."""
        capture.refuse("a copy from the host")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if (self.dtype, self.shape) != (arr.dtype, arr.shape):
            raise ValueError(f"Shape or dtype mismatch: {self.dtype} {self.shape} and {arr.dtype} {arr.shape}")
        self._host[...] = arr

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def item(self):
        capture.refuse("reading a number")
        return self._host.item()

    def tolist(self):
        capture.refuse("a copy to the host")
        return self._host.tolist()

    __float__, __int__, __bool__ = number(float), number(int), number(bool)
    __index__ = number(operator.index)

    def __repr__(self) -> str:
        capture.refuse("a copy to the host")
        return f"stand_in.{self._host!r}"

    def __format__(self, spec: str) -> str:
        return format(self._host.item() if not self.ndim else self._host, spec)

    # -- NumPy's functions ---------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if method == "at":
            array, index, *values = inputs
            capture.do(lambda: ufunc.at(to_host(array), as_index(index), *map(to_host, values)))
            return None
        if method != "__call__":
            return NotImplemented
        if ufunc is np.matmul and capture.is_capturing():
            raise NotImplementedError(capture.NO_CUBLAS)
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
        index = as_index(index)
        return on_device(lambda host: host[index])(self)

    def __setitem__(self, index, value) -> None:
        index, value = as_index(index), to_host(value)
        capture.do(lambda: operator.setitem(self._host, index, value))

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

    def fill(self, value) -> None:
        self[...] = value
