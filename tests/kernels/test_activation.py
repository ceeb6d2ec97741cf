"""ReLU and GELU."""

import math

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


# -- GELU --------------------------------------------------------------------------------------------------------------

each_formula = pytest.mark.parametrize("approximate", ["none", "tanh"])
SMALLER = [shape for shape in SHAPES if len(shape) < 4] + [(2, 130, 130, 2)]  # the last: several blocks


@pytest.mark.parametrize("shape", [*SMALLER, (0, 3)], ids=str)
@each_formula
def test_gelu_agrees_with_the_plain_loops(shape, approximate, agrees, rng):
    x, grad = rng.uniform(-2.5, 2.5, (2, *shape))  # far to the left 1 + tanh(u), the formula, has few digits
    agrees("gelu_forward", x, approximate, True)
    agrees("gelu_forward", x, approximate, False)
    agrees("gelu_backward", grad, x)


@shapes
@each_formula
def test_gelu_is_that_of_pytorch(shape, approximate, run, rng, torch):
    x, grad = rng.uniform(-2.5, 2.5, (2, *shape))
    expected, (grad_x,) = torch_gradients(
        torch, lambda x: torch.nn.functional.gelu(x, approximate=approximate), [x], grad
    )
    y, slope = run("gelu_forward", x, approximate, True)
    assert_close(y, expected)
    assert_close(run("gelu_backward", grad, slope), grad_x)


@pytest.mark.parametrize(
    ("dtype", "lowest", "tolerance"), [(np.float32, -4, 2e-6), (np.float64, -9, 1e-13)], ids=["float32", "float64"]
)
def test_the_small_numbers_of_a_gelu_have_all_their_digits(dtype, lowest, tolerance, run):
    """Down to -4 in float32, where 1 + erf(x / sqrt(2)) has 3 digits left, and to -9 in float64, where it has none."""
    x = np.linspace(lowest, 9, 2000).astype(dtype)
    expected = np.array([a * math.erfc(-a / math.sqrt(2)) / 2 for a in x.tolist()])
    slope = np.array([math.erfc(-a / math.sqrt(2)) / 2 + a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi) for a in x])
    actual = run("gelu_forward", x, "none", True)
    np.testing.assert_allclose(actual[0], expected, rtol=tolerance)
    np.testing.assert_allclose(actual[1], slope, atol=2 * np.finfo(dtype).eps)


@each_formula
def test_gelu_of_infinity(approximate, run):
    """Numbers that are too large show, and do not become NaN on their way."""
    for dtype in (np.float32, np.float64):
        y, slope = run("gelu_forward", np.array([np.inf, -np.inf, 1e30, -1e30, np.nan], dtype), approximate, True)
        np.testing.assert_array_equal(y, np.array([np.inf, 0, 1e30, 0, np.nan], dtype))
        np.testing.assert_array_equal(slope, [1, 0, 1, 0, np.nan])
