"""Local response normalisation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl.kernels import reference
from tests.kernels.compare import assert_close, nchw, nhwc, torch_gradients

# shape, size; alpha, beta, k below are large enough to matter
CASES = [((2, 3, 4, 7), 5), ((1, 4, 3, 6), 4), ((2, 2, 3, 5), 1), ((1, 3, 2, 1), 3), ((1, 2, 3, 3), 9)]
cases = pytest.mark.parametrize(("shape", "size"), [*CASES, ((40, 8, 8, 64), 5)], ids=str)  # the last: several chunks
ALPHA, BETA, K = 0.3, 0.75, 2.0


def assert_local_response_norm_agrees(agrees, shape, size, rng):
    x, grad = rng.standard_normal((2, *shape))
    agrees("local_response_norm_forward", x, size, ALPHA, BETA, K)
    y, scale = reference.local_response_norm_forward(x, size, ALPHA, BETA, K)
    agrees("local_response_norm_backward", grad, x, y, scale, size, ALPHA, BETA)


@cases
def test_local_response_norm_agrees_with_the_plain_loops(shape, size, agrees, rng):
    assert_local_response_norm_agrees(agrees, shape, size, rng)


@given(channels=st.integers(1, 12), size=st.integers(1, 12))
def test_local_response_norm_agrees_with_the_plain_loops_for_any_size(channels, size, agrees):
    assert_local_response_norm_agrees(agrees, (2, 1, 3, channels), size, np.random.default_rng(0))


def test_a_window_of_even_size_reaches_further_down(run):
    """Window 4 of channel c: c - 2 .. c + 1."""
    x = np.zeros((1, 1, 1, 6))
    x[..., 3] = 1
    _, scale = run("local_response_norm_forward", x, 4, 1.0, BETA, 1.0)
    np.testing.assert_array_equal(scale.ravel(), [1, 1, 2, 2, 2, 2])


@cases
def test_local_response_norm_is_that_of_pytorch(shape, size, run, rng, torch):
    x, grad = rng.standard_normal((2, *shape))

    def local_response_norm(x):  # PyTorch's alpha multiplies the mean
        return nhwc(torch.nn.functional.local_response_norm(nchw(x), size, ALPHA * size, BETA, K))

    expected, (grad_x,) = torch_gradients(torch, local_response_norm, [x], grad)
    y, scale = run("local_response_norm_forward", x, size, ALPHA, BETA, K)
    assert_close(y, expected)
    assert_close(run("local_response_norm_backward", grad, x, y, scale, size, ALPHA, BETA), grad_x)
