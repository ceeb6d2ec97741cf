"""A whole training step as one CUDA graph."""

from collections.abc import Callable

import numpy as np

from minidl.kernels import device_of, to_device
from minidl.kernels.copy_ring import CopyRing
from minidl.kernels.recording import Recording
from minidl.tensor import Tensor

WARMUP_CALLS = 2  # one compiles the kernels; the other finds the memory as each later one will


def cuda_graph(step: Callable) -> "CudaGraph":
    """The step, recorded on a GPU and replayed: small networks spend most of a step waiting for the host's launches.

        def train_step(images, labels):
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        step = minidl.cuda_graph(train_step)
        for images, labels in loader:
            optimizer.lr = schedule(...)
            loss = step(images, labels)

    `step` takes tensors or arrays, of the host or the device, and returns tensors, arrays, a tuple of them, or None.
    Its first two calls are ordinary ones; the third records it, and from then on it is replayed with the numbers given
    to each call, bit for bit what ordinary calls compute. In between, Python is not asked: a branch, a print or a
    counter inside `step` has no effect any more, and all numbers that change must be arrays on the device, as the
    learning rate, Adam's count of steps and the key of dropout are.

    Raises, when called:
        ValueError: inputs differ in shape or dtype from those of the first call; call `.step` for them.
        RuntimeError: there is no GPU, or `step` does what cannot be recorded: reading a number, copying from the host.
    """
    return CudaGraph(step)


class CudaGraph:
    """A recorded step: see `cuda_graph`. `step` is the ordinary one."""

    def __init__(self, step: Callable):
        self.step = step
        self._recording, self._copies = Recording(), CopyRing()
        self._inputs: tuple | None = None  # arrays that keep their place on the device, which the graph reads
        self._calls, self._outputs = 0, None

    def __call__(self, *inputs):
        self._take(inputs)
        self._calls += 1
        if self._calls <= WARMUP_CALLS:
            return _copy(self._recording.rehearse(lambda: self.step(*self._as_given(inputs))))
        if self._calls == WARMUP_CALLS + 1:
            self._record(inputs)
        self._recording.replay()
        return _copy(self._outputs)

    def _take(self, inputs: tuple) -> None:
        """Copy the inputs to where the graph reads them."""
        arrays = tuple(value.data if isinstance(value, Tensor) else value for value in inputs)
        for array in arrays:
            if not hasattr(array, "dtype"):
                raise TypeError(
                    f"cuda_graph: expected tensors or arrays as inputs, got {type(array).__name__}; bind other "
                    "arguments with functools.partial, as they cannot change from call to call"
                )
        if self._inputs is None:
            self._inputs = tuple(to_device(array, "cuda").copy() for array in arrays)
            return
        self._check(arrays)
        on_host = tuple(np.ascontiguousarray(array) for array in arrays if device_of(array) == "cpu")
        copied = iter(self._copies.copy(on_host) if on_host else ())
        for ours, array in zip(self._inputs, arrays, strict=True):
            ours[...] = next(copied) if device_of(array) == "cpu" else array

    def _check(self, arrays: tuple) -> None:
        def described(values):
            return ", ".join(f"{array.dtype} {array.shape}" for array in values)

        if described(arrays) != described(self._inputs):
            raise ValueError(
                f"cuda_graph: expected inputs like those of the first call, {described(self._inputs)}, got "
                f"{described(arrays)}; for another shape call .step, or make another graph"
            )

    def _as_given(self, inputs: tuple) -> list:
        """Our arrays, as tensors where tensors were given."""
        pairs = zip(self._inputs, inputs, strict=True)
        return [Tensor(array) if isinstance(value, Tensor) else array for array, value in pairs]

    def _record(self, inputs: tuple) -> None:
        try:
            self._outputs = self._recording.record(lambda: self.step(*self._as_given(inputs)))
        except Exception as error:
            self._calls -= 1  # the next call tries again
            raise RuntimeError(
                f"cuda_graph: the step cannot be recorded: {error}. Read numbers (.item(), .numpy(), print) and set "
                "the learning rate outside of it, and keep its data on the device"
            ) from error


def _copy(output):
    """Copies of what the step returned, as the next call writes to the same memory."""
    if isinstance(output, tuple):
        return tuple(map(_copy, output))
    if output is None:
        return None
    return Tensor(output.data.copy()) if isinstance(output, Tensor) else output.copy()
