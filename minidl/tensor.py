"""The Tensor: an array and its node in the graph. `apply` runs an operation and records it."""

import functools
import reprlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, overload

import numpy as np

from minidl.autograd import Leaf, Node, Version, backward, is_grad_enabled
from minidl.dtypes import as_dtype, float32, float64, is_half
from minidl.idioms import Idioms
from minidl.interchange import from_dlpack, is_foreign
from minidl.kernels import device_of, is_capturing, is_device, to_device
from minidl.ops.arithmetic import Add, Clip, Div, Exp, Log, MatMul, Mul, Pow, Sigmoid, Sqrt, Sub, Tanh
from minidl.ops.convert import Cast, Move
from minidl.ops.function import Context, Function
from minidl.ops.reduce import Max, Sum
from minidl.ops.shape import GetItem, Permute, Reshape

Dim = int | tuple[int, ...] | None  # None and () both mean all dimensions, as in PyTorch

# NumPy's codes for the kinds of dtypes that hold real numbers: bool, signed and unsigned integers, floats.
NUMBERS = set("biuf")


class Maxima(NamedTuple):
    """The maxima along a dimension and their indices, which `Tensor.max(dim)` returns."""

    values: "Tensor"
    indices: "Tensor"


class Tensor(Idioms):
    """An array that remembers how it was computed.

    An array of NumPy, CuPy or another library with DLPack (PyTorch, JAX) keeps its dtype, and its memory too if that is
    C-contiguous; Python floats become float32, Python integers int64. With requires_grad=True, calling `backward()` on
    anything computed from this tensor adds to its `grad`; read-only memory is then copied, as optimisers write into it.
    """

    __slots__ = ("__weakref__", "_node", "_version", "data")

    def __init__(self, data, dtype=None, device: str | None = None, requires_grad: bool = False):
        given = data.data if isinstance(data, Tensor) else data
        self.data: Any = _as_array(given, dtype, device)
        self._node: Node | Leaf | None = None
        # What is changed in place has a version: leaves, parameters, buffers, and tensors that share their memory.
        shared = data._version if isinstance(data, Tensor) and self.data is given else None
        self._version: Version | None = shared or (Version() if self.is_state else None)
        if requires_grad:
            if self.device == "cpu" and not self.data.flags.writeable:
                self.data = self.data.copy()
            self.requires_grad = True

    # -- shape, dtype and values ---------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each dimension."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.data.ndim

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the elements, such as float32, bfloat16, int64 or bool."""
        return self.data.dtype

    @property
    def device(self) -> str:
        """The device that holds the data: 'cpu' or 'cuda'."""
        return device_of(self.data)

    def numel(self) -> int:
        """Return the number of elements."""
        return self.data.size

    def is_floating_point(self) -> bool:
        """Return True for float32, float64, bfloat16 and float16. Only these can have gradients."""
        return self.data.dtype.kind not in "biu"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len: a tensor of shape () has no length; use .item() for its value")
        return self.shape[0]

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), precision=4, threshold=40, edgeitems=2, separator=", ", prefix="Tensor(")
        facts = [f"shape={self.shape}", str(self.dtype)]
        if self.device != "cpu":
            facts.append(self.device)
        if isinstance(self._node, Node):
            facts.append(f"from {self._node.name}")
        elif self.requires_grad:
            facts.append("requires_grad")
        return f"{type(self).__name__}({values}, {', '.join(facts)})"

    def numpy(self) -> np.ndarray:
        """Return the values as a NumPy array, which shares the memory of a tensor on the CPU."""
        return to_device(self.data, "cpu")

    def __array__(self, dtype=None, copy: bool | None = None) -> np.ndarray:
        if copy is False and self.device != "cpu":
            raise ValueError(f"__array__: a tensor on {self.device!r} cannot be read without a copy; omit copy=False")
        return np.array(self.numpy(), dtype, copy=copy)

    def __dlpack__(self, **options):
        if self.requires_grad:
            raise BufferError("__dlpack__: this tensor requires grad, which other libraries ignore; use its .detach()")
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def __getstate__(self):
        """Return what pickle and copy.deepcopy keep: the values, and the gradient of a leaf."""
        if isinstance(self._node, Node):
            raise RuntimeError(
                f"copy: this tensor was computed by {self._node.name}, and its graph cannot be copied; use its detach()"
            )
        return super().__getstate__()

    def item(self) -> float | int | bool:
        """Return the value of a tensor of one element as a Python number."""
        if self.numel() != 1:
            raise ValueError(f"item: expected a tensor of one element, got shape {self.shape}; reduce it, as by sum()")
        return self.data.item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        if not self.shape:
            return format(self.item(), spec)
        if spec:
            raise TypeError(
                f"format: {spec!r} formats one number, got a tensor {self.shape}; use item() of an element, "
                "or np.array2string(x.numpy(), precision=3)"
            )
        return repr(self)

    # -- the graph -----------------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """True if `backward()` passes through this tensor. Settable unless the tensor was computed from others."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if isinstance(self._node, Node):
            raise RuntimeError(f"requires_grad: this tensor was computed by {self._node.name}; set it on its detach()")
        if wanted and not self.is_floating_point():
            raise TypeError(
                f"requires_grad: expected a floating-point tensor, got {self.dtype}; convert it with .to('float32')"
            )
        if wanted and self._version is None:
            self._version = Version()
        if wanted != self.requires_grad:
            self._node = Leaf(self._version) if wanted else None

    @property
    def grad(self) -> "Tensor | None":
        """dL/d(this tensor), added up over backward passes until it is set to None.

        Leaves keep their gradient. A tensor that was computed from others keeps it after `retain_grad()`; otherwise its
        grad is None, and the first reading in a program warns of that.
        """
        if isinstance(self._node, Node) and not self._node.retains_grad:
            _warn_that_no_grad_is_kept()
        grad = getattr(self._node, "grad", None)
        return None if grad is None else Tensor(grad)

    @grad.setter
    def grad(self, value: "Tensor | None") -> None:
        if self._node is None or not self._node.retains_grad:
            raise RuntimeError("grad: this tensor keeps none; make it with requires_grad=True, or call retain_grad()")
        if value is not None:
            self._check_grad("grad", value)
        self._node.grad = None if value is None else value.data

    def retain_grad(self) -> None:
        """Keep dL/d(this tensor) in `grad`, though it was computed from others. Call it before `backward()`.

        A leaf keeps its gradient anyway: then this does nothing.

        >>> x = Tensor([1.0, 2.0], requires_grad=True)
        >>> y = x * 3
        >>> y.retain_grad()
        >>> (y * y).sum().backward()
        >>> y.grad
        Tensor([ 6., 12.], shape=(2,), float32)
        """
        if self._node is None:
            raise RuntimeError("retain_grad: this tensor requires no grad, or was computed inside no_grad()")
        self._node.retains_grad = True

    def backward(self, grad: "Tensor | None" = None) -> None:
        """Add dL/dt to `t.grad` for every leaf t that this tensor, L, was computed from.

        If L is not a scalar, pass `grad`, of L's shape: t.grad then receives the sum over i of grad_i dL_i/dt.
        """
        if self._node is None:
            raise RuntimeError("backward: computed from nothing that requires grad, or inside no_grad()")
        if grad is not None:
            self._check_grad("backward", grad)
        elif self.data.size != 1:
            raise ValueError(f"backward: expected a scalar loss, got shape {self.shape}; take .mean(), or pass grad")
        backward(self._node, np.ones_like(self.data) if grad is None else grad.data)

    def _check_grad(self, operation: str, grad: "Tensor") -> None:
        check_tensors(operation, grad)
        if (grad.dtype, grad.shape, grad.device) != (self.dtype, self.shape, self.device):
            raise ValueError(
                f"{operation}: expected a gradient like the tensor, {self.dtype} {self.shape} on {self.device}, "
                f"got {grad.dtype} {grad.shape} on {grad.device}"
            )

    def detach(self) -> "Tensor":
        """Return a tensor that shares this one's memory but is not part of the graph."""
        return Tensor(self)

    def to(self, target) -> "Tensor":
        """Return this tensor on a device ('cpu', 'cuda', 'cuda:1') or in a dtype ('float64', 'bfloat16', ...)."""
        if is_device(target):
            return self if self.device == target else apply(Move, self, device=target)
        try:
            dtype = as_dtype(target)
        except TypeError:
            raise ValueError(f"to: expected a device ('cpu', 'cuda', 'cuda:N') or a dtype, got {target!r}") from None
        return self if self.dtype == dtype else apply(Cast, self, dtype=dtype)

    # -- operators -----------------------------------------------------------------------------------------------------

    def __add__(self, other) -> "Tensor":
        return apply_broadcast(Add, self, other)

    def __sub__(self, other) -> "Tensor":
        return apply_broadcast(Sub, self, other)

    def __mul__(self, other) -> "Tensor":
        return apply_broadcast(Mul, self, other)

    def __truediv__(self, other) -> "Tensor":
        return apply_broadcast(Div, self, other)

    def __matmul__(self, other) -> "Tensor":
        return matmul(self, other)

    def __pow__(self, exponent: float) -> "Tensor":
        if not isinstance(exponent, int | float | np.number):
            raise TypeError(
                f"**: expected a number as exponent, got {type(exponent).__name__}; use (b * a.log()).exp() for a ** b"
            )
        if exponent < 0 and not self.is_floating_point():
            raise TypeError(f"**: expected a floating-point x, got {self.dtype}; convert it with .to('float32')")
        return apply(Pow, self, exponent=_as_number("pow", exponent, self))

    def __neg__(self) -> "Tensor":
        return self * -1

    def __radd__(self, other) -> "Tensor":
        return apply_broadcast(Add, other, self)

    def __rsub__(self, other) -> "Tensor":
        return apply_broadcast(Sub, other, self)

    def __rmul__(self, other) -> "Tensor":
        return apply_broadcast(Mul, other, self)

    def __rtruediv__(self, other) -> "Tensor":
        return apply_broadcast(Div, other, self)

    def __rmatmul__(self, other) -> "Tensor":
        return matmul(other, self)

    # Comparisons return tensors of bools, through which no gradient flows.

    def __eq__(self, other) -> "Tensor":  # type: ignore[override]
        return Tensor(self.data == _raw(other))

    def __ne__(self, other) -> "Tensor":  # type: ignore[override]
        return Tensor(self.data != _raw(other))

    def __lt__(self, other) -> "Tensor":
        return Tensor(self.data < _raw(other))

    def __le__(self, other) -> "Tensor":
        return Tensor(self.data <= _raw(other))

    def __gt__(self, other) -> "Tensor":
        return Tensor(self.data > _raw(other))

    def __ge__(self, other) -> "Tensor":
        return Tensor(self.data >= _raw(other))

    __hash__ = object.__hash__

    # -- element-wise functions ----------------------------------------------------------------------------------------

    def exp(self) -> "Tensor":
        """Return e^x for each element x."""
        return apply(Exp, self)

    def log(self) -> "Tensor":
        """Return the natural logarithm of each element."""
        return apply(Log, self)

    def sqrt(self) -> "Tensor":
        """Return the square root of each element."""
        return apply(Sqrt, self)

    def sigmoid(self) -> "Tensor":
        """Return 1 / (1 + e^-x) for each element x."""
        return apply(Sigmoid, self)

    def tanh(self) -> "Tensor":
        """Return the hyperbolic tangent of each element."""
        return apply(Tanh, self)

    def clip(self, low: float | None = None, high: float | None = None) -> "Tensor":
        """Return min(max(x, low), high) for each element x. None means no bound."""
        low, high = (None if bound is None else _as_number("clip", bound, self) for bound in (low, high))
        return apply(Clip, self, low=low, high=high)

    # -- reductions ----------------------------------------------------------------------------------------------------

    def sum(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """Return the sum over the dimensions `dim`, or over all. `keepdim` keeps them, with length 1."""
        return apply(Sum, self, dim=_as_dims("sum", dim, self), keepdim=keepdim)

    def mean(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """Return the mean over the dimensions `dim`, or over all. `keepdim` keeps them, with length 1."""
        if not self.numel():
            raise ValueError(f"mean: expected a tensor that is not empty, got shape {self.shape}")
        check_floats("mean", self)
        x = self.to(float32) if is_half(self.dtype) else self  # float16 has no sum above 65,504
        total = apply(Sum, x, dim=_as_dims("mean", dim, self), keepdim=keepdim)
        return (total / (self.numel() / total.numel())).to(self.dtype)

    def var(self, dim: Dim = None, keepdim: bool = False, correction: int = 1) -> "Tensor":
        """Return the variance, sum((x - mean)^2) / (count - correction): 1 is unbiased, 0 divides by the count."""
        check_floats("var", self)
        x = self.to(float32) if is_half(self.dtype) else self  # or each of four steps would round
        deviations = x - x.mean(dim, keepdim=True)
        total = (deviations * deviations).sum(dim, keepdim)
        return (total / (self.numel() / total.numel() - correction)).to(self.dtype)

    def amax(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """Return the maximum over the dimensions `dim`, or over all. Equal maxima share the gradient, as in PyTorch."""
        dims = _as_dims("amax", dim, self)
        _check_not_empty("amax", dim, self)
        return apply(Max, self, dim=dims, keepdim=keepdim)

    @overload
    def max(self, dim: None = None, keepdim: bool = False) -> "Tensor": ...

    @overload
    def max(self, dim: int, keepdim: bool = False) -> Maxima: ...

    def max(self, dim: int | None = None, keepdim: bool = False) -> "Tensor | Maxima":
        """Return the maximum of all elements, or with `dim` the pair (values, indices) of the maxima along it.

        Equal maxima share the gradient, as in `amax`. (PyTorch gives all of it to the one that the index names.)
        """
        if dim is None:
            return self.amax(keepdim=keepdim)
        return Maxima(self.amax(dim, keepdim), self.argmax(dim, keepdim))

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> "Tensor":
        """Return the index of the first maximum along `dim`, or in the flattened tensor."""
        if isinstance(dim, tuple | list):
            raise TypeError(f"argmax: expected one dimension, got {dim}; for the maxima alone use .amax({dim})")
        _as_dims("argmax", dim, self)
        _check_not_empty("argmax", dim, self)
        return Tensor(self.data.argmax(axis=dim, keepdims=keepdim))

    # -- shapes --------------------------------------------------------------------------------------------------------

    def reshape(self, *shape: int | Sequence[int]) -> "Tensor":
        """Return the same elements in the same order in another shape. One length may be -1: it is inferred."""
        lengths = _as_sequence(shape)
        try:
            y = apply(Reshape, self, shape=lengths)
        except ValueError:
            raise ValueError(f"reshape: the {self.numel()} elements of {self.shape} do not fit {lengths}") from None
        y._version = self._version  # as they share their memory
        return y

    def permute(self, *dims: int | Sequence[int]) -> "Tensor":
        """Return the tensor with permuted dimensions: dimension i of the result is dimension dims[i] of this one."""
        order = _as_sequence(dims)
        try:
            return apply(Permute, self, dims=order)
        except ValueError:
            raise ValueError(f"permute: {order} is not a permutation of the dimensions of {self.shape}") from None

    @property
    def T(self) -> "Tensor":  # noqa: N802 - the name in NumPy and PyTorch
        """This tensor with its dimensions in reverse order."""
        return self.permute(*reversed(range(self.ndim)))

    def __getitem__(self, index) -> "Tensor":
        return apply(GetItem, self, index=tuple(map(_raw, index if isinstance(index, tuple) else (index,))))

    def __iter__(self) -> "Iterator[Tensor]":
        return (self[i] for i in range(len(self)))


class Parameter(Tensor):
    """A tensor that a module learns. With requires_grad=False it is frozen, and is still a parameter of the module."""

    __slots__ = ("layout",)
    is_state = True

    def __init__(self, data, layout=None, requires_grad: bool = True):
        super().__init__(data, requires_grad=requires_grad)
        self.layout = layout


class Buffer(Tensor):
    """A tensor of a module's state that is not learned, such as a running mean.

    If `persistent` is False, state_dict() leaves it out.
    """

    __slots__ = ("persistent",)
    is_state = True

    def __init__(self, data, persistent: bool = True):
        super().__init__(data)
        self.persistent = persistent


# Called after each operation as watcher(function, ctx, inputs, output), in the thread or asyncio task that set them.
watchers: ContextVar[tuple[Callable, ...]] = ContextVar("watchers", default=())


def apply(function: type[Function], *inputs: Tensor | None, **hyperparameters) -> Tensor:
    """Run an operation on tensors, and record it if one of them requires grad. Pass None for an absent input."""
    operation, recording = function.__name__.lower(), is_grad_enabled()
    check_tensors(operation, inputs[0])
    if function.floats_only:
        check_floats(operation, inputs[0])  # type: ignore[arg-type]  # the line above refuses None
    check_alike(operation, *inputs, kept_in_float32=function.kept_in_float32)  # type: ignore[arg-type]
    if function.in_float32 and is_half(inputs[0].dtype):
        wide = (None if tensor is None else tensor.to(float32) for tensor in inputs)
        return apply(function, *wide, **hyperparameters).to(inputs[0].dtype)
    arrays, kinds, sources = [], [], []  # one entry for each input
    for tensor in inputs:
        is_there = tensor is not None
        arrays.append(getattr(tensor.data, function.reads, tensor.data) if is_there else None)
        kinds.append((tensor.data.shape, tensor.data.dtype) if is_there else None)
        sources.append(tensor._node if is_there and recording else None)
    ctx = Context(tuple(map(bool, sources)))
    try:
        array = function.forward(ctx, *arrays, **hyperparameters)
    except RuntimeError as error:
        if is_capturing(arrays[0]):
            raise RuntimeError(f"{operation}: {error}") from error
        raise
    if isinstance(array, tuple):
        raise TypeError(f"{function.__name__}.forward: expected one array, got a tuple; define an operation for each")
    output = Tensor(array)
    if any(ctx.needs_grad) and output.is_floating_point():  # integers and bools have no gradient
        backward = functools.partial(function.backward, ctx)
        output._node = Node(function.__name__, backward, sources, kinds, _saved_versions(inputs, arrays, ctx.saved))
    for watcher in watchers.get():
        watcher(function, ctx, inputs, output)
    return output


def _saved_versions(inputs: Sequence[Tensor | None], arrays: list, saved: tuple) -> list[tuple[Version, int]]:
    """Return (version, its count) of each input that has one and whose array is among the values that the op saved."""
    identities, found = set(map(id, saved)), []
    for x, array in zip(inputs, arrays, strict=True):
        if x is not None and x._version is not None and id(array) in identities:
            found.append((x._version, x._version.count))
    return found


def matmul(a, b) -> Tensor:
    """Return the matrix product over the last two dimensions: (..., n, k) @ (..., k, m) -> (..., n, m)."""
    a, b = _as_operand("matmul", a, b), _as_operand("matmul", b, a)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matmul: expected (..., n, k) @ (..., k, m), got {a.shape} @ {b.shape}; reshape a vector to a matrix"
        )
    return apply(MatMul, a, b)


def apply_broadcast(function: type[Function], a, b, **hyperparameters) -> Tensor:
    """Run an operation on two operands that broadcast. A number takes the dtype and the device of the other operand."""
    operation = function.__name__.lower()
    a, b = _as_operand(operation, a, b), _as_operand(operation, b, a)
    try:
        np.broadcast_shapes(a.data.shape, b.data.shape)
    except ValueError:
        raise ValueError(f"{operation}: shapes {a.shape} and {b.shape} do not broadcast; reshape one of them") from None
    return apply(function, a, b, **hyperparameters)


def _as_operand(operation: str, value, other) -> Tensor:
    """Return `value` as a tensor. A number takes the dtype and the device of `other`."""
    if isinstance(value, Tensor):
        return value
    check_tensors(operation, other)
    if not isinstance(value, int | float | np.generic):
        return Tensor(value)
    return Tensor(np.asarray(_as_number(operation, value, other), other.dtype), device=other.device)


def _as_number(operation: str, value, other: Tensor) -> int | float:
    """Return `value` as a Python number. It keeps an array's dtype: NumPy's float64 would turn float32 into float64."""
    value = value.item() if isinstance(value, np.generic) else value
    dtype, holds = other.dtype, True
    if dtype.kind == "b":
        holds = isinstance(value, bool)
    elif dtype.kind in "iu":
        holds = isinstance(value, int) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    if not holds:
        raise TypeError(
            f"{operation}: got the number {value} and a tensor of {dtype}, which cannot hold it; "
            "convert the tensor with .to('float32')"
        )
    return value


def check_tensors(operation: str, *values) -> None:
    """Raise TypeError unless all are Tensors: converting an array would mean guessing its device and dtype."""
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{operation}: expected a Tensor, got {type(value).__name__}; wrap it in minidl.Tensor(...)"
            )


def check_dim(operation: str, dim: int, shape: tuple[int, ...], name: str = "dim") -> None:
    """Raise TypeError unless `dim` is a whole number, and ValueError unless `shape` has that dimension."""
    if not isinstance(dim, int | np.integer):
        raise TypeError(f"{operation}: expected {name} to be a whole number, got {dim!r}")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"{operation}: {name} {dim} is not a dimension of {shape}")


def check_floats(operation: str, x: Tensor) -> None:
    """Raise TypeError unless x is a tensor of floating-point numbers."""
    check_tensors(operation, x)
    if not x.is_floating_point():
        raise TypeError(f"{operation}: expected floating-point x, got {x.dtype}; convert it with .to('float32')")


def check_alike(operation: str, first: Tensor, *others: Tensor | None, kept_in_float32: tuple[int, ...] = ()) -> None:
    """Raise TypeError unless all have one device and one dtype, as silent conversions hide mistakes. None is skipped.

    If the first, input 0, is bfloat16 or float16, the inputs whose numbers are in `kept_in_float32` must be float32.
    """
    device = device_of(first.data)
    for number, tensor in enumerate(others, start=1):
        if tensor is None:
            continue
        check_tensors(operation, tensor)
        dtype = float32 if number in kept_in_float32 and is_half(first.data.dtype) else first.data.dtype
        facts = ("dtype", dtype, tensor.data.dtype), ("device", device, device_of(tensor.data))
        for fact, expected, got in facts:
            if expected != got:
                wrapped = f", or an array with minidl.Tensor(array, '{expected}')" if fact == "dtype" else ""
                raise TypeError(
                    f"{operation}: inputs of {fact} {expected} and {got}; convert one with .to('{expected}'){wrapped}"
                )


def _as_array(data, dtype, device):
    """Return `data` as a C-contiguous array. Python floats and lists of them become float32 unless `dtype` is given."""
    dtype = None if dtype is None else as_dtype(dtype)
    if is_foreign(data):
        data = from_dlpack(data)
    elif not hasattr(data, "dtype"):
        try:
            data = np.asarray(data)
        except ValueError:
            raise TypeError(f"Tensor: expected lists of equal lengths, got {reprlib.repr(data)}") from None
        dtype = dtype or (float32 if data.dtype == float64 else None)
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("Tensor: got a masked array, whose mask would be lost; fill it with .filled(value)")
    kind = getattr(data.dtype, "kind", "O")  # the dtypes of other libraries have no kind
    if kind == "f" and data.dtype.itemsize > 8:
        raise TypeError(f"Tensor: expected float64 at most, got {data.dtype}; convert it with .astype('float64')")
    if kind not in NUMBERS and not (kind == "V" and is_half(data.dtype)):
        raise TypeError(f"Tensor: expected real numbers, or a NumPy or CuPy array of them, got {reprlib.repr(data)}")
    if device_of(data) == "cpu":
        data = np.asarray(data, dtype, order="C")
    elif dtype is not None:
        data = data.astype(dtype, copy=False)
    return data if device is None else to_device(data, device)


@functools.cache
def _warn_that_no_grad_is_kept() -> None:
    """Warn once in a program, at the line that reads `grad`."""
    warnings.warn("grad: a computed tensor keeps none; call its retain_grad() before backward()", stacklevel=3)


def _raw(value):
    return value.data if isinstance(value, Tensor) else value


def _as_dims(operation: str, dim: Dim, x: Tensor) -> tuple[int, ...] | None:
    if dim is None:
        return None
    dims = tuple(dim) if isinstance(dim, tuple | list) else (dim,)
    for d in dims:
        check_dim(operation, d, x.shape)
    if len({d % x.ndim for d in dims}) < len(dims):
        raise ValueError(f"{operation}: dim {dim} names a dimension of {x.shape} twice; name it once")
    return dims or None


def _check_not_empty(operation: str, dim: Dim, x: Tensor) -> None:
    """Raise ValueError if a maximum over the dimensions `dim` is one of no numbers."""
    lengths = x.shape if dim is None else np.take(x.shape, dim)
    if not np.all(lengths):
        where = "" if dim is None else f" along dim {dim}"
        raise ValueError(f"{operation}: expected at least one number to compare{where}, got shape {x.shape}")


def _as_sequence(arguments: tuple) -> tuple[int, ...]:
    """Return the lengths as a tuple: reshape(2, 3) and reshape((2, 3)) mean the same."""
    return tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], tuple | list) else arguments
