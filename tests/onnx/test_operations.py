"""The converter of each operation: onnxruntime computes what minidl does."""

import itertools

import numpy as np
import pytest

import minidl
import minidl.onnx
from minidl import Parameter, Tensor, functional, nn
from minidl.functional import softmax
from minidl.onnx.graph import CONVERTERS
from minidl.onnx.operations import WITHOUT_ONNX
from tests.onnx.compare import Layer, assert_same
from tests.ops.test_every_op import CASES, OPERATIONS, nodes_below

# Cases of converted operations that ONNX has no operator for, and the reason in the error.
WITHOUT_OPERATOR = {
    "x[two lists with repeats]": "GetItem, .* use a single array",
    "x[two lists with repeats, on the device]": "GetItem, .* use a single array",
    "x[a mask]": "GetItem, .* with a mask",
    "x[a mask, on the device]": "GetItem, .* with a mask",
    "4 of 6 channels, {'alpha': 0.5}": "LocalResponseNorm, .* use an odd size",
}


class CaseModule(nn.Module):
    """A case of tests/ops. Its inputs are parameters, plus 0 times the network's input."""

    def __init__(self, case):
        self.case = case
        self.inputs = [Parameter(array.astype(np.float32)) for array in case.arrays()]

    def forward(self, x):
        pixel = x[:1] * 0  # (1, 1, 1, 1): with it, four dimensions are an image in the file
        return self.case.ours(*(p + (pixel if p.ndim == 4 else pixel.sum()) for p in self.inputs))


def test_every_operation_has_a_converter_or_a_reason_why_not():
    defined = {
        function for function in minidl.Function.__subclasses__() if function.__module__.startswith("minidl.ops")
    }
    assert {function.__module__.split(".")[-1] for function in defined} == {*OPERATIONS}
    converted = {function for function in CONVERTERS if function.__module__.startswith("minidl.ops")}
    assert converted == defined - {*WITHOUT_ONNX}
    assert WITHOUT_ONNX.keys() <= defined


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{name}: {case}") for name, case in CASES])
def test_each_case_of_an_operation_is_the_same_in_onnxruntime_or_an_error_names_it(case, tmp_path):
    model, example = CaseModule(case), np.ones((2, 1, 1, 1), np.float32)
    names = {node.name for node in nodes_below(model(Tensor(example))._node)}
    (refused,) = {function.__name__ for function in WITHOUT_ONNX} & names or {None}
    message = f"export: {refused}, in the model itself" if refused else WITHOUT_OPERATOR.get(case.name)
    if message is None:
        assert_same(model, example, tmp_path / "model.onnx")
        return
    with pytest.raises(ValueError, match=message):
        minidl.onnx.export(model, Tensor(example), tmp_path / "model.onnx")


def test_the_cases_without_an_operator_exist():
    assert WITHOUT_OPERATOR.keys() <= {case.name for _, case in CASES}


# -- images, in the order (N, C, H, W) ---------------------------------------------------------------------------------

CHANNELS = np.array([1.0, -2.0, 3.0], np.float32)
OF_IMAGES = {
    "relu": functional.relu,
    "a number": lambda x: 2 * x + 1,
    "a vector of channels": lambda x: x * Tensor(CHANNELS),
    "a row of pixels": lambda x: x + Tensor(np.arange(15, dtype=np.float32).reshape(5, 3)),
    "itself, in another order": lambda x: x + x.permute(0, 2, 1, 3),
    "one number for each image": lambda x: x * x.amax(dim=(1, 2, 3), keepdim=True),
    "a gate for each channel": lambda x: x * functional.global_avg_pool(x).sigmoid().reshape(-1, 1, 1, 3),
    "maximum": lambda x: minidl.maximum(x, 0.5),
    "clip": lambda x: x.clip(0.1, 0.5),
    "a power": lambda x: x**2,
    "gelu": lambda x: functional.gelu(x, "tanh"),
    "as float64": lambda x: x.to("float64"),
    "the last channel": lambda x: x[..., -1],
    "some channels": lambda x: x[..., [2, 0]],
    "every second pixel": lambda x: x[:, ::2, ::-1],
    "the image after the first pixel": lambda x: x[:, 1:, -3:],
    "a new dimension": lambda x: x[:, None],
    "flattened": functional.flatten,
    "flattened from the second dimension": lambda x: functional.flatten(x, 2),
    "products of all images": lambda x: functional.flatten(x) @ functional.flatten(x).T,
    "in rows": lambda x: x.reshape(len(x) * 25, 3),
    "transposed to (N, C, H, W)": lambda x: x.permute(0, 3, 1, 2),
    "one channel, flattened": lambda x: functional.flatten(x.sum(3, keepdim=True)),
    "the sum over the pixels": lambda x: x.sum((1, 2)),
    "the mean over the channels": lambda x: x.mean(-1, keepdim=True),
    "the largest channel": lambda x: x.amax(3),
    "the variance of each image": lambda x: x.var((1, 2, 3)),
    "joined channels": lambda x: minidl.cat([x, x * 2], 3),
    "joined with a constant": lambda x: minidl.cat([x, x.sum(3, keepdim=True) * 0, x], -1),
    "joined along the batch": lambda x: minidl.cat([x, -x], 0),
    "stacked": lambda x: minidl.stack([x, -x], 1),
    "padded channels": lambda x: functional.pad_channels(x, 1, 2),
    "softmax over the channels": softmax,
    "softmax over the rows": lambda x: softmax(x, 1),
    "attention": lambda x: softmax(x.reshape(-1, 25, 3) @ x.reshape(-1, 25, 3).permute(0, 2, 1)),
    "local response norm": lambda x: functional.local_response_norm(x, 3, 0.5, 0.6, 1.5),
}


@pytest.mark.parametrize("function", OF_IMAGES.values(), ids=OF_IMAGES)
def test_functions_of_images_for_any_batch_size(function, tmp_path, rng):
    example = rng.standard_normal((2, 5, 5, 3)).astype(np.float32)
    assert_same(Layer(function), example, tmp_path / "first.onnx")  # an image of ONNX
    assert_same(Layer(lambda x: function(x.reshape(x.shape))), example, tmp_path / "then.onnx")  # one of minidl's order


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kernel_size, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 3, 1), ((3, 2), (2, 3), (1, 0))])
def test_pooling_of_any_size(kernel_size, stride, padding, ceil_mode, tmp_path, rng):
    for size, counts_padding in itertools.product((5, 6, 7, 8), (False, True)):
        model = nn.Sequential(
            nn.MaxPool2d(kernel_size, stride, padding, ceil_mode),
            nn.AvgPool2d(kernel_size, 1, padding, ceil_mode, counts_padding),
        )
        pool = nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, counts_padding)
        example = rng.standard_normal((2, size, size + 1, 2)).astype(np.float32)
        assert_same(model, example, tmp_path / "model.onnx", sizes=[3])
        assert_same(pool, example, tmp_path / "model.onnx", sizes=[3])


LAYERS = {
    "a strided convolution": nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0)),
    "batch norm of vectors": nn.Sequential(nn.Flatten(), nn.BatchNorm2d(75)),
    "linear, flattened": nn.Sequential(nn.Flatten(), nn.Linear(75, 4, flattened_from=(5, 5, 3))),
    "linear, in minidl's order": nn.Sequential(nn.Flatten(), nn.Linear(75, 4)),
    "linear, after a ReLU": nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(75, 4, flattened_from=(5, 5, 3))),
    "dropout": nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(75, 4)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers(layer, tmp_path, rng):
    for buffer in dict(layer.named_buffers()).values():
        if buffer.is_floating_point():
            buffer.data[...] = rng.uniform(0.5, 2, buffer.shape)
    assert_same(layer, rng.standard_normal((2, 5, 5, 3)).astype(np.float32), tmp_path / "model.onnx")


def test_float64(tmp_path, rng):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU()).to("float64")
    assert_same(model, rng.standard_normal((2, 2, 2, 3)), tmp_path / "model.onnx", tolerance=1e-12)
