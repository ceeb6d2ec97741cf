"""Sequential: a ReLU after a batch-norm is computed in the batch-norm's pass, and nobody can tell but by the time."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.autograd import Node
from minidl.nn import BatchNorm2d, Conv2d, ReLU, Sequential


class CountingReLU(ReLU):
    """A ReLU of one's own."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


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


def test_a_batch_norm_takes_the_relu_after_it_along(layers, rng):
    images = rng.standard_normal((2, 6, 5, 3), np.float32)

    def one_by_one(x):
        for layer in layers:
            x = layer(x)
        return x

    together = Sequential(*layers)
    for ours, expected in zip(run(layers, together, images), run(layers, one_by_one, images), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    names = []
    place = together(Tensor(images, requires_grad=True))._place
    while isinstance(place, Node):
        names.append(place.name)
        place = place.inputs[0]
    assert names == ["ReLU", "Conv2d", "BatchNorm", "Conv2d"]


def test_a_relu_of_ones_own_is_called(rng):
    relu = CountingReLU()
    Sequential(BatchNorm2d(2), relu)(Tensor(rng.standard_normal((2, 3, 3, 2), np.float32)))
    assert relu.calls == 1


def test_a_batch_norm_at_the_end_has_no_relu_to_take(rng):
    x = Tensor(rng.standard_normal((2, 3, 3, 2), np.float32))
    assert (Sequential(ReLU(), BatchNorm2d(2))(x).numpy() < 0).any()
