"""Named ranges for NVIDIA's profilers, Nsight Systems and Nsight Compute."""

import contextlib
import functools
from collections.abc import Callable, Iterator

from minidl.autograd import Node
from minidl.nn.module import Module
from minidl.system.gpu import select_gpu
from minidl.tensor import Tensor
from minidl.training.watch import wrap_layers


@contextlib.contextmanager
def emit_nvtx(model: Module) -> Iterator[None]:
    """Inside the `with` block each layer's forward and backward is an NVTX range with the layer's name.

    A profiler shows the ranges above the kernels that were launched inside them::

        with minidl.emit_nvtx(model):
            train_step(images, labels)

        nsys profile --trace=cuda,nvtx python train.py

    The names are as in `model.named_modules()`. "layer1.0.conv1 backward" is the backward pass of a layer without
    submodules. A captured step (`cuda_graph`) launches its kernels without Python: profile `step.function`.
    Outside the block nothing is recorded, and it costs nothing. Raises RuntimeError without device 'cuda'.
    """
    with wrap_layers(model, functools.partial(_in_a_range, _time_range())):
        yield


def _time_range() -> Callable:
    """CuPy's `time_range(name)`, a context manager."""
    select_gpu("cuda")
    from cupyx.profiler import time_range  # imported on first use, because it needs CuPy

    return time_range


def _in_a_range(time_range: Callable, name: str, layer: Module, forward: Callable) -> Callable:
    """Return `forward` inside a range. If the layer has no submodules, its backward will run inside another."""
    has_children = any(layer.children())

    def forward_in_a_range(*inputs, **options):
        with time_range(name):
            output = forward(*inputs, **options)
        if not has_children and isinstance(output, Tensor) and all(output is not x for x in inputs):
            _put_backward_in_a_range(time_range, f"{name} backward", output)
        return output

    return forward_in_a_range


def _put_backward_in_a_range(time_range: Callable, name: str, output: Tensor) -> None:
    """Let the backward of the op that computed this tensor run inside a range."""
    node = output._node
    if not isinstance(node, Node):  # it requires no gradient
        return
    backward = node.backward

    def backward_in_a_range(grad):
        with time_range(name):
            return backward(grad)

    node.backward = backward_in_a_range
