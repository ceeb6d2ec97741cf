"""Softmax and its logarithm, over the rows of (N, K)."""

import numpy as np
import pytest

from minidl.kernels import reference
from tests.kernels.compare import assert_close, torch_gradients

SHAPES = [(1, 1), (1, 5), (6, 1), (4, 10), (40, 1000)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
names = pytest.mark.parametrize("name", ["softmax", "log_softmax"])


@shapes
def test_softmax_agrees_with_the_plain_loops(shape, agrees, rng):
    x, grad = 3 * rng.standard_normal((2, *shape))
    agrees("softmax_forward", x)
    agrees("softmax_backward", grad, reference.softmax_forward(x))
    agrees("log_softmax_forward", x)
    agrees("log_softmax_backward", grad, reference.log_softmax_forward(x))


def test_the_probabilities_of_a_row_sum_to_one(run, rng):
    assert_close(run("softmax_forward", 10 * rng.standard_normal((5, 7))).sum(axis=1), np.ones(5))


def test_large_logits_neither_overflow_nor_vanish(run):
    x = np.array([[1e4, 0.0], [-1e4, -1e4], [1e4, 1e4]])
    half = np.log(0.5)
    assert_close(run("softmax_forward", x), [[1, 0], [0.5, 0.5], [0.5, 0.5]])
    assert_close(run("log_softmax_forward", x), [[0, -1e4], [half, half], [half, half]])


def test_the_largest_logit_is_found_wherever_it_stands(run):
    """Or exp would overflow."""
    place = np.array([0, 31, 32, 255, 256, 511, 999])
    x, one_hot = np.zeros((2, len(place), 1000))
    x[np.arange(len(place)), place] = 1e4
    one_hot[np.arange(len(place)), place] = 1
    assert_close(run("softmax_forward", x), one_hot)
    assert_close(run("log_softmax_forward", x), 1e4 * (one_hot - 1))


@names
def test_a_constant_added_to_a_row_changes_nothing(name, run, rng):
    x = rng.integers(-8, 9, (3, 5)) / 4
    assert_close(run(f"{name}_forward", x + 1024), run(f"{name}_forward", x))


@shapes
@names
def test_softmax_is_that_of_pytorch(name, shape, run, rng, torch):
    x, grad = 3 * rng.standard_normal((2, *shape))
    expected, (grad_x,) = torch_gradients(torch, lambda x: getattr(torch, name)(x, dim=1), [x], grad)
    y = run(f"{name}_forward", x)
    assert_close(y, expected)
    scale = abs(grad).max()  # of a single class the gradient is 0, and only rounding is left to compare
    assert abs(run(f"{name}_backward", grad, y) - grad_x).max() <= 1e-12 * scale
