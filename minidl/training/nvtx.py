"""Named ranges for NVIDIA's profilers, Nsight Systems and Nsight Compute."""

import contextlib
from collections.abc import Callable, Iterator

from minidl.autograd import Node
from minidl.nn.module import Module
from minidl.system.gpu import select_gpu
from minidl.tensor import Tensor
from minidl.training.watch import names_of_layers


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
    time_range = _time_range()
    names = names_of_layers(model)
    for module, name in names.items():
        module.forward = _named(module, name, time_range)
    try:
        yield
    finally:
        for module in names:
            del module.forward  # the class has the method


def _time_range() -> Callable:
    """CuPy's `time_range(name)`, a context manager."""
    select_gpu("cuda")
    from cupyx.profiler import time_range  # imported on first use, because it needs CuPy

    return time_range


def _named(module: Module, label: str, time_range: Callable) -> Callable:
    """The module's forward inside a range. If it has no submodules, its backward will run inside another."""
    forward, has_children = module.forward, any(module.children())

    def named_forward(*inputs, **options):
        with time_range(label):
            output = forward(*inputs, **options)
        if not has_children and isinstance(output, Tensor) and all(output is not x for x in inputs):
            _name_backward(output, f"{label} backward", time_range)
        return output

    return named_forward


def _name_backward(output: Tensor, label: str, time_range: Callable) -> None:
    """Let the backward of the op that computed this tensor run inside a range."""
    node = output._node
    if not isinstance(node, Node):  # it requires no gradient
        return
    backward = node.backward

    def named_backward(grad):
        with time_range(label):
            return backward(grad)

    node.backward = named_backward
