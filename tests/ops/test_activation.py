"""ReLU."""

import numpy as np

from minidl import Tensor
from minidl.functional import relu
from tests.ops.case import Case, distinct

CASES = [Case("relu", relu, lambda torch, x: torch.relu(x), [(3, 4, 5)], distinct)]


def test_the_derivative_at_zero_is_zero(device):
    x = Tensor([-1.0, -0.0, 0.0, 1.0], device=device, requires_grad=True)
    relu(x).backward(Tensor([5.0, 5.0, 5.0, 5.0], device=device))
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 0, 5])


def test_a_nan_is_not_hidden(device):
    assert np.isnan(relu(Tensor([np.nan], device=device)).item())
