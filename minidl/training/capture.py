"""Capture a training step as one CUDA graph, which is launched as a whole, without Python between its kernels."""

from collections import Counter
from collections.abc import Callable
from types import ModuleType

import numpy as np

from minidl.kernels import device_of, to_device
from minidl.random import draws_so_far
from minidl.system.gpu import require_cupy
from minidl.tensor import Tensor, watchers

WARM_UP_CALLS = 2  # the second call runs with the gradients and the optimiser state that the first has created
CONSTANTS = str | int | float | bool | np.generic | None


def cuda_graph(function: Callable) -> "CapturedStep":
    """Capture a function, a whole training step, in a CUDA graph. N calls equal N plain calls, bit for bit.

    In a step Python launches hundreds of kernels, one after the other. Captured, they are one launch::

        def train_step(images, labels):
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        step = minidl.cuda_graph(train_step)
        for number, (images, labels) in enumerate(loader):
            optimizer.lr = schedule(number)
            loss = step(images, labels)

    The first two calls run the function normally; the third captures it. From then on Python does not call the function
    again: the GPU repeats the recorded kernels. So

    - pass tensors and arrays as arguments, from the host or the device, each always with the same dtype; all other
      arguments are constants. Only one set of shapes is captured: the first that is seen three times. Other shapes,
      such as a smaller last batch, run without the graph;
    - return a Tensor, a tuple of Tensors, or None. The caller receives copies that are detached from autograd;
    - keep what changes from step to step in arrays that are written in place. Parameters, running statistics, momentum,
      the learning rate and the counters of Adam and Dropout are such arrays. Python code has no effect after the
      capture: `if`, `print`, `model.eval()`, a counter, reading or setting an attribute such as a gradient. That is why
      `optimizer.step()` and `optimizer.zero_grad()` are inside the function;
    - copy nothing between host and device: no `item()`, no `numpy()`, no `clip_grad_norm_`, which reads the norm,
      no `Tensor([...], device="cuda")`. Index with integers, with slices, and with tensors of integers that were on the
      device before the step: `x[[0, 2]]` copies its list from the host, and so does `x[array]` with a NumPy array. Use
      `minidl.where` instead of a mask such as `x[x > 0]`, as the host would have to wait for the number of elements.

    Raises RuntimeError without device 'cuda', or if the step cannot be captured; ValueError if an argument differs from
    the first call's in kind, dtype or constant value.
    """
    return CapturedStep(function)


def cuda_graphs() -> ModuleType:
    """The module that captures work on device 'cuda' in a graph and replays it."""
    require_cupy()  # raises an error that names what is missing
    from minidl.kernels.cuda import graph  # imported on first use, because it needs CuPy

    return graph


class CapturedStep:
    """A training step captured by `cuda_graph`; `function` is the original step."""

    def __init__(self, function: Callable):
        self.function = function
        self._outputs = None  # above `_graph`, so that they are freed before its memory pool
        self._graph = cuda_graphs().Graph()
        self._kinds: list[tuple] | None = None  # the kinds of the arguments in the first successful call
        self._calls: Counter[tuple] = Counter()  # {shapes: number of calls without the graph}
        self._captured: tuple | None = None  # the shapes that were captured
        self._buffers: dict[int, object] = {}  # {number of an array argument: the buffer from which the graph reads it}

    def __call__(self, *arguments):
        shapes = self._shapes_of(arguments)
        if self._captured is None and self._calls[shapes] == WARM_UP_CALLS:
            self._outputs, self._captured = self._capture(arguments), shapes
        if shapes != self._captured:
            return self._run(arguments, shapes)
        if watchers.get():
            raise RuntimeError(
                "cuda_graph: detect_anomaly sees no operation of a captured step, as Python calls none; call "
                "step.function(...) instead"
            )
        self._fill_buffers(arguments)
        self._graph.launch()
        return _copied(self._outputs)

    def _shapes_of(self, arguments: tuple) -> tuple:
        """Return the shapes of the array arguments; everything else must be as in the first call."""
        kinds = [_kind(argument) for argument in arguments]
        if self._kinds is not None and kinds != self._kinds:
            raise ValueError(
                f"cuda_graph: expected the arguments {_describe(self._kinds)} of the first call, got "
                f"{_describe(kinds)}; call step.function(...) for others"
            )
        return tuple(argument.shape for argument in arguments if _is_array(argument))

    def _run(self, arguments: tuple, shapes: tuple):
        """Call the function without a graph, but in the graph's memory pool."""
        inputs = [_on_gpu(argument) for argument in arguments]
        outputs = self._graph.run(lambda: _detached(self.function(*inputs)))
        self._kinds = [_kind(argument) for argument in arguments]
        self._calls[shapes] += 1
        return _copied(outputs)

    def _capture(self, arguments: tuple):
        """Capture the function, which reads its array arguments from buffers, and return its outputs."""
        arrays = {i: argument for i, argument in enumerate(arguments) if _is_array(argument)}
        self._buffers = {i: cuda_graphs().InputBuffer(x.shape, x.dtype) for i, x in arrays.items()}
        inputs = list(arguments)
        for i, buffer in self._buffers.items():
            inputs[i] = Tensor(buffer.array) if isinstance(arguments[i], Tensor) else buffer.array

        def call():
            draws = draws_so_far()
            outputs = _detached(self.function(*inputs))
            if draws_so_far() != draws:
                raise RuntimeError("it draws random numbers on the host, which would be the same in each step")
            return outputs

        try:
            return self._graph.capture(call)
        except RuntimeError as error:
            raise RuntimeError(
                f"cuda_graph: the step cannot be captured: {error}; read numbers after the step, keep data on the "
                "device (the gradients hold garbage now: call zero_grad() before you go on)"
            ) from error

    def _fill_buffers(self, arguments: tuple) -> None:
        """Copy the array arguments into the buffers from which the graph reads them."""
        for i, buffer in self._buffers.items():
            buffer.fill(arguments[i].data if isinstance(arguments[i], Tensor) else arguments[i])


def _kind(argument) -> tuple:
    """What must be the same in every call: the dtype of an array, the value of a constant."""
    if not _is_array(argument):
        return type(argument).__name__, argument
    if isinstance(argument, Tensor):
        if argument.requires_grad:
            raise ValueError("cuda_graph: an argument requires grad, but would get none; pass argument.detach()")
    elif not isinstance(argument, np.ndarray) and device_of(argument) == "cpu":
        raise TypeError(
            f"cuda_graph: expected tensors, arrays, numbers and strings as arguments, got {type(argument).__name__}; "
            "let the function use it from its enclosing scope"
        )
    return "Tensor" if isinstance(argument, Tensor) else "array", str(argument.dtype)


def _is_array(argument) -> bool:
    return not isinstance(argument, CONSTANTS)


def _on_gpu(argument):
    if isinstance(argument, Tensor):
        return argument.to("cuda")
    return to_device(argument, "cuda") if _is_array(argument) else argument


def _describe(kinds: list[tuple]) -> str:
    return "(" + ", ".join(" ".join(map(str, kind)) for kind in kinds) + ")"


def _detached(outputs):
    """Detach the outputs from autograd."""
    return _each_tensor(outputs, Tensor.detach)


def _copied(outputs):
    """Copy the outputs, as the next step overwrites them."""
    return _each_tensor(outputs, lambda tensor: Tensor(tensor.data.copy()))


def _each_tensor(outputs, change: Callable[[Tensor], Tensor]):
    if outputs is None:
        return None
    if isinstance(outputs, tuple):
        return tuple(_each_tensor(output, change) for output in outputs)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"cuda_graph: expected the step to return a Tensor, a tuple of Tensors or None, got "
            f"{type(outputs).__name__}; read numbers after the step"
        )
    if outputs.device != "cuda":
        raise ValueError(
            "cuda_graph: expected the step to compute on device 'cuda', got a tensor on 'cpu'; move the model there "
            "with model.to('cuda')"
        )
    return change(outputs)
