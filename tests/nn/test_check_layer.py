"""minidl.testing.check_layer: right layers pass, and each thing that it promises to find is found."""

import copy

import numpy as np
import pytest

from examples.models.resnet import BasicBlock
from minidl import Function, Tensor, apply, nn
from minidl.functional import relu
from minidl.nn.module import Module
from minidl.tensor import Buffer, Parameter
from minidl.testing import GradientError, check_layer

LAYERS = [
    (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 5, 4, 3)),
    (lambda: nn.Conv2d(3, 2, 2, stride=2, bias=False), (1, 7, 5, 3)),
    (lambda: nn.Linear(6, 4), (3, 6)),
    (lambda: nn.BatchNorm2d(3), (4, 3, 3, 3)),
    (lambda: nn.ReLU(), (2, 3, 3, 2)),
    (lambda: nn.GELU(), (2, 3, 3, 2)),
    (lambda: nn.MaxPool2d(2), (2, 6, 4, 2)),
    (lambda: nn.AvgPool2d(2), (2, 6, 4, 2)),
    (lambda: nn.GlobalAvgPool(), (2, 5, 3, 2)),
    (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 2, 2)),
    (lambda: nn.Flatten(), (2, 2, 3, 2)),
    (lambda: nn.Dropout(0.5), (2, 4, 3)),
    (lambda: nn.LocalResponseNorm(3), (2, 2, 2, 5)),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()), (3, 5, 5, 3)),
]


def test_a_residual_block_passes_and_is_left_as_it_was():
    block = BasicBlock(4, 6, stride=2, shortcut="B").eval()
    before = copy.deepcopy(block.state_dict())
    check_layer(block, (2, 6, 6, 4))
    assert not block.training
    assert all(parameter.grad is None and parameter.dtype == np.float32 for parameter in block.parameters())
    for name, numbers in block.state_dict().items():
        assert np.array_equal(numbers, before[name])


class Square(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save(x, weight)
        return x * x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved
        return 2 * grad * x * weight, (grad * x * x).sum().reshape(1)


class WrongInput(Square):
    @staticmethod
    def backward(ctx, grad):
        of_x, of_weight = Square.backward(ctx, grad)
        return of_x / 2, of_weight


class WrongWeight(Square):
    @staticmethod
    def backward(ctx, grad):
        of_x, of_weight = Square.backward(ctx, grad)
        return of_x, -of_weight


class Scaled(Module):
    """y = x^2 scale."""

    def __init__(self, function=Square):
        self.function, self.scale = function, Parameter(np.full(1, 1.5, np.float32))
        self.count = Buffer(np.zeros(1, np.float32))

    def forward(self, x):
        return apply(self.function, x, self.scale)


class WrongInEvaluation(Scaled):
    def forward(self, x):
        return apply(Square if self.training else WrongInput, x, self.scale)


class Unused(Scaled):
    def forward(self, x):
        return x * x


class Widens(Scaled):
    def forward(self, x):
        return super().forward(x).to("float64")


class Counts(Scaled):
    def forward(self, x):
        self.count.data += 1
        return super().forward(x)


class Random(Scaled):
    def forward(self, x):
        return super().forward(x) + (0 if self.training else float(np.random.default_rng().random()))


class NormalizesByTheBatch(Scaled):
    def forward(self, x):
        return super().forward(x) - x.mean(dim=0, keepdim=True)


class SumsTheBatch(Scaled):
    def forward(self, x):
        return super().forward(x).sum(dim=0, keepdim=True)


class SumsAll(Scaled):
    def forward(self, x):
        return super().forward(x).sum()


class ThroughNumPy(Scaled):
    def forward(self, x):
        return Tensor(super().forward(x).numpy())


class Fails(Scaled):
    """A message that has the words of gradcheck's."""

    def forward(self, x):
        raise TypeError("expected input 224 of them")


class RoundsTooMuch(Scaled):
    """In float32 alone."""

    def forward(self, x):
        return super().forward(x) * (1.0 if x.dtype == np.float64 else 1.001)


class HidesState(Scaled):
    def __init__(self):
        super().__init__()
        self.hidden = Buffer(np.full(1, 3.0, np.float32), persistent=False)

    def forward(self, x):
        return super().forward(x) * self.hidden


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Scaled(WrongInput), r"in training: the input \(2, 3\): worst at index .*: backward computed"),
        (Scaled(WrongWeight), r"in training: scale \(1,\): worst at index"),
        (WrongInEvaluation(), r"in evaluation: the input"),
        (Unused(), r"in training: backward returned no gradient for scale of shape \(1,\)"),
        (Widens(), r"in training: a float32 input gives an output of float64"),
        (RoundsTooMuch(), r"in training: the output for a float32 input is far from the one in float64"),
        (Counts(), r"in evaluation: the forward pass changes the buffer count"),
        (Random(), "in evaluation: the function returned another output for the same inputs"),
        (NormalizesByTheBatch(), r"the output for an image depends on the others"),
        (SumsTheBatch(), r"expected an output for each of 2 images, got shape \(1, 3\)"),
        (SumsAll(), r"expected an output for each of 2 images, got shape \(\)"),
        (ThroughNumPy(), r"in training: backward: computed from nothing that requires grad"),
        (Fails(), r"in training: expected input 224 of them"),
        (HidesState(), r"a copy that loads state_dict\(\) computes something else"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Module) else "",
)
def test_what_is_wrong_is_named(layer, message):
    with pytest.raises(GradientError, match=f"^check_layer: .*{message}"):
        check_layer(layer, (2, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.ReLU, (2, 3)), TypeError, "a layer, a Module, got <class"),
        ((nn.ReLU(), (0, 3)), ValueError, r"an input shape \(N, ...\) with N >= 1, got \(0, 3\)"),
        ((nn.ReLU(), ()), ValueError, r".* with N >= 1, got \(\)"),
        ((nn.ReLU(), (2, 3), "cpu", "float32"), ValueError, "a list of dtypes .*, got 'float32'"),
        ((nn.ReLU(), (2, 3), "cpu", ["float64"]), ValueError, ".* among float32, float16, bfloat16, got"),
    ],
    ids=["a class", "no image", "a number", "one dtype", "float64"],
)
def test_what_cannot_be_checked_is_refused(arguments, error, message):
    with pytest.raises(error, match=f"^check_layer: expected {message}"):
        check_layer(*arguments)


def test_the_correct_one_beside_them_passes():
    check_layer(Scaled(), (2, 3))


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=[repr(make()).split("(")[0] + str(s) for make, s in LAYERS])
def test_the_layers_of_nn_pass(make, shape, device):
    dtypes = ["float32"] if device == "cpu" else ["float32", "float16", "bfloat16"]
    check_layer(make(), shape, device, dtypes)


def test_a_relu_of_ones_own_is_the_one_that_runs():
    """Inside of Sequential too, behind a batch-norm."""

    class MyReLU(Module):
        calls = 0

        def forward(self, x):
            MyReLU.calls += 1
            return relu(x)

    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), MyReLU())
    network(Tensor(np.ones((1, 2, 2, 2), np.float32)))
    assert MyReLU.calls == 1
    check_layer(network, (2, 3, 3, 2))
