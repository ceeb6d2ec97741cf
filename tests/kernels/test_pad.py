"""Channels of zeros before and after an image's own."""

import numpy as np
import pytest

from tests.kernels.compare import assert_close, torch_gradients

CASES = [
    ((2, 3, 5, 4), 2, 3),
    ((1, 4, 3, 1), 0, 1),
    ((2, 2, 3, 3), 1, 0),
    ((2, 2, 3, 3), 0, 0),
    ((40, 16, 16, 16), 8, 8),
]
cases = pytest.mark.parametrize(("shape", "before", "after"), CASES)


def draw(rng, shape, before, after):
    """x, grad."""
    return rng.standard_normal(shape), rng.standard_normal((*shape[:-1], before + shape[-1] + after))


@cases
def test_padding_channels_agrees_with_the_plain_loops(shape, before, after, agrees, rng):
    x, grad = draw(rng, shape, before, after)
    agrees("pad_channels_forward", x, before, after)
    agrees("pad_channels_backward", grad, before, after)


def test_the_channels_keep_their_order_between_the_zeros(run):
    y = run("pad_channels_forward", np.array([[[[1.0, 2.0]]]]), 1, 2)
    np.testing.assert_array_equal(y.ravel(), [0, 1, 2, 0, 0])


@cases
def test_padding_channels_is_that_of_pytorch(shape, before, after, run, rng, torch):
    x, grad = draw(rng, shape, before, after)
    y, (grad_x,) = torch_gradients(torch, lambda x: torch.nn.functional.pad(x, (before, after)), [x], grad)
    assert_close(run("pad_channels_forward", x, before, after), y)
    assert_close(run("pad_channels_backward", grad, before, after), grad_x)
