"""How each operation of `minidl.ops` is written in ONNX: one converter for each, or the reason why there is none.

A converter receives the graph, the result y, the inputs, and the hyper-parameters of the operation's `forward`. It
returns the name of its result and whether that is an image in ONNX's order: see `graph.converts`. The operators are
those of https://onnx.ai/onnx/operators.
"""

from collections.abc import Callable

import numpy as np

from minidl.nn.layout import LinearWeight
from minidl.onnx.graph import TO_CHANNELS_FIRST, Graph, NoOnnxFormError, Value, converts, require_onnx
from minidl.ops.activation import GELU, ReLU
from minidl.ops.arithmetic import (
    Add,
    Clip,
    Div,
    Exp,
    Log,
    MatMul,
    Maximum,
    Mul,
    Pow,
    Sigmoid,
    Sqrt,
    Sub,
    Tanh,
    Where,
)
from minidl.ops.batch_norm import BatchNorm, BatchNormEval
from minidl.ops.conv import Conv2d
from minidl.ops.convert import Cast, Move
from minidl.ops.dropout import Dropout
from minidl.ops.function import Function
from minidl.ops.linear import Linear
from minidl.ops.local_response_norm import LocalResponseNorm
from minidl.ops.loss import CrossEntropy, MSELoss
from minidl.ops.pad import PadChannels
from minidl.ops.pool import AvgPool2d, GlobalAvgPool, MaxPool2d
from minidl.ops.reduce import Max, Sum
from minidl.ops.shape import Cat, GetItem, Permute, Reshape
from minidl.ops.softmax import LogSoftmax, Softmax
from minidl.ops.upsample import UpsampleBilinear2d

Result = tuple[str, bool]  # the name, and whether it is (N, C, H, W)

# Operations without a converter: they belong to training.
WITHOUT_ONNX: dict[type[Function], str] = {
    BatchNorm: "it takes the statistics of the batch; use functional.batch_norm(training=False)",
    Dropout: "it draws random numbers; use nn.Dropout, which does nothing in evaluation",
    CrossEntropy: "it is a loss; export the network that computes the logits",
    MSELoss: "it is a loss; export the network without it",
}

# -- element by element ------------------------------------------------------------------------------------------------

OF_ONE_INPUT = {ReLU: "Relu", Exp: "Exp", Log: "Log", Sqrt: "Sqrt", Sigmoid: "Sigmoid", Tanh: "Tanh"}
OF_TWO_INPUTS = {Add: "Add", Sub: "Sub", Mul: "Mul", Div: "Div", Maximum: "Max"}  # which broadcast


def _of_one_input(operator: str) -> Callable[..., Result]:
    return lambda graph, y, x: (graph.node(operator, graph.as_stored(x)), x.is_image)


def _of_two_inputs(operator: str) -> Callable[..., Result]:
    def convert(graph: Graph, y: Value, a: Value, b: Value) -> Result:
        # The order of ONNX, if one of them is an image and the other one is another image or a constant.
        operands = a, b
        fit = len(y.shape) == 4 and all(x.array is not None or len(x.shape) == 4 for x in operands)
        if fit and any(x.is_image for x in operands):
            return graph.node(operator, *map(graph.channels_first, operands)), True
        return graph.node(operator, *map(graph.plain, operands)), False

    return convert


for _function, _operator in OF_ONE_INPUT.items():
    converts(_function)(_of_one_input(_operator))
for _function, _operator in OF_TWO_INPUTS.items():
    converts(_function)(_of_two_inputs(_operator))


@converts(GELU)
def _gelu(graph: Graph, y: Value, x: Value, *, approximate: str) -> Result:
    return graph.node("Gelu", graph.as_stored(x), approximate=approximate), x.is_image


@converts(Pow)
def _pow(graph: Graph, y: Value, x: Value, *, exponent: float) -> Result:
    return graph.node("Pow", graph.as_stored(x), graph.constant(exponent, y.dtype)), x.is_image


@converts(Clip)
def _clip(graph: Graph, y: Value, x: Value, *, low: float | None, high: float | None) -> Result:
    bounds = ["" if bound is None else graph.constant(bound, y.dtype) for bound in (low, high)]
    return graph.node("Clip", graph.as_stored(x), *bounds), x.is_image


@converts(Where)
def _where(graph: Graph, y: Value, a: Value, b: Value, *, condition) -> Result:
    return graph.node("Where", graph.constant(condition), graph.plain(a), graph.plain(b)), False


@converts(Cast)
def _cast(graph: Graph, y: Value, x: Value, *, dtype) -> Result:
    to = require_onnx().helper.np_dtype_to_tensor_dtype(dtype)
    return graph.node("Cast", graph.as_stored(x), to=to), x.is_image


@converts(Move)
def _move(graph: Graph, y: Value, x: Value, *, device: str) -> Result:
    return graph.node("Identity", graph.as_stored(x)), x.is_image


# -- layers ------------------------------------------------------------------------------------------------------------


@converts(Conv2d)
def _conv2d(graph: Graph, y: Value, x: Value, weight: Value, bias: Value | None, *, stride, padding) -> Result:
    inputs = [graph.channels_first(x), graph.convolution_weight(weight)]
    inputs += [] if bias is None else [graph.plain(bias)]
    options = {"kernel_shape": weight.shape[:2], "strides": stride, "pads": (*padding, *padding)}
    return graph.node("Conv", *inputs, **options), True


@converts(Linear)
def _linear(graph: Graph, y: Value, x: Value, weight: Value, bias: Value | None) -> Result:
    name, transposed = graph.plain(x), 0
    layout = weight.layout
    if isinstance(layout, LinearWeight) and weight.array is not None:  # a parameter: (out, in) as in the state dict
        if layout.flattened_from is not None:
            name = graph.flattened_channels_first(x, layout.flattened_from)
        matrix, transposed = graph.constant(layout.to_file(weight.array), name=weight.name), 1
    else:
        matrix = graph.plain(weight)
    return graph.node("Gemm", name, matrix, *([] if bias is None else [graph.plain(bias)]), transB=transposed), False


@converts(BatchNormEval)
def _batch_norm(graph: Graph, y: Value, x: Value, weight: Value, bias: Value, *, mean, variance, eps: float) -> Result:
    prefix = f"{graph.layer}." if graph.layer else ""
    running = [
        graph.constant(array, name=f"{prefix}{name}")
        for name, array in (("running_mean", mean), ("running_var", variance))
    ]
    is_image = len(x.shape) == 4
    name = graph.channels_first(x) if is_image else graph.plain(x)
    return graph.node(
        "BatchNormalization", name, graph.plain(weight), graph.plain(bias), *running, epsilon=eps
    ), is_image


@converts(LocalResponseNorm)
def _local_response_norm(graph: Graph, y: Value, x: Value, *, size: int, alpha: float, beta: float, k: float) -> Result:
    if size % 2 == 0:
        raise NoOnnxFormError(f"ONNX has other neighbours for an even size, {size}; use an odd size")
    options = {"size": size, "alpha": size * alpha, "beta": beta, "bias": k}  # ONNX divides alpha by the size
    return graph.node("LRN", graph.channels_first(x), **options), True


@converts(PadChannels)
def _pad_channels(graph: Graph, y: Value, x: Value, *, before: int, after: int) -> Result:
    axis, rank = x.axis(-1), len(x.shape)
    pads = np.zeros((2, rank), np.int64)  # at the beginning and at the end of each axis
    pads[:, axis] = before, after
    return graph.node("Pad", graph.as_stored(x), graph.constant(pads.ravel())), x.is_image


# -- pooling -----------------------------------------------------------------------------------------------------------


@converts(MaxPool2d)
def _max_pool2d(graph: Graph, y: Value, x: Value, *, kernel_size, stride, padding, ceil_mode: bool) -> Result:
    end = _padding_at_the_end(x, y, kernel_size, stride, padding)
    options = {"kernel_shape": kernel_size, "strides": stride, "pads": (*padding, *end)}
    return graph.node("MaxPool", graph.channels_first(x), **options), True


@converts(AvgPool2d)
def _avg_pool2d(
    graph: Graph, y: Value, x: Value, *, kernel_size, stride, padding, ceil_mode: bool, count_include_pad: bool
) -> Result:
    """With count_include_pad, a Pad of its own appends the zeros, so that they count like any other pixel.

    What a last window has beyond the padding, with ceil_mode, is padding of AveragePool, which never counts.
    """
    name, begin, end = graph.channels_first(x), padding, _padding_at_the_end(x, y, kernel_size, stride, padding)
    if count_include_pad and any(padding):
        name = graph.node("Pad", name, graph.constant([0, 0, *padding, 0, 0, *padding], "int64"))
        begin, end = (0, 0), tuple(more - zeros for more, zeros in zip(end, padding, strict=True))
    options = {"kernel_shape": kernel_size, "strides": stride, "pads": (*begin, *end)}
    return graph.node("AveragePool", name, **options, count_include_pad=0), True


def _padding_at_the_end(x: Value, y: Value, kernel_size, stride, padding) -> tuple[int, ...]:
    """Return the padding that the last windows need: with ceil_mode they may reach beyond that of the operation."""
    sizes, windows = ([int(length) for length in value.shape[1:3]] for value in (x, y))
    axes = zip(sizes, windows, kernel_size, stride, padding, strict=True)
    return tuple(max((count - 1) * step + kernel - size - pad, pad) for size, count, kernel, step, pad in axes)


@converts(GlobalAvgPool)
def _global_avg_pool(graph: Graph, y: Value, x: Value) -> Result:
    return graph.node("Flatten", graph.node("GlobalAveragePool", graph.channels_first(x)), axis=1), False


@converts(UpsampleBilinear2d)
def _upsample_bilinear2d(graph: Graph, y: Value, x: Value, *, output_size, step) -> Result:
    """Resize takes sizes or scales. A factor such as 1.3 is passed as a scale: its sizes, rounded, have another one."""
    name, options = graph.channels_first(x), {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if step == (x.shape[1] / output_size[0], x.shape[2] / output_size[1]):
        scales, sizes = "", graph.constant(list(output_size), "int64")
    else:
        scales, sizes = graph.constant([1 / step[0], 1 / step[1]], "float32"), ""
    return graph.node("Resize", name, "", scales, sizes, axes=[2, 3], **options), True


# -- sums and products -------------------------------------------------------------------------------------------------


@converts(MatMul)
def _matmul(graph: Graph, y: Value, a: Value, b: Value) -> Result:
    return graph.node("MatMul", graph.plain(a), graph.plain(b)), False


@converts(Sum)
def _sum(graph: Graph, y: Value, x: Value, *, dim, keepdim: bool) -> Result:
    return _reduce(graph, "ReduceSum", x, dim, keepdim)


@converts(Max)
def _max(graph: Graph, y: Value, x: Value, *, dim, keepdim: bool) -> Result:
    return _reduce(graph, "ReduceMax", x, dim, keepdim)


def _reduce(graph: Graph, operator: str, x: Value, dim: tuple[int, ...] | None, keepdim: bool) -> Result:
    dims = range(len(x.shape)) if dim is None else [d % len(x.shape) for d in dim]
    if keepdim:
        axes = graph.constant([x.axis(d) for d in dims], "int64")
        return graph.node(operator, graph.as_stored(x), axes, keepdims=1), x.is_image
    return graph.node(operator, graph.plain(x), graph.constant(list(dims), "int64"), keepdims=0), False


@converts(Softmax)
def _softmax(graph: Graph, y: Value, x: Value) -> Result:
    return graph.node("Softmax", graph.plain(x), axis=-1), False


@converts(LogSoftmax)
def _log_softmax(graph: Graph, y: Value, x: Value) -> Result:
    return graph.node("LogSoftmax", graph.plain(x), axis=-1), False


# -- shapes ------------------------------------------------------------------------------------------------------------


@converts(Reshape)
def _reshape(graph: Graph, y: Value, x: Value, **options) -> Result:
    """The length that grows with the batch is left open: 0 copies the length of x, -1 is computed from the others."""
    lengths: list[int] = []
    for i, length in enumerate(y.shape):
        copied = i < len(x.shape) and x.onnx_shape[i] == length
        lengths.append(length if isinstance(length, int) else 0 if copied else -1)
    if lengths.count(-1) > 1:
        raise NoOnnxFormError(f"more than one length of its result {y.shape} grows with the batch")
    # With one pixel, or one channel, both orders of the elements are the same.
    same_order = x.is_image and (x.shape[1:3] == (1, 1) or x.shape[3] == 1)
    name = graph.node("Reshape", x.name if same_order else graph.plain(x), graph.constant(lengths, "int64"))
    if len(x.shape) == 4 and len(y.shape) == 2 and x.shape[0] == y.shape[0]:
        graph.note_flattened(name, x)
    return name, False


@converts(Permute)
def _permute(graph: Graph, y: Value, x: Value, *, dims: tuple[int, ...]) -> Result:
    order = tuple(x.axis(dim) for dim in dims)
    name = graph.as_stored(x)
    return (name if order == tuple(range(len(dims))) else graph.transpose(name, order)), False


@converts(Cat)
def _cat(graph: Graph, y: Value, *tensors: Value, dim: int) -> Result:
    is_image = any(x.is_image for x in tensors)
    names = [graph.channels_first(x) if is_image else graph.plain(x) for x in tensors]
    axis = dim % len(y.shape)
    return graph.node("Concat", *names, axis=TO_CHANNELS_FIRST.index(axis) if is_image else axis), is_image


@converts(GetItem)
def _get_item(graph: Graph, y: Value, x: Value, *, index: tuple) -> Result:
    parts = _one_part_per_dimension(index, len(x.shape))
    selecting = [part for part in parts if part is not None]
    keeps_order = all(isinstance(part, slice) for part in parts)
    name = graph.as_stored(x) if keeps_order else graph.plain(x)
    slices = [(x.axis(d) if keeps_order else d, part) for d, part in enumerate(selecting) if isinstance(part, slice)]
    name = _slice(graph, name, [(axis, part) for axis, part in slices if part != slice(None)])
    for d in reversed(range(len(selecting))):  # the last first, as an integer removes its dimension
        if not isinstance(selecting[d], slice):
            name = graph.node("Gather", name, graph.constant(selecting[d], "int64"), axis=d)
    if len(selecting) < len(parts):  # each None is a new dimension
        dimensions = [1 if part is None or isinstance(part, slice) else np.ndim(part) for part in parts]
        new = [sum(dimensions[:i]) for i, part in enumerate(parts) if part is None]
        name = graph.node("Unsqueeze", name, graph.constant(new, "int64"))
    return name, x.is_image and keeps_order


def _one_part_per_dimension(index: tuple, rank: int) -> list:
    """Return an integer, slice, None or array of integers for each dimension, with the ellipsis written out."""
    index = tuple(int(part) if isinstance(part, np.integer) else part for part in index)
    index = tuple(np.asarray(part) if hasattr(part, "__len__") else part for part in index)
    arrays = [part for part in index if isinstance(part, np.ndarray)]
    has_integers = any(isinstance(part, int) for part in index)
    if len(arrays) > 1 or (arrays and has_integers) or any(array.dtype.kind not in "iu" for array in arrays):
        raise NoOnnxFormError("an index with a mask, or with an array beside integers or arrays; use a single array")
    if not any(part is Ellipsis for part in index):
        index = (*index, Ellipsis)
    at = next(i for i, part in enumerate(index) if part is Ellipsis)
    missing = rank - sum(part is not None for part in index) + 1
    return [*index[:at], *[slice(None)] * missing, *index[at + 1 :]]


def _slice(graph: Graph, name: str, slices: list[tuple[int, slice]]) -> str:
    """Append a Slice along these axes. ONNX cuts a start or an end beyond the array, as Python does."""
    if not slices:
        return name
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    rows = []
    for axis, part in slices:
        step = 1 if part.step is None else part.step
        first, last = (0, most) if step > 0 else (most, least)
        rows.append((first if part.start is None else part.start, last if part.stop is None else part.stop, axis, step))
    starts, ends, axes, steps = (graph.constant(column, "int64") for column in zip(*rows, strict=True))
    return graph.node("Slice", name, starts, ends, axes, steps)
