"""Sequential: a plain loop over its modules."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.autograd import Node
from minidl.nn import BatchNorm2d, Conv2d, ReLU, Sequential


@pytest.fixture
def layers(rng):
    norm = BatchNorm2d(4)
    norm.bias.data[...] = rng.standard_normal(4)
    return [Conv2d(3, 4, 3), norm, ReLU(), Conv2d(4, 2, 1), ReLU()]


def run(layers, forward, images):
    """y, dL/dx and the gradients of all parameters."""
    x = Tensor(images, requires_grad=True)
    y = forward(x)
    (y * y).sum().backward()
    model = Sequential(*layers)
    grads = [parameter.grad.numpy().copy() for parameter in model.parameters()]
    model.zero_grad()
    return [y.numpy(), x.grad.numpy(), *grads]


def test_it_has_the_bits_of_its_layers_called_one_by_one(layers, rng):
    images = rng.standard_normal((2, 6, 5, 3), np.float32)

    def one_by_one(x):
        for layer in layers:
            x = layer(x)
        return x

    together = Sequential(*layers)
    for ours, expected in zip(run(layers, together, images), run(layers, one_by_one, images), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_each_layer_is_an_operation_of_its_own(layers, rng):
    place = Sequential(*layers)(Tensor(rng.standard_normal((2, 6, 5, 3), np.float32), requires_grad=True))._node
    names = []
    while isinstance(place, Node):
        names.append(place.name)
        place = place.inputs[0]
    assert names == ["ReLU", "Conv2d", "ReLU", "BatchNorm", "Conv2d"]


def test_a_module_that_is_exchanged_is_called(layers, rng):
    class Doubled(ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    x = Tensor(rng.standard_normal((2, 6, 5, 3), np.float32))
    plain = Sequential(*layers).eval()(x).numpy()
    doubled = Sequential(*layers[:4], Doubled()).eval()(x).numpy()
    np.testing.assert_array_equal(doubled, 2 * plain)


def test_a_slice_is_a_sequential_of_the_same_layers(layers):
    part = Sequential(*layers)[1:-1]
    assert isinstance(part, Sequential) and part.modules == layers[1:-1]


def test_a_list_of_layers_is_refused(layers):
    with pytest.raises(TypeError, match=r"Sequential: expected modules, got list; pass Sequential\(\*layers\)"):
        Sequential(layers)
