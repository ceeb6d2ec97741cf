"""Max, average and global average pooling."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl.kernels import reference
from tests.kernels.compare import assert_close, nchw, nhwc, torch_gradients


class Case(NamedTuple):
    images: tuple  # (N, H, W, C)
    kernel_size: tuple
    stride: tuple
    padding: tuple = (0, 0)
    ceil_mode: bool = False

    @property
    def window(self):
        return self.kernel_size, self.stride, self.padding


CASES = [
    Case((2, 4, 6, 3), (2, 2), (2, 2)),
    Case((1, 5, 7, 1), (2, 2), (2, 2)),  # no window reaches the last row and column
    Case((1, 5, 7, 1), (2, 2), (2, 2), ceil_mode=True),
    Case((2, 8, 9, 3), (3, 3), (2, 2), (1, 1)),  # the pool of a residual network's stem
    Case((2, 9, 8, 3), (3, 3), (2, 2), (1, 1), ceil_mode=True),
    Case((2, 7, 6, 2), (3, 3), (1, 1), (1, 1)),
    Case((2, 7, 9, 2), (2, 3), (1, 2), (1, 0)),
    Case((2, 7, 9, 2), (2, 3), (3, 2), (0, 1), ceil_mode=True),
    Case((1, 9, 10, 2), (2, 2), (3, 3), ceil_mode=True),  # the windows leave gaps
    Case((2, 10, 6, 1), (5, 5), (3, 3), (2, 2), ceil_mode=True),
    Case((2, 3, 4, 2), (1, 1), (2, 2)),
    Case((1, 3, 5, 2), (3, 5), (1, 1)),  # one window
    Case((1, 20, 18, 1), (17, 16), (1, 1)),  # a window of more pixels than a byte can number
    Case((40, 12, 14, 32), (3, 3), (2, 2), (1, 1)),  # several chunks
]
cases = pytest.mark.parametrize("case", CASES, ids=str)
counts = pytest.mark.parametrize("count_include_pad", [True, False], ids=["padding counts", "padding does not count"])


@st.composite
def any_case(draw):
    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel_size, stride, surplus = pair(1, 4), pair(1, 4), pair(0, 7)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel_size)  # half a window at most, as in PyTorch
    size = [max(1, kernel_size[i] - 2 * padding[i]) + surplus[i] for i in (0, 1)]
    n, c = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    return Case((n, *size, c), kernel_size, stride, padding, draw(st.booleans()))


any_case = given(case=any_case())


# ---- max ------------------------------------------------------------------------------------------------------------


def assert_max_pool_agrees(agrees, case, rng):
    """Of whole numbers, so that many windows have several largest ones and the first has to be found."""
    x = rng.integers(-2, 3, case.images).astype(np.float64)
    agrees("max_pool2d_forward", x, *case.window, case.ceil_mode)
    y, best_tap = reference.max_pool2d_forward(x, *case.window, case.ceil_mode)
    agrees("max_pool2d_backward", rng.standard_normal(y.shape), best_tap, x.shape, *case.window)


@cases
def test_max_pool_agrees_with_the_plain_loops(case, agrees, rng):
    assert_max_pool_agrees(agrees, case, rng)


@any_case
def test_max_pool_agrees_with_the_plain_loops_for_any_geometry(case, agrees):
    assert_max_pool_agrees(agrees, case, np.random.default_rng(0))


def test_padding_is_never_the_largest(run):
    y, _ = run("max_pool2d_forward", np.full((1, 4, 5, 2), -1.0), (3, 3), (2, 2), (1, 1), False)
    np.testing.assert_array_equal(y, np.full((1, 2, 3, 2), -1.0))


def test_padding_does_not_even_win_over_minus_infinity(run):
    """Or the window's gradient would be lost."""
    x = np.full((1, 4, 5, 2), -np.inf)
    y, best_tap = run("max_pool2d_forward", x, (3, 3), (2, 2), (1, 1), False)
    grad_x = run("max_pool2d_backward", np.ones_like(y), best_tap, x.shape, (3, 3), (2, 2), (1, 1))
    assert (y == -np.inf).all()
    assert grad_x.sum() == y.size


def test_the_pool_of_a_residual_networks_stem_halves_the_image(run):
    y, _ = run("max_pool2d_forward", np.zeros((1, 112, 6, 1)), (3, 3), (2, 2), (1, 1), False)
    assert y.shape == (1, 56, 3, 1)


def test_nan_wins_in_every_window_that_sees_it(run, rng):
    x = rng.standard_normal((1, 6, 7, 1))
    x[0, 2, 4] = np.nan
    y, best_tap = run("max_pool2d_forward", x, (3, 3), (1, 1), (1, 1), False)
    sees = np.zeros((6, 7), bool)
    sees[1:4, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y[0, :, :, 0]), sees)
    np.testing.assert_array_equal(best_tap[0, 1:4, 3:6, 0], [[8, 7, 6], [5, 4, 3], [2, 1, 0]])


def test_the_first_of_several_nans_wins(run):
    x = np.array([1.0, np.nan, np.nan, 2.0]).reshape(1, 2, 2, 1)
    _, best_tap = run("max_pool2d_forward", x, (2, 2), (2, 2), (0, 0), False)
    assert best_tap.item() == 1


@cases
def test_max_pool_is_that_of_pytorch(case, run, rng, torch):
    x = rng.integers(-2, 3, case.images).astype(np.float64)  # with ties

    def max_pool2d(x):
        return nhwc(torch.nn.functional.max_pool2d(nchw(x), *case.window, ceil_mode=case.ceil_mode))

    y, best_tap = run("max_pool2d_forward", x, *case.window, case.ceil_mode)
    grad = rng.standard_normal(y.shape)
    expected, (grad_x,) = torch_gradients(torch, max_pool2d, [x], grad)
    assert_close(y, expected)
    assert_close(run("max_pool2d_backward", grad, best_tap, x.shape, *case.window), grad_x)


# ---- average --------------------------------------------------------------------------------------------------------


def assert_avg_pool_agrees(agrees, case, count_include_pad, rng):
    x = rng.standard_normal(case.images)
    options = *case.window, case.ceil_mode, count_include_pad
    agrees("avg_pool2d_forward", x, *options)
    grad = rng.standard_normal(reference.avg_pool2d_forward(x, *options).shape)
    agrees("avg_pool2d_backward", grad, x.shape, *options)


@counts
@cases
def test_avg_pool_agrees_with_the_plain_loops(case, count_include_pad, agrees, rng):
    assert_avg_pool_agrees(agrees, case, count_include_pad, rng)


@counts
@any_case
def test_avg_pool_agrees_with_the_plain_loops_for_any_geometry(case, count_include_pad, agrees):
    assert_avg_pool_agrees(agrees, case, count_include_pad, np.random.default_rng(0))


def test_the_average_of_ones_tells_whether_the_padding_counts(run):
    x = np.ones((1, 2, 2, 1))
    with_padding = run("avg_pool2d_forward", x, (2, 2), (2, 2), (1, 1), False, True)
    without = run("avg_pool2d_forward", x, (2, 2), (2, 2), (1, 1), False, False)
    np.testing.assert_array_equal(with_padding, np.full((1, 2, 2, 1), 0.25))
    np.testing.assert_array_equal(without, np.ones((1, 2, 2, 1)))


def assert_avg_pool_is_that_of_pytorch(case, count_include_pad, run, torch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(case.images)
    options = *case.window, case.ceil_mode, count_include_pad

    def avg_pool2d(x):
        return nhwc(torch.nn.functional.avg_pool2d(nchw(x), *options))

    y = run("avg_pool2d_forward", x, *options)
    grad = rng.standard_normal(y.shape)
    expected, (grad_x,) = torch_gradients(torch, avg_pool2d, [x], grad)
    assert_close(y, expected)
    assert_close(run("avg_pool2d_backward", grad, x.shape, *options), grad_x)


@counts
@cases
def test_avg_pool_is_that_of_pytorch(case, count_include_pad, run, torch):
    assert_avg_pool_is_that_of_pytorch(case, count_include_pad, run, torch)


@counts
@any_case
def test_avg_pool_is_that_of_pytorch_for_any_geometry(case, count_include_pad, run, torch):
    """Which covers the output sizes that max-pooling shares."""
    assert_avg_pool_is_that_of_pytorch(case, count_include_pad, run, torch)


# ---- global average -------------------------------------------------------------------------------------------------

images = pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 4), (1, 7, 1, 3), (40, 8, 8, 64)], ids=str)


@images
def test_global_avg_pool_agrees_with_the_plain_loops(shape, agrees, rng):
    agrees("global_avg_pool_forward", rng.standard_normal(shape))
    agrees("global_avg_pool_backward", rng.standard_normal((shape[0], shape[3])), shape)


@images
def test_global_avg_pool_is_that_of_pytorch(shape, run, rng, torch):
    x, grad = rng.standard_normal(shape), rng.standard_normal((shape[0], shape[3]))
    y, (grad_x,) = torch_gradients(torch, lambda x: x.mean(dim=(1, 2)), [x], grad)
    assert_close(run("global_avg_pool_forward", x), y)
    assert_close(run("global_avg_pool_backward", grad, shape), grad_x)


def test_the_mean_of_a_large_float32_image_has_an_error_of_float32(run):
    y = run("global_avg_pool_forward", np.full((1, 700, 700, 2), 0.1, np.float32))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, float(np.float32(0.1)), rtol=5e-6)


def test_an_infinite_gradient_stays_at_the_number_that_won(run):
    best_tap = np.array([[[[3]]]], np.uint8)
    grad_x = run("max_pool2d_backward", np.array([[[[np.inf]]]]), best_tap, (1, 2, 2, 1), (2, 2), (2, 2), (0, 0))
    assert grad_x.reshape(-1).tolist() == [0, 0, 0, np.inf]
