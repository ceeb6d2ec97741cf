"""An ONNX graph under construction, and the table of converters that write operations into it.

ONNX has images as (N, C, H, W), minidl as (N, H, W, C). The graph keeps the images of a network in ONNX's order, so
that a convolution needs no transposition. Converters ask for a value in the order that they need: see `Value`.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import numpy as np

from minidl.nn.layout import ConvWeight
from minidl.ops.function import Function

OPSET = 20  # of December 2023, the first with GELU
IR_VERSION = 9  # the file format of that time

TO_CHANNELS_FIRST = (0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
TO_CHANNELS_LAST = (0, 2, 3, 1)


def require_onnx() -> ModuleType:
    """Import and return the package onnx. Raise RuntimeError with the remedy if it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise RuntimeError(f'export needs the package onnx: pip install "minidl[onnx]"; {error}') from error
    return onnx


@dataclasses.dataclass(frozen=True)
class Value:
    """The result of an operation, the network's input, or a constant.

    Attributes:
        name: its name in the ONNX graph; of a parameter or buffer that in state_dict().
        shape: in minidl's order. A length that depends on the batch size is a formula, such as "batch" or "4*batch".
        dtype: of its elements.
        is_image: True if ONNX has it as (N, C, H, W), where minidl has (N, H, W, C).
        array: the values of a constant, in minidl's order; None for what depends on the network's input.
        layout: of a parameter, how state_dict() stores it: see `minidl.nn.layout`.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype
    is_image: bool = False
    array: np.ndarray | None = None
    layout: object | None = None

    def axis(self, dim: int) -> int:
        """Return where dimension `dim` of minidl's order is in the ONNX graph."""
        dim %= len(self.shape)
        return TO_CHANNELS_FIRST.index(dim) if self.is_image else dim

    @property
    def onnx_shape(self) -> tuple[int | str, ...]:
        """The shape in the ONNX graph."""
        return tuple(self.shape[dim] for dim in TO_CHANNELS_FIRST) if self.is_image else self.shape


class Graph:
    """The nodes and constants so far."""

    def __init__(self):
        self.nodes: list = []
        self.initializers: dict[str, np.ndarray] = {}
        self.layer = ""  # the layer whose operation is being converted: nodes are named after it
        self._names: set[str] = set()
        self._transposed: dict[tuple[str, tuple[int, ...]], str] = {}
        self._images: dict[str, Value] = {}  # {name of a flattened image: the image}

    # -- what converters call ------------------------------------------------------------------------------------------

    def node(self, operator: str, *inputs: str, **attributes) -> str:
        """Append a node of an ONNX operator, and return the name of its output. The input "" is an absent one."""
        name = self.unique(f"{self.layer}/{operator}" if self.layer else operator)
        self.nodes.append(require_onnx().helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array, dtype=None, name: str = "constant") -> str:
        """Add an array to the graph, and return its name. The same array under the same name is added once."""
        array = np.asarray(array, dtype)
        known = self.initializers.get(name)
        if known is not None and known.dtype == array.dtype and np.array_equal(known, array):
            return name
        name = self.unique(name)
        self.initializers[name] = array
        return name

    def plain(self, x: Value) -> str:
        """Return the name of x in minidl's order of dimensions."""
        if x.array is not None:
            is_stored_so = x.layout is None or x.array.ndim < 2
            return self.constant(x.array, name=x.name if is_stored_so else f"{x.name}/in minidl's layout")
        return self.transpose(x.name, TO_CHANNELS_LAST) if x.is_image else x.name

    def channels_first(self, x: Value) -> str:
        """Return the name of x as (N, C, H, W). Constants with fewer dimensions become what broadcasts alike."""
        if x.array is not None:
            if x.array.ndim == 0:
                return self.plain(x)
            image = x.array.reshape((1,) * (4 - x.array.ndim) + x.array.shape)
            return self.constant(image.transpose(TO_CHANNELS_FIRST), name=f"{x.name}/channels first")
        return x.name if x.is_image else self.transpose(x.name, TO_CHANNELS_FIRST)

    def as_stored(self, x: Value) -> str:
        """Return the name of x in whichever order the graph has it, for element-wise operations."""
        return x.name if x.is_image else self.plain(x)

    def convolution_weight(self, weight: Value) -> str:
        """Return the name of a weight (KH, KW, C, O) as (O, C, KH, KW)."""
        if weight.array is None:
            return self.transpose(self.plain(weight), (3, 2, 0, 1))
        return self.constant(ConvWeight().to_file(weight.array), name=weight.name)

    def transpose(self, name: str, order: tuple[int, ...]) -> str:
        """Return the name of a transposed value. Each is transposed once."""
        if (name, order) not in self._transposed:
            self._transposed[name, order] = self.node("Transpose", name, perm=list(order))
        return self._transposed[name, order]

    def note_flattened(self, name: str, image: Value) -> None:
        """Remember that the value `name`, (N, H*W*C), is this image, flattened."""
        self._images[name] = image

    def flattened_channels_first(self, x: Value, size: tuple[int, int, int]) -> str:
        """Return the name of x (N, H*W*C), for an image of size (H, W, C), in the order (N, C*H*W)."""
        image = self._images.get(x.name)
        if image is None or image.shape[1:] != size:
            name = self.node("Reshape", self.plain(x), self.constant([0, *size], "int64"))
            return self.node("Flatten", self.transpose(name, TO_CHANNELS_FIRST), axis=1)
        return self.node("Flatten", self.channels_first(image), axis=1)

    # -- what the exporter calls ---------------------------------------------------------------------------------------

    def unique(self, name: str) -> str:
        """Return the name, with a number if it is taken, and take it."""
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    def drop_unused(self, output: str) -> None:
        """Remove all nodes and constants that the output does not depend on."""
        needed, kept = {output}, []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.initializers = {name: array for name, array in self.initializers.items() if name in needed}


class NoOnnxFormError(ValueError):
    """Raised by a converter for hyper-parameters that ONNX cannot express. The exporter adds operation and layer."""


# {operation: the function that writes it into a graph}
CONVERTERS: dict[type[Function], Callable] = {}


def converts(*functions: type[Function]) -> Callable:
    """Register the converter of operations: a decorator. Use it for operations of your own, too.

        @minidl.onnx.converts(Swish)
        def swish(graph, y, x):
            name = graph.as_stored(x)
            return graph.node("Mul", name, graph.node("Sigmoid", name)), x.is_image

    The function receives the graph, the result y (a Value without a name), the inputs (Values, or None), and the
    hyper-parameters of `forward` as keywords. It appends nodes, and returns the name of the last one's output and
    whether that is an image in the order (N, C, H, W).
    """

    def register(converter: Callable) -> Callable:
        CONVERTERS.update(dict.fromkeys(functions, converter))
        return converter

    return register
