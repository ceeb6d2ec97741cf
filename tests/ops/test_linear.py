"""The fully connected layer."""

import pytest

from minidl.functional import linear
from tests.ops.case import Case


def torch_linear(torch, x, weight, bias=None):
    return torch.nn.functional.linear(x, weight.T, bias)


def layer(name, *shapes):
    return Case(name, linear, torch_linear, shapes, is_linear=len(shapes) == 2, kept_in_float32=(1, 2))


CASES = [
    layer("with a bias", (3, 4), (4, 2), (2,)),
    layer("without a bias", (3, 4), (4, 2)),
    layer("a square weight", (2, 3), (3, 3), (3,)),
    layer("one image", (1, 5), (5, 3), (3,)),
    layer("one feature in and out", (4, 1), (1, 1), (1,)),
]


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_the_gradient_of_a_frozen_input_is_not_computed(frozen, device, kernels, monkeypatch):
    name = ["linear_backward_x", "linear_backward_weight", "bias_backward"][frozen]
    monkeypatch.setattr(kernels, name, None)
    inputs = CASES[0].tensors(device)
    inputs[frozen].requires_grad = False
    linear(*inputs).sum().backward()
    assert [tensor.grad is None for tensor in inputs] == [i == frozen for i in range(3)]
