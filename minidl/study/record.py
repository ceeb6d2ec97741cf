"""Record what a training step does, operation by operation.

The engine has no hook for this. Inside the `with` block, the `forward` and `backward` of every operation, and the
`forward` of every module of the model, are wrapped; afterwards they are the same objects as before. Outside of the
block it costs nothing, as nothing of it is there.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np

from minidl.kernels import device_of, is_capturing
from minidl.nn.module import Module
from minidl.ops.arithmetic import MatMul
from minidl.ops.conv import Conv2d
from minidl.ops.function import Context, Function
from minidl.ops.linear import Linear
from minidl.system.gpu import require_cupy
from minidl.tensor import Parameter, Tensor
from minidl.training.recompute import keep_all


@dataclasses.dataclass(eq=False)
class Input:
    """An array that no recorded operation computed."""

    name: str  # of a parameter or buffer as in named_parameters(), of an input as in model.forward; a number's value
    kind: str  # "parameter", "buffer", "input" (passed to the model) or "constant" (all others)
    shape: tuple[int, ...]
    value: np.ndarray | None = dataclasses.field(repr=False)  # None with keep=False


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a module. Times are in seconds since the recording began, without the time of recording itself."""

    layer: str  # as in named_modules(); "" is the model itself
    module: Module = dataclasses.field(repr=False)
    parent: "Call | None" = dataclasses.field(repr=False)  # the call that this one is part of
    start: float
    seconds: float = 0.0


@dataclasses.dataclass(eq=False)
class Memory:
    """One block of memory, which one or more arrays share: the base of a NumPy array and of its views."""

    nbytes: int
    source: "Op | Input | None"  # what it was computed by; None for arrays that are not the result of an operation
    kept_by: "list[Op]" = dataclasses.field(default_factory=list)  # the operations that saved it for backward


@dataclasses.dataclass(eq=False, repr=False)
class Op:
    """One application of an operation, y = forward(inputs), and its dL/d(inputs) = backward(dL/dy).

    With keep=False no array is held: `value`, `grad` and `input_grads` are None, and None stands for each array in
    `saved` and `hyperparameters`.
    """

    number: int  # in the order of the forward pass, from 0
    function: type[Function]
    layer: str | None  # the innermost module that ran it, as in named_modules(); None outside of the model
    call: Call | None  # the call of that module
    hyperparameters: dict[str, object]
    inputs: "tuple[Op | Input | None, ...]"  # where each input comes from; None for an absent one
    input_shapes: tuple[tuple[int, ...] | None, ...]
    needs_grad: tuple[bool, ...]  # which inputs need their gradient
    shape: tuple[int, ...]
    dtype: np.dtype
    value: np.ndarray | None  # y
    saved: tuple  # what forward saved for backward
    keeps: tuple[Memory, ...]  # the memory that these arrays hold; () if the operation has no backward
    start: float  # in seconds since the recording began
    forward_seconds: float
    value_norm: float  # sqrt(sum of y^2)
    macs: int  # multiply-adds of convolutions, linear layers and matrix products, for the whole batch; 0 for others
    grad: np.ndarray | None = None  # dL/dy, the sum of its consumers' contributions
    grad_norm: float | None = None
    input_grads: tuple | None = None  # the contributions that it makes to the gradients of its inputs
    backward_start: float | None = None
    backward_seconds: float | None = None

    def __repr__(self) -> str:
        return f"Op({self.number}, {self.function.__name__}, layer={self.layer!r}, shape={self.shape})"


class Recording:
    """What `record` saw: the operations and the calls of modules, in the order in which they began."""

    def __init__(self, model: Module):
        self.model = model
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.failed_layer: str | None = None  # the innermost module that the last exception passed through
        self._consumers: dict[Op | Input, list[tuple[Op, int]]] = {}

    def consumers(self, source: Op | Input) -> list[tuple[Op, int]]:
        """Return (operation, number of its input) for each use of this operation's result, or of this input."""
        return list(self._consumers.get(source, ()))

    def add(self, op: Op) -> None:
        """Append an operation."""
        self.ops.append(op)
        for number, source in enumerate(op.inputs):
            if source is not None:
                self._consumers.setdefault(source, []).append((op, number))


_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def record(model: Module, keep: bool = True) -> Iterator[Recording]:
    """Record the operations that this thread runs inside the `with` block, forward and backward.

        with record(model) as recording:
            loss = cross_entropy(model(images), labels)
            loss.backward()
        recording.ops[0].function, recording.ops[0].layer, recording.ops[0].shape

    Operations before and after the model are recorded too: preprocessing, the loss. With keep=True the recording holds
    all values and gradients, so memory grows as if nothing were ever freed; with keep=False it holds no array.

    Results are the same bits as without. Inside the block `recompute` saves everything, as in `watch`. On a GPU the
    host waits after each operation; of a captured step (`cuda_graph`), record `step.function`. Raises TypeError if
    `model` is not a Module, RuntimeError if a recording is open.
    """
    if not isinstance(model, Module):
        raise TypeError(f"record: expected a Module, got {type(model).__name__}; pass the model, then call it inside")
    if not _one_at_a_time.acquire(blocking=False):
        raise RuntimeError("record: expected one recording at a time, but one is open; leave its `with` block first")
    try:
        recorder = _Recorder(model, keep)
        with contextlib.ExitStack() as stack, keep_all():
            recorder.wrap_functions(stack)
            recorder.wrap_modules(stack)
            yield recorder.recording
    finally:
        _one_at_a_time.release()


class _Recorder:
    """Wraps operations and modules, and adds what they do to a recording."""

    def __init__(self, model: Module, keep: bool):
        self.recording, self.keep = Recording(model), keep
        self._thread = threading.get_ident()
        self._inside = False  # an operation that calls others is one operation
        self._clock = _Clock()
        self._open: list[Call] = []
        self._waiting: dict[int, Op] = {}  # {id of the context: the operation whose backward may come}
        self._sources, self._memories = _ByIdentity(), _ByIdentity()
        self._state = [*model.named_parameters(), *model.named_buffers()]

    # -- wrapping ------------------------------------------------------------------------------------------------------

    def wrap_functions(self, stack: contextlib.ExitStack) -> None:
        """Wrap both methods of all operations, also of those that are defined later inside the block."""
        originals = [(function, function.forward, function.backward) for function in _subclasses(Function)]
        for function, forward, backward in originals:
            self._wrap_function(stack, function, forward, backward)

        def wrap(function: type[Function]) -> None:
            self._wrap_function(stack, function, function.forward, function.backward)

        _replace(stack, Function, "__init_subclass__", classmethod(wrap))

    def _wrap_function(self, stack, function: type[Function], forward: Callable, backward: Callable) -> None:
        @functools.wraps(forward)
        def recorded_forward(ctx, *arrays, **hyperparameters):
            if self._is_off():
                return forward(ctx, *arrays, **hyperparameters)
            return self._forward(function, forward, ctx, arrays, hyperparameters)

        @functools.wraps(backward)
        def recorded_backward(ctx, grad):
            op = None if self._is_off() else self._waiting.pop(id(ctx), None)
            return backward(ctx, grad) if op is None else self._backward(op, backward, ctx, grad)

        _replace(stack, function, "forward", staticmethod(recorded_forward))
        _replace(stack, function, "backward", staticmethod(recorded_backward))

    def wrap_modules(self, stack: contextlib.ExitStack) -> None:
        """Wrap the forward of every module. One that has two names is recorded under its first."""
        wrapped = set()
        for name, module in list(self.recording.model.named_modules()):
            if id(module) not in wrapped:
                wrapped.add(id(module))
                _replace(stack, module, "forward", self._wrapped_module(name, module, module.forward))

    def _wrapped_module(self, name: str, module: Module, forward: Callable) -> Callable:
        @functools.wraps(forward)
        def recorded(*inputs, **options):
            if self._is_off():
                return forward(*inputs, **options)
            with self._call(name, module):
                if module is self.recording.model:
                    self._note_inputs(forward, inputs, options)
                return forward(*inputs, **options)

        return recorded

    def _is_off(self) -> bool:
        return self._inside or threading.get_ident() != self._thread

    # -- what happens --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _call(self, name: str, module: Module) -> Iterator[None]:
        call = Call(name, module, self._open[-1] if self._open else None, self._clock.now())
        self.recording.calls.append(call)
        self.recording.failed_layer = None  # whatever failed before was caught
        self._open.append(call)
        try:
            yield
        except BaseException:
            self.recording.failed_layer = name if self.recording.failed_layer is None else self.recording.failed_layer
            raise
        else:
            self.recording.failed_layer = None
        finally:
            self._open.pop()
            call.seconds = self._clock.now() - call.start

    def _note_inputs(self, forward: Callable, inputs: tuple, options: dict) -> None:
        """Give the tensors that are passed to the model the names of its forward's arguments."""
        with self._clock.stopped():
            try:
                arguments = inspect.signature(forward).bind(*inputs, **options).arguments
            except (TypeError, ValueError):
                return  # the call will say what is wrong
            for name, tensor in _tensors("", arguments):
                self._source(tensor.data, name)

    def _forward(self, function: type[Function], forward: Callable, ctx: Context, arrays: tuple, hyperparameters: dict):
        start, y = self._timed(arrays[0], lambda: forward(ctx, *arrays, **hyperparameters))
        with self._clock.stopped() as stop:
            y = Tensor(y).data  # as `apply` would do next, so this very object is the input of the next operation
            if self._sources.get(y) is not None:
                y = y.view()  # it returned its input: another object tells the two apart
            op = self._op(function, ctx, arrays, hyperparameters, y, start, stop - start)
            self.recording.add(op)
            self._sources.set(y, op)
            self._memory(y, op)
            if any(ctx.needs_grad) and y.dtype.kind not in "biu":  # then `apply` makes a node
                self._wait_for_backward(op, ctx)
        return y

    def _op(self, function, ctx: Context, arrays, hyperparameters, y, start: float, seconds: float) -> Op:
        shapes = tuple(None if array is None else array.shape for array in arrays)
        return Op(
            number=len(self.recording.ops),
            function=function,
            layer=self._open[-1].layer if self._open else None,
            call=self._open[-1] if self._open else None,
            hyperparameters=self._held(hyperparameters),
            inputs=tuple(None if array is None else self._source(array) for array in arrays),
            input_shapes=shapes,
            needs_grad=ctx.needs_grad,
            shape=y.shape,
            dtype=y.dtype,
            value=self._held(y),
            saved=self._held(ctx.saved),
            keeps=(),
            start=start,
            forward_seconds=seconds,
            value_norm=norm(y),
            macs=_multiply_adds(function, shapes, y.shape),
        )

    def _wait_for_backward(self, op: Op, ctx: Context) -> None:
        self._waiting[id(ctx)] = op
        op.keeps = tuple(dict.fromkeys(self._memory(array) for array in _arrays(ctx.saved)))
        for memory in op.keeps:
            memory.kept_by.append(op)

    def _backward(self, op: Op, backward: Callable, ctx: Context, grad):
        op.backward_start, grads = self._timed(grad, lambda: backward(ctx, grad))
        with self._clock.stopped() as stop:
            op.backward_seconds = stop - op.backward_start
            op.grad, op.grad_norm = self._held(grad), norm(grad)
            op.input_grads = (grads if isinstance(grads, tuple) else (grads,)) if self.keep else None
        return grads

    def _timed(self, array, compute: Callable) -> tuple[float, object]:
        """Return the time at which the computation begins, and its result, when it is there."""
        _wait_for_gpu(array)
        self._inside, start = True, self._clock.now()
        try:
            result = compute()
        finally:
            self._inside = False
        _wait_for_gpu(array)
        return start, result

    # -- whose array ---------------------------------------------------------------------------------------------------

    def _source(self, array, name: str | None = None) -> Op | Input:
        """Return where an array comes from. One that was not seen before is an Input."""
        source = self._sources.get(array)
        if source is None:
            source = self._input(array, name)
            self._sources.set(array, source)
            self._memory(array, source)
        return source

    def _input(self, array, name: str | None) -> Input:
        for known, tensor in self._state:
            if tensor.data is array:
                kind = "parameter" if isinstance(tensor, Parameter) else "buffer"
                return Input(known, kind, array.shape, self._held(array))
        constant = f"{array.item():g}" if array.size == 1 else "constant"
        return Input(name or constant, "input" if name else "constant", array.shape, self._held(array))

    def _memory(self, array, source: Op | Input | None = None) -> Memory:
        base = array
        while hasattr(getattr(base, "base", None), "nbytes"):
            base = base.base
        memory = self._memories.get(base)
        if memory is None:
            memory = Memory(base.nbytes, source)
            self._memories.set(base, memory)
        return memory

    def _held(self, value):
        """The value itself, or with keep=False the value with None in place of every array."""
        if self.keep:
            return value
        if isinstance(value, dict):
            return {name: self._held(part) for name, part in value.items()}
        if isinstance(value, tuple | list):
            return tuple(map(self._held, value))
        return None if _is_array(value) else value


class _ByIdentity:
    """Facts about objects, by identity, which ends with the object: a later object may have the same id."""

    def __init__(self):
        self._facts: dict[int, tuple[weakref.ref, object]] = {}

    def get(self, thing):
        """Return the fact about this object, or None."""
        reference, fact = self._facts.get(id(thing), (lambda: None, None))
        return fact if reference() is thing else None

    def set(self, thing, fact) -> None:
        """Note a fact about this object."""
        self._facts[id(thing)] = weakref.ref(thing), fact


class _Clock:
    """Seconds since it was made, without those while it was stopped."""

    def __init__(self):
        self._zero = time.perf_counter()

    def now(self) -> float:
        """Return the seconds."""
        return time.perf_counter() - self._zero

    @contextlib.contextmanager
    def stopped(self) -> Iterator[float]:
        """Stop the clock inside the block, and give the time at which it was stopped."""
        stop = time.perf_counter()
        try:
            yield stop - self._zero
        finally:
            self._zero += time.perf_counter() - stop


def norm(array) -> float:
    """Return the L2 norm, sqrt(sum of x^2), computed in float64."""
    wide = array.astype(np.float64)
    with np.errstate(over="ignore"):
        return math.sqrt(float((wide * wide).sum()))


# Products that are added up for one element of the result, from the shapes of the inputs.
_PRODUCTS = {
    Conv2d: lambda x, weight, bias: math.prod(weight[:3]),
    Linear: lambda x, weight, bias: weight[0],
    MatMul: lambda a, b: a[-1],
}


def _multiply_adds(function: type[Function], input_shapes: tuple, shape: tuple[int, ...]) -> int:
    """The multiply-adds of a convolution, linear layer or matrix product, without those of biases; 0 for others."""
    for known, products in _PRODUCTS.items():
        if issubclass(function, known):
            return math.prod(shape) * products(*input_shapes)
    return 0


def _replace(stack: contextlib.ExitStack, owner, name: str, value) -> None:
    """Set an attribute of a class or an object until the stack closes."""
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])  # of a class, the staticmethod itself
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _subclasses(function: type[Function]) -> Iterator[type[Function]]:
    """Yield all classes below this one, each once."""
    found = list(function.__subclasses__())
    for subclass in found:
        found += [below for below in subclass.__subclasses__() if below not in found]
    yield from found


def _tensors(name: str, value) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of all tensors in a value, such as ("x", ...) or ("xs.0", ...)."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(f"{name}.{key}" if name else str(key), part)


def _arrays(value) -> Iterator:
    """Yield all arrays in a value that an operation saved."""
    if _is_array(value):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _arrays(part)


def _is_array(value) -> bool:
    return isinstance(value, np.ndarray) or device_of(value) == "cuda"


def _wait_for_gpu(array) -> None:
    """Wait until the GPU has computed everything that it was asked for."""
    if is_capturing(array):
        raise RuntimeError("record: a captured step runs without Python; record step.function(...) instead")
    if device_of(array) == "cuda":
        require_cupy().cuda.get_current_stream().synchronize()
