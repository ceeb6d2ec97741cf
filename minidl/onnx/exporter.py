"""Export a network: run it twice, and write down what it did.

Both runs are recorded, operation by operation: one with the example, one with other values and a larger batch. A length
that differs depends on the batch size, and stays free in the file. Any other difference means that the network
computes something outside of its operations, which ONNX would not repeat: an error.
"""

import dataclasses
from pathlib import Path

import numpy as np

from minidl.autograd import no_grad
from minidl.kernels import device_of, to_device
from minidl.nn.module import Module
from minidl.onnx.graph import CONVERTERS, IR_VERSION, OPSET, Graph, NoOnnxFormError, Value, require_onnx
from minidl.onnx.operations import WITHOUT_ONNX
from minidl.ops.shape import Reshape
from minidl.study.record import Input, Op, Recording, record
from minidl.system.files import write_whole
from minidl.tensor import Tensor, check_tensors

LARGE = 1024  # bytes: shapes, indices and other arrays on which the shape of a value can depend are smaller


def export(model: Module, example: Tensor, path: str | Path) -> None:
    """Write the network in evaluation mode to an ONNX file, with an open batch size.

        minidl.onnx.export(model, Tensor(images), "resnet50.onnx")
        onnxruntime.InferenceSession("resnet50.onnx").run(["output"], {"input": images.transpose(0, 3, 1, 2)})

    Where the network takes or returns four dimensions (N, H, W, C), the file's `input` or `output` is (N, C, H, W). All
    other shapes are as in minidl. Image size, channels and dtype are those of `example`, of which one row is enough;
    the batch size is free. Parameters and buffers have the names and layouts of state_dict(). The file has opset 20,
    which onnxruntime reads from version 1.17 on. Memory of the process, measured: for VGG-A 5.3 times the size of the
    file, for ResNet-50 6.4 times.

    Raises TypeError unless model is a Module and example a Tensor of floats, and ValueError for an operation without
    an ONNX form (it names the operation and its layer), or if the network computes something outside of its operations,
    such as a comparison or an argmax. RuntimeError: the package onnx is missing. No file is written then.
    """
    onnx = require_onnx()
    _check(model, example, path)
    modes = [(module, module.training) for _, module in model.named_modules()]
    try:
        model.eval()
        graph, x, y = _convert(model, example)
    finally:
        for module, mode in modes:
            module.training = mode
    file = _file(onnx, type(model).__name__, graph, x, y)
    write_whole(Path(path), file.SerializeToString())


def _check(model: Module, example: Tensor, path: str | Path) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"export: expected a Module, got {type(model).__name__}")
    check_tensors("export", example)
    if not Path(path).name or Path(path).is_dir():
        raise ValueError(f"export: expected the path of a file, got {str(path)!r}")
    if not example.is_floating_point() or example.ndim < 2 or not example.numel():
        raise TypeError(
            f"export: expected an example batch of floats such as (N, H, W, C), got {example.dtype} {example.shape}"
        )


# -- two runs ----------------------------------------------------------------------------------------------------------


def _run(model: Module, x: Tensor) -> tuple[Recording, Op]:
    """Return the recording of model(x), and the operation that computes the output."""
    with no_grad(), np.errstate(all="ignore"), record(model) as recording:
        output = model(x)
    check_tensors("export: the model's output", output)
    last = next((op for op in reversed(recording.ops) if op.value is output.data), None)
    if last is None:
        raise ValueError("export: the model's output is not the result of an operation such as those of functional")
    return recording, last


def _other(example: Tensor) -> Tensor:
    """Return a batch of more than twice the size, so that half of it differs too, with other values."""
    values = np.random.default_rng(0).standard_normal((2 * len(example) + 1, *example.shape[1:]))
    return Tensor(values, example.dtype, example.device)


def _convert(model: Module, example: Tensor) -> tuple[Graph, Value, Value]:
    """Return the graph, and the values of its input and of its output."""
    recording, last = _run(model, example)
    other, _ = _run(model, _other(example))
    functions, others = ([op.function.__name__ for op in run.ops] for run in (recording, other))
    if functions != others:
        raise ValueError("export: the model runs other operations for other values or another batch size")
    return _Converter(recording, other, last).graph_of(example)


class _Converter:
    """Goes through the operations of both recordings, and lets each one's converter write it into the graph."""

    def __init__(self, recording: Recording, other: Recording, last: Op):
        self.recording, self.other, self.last = recording, other, last
        self.graph = Graph()
        self.values: dict[Op | Input, Value] = {}
        self.layouts = {name: parameter.layout for name, parameter in recording.model.named_parameters()}

    def graph_of(self, example: Tensor) -> tuple[Graph, Value, Value]:
        """Return the graph, and the values of its input and of its output."""
        self.batch = len(example)
        shape: tuple[int | str, ...] = ("batch", *example.shape[1:])
        x = Value(self.graph.unique("input"), shape, example.dtype, is_image=example.ndim == 4)
        self.graph.unique("output")
        for op, other in zip(self.recording.ops, self.other.ops, strict=True):
            self.graph.layer = op.layer or ""
            inputs = [self._source(op, *pair, x) for pair in zip(op.inputs, other.inputs, strict=True)]
            self.values[op] = self._convert(op, other, inputs)
            if op is self.last:
                break
        y = self.values[self.last]
        if y.array is not None:
            raise ValueError("export: the model's output does not depend on its input")
        if len(y.shape) == 4 and not y.is_image:
            y = dataclasses.replace(y, name=self.graph.channels_first(y), is_image=True)
        self.graph.drop_unused(y.name)
        return self.graph, x, y

    def _source(self, op: Op, source: Op | Input | None, other: Op | Input | None, x: Value) -> Value | None:
        """Return the value of one input of an operation."""
        if source is None:
            return None
        if isinstance(source, Input) and source.kind == "input":
            return x
        if isinstance(source, Input) and source not in self.values:
            if not _equal(source.value, other.value):
                raise self._error(
                    op, "an input of it changes with the network's input or the batch size, outside of operations"
                )
            array = to_device(source.value, "cpu")
            name = source.name if source.kind in ("parameter", "buffer") else "constant"
            self.values[source] = Value(name, array.shape, array.dtype, False, array, self.layouts.get(name))
        return self.values[source]

    def _convert(self, op: Op, other: Op, inputs: list[Value | None]) -> Value:
        """Return the value of an operation's result, after its converter has appended the nodes."""
        is_constant = all(x is None or x.array is not None for x in inputs) and _equal(op.value, other.value)
        if is_constant:  # such as a reshaped weight
            array = to_device(op.value, "cpu")
            return Value(f"{inputs[0].name}/{op.function.__name__}", array.shape, array.dtype, False, array)
        shape = tuple(self._length(*pair) for pair in zip(op.shape, other.shape, strict=True))
        y = Value("", shape, op.dtype)
        converter = CONVERTERS.get(op.function)
        if converter is None:
            remedy = "write a converter for it: see minidl.onnx.converts"
            raise self._error(op, f"it has no ONNX form; {WITHOUT_ONNX.get(op.function, remedy)}")
        if op.function is not Reshape:  # whose lengths are those of y
            for name, value in op.hyperparameters.items():
                if not _equal(value, other.hyperparameters[name]):
                    raise self._error(op, f"its {name} changes with the network's input or the batch size")
        try:
            name, is_image = converter(self.graph, y, *inputs, **op.hyperparameters)
        except NoOnnxFormError as error:
            raise self._error(op, f"it has no ONNX form; {error}") from None
        return Value(name, shape, op.dtype, is_image)

    def _length(self, length: int, other: int) -> int | str:
        """Return a length of a shape. If the two runs differ, return a formula of the batch size, or a name."""
        if length == other:
            return length
        factor, rest = divmod(length, self.batch)
        if rest or other != factor * (2 * self.batch + 1):
            return f"length_{length}_{other}"
        return "batch" if factor == 1 else f"{factor}*batch"

    def _error(self, op: Op, what: str) -> ValueError:
        layer = f"layer {op.layer!r}" if op.layer else "the model itself"
        return ValueError(f"export: {op.function.__name__}, in {layer}: {what}")


def _equal(a, b) -> bool:
    """True if two values of a hyper-parameter are the same."""
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, np.ndarray) or device_of(a) == "cuda":
        return np.array_equal(to_device(a, "cpu"), to_device(b, "cpu"), equal_nan=True)
    return a == b


# -- the file ----------------------------------------------------------------------------------------------------------


def _file(onnx, name: str, graph: Graph, x: Value, y: Value):
    """Return the ONNX model of a graph from x to y, checked, with the shape of every value. Empties graph.initializers.

    The checker and the inference of shapes copy the model several times. So they get it with large arrays as inputs,
    of which they need the shapes alone, and the arrays are added to the result.
    """
    large = {name: array for name, array in graph.initializers.items() if array.nbytes > LARGE}
    file = _model(onnx, name, graph, x, y, large)
    onnx.checker.check_model(file)
    file = onnx.shape_inference.infer_shapes(file, strict_mode=True)
    del file.graph.input[1:]
    graph.initializers.clear()
    while large:  # each array is freed as soon as it is in the file
        name, array = large.popitem()
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        file.graph.initializer.add(name=name, dims=array.shape, data_type=kind, raw_data=raw_data)
    return file


def _model(onnx, name: str, graph: Graph, x: Value, y: Value, large: dict[str, np.ndarray]):
    """Return the ONNX model of a graph from x to y, with the `large` arrays as inputs."""

    def info(name: str, dtype: np.dtype, shape: tuple):
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)

    graph.nodes.append(onnx.helper.make_node("Identity", [y.name], ["output"], name="output"))
    inputs = [info("input", x.dtype, x.onnx_shape), *(info(name, a.dtype, a.shape) for name, a in large.items())]
    small = {name: array for name, array in graph.initializers.items() if name not in large}
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in small.items()]
    body = onnx.helper.make_graph(graph.nodes, name, inputs, [info("output", y.dtype, y.onnx_shape)], constants)
    opset = onnx.helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(body, producer_name="minidl", opset_imports=[opset], ir_version=IR_VERSION)
