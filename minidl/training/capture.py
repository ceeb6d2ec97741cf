"""A training step as one CUDA graph: launched as a whole, without Python between its kernels."""

from collections.abc import Callable

import numpy as np

from minidl.kernels import cuda_graphs, device_of
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

    The first two calls run the function as it is, the third captures it, and from then on the function is not called
    any more: the GPU repeats what it did. So

    - tensors and arrays go in as arguments, each always of the same shape and dtype, from the host or the device;
      other arguments are constants. For a smaller last batch call `step.function(images, labels)`;
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
        self._calls = 0
        self._expected: list[tuple] = []  # of each argument what must not change
        self._buffers: dict[int, object] = {}  # for each argument that is an array, where the graph reads it
        self._outputs = None

    def __call__(self, *arguments):
        self._take(arguments)
        if self._calls < WARM_UP_CALLS:
            outputs = self._graph.run(lambda: _detached(self._call_function(arguments)))
        else:
            if self._calls == WARM_UP_CALLS:
                self._outputs = self._capture(arguments)
            self._graph.launch()
            outputs = self._outputs
        self._calls += 1
        return _copied(outputs)

    def _take(self, arguments: tuple) -> None:
        """Check the arguments, and copy the arrays among them to where the graph reads them."""
        facts = [_facts(argument) for argument in arguments]
        if self._calls == 0:
            arrays = {i: argument for i, argument in enumerate(arguments) if not isinstance(argument, CONSTANTS)}
            self._buffers = {i: cuda_graphs().InputBuffer(x.shape, x.dtype) for i, x in arrays.items()}
            self._expected = facts
        if facts != self._expected:
            raise ValueError(
                f"cuda_graph: expected the arguments {_describe(self._expected)} of the first call, got "
                f"{_describe(facts)}; call step.function(...) for others, as a smaller last batch"
            )
        for i, buffer in self._buffers.items():
            buffer.fill(arguments[i].data if isinstance(arguments[i], Tensor) else arguments[i])

    def _call_function(self, arguments: tuple):
        """The function's outputs for what the buffers hold."""
        inputs = list(arguments)
        for i, buffer in self._buffers.items():
            inputs[i] = Tensor(buffer.array) if isinstance(arguments[i], Tensor) else buffer.array
        return self.function(*inputs)

    def _capture(self, arguments: tuple):
        def call():
            draws = draws_so_far()
            outputs = _detached(self._call_function(arguments))
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


def _facts(argument) -> tuple:
    """What must be the same in every call: an array's shape and dtype, a constant itself."""
    if isinstance(argument, CONSTANTS):
        return type(argument).__name__, argument
    if isinstance(argument, Tensor):
        if argument.requires_grad:
            raise ValueError("cuda_graph: an argument requires grad, which would not reach it; pass argument.detach()")
    elif not isinstance(argument, np.ndarray) and device_of(argument) == "cpu":
        raise TypeError(
            f"cuda_graph: expected tensors, arrays, numbers and strings as arguments, got {type(argument).__name__}; "
            "let the function find it where it is defined"
        )
    return "Tensor" if isinstance(argument, Tensor) else "array", argument.shape, str(argument.dtype)


def _describe(facts: list[tuple]) -> str:
    return "(" + ", ".join(" ".join(map(str, fact)) for fact in facts) + ")"


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
