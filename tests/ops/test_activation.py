"""ReLU and GELU."""

import numpy as np

from minidl import Tensor
from minidl.functional import gelu, relu
from tests.ops.case import Case, distinct

CASES = [
    Case("relu", relu, lambda torch, x: torch.relu(x), [(3, 4, 5)], distinct),
    Case("gelu", gelu, lambda torch, x: torch.nn.functional.gelu(x), [(3, 4, 5)]),
    Case(
        "gelu by tanh",
        lambda x: gelu(x, "tanh"),
        lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
        [(3, 4, 5)],
    ),
]


def test_the_derivative_at_zero_is_zero(device):
    x = Tensor([-1.0, -0.0, 0.0, 1.0], device=device, requires_grad=True)
    relu(x).backward(Tensor([5.0, 5.0, 5.0, 5.0], device=device))
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 0, 5])


def test_a_nan_is_not_hidden(device):
    for function in (relu, gelu):
        assert np.isnan(function(Tensor([np.nan], device=device)).item())


def test_the_approximation_of_gelu_is_as_near_as_its_docstring_says(device):
    x = Tensor(np.linspace(-6, 6, 2001), device=device, requires_grad=True)
    exact, near = gelu(x), gelu(x, "tanh")
    assert 4e-4 < abs((near - exact).numpy()).max() < 5e-4
