"""Softmax and its logarithm."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.functional import log_softmax, softmax
from tests.ops.case import Case


def along(function, name, dim, shape):
    return Case(
        f"{name} along {dim} of {shape}",
        lambda x: function(x, dim),
        lambda torch, x: getattr(torch, name)(x, dim),
        [shape],
    )


CASES = [
    along(function, name, dim, shape)
    for function, name in ((softmax, "softmax"), (log_softmax, "log_softmax"))
    for dim, shape in ((-1, (3, 4)), (0, (3, 4)), (1, (2, 3, 4)), (-3, (2, 3, 4)), (0, (5,)), (-1, (3, 1)))
]


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_probabilities_add_up_to_one(dim, device, rng):
    x = Tensor(10 * rng.standard_normal((3, 4, 5)), device=device)
    for probabilities in (softmax(x, dim), log_softmax(x, dim).exp()):
        np.testing.assert_allclose(probabilities.sum(dim).numpy(), 1, rtol=1e-12)


def test_no_logit_is_too_large(device):
    x = Tensor([[1e4, 0.0, -1e4]], device=device)
    np.testing.assert_array_equal(softmax(x).numpy(), [[1, 0, 0]])
    np.testing.assert_array_equal(log_softmax(x).numpy(), [[0, -1e4, -2e4]])


def test_a_constant_added_to_all_logits_changes_nothing(device, rng):
    """So the gradients of each row add up to 0."""
    x = Tensor(rng.standard_normal((3, 4)), device=device, requires_grad=True)
    np.testing.assert_allclose(softmax(x + 5).numpy(), softmax(x).numpy(), rtol=1e-12)
    for function in (softmax, log_softmax):
        x.grad = None
        function(x).backward(Tensor(rng.standard_normal((3, 4)), device=device))
        np.testing.assert_allclose(x.grad.sum(1).numpy(), 0, atol=1e-14)
