"""Files of whole networks, and the errors of export."""

import sys

import numpy as np
import onnx
import pytest
from models.localization import box_network, small_vgg
from models.resnet import cifar_resnet, imagenet_resnet
from models.speedrun import speedrun
from models.vgg import DenseVGG, vgg

import minidl
import minidl.onnx
from minidl import Parameter, Tensor, functional, nn
from tests.onnx.compare import Layer, assert_same, run

NETWORKS = {
    "resnet20": (lambda: cifar_resnet(20), 32),
    "resnet20, shortcut B": (lambda: cifar_resnet(20, "B"), 32),
    "resnet20, shortcut C": (lambda: cifar_resnet(20, "C"), 32),
    "resnet20, recomputed": (lambda: cifar_resnet(20, recompute=True), 32),
    "plain20": (lambda: cifar_resnet(20, "none"), 32),
    "resnet18": (lambda: imagenet_resnet(18, num_classes=10), 64),
    "resnet18, shortcut A": (lambda: imagenet_resnet(18, "A", num_classes=10), 64),
    "resnet50": (lambda: imagenet_resnet(50), 64),
    "resnet50, the paper's": (lambda: imagenet_resnet(50, variant="he2015", num_classes=10), 64),
    "plain18": (lambda: imagenet_resnet(18, "none", num_classes=10), 64),
    "vgg A-LRN": (lambda: vgg("A-LRN", num_classes=10, image_size=32), 32),
    "vgg D": (lambda: vgg("D", num_classes=10, image_size=32), 32),
    "vgg C with batch norm": (lambda: vgg("C", True, num_classes=10, image_size=32), 32),
    "vgg with large layers": (lambda: vgg("A", num_classes=10, image_size=64), 64),
    "dense vgg": (lambda: DenseVGG(vgg("A", num_classes=10, image_size=64)), 96),
    "localisation": (lambda: small_vgg(10), 48),
    "boxes": (lambda: box_network(small_vgg(10), 3), 48),
    "dense localisation": (lambda: DenseVGG(small_vgg(10)), 80),
    "speedrun": (speedrun, 32),
}


def images(size, count=2):
    return np.random.default_rng(0).standard_normal((count, size, size, 3)).astype(np.float32)


def trained_a_little(model, x):
    """The model after one look at images: its running statistics are no longer those of a new one."""
    model.train()(Tensor(x))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_of_the_examples_is_the_same_in_onnxruntime(name, tmp_path):
    build, size = NETWORKS[name]
    model = trained_a_little(build(), images(size, 4))
    assert_same(model, images(size), tmp_path / "model.onnx", tolerance=1e-4)


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """(the model, its file)."""
    path = tmp_path_factory.mktemp("onnx") / "resnet50.onnx"
    model = imagenet_resnet(50)
    minidl.onnx.export(model, Tensor(images(64)), path)
    return model, onnx.load(path)


def shape_of(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_input_and_output_have_names_and_a_free_batch_size(resnet50):
    graph = resnet50[1].graph
    assert [(value.name, shape_of(value)) for value in graph.input] == [("input", ["batch", 3, 64, 64])]
    assert [(value.name, shape_of(value)) for value in graph.output] == [("output", ["batch", 1000])]


def test_the_file_is_valid_and_says_the_shape_of_every_value(resnet50):
    file = resnet50[1]
    assert [opset.version for opset in file.opset_import] == [minidl.onnx.OPSET]
    onnx.checker.check_model(file, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(file, strict_mode=True)
    for graph in (file.graph, inferred.graph):
        shapes = {value.name: shape_of(value) for value in [*graph.value_info, *graph.output]}
        assert shapes.keys() == {node.output[0] for node in graph.node}
        assert all(shape[0] == "batch" and all(shape) for shape in shapes.values())


def test_the_checker_and_the_inference_of_shapes_copy_no_large_arrays(tmp_path, monkeypatch):
    """Each copies the model, which for a VGG is half a gigabyte."""
    sizes = []

    def watched(function):
        return lambda model, **options: sizes.append(model.ByteSize()) or function(model, **options)

    for place, name in ((onnx.checker, "check_model"), (onnx.shape_inference, "infer_shapes")):
        monkeypatch.setattr(place, name, watched(getattr(place, name)))
    minidl.onnx.export(imagenet_resnet(18, num_classes=10), Tensor(images(32)), tmp_path / "model.onnx")
    assert len(sizes) == 2 and max(sizes) < 100_000 < (tmp_path / "model.onnx").stat().st_size


def test_a_resnet_has_the_nodes_that_one_would_write_by_hand(resnet50):
    operators = [node.op_type for node in resnet50[1].graph.node]
    assert operators[:4] == ["Conv", "BatchNormalization", "Relu", "MaxPool"]
    assert operators[-4:] == ["GlobalAveragePool", "Flatten", "Gemm", "Identity"]
    assert "Transpose" not in operators and operators.count("Conv") == 53
    assert "layer1.0.conv2/Conv" in [node.name for node in resnet50[1].graph.node]


@pytest.mark.parametrize("name", ["resnet50", "vgg with large layers", "speedrun", "localisation"])
def test_parameters_and_buffers_have_their_names_and_layouts_of_the_state_dict(name, tmp_path):
    build, size = NETWORKS[name]
    model = trained_a_little(build(), images(size, 4))
    minidl.onnx.export(model, Tensor(images(size)), tmp_path / "model.onnx")
    stored = {
        array.name: onnx.numpy_helper.to_array(array) for array in onnx.load(tmp_path / "model.onnx").graph.initializer
    }
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(stored[name], array)


def test_a_shared_layer_is_stored_once(tmp_path):
    layer = nn.Conv2d(3, 3, 3, padding=1)
    minidl.onnx.export(nn.Sequential(layer, nn.ReLU(), layer), Tensor(images(8)), tmp_path / "model.onnx")
    names = [array.name for array in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert sorted(names) == ["0.bias", "0.weight"]


def test_the_model_is_left_as_it_was(tmp_path):
    model = cifar_resnet(8)
    model.layer1.eval()
    before, modes = model.state_dict(), [module.training for _, module in model.named_modules()]
    minidl.onnx.export(model, Tensor(images(32)), tmp_path / "model.onnx")
    assert [module.training for _, module in model.named_modules()] == modes and len(set(modes)) == 2
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert model(Tensor(images(32)))._node is not None


def test_vectors_stay_as_they_are(tmp_path):
    assert_same(nn.Linear(4, 3), np.ones((2, 4), np.float32), tmp_path / "model.onnx")


# -- operations of your own --------------------------------------------------------------------------------------------


class Swish(minidl.Function):
    """y = x sigmoid(x)."""

    @staticmethod
    def forward(ctx, x):
        return x / (1 + np.exp(-x))


def test_an_operation_of_your_own_needs_a_converter(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Layer(lambda x: minidl.apply(Swish, x)))
    with pytest.raises(
        ValueError, match=r"export: Swish, in layer '1': it has no ONNX form; .* minidl\.onnx\.converts"
    ):
        minidl.onnx.export(model, Tensor(images(8)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(minidl.onnx.graph, "CONVERTERS", minidl.onnx.graph.CONVERTERS)  # for what follows only
    monkeypatch.setitem(minidl.onnx.graph.CONVERTERS, Swish, None)

    @minidl.onnx.converts(Swish)
    def swish(graph, y, x):
        name = graph.as_stored(x)
        return graph.node("Mul", name, graph.node("Sigmoid", name)), x.is_image

    assert_same(model, images(8), tmp_path / "model.onnx")


# -- errors ------------------------------------------------------------------------------------------------------------

TABLE = Parameter(np.arange(12, dtype=np.float32).reshape(4, 3))
REFUSED = {
    "a comparison": (lambda x: minidl.where(x > 0, x, 0.1 * x), "Where, in layer '0': its condition changes"),
    "an argmax": (lambda x: TABLE[x.argmax(1)], "GetItem, in layer '0': "),
    "numpy": (
        lambda x: x + Tensor(x.numpy().mean(keepdims=True)),
        "Add, in layer '0': an input of it changes with the network's input or",
    ),
    "the mean over the batch": (lambda x: x - x.mean(0), "Div, in layer '0': an input of it changes"),
    "half of the batch": (lambda x: x[: len(x) // 2 + 1], "GetItem, in layer '0': its index changes"),
    "two open lengths": (
        lambda x: (x @ x.T).reshape(1, -1).reshape(len(x), len(x)),
        "Reshape, in layer '0': it has no ONNX form; more than one length",
    ),
    "other operations for another batch size": (lambda x: x * 2 if len(x) == 2 else x + 1, "runs other operations"),
    "no operation": (lambda x: x, "the model's output is not the result of an operation"),
    "an argmax as the output": (lambda x: x.argmax(1), "the model's output is not the result of an operation"),
    "a constant": (lambda x: TABLE * 2, "the model's output does not depend on its input"),
    "batch statistics": (
        lambda x: functional.batch_norm(x, Tensor(np.ones(3, np.float32)), Tensor(np.zeros(3, np.float32))),
        "BatchNorm, in layer '0'.*training=False",
    ),
}


@pytest.mark.parametrize("function, message", REFUSED.values(), ids=REFUSED)
def test_what_onnx_would_not_repeat_is_an_error_and_no_file(function, message, tmp_path):
    model = nn.Sequential(Layer(function, TABLE=TABLE))
    model.train()
    with pytest.raises(ValueError, match=f"^export: .*{message}"):
        minidl.onnx.export(model, Tensor(images(6).reshape(-1, 3)[:2]), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir()) and model.training


def test_two_outputs_are_an_error(tmp_path):
    with pytest.raises(TypeError, match="export: the model's output: expected a Tensor, got tuple"):
        minidl.onnx.export(Layer(lambda x: (x, x)), Tensor([[1.0]]), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "model, example, message",
    [
        (lambda x: x, Tensor([[1.0]]), "export: expected a Module, got function"),
        (nn.ReLU(), np.ones((1, 2)), "export: expected a Tensor, got ndarray"),
        (nn.ReLU(), Tensor([[1]]), "export: expected an example batch of floats .* got int64"),
        (nn.ReLU(), Tensor(1.0), r"export: expected an example batch of floats .* got float32 \(\)"),
    ],
)
def test_wrong_arguments(model, example, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        minidl.onnx.export(model, example, tmp_path / "model.onnx")


def test_the_path_is_that_of_a_file(tmp_path):
    for path in ("", tmp_path):
        with pytest.raises(ValueError, match=f"export: expected the path of a file, got '{path}'"):
            minidl.onnx.export(nn.ReLU(), Tensor([[1.0]]), path)


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RuntimeError, match=r'export needs the package onnx: pip install "minidl\[onnx\]"'):
        minidl.onnx.export(nn.ReLU(), Tensor([[1.0]]), tmp_path / "model.onnx")


def test_a_model_on_the_device(device, tmp_path):
    model = cifar_resnet(8).to(device).eval()
    minidl.onnx.export(model, Tensor(images(32), device=device), tmp_path / "model.onnx")
    expected = model(Tensor(images(32, 3), device=device)).numpy()
    np.testing.assert_allclose(
        run(tmp_path / "model.onnx", images(32, 3)), expected, atol=1e-4 * np.abs(expected).max()
    )
