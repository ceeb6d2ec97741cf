"""ReLU."""

import numpy as np
import pytest

from tests.kernels.compare import assert_close, torch_gradients

SHAPES = [(), (1,), (7, 3), (2, 3, 5, 4), (5, 30, 31, 33)]  # the last: several chunks
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
def test_relu_agrees_with_the_plain_loops(shape, agrees, rng):
    x, grad = rng.standard_normal((2, *shape))
    agrees("relu_forward", x)
    agrees("relu_backward", grad, np.maximum(x, 0))


@shapes
def test_add_agrees_with_the_plain_loops(shape, agrees, rng):
    agrees("add", rng.standard_normal(shape), rng.standard_normal(shape))


def test_the_derivative_at_zero_is_zero(run):
    for count in (1, 3, 50):  # NumPy's loops differ
        x, grad = np.tile([0.0, -0.0, 2.0], count), np.tile([5.0, 6.0, 7.0], count)
        for dtype in (np.float32, np.float64):
            y = run("relu_forward", x.astype(dtype))
            np.testing.assert_array_equal(run("relu_backward", grad.astype(dtype), y), np.tile([0, 0, 7], count))


def test_relu_lets_nan_be_seen(run):
    np.testing.assert_array_equal(run("relu_forward", np.array([np.nan, -1.0, 1.0])), [np.nan, 0, 1])


def test_the_gradient_of_a_nan_passes_through_the_relu(run, torch):
    """As in PyTorch: it is cut off where y <= 0, which NaN is not. A NaN in x does not become a 0 in a gradient."""
    x, grad = np.array([np.nan, -1.0, 1.0, np.nan]), np.array([5.0, 6.0, np.nan, -np.inf])
    _, (expected,) = torch_gradients(torch, torch.relu, [x], grad)
    np.testing.assert_array_equal(expected, [5, 0, np.nan, -np.inf])
    for dtype in (np.float32, np.float64):
        y = run("relu_forward", x.astype(dtype))
        np.testing.assert_array_equal(run("relu_backward", grad.astype(dtype), y), expected)


@shapes
def test_relu_is_that_of_pytorch(shape, run, rng, torch):
    x, grad = rng.standard_normal((2, *shape))
    expected, (grad_x,) = torch_gradients(torch, torch.relu, [x], grad)
    y = run("relu_forward", x)
    assert_close(y, expected)
    assert_close(run("relu_backward", grad, y), grad_x)


def test_what_the_relu_cuts_off_is_zero_even_of_infinity(run):
    grad, y = np.array([np.inf, np.nan, -np.inf, 1.0]), np.array([0.0, 0.0, 2.0, 3.0])
    assert run("relu_backward", grad, y).tolist() == [0, 0, -np.inf, 1]


@pytest.mark.parametrize("shapes", [((3,), (2, 3)), ((2, 3), (3,)), ((2, 3), (3, 2))], ids=str)
def test_arrays_of_different_shapes_are_not_added(shapes, kernels, to_device):
    with pytest.raises(ValueError, match="add: expected arrays of the same shape"):
        kernels.add(*(to_device(np.ones(shape)) for shape in shapes))
