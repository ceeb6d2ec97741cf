"""A training step as one CUDA graph: launched as a whole, without Python between its kernels."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from minidl.kernels import cuda_graphs, device_of, to_device
from minidl.random import draws_so_far
from minidl.tensor import Tensor

WARM_UP_CALLS = 2  # the second finds what the first has left behind: gradients, an optimiser that has begun
CONSTANTS = str | int | float | bool | np.generic | None


def cuda_graph(function: Callable) -> "CapturedStep":
    """The function, a whole training step, captured in a CUDA graph: N calls are N steps, bit for bit.

    A step is hundreds of launches, one after the other from Python. Captured, they are one launch::

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

    The first two calls run the function as it is, the third captures it. From then on the function is not called any
    more: the GPU repeats what it did. So

    - tensors and arrays go in as arguments, each always of the same dtype, from the host or the device; other arguments
      are constants. One set of shapes is captured, the first that comes for the third time. Others, such as a smaller
      last batch, run as without a graph;
    - out comes a Tensor, a tuple of them, or None: copies, without a graph behind them;
    - what changes from step to step lies in arrays that are written in place, as parameters, running statistics,
      momentum, the learning rate and the counters of Adam and Dropout do. What Python does happens in the capture
      alone: `if`, `print`, `model.eval()`, a number that it counts, an attribute that it reads or sets, such as a
      gradient. That is why `optimizer.step()` and `optimizer.zero_grad()` stand in the function;
    - nothing in it goes from host to device or back: no `item()`, no `numpy()`, no `clip_grad_norm_`, which looks at
      the norm. Nor `a @ b`, which cuBLAS computes: use `linear`.

    Raises RuntimeError without device 'cuda', and where the step cannot be captured; ValueError for an argument unlike
    that of the first call.
    """
    return CapturedStep(function)


class CapturedStep:
    """A step that is launched as a whole: see `cuda_graph`. `function` is the step as it was."""

    def __init__(self, function: Callable):
        self.function = function
        self._graph = cuda_graphs().Graph()
        self._kinds: list[tuple] | None = None  # of the arguments, of the first call that succeeds
        self._calls: Counter[tuple] = Counter()  # without the graph, of each set of shapes
        self._captured: tuple | None = None  # the shapes that the graph is for
        self._buffers: dict[int, object] = {}  # for each argument that is an array, where the graph reads it
        self._outputs = None

    def __call__(self, *arguments):
        shapes = self._shapes_of(arguments)
        if self._captured is None and self._calls[shapes] == WARM_UP_CALLS:
            self._outputs, self._captured = self._capture(arguments), shapes
        if shapes != self._captured:
            return self._run(arguments, shapes)
        self._fill_buffers(arguments)
        self._graph.launch()
        return _copied(self._outputs)

    def _shapes_of(self, arguments: tuple) -> tuple:
        """The shapes of the arguments that are arrays; the rest must be as in the first call."""
        kinds = [_kind(argument) for argument in arguments]
        if self._kinds is not None and kinds != self._kinds:
            raise ValueError(
                f"cuda_graph: expected the arguments {_describe(self._kinds)} of the first call, got "
                f"{_describe(kinds)}; call step.function(...) for others"
            )
        return tuple(argument.shape for argument in arguments if _is_array(argument))

    def _run(self, arguments: tuple, shapes: tuple):
        """Call the function as it is, in the memory that a graph will have."""
        inputs = [_on_gpu(argument) for argument in arguments]
        outputs = self._graph.run(lambda: _detached(self.function(*inputs)))
        self._kinds = [_kind(argument) for argument in arguments]
        self._calls[shapes] += 1
        return _copied(outputs)

    def _capture(self, arguments: tuple):
        """The outputs of the function, whose graph reads its arguments from buffers."""
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
        """Copy the arrays to where the graph reads them."""
        for i, buffer in self._buffers.items():
            buffer.fill(arguments[i].data if isinstance(arguments[i], Tensor) else arguments[i])


def _kind(argument) -> tuple:
    """What must be the same in every call: the dtype of an array, a constant itself."""
    if not _is_array(argument):
        return type(argument).__name__, argument
    if isinstance(argument, Tensor):
        if argument.requires_grad:
            raise ValueError("cuda_graph: an argument requires grad, which would not reach it; pass argument.detach()")
    elif not isinstance(argument, np.ndarray) and device_of(argument) == "cpu":
        raise TypeError(
            f"cuda_graph: expected tensors, arrays, numbers and strings as arguments, got {type(argument).__name__}; "
            "let the function find it where it is defined"
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
    """The outputs, detached from the graph that computed them."""
    return _each_tensor(outputs, Tensor.detach)


def _copied(outputs):
    """Copies of the outputs, which the next step does not overwrite."""
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
