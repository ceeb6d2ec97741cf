"""Bilinear interpolation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.compare import assert_close, nchw, nhwc, torch_gradients

# shape, output size, step; None for the step that fits the sizes
CASES = [
    ((2, 3, 4, 3), (6, 8), None),
    ((1, 3, 2, 5), (12, 14), None),
    ((2, 5, 7, 2), (5, 7), None),  # the same size
    ((1, 7, 9, 2), (3, 5), None),  # smaller
    ((1, 6, 5, 4), (9, 3), None),  # higher, but not as wide
    ((2, 1, 1, 3), (4, 5), None),  # a single pixel
    ((1, 4, 5, 2), (1, 1), None),
    ((2, 5, 3, 2), (7, 7), (1 / 1.5, 1 / 2.5)),  # scale factors whose output size was rounded down
    ((20, 24, 20, 32), (48, 60), None),  # several pieces
]
cases = pytest.mark.parametrize(("shape", "output_size", "step"), CASES, ids=str)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
any_sizes = given(n=st.integers(1, 2), size=sizes, c=st.integers(1, 3), output_size=sizes)


def step_for(shape, output_size, step=None):
    return step or (shape[1] / output_size[0], shape[2] / output_size[1])


def assert_it_agrees(agrees, shape, output_size, step, rng):
    agrees("upsample_bilinear2d_forward", rng.standard_normal(shape), output_size, step)
    grad = rng.standard_normal((shape[0], *output_size, shape[3]))
    agrees("upsample_bilinear2d_backward", grad, shape, step)


def assert_it_is_that_of_pytorch(run, torch, shape, output_size, rng):
    def interpolate(x):
        return nhwc(torch.nn.functional.interpolate(nchw(x), output_size, mode="bilinear", align_corners=False))

    x, grad = rng.standard_normal(shape), rng.standard_normal((shape[0], *output_size, shape[3]))
    expected, (grad_x,) = torch_gradients(torch, interpolate, [x], grad)
    step = step_for(shape, output_size)
    assert_close(run("upsample_bilinear2d_forward", x, output_size, step), expected)
    assert_close(run("upsample_bilinear2d_backward", grad, shape, step), grad_x)


@cases
def test_it_agrees_with_the_plain_loops(shape, output_size, step, agrees, rng):
    assert_it_agrees(agrees, shape, output_size, step_for(shape, output_size, step), rng)


@any_sizes
def test_it_agrees_with_the_plain_loops_for_any_size(n, size, c, output_size, agrees):
    shape = (n, *size, c)
    assert_it_agrees(agrees, shape, output_size, step_for(shape, output_size), np.random.default_rng(0))


@given(size=sizes, scale=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)))
def test_it_agrees_with_the_plain_loops_for_any_scale_factor(size, scale, agrees):
    output_size = tuple(max(1, int(length * factor)) for length, factor in zip(size, scale, strict=True))
    step = 1 / scale[0], 1 / scale[1]
    assert_it_agrees(agrees, (1, *size, 2), output_size, step, np.random.default_rng(0))


@pytest.mark.parametrize(("shape", "output_size"), [case[:2] for case in CASES if case[2] is None], ids=str)
def test_it_is_that_of_pytorch(shape, output_size, run, torch, rng):
    assert_it_is_that_of_pytorch(run, torch, shape, output_size, rng)


@any_sizes
def test_it_is_that_of_pytorch_for_any_size(n, size, c, output_size, run, torch):
    assert_it_is_that_of_pytorch(run, torch, (n, *size, c), output_size, np.random.default_rng(0))


def test_twice_the_size_is_three_quarters_of_one_pixel_and_a_quarter_of_the_next(run):
    y = run("upsample_bilinear2d_forward", np.array([0.0, 4.0, 8.0]).reshape(1, 3, 1, 1), (6, 1), (0.5, 1.0))
    np.testing.assert_allclose(y.ravel(), [0, 1, 3, 5, 7, 8], rtol=1e-6)


def test_the_gradient_of_a_large_image_reaches_every_pixel_in_float32(run):
    """Positions are rounded: no output pixel may be missed. Each passes on its whole gradient, so the sum stays."""
    shape, output_size = (1, 301, 3, 1), (1999, 7)
    grad_x = run("upsample_bilinear2d_backward", np.ones((1, *output_size, 1), np.float32), shape, (301 / 1999, 3 / 7))
    np.testing.assert_allclose(grad_x.sum(), 1999 * 7, rtol=1e-5)
    inside = grad_x[0, 2:-2, 1, 0]
    np.testing.assert_allclose(inside, 1999 / 301 * 7 / 3, rtol=0.1)
