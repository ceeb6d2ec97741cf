"""Batch normalisation: its statistics, and the layer."""

import numpy as np
import pytest

from tests.kernels.compare import assert_close, nchw, nhwc, torch_gradients, with_dtype

EPS = 1e-5
SHAPES = [(5, 3), (7, 1), (2, 3, 5, 4), (1, 4, 3, 1), (40, 20, 12, 32)]  # the last: several chunks
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])


def draw(rng, shape):
    """x, grad; then of each channel mean, variance, weight, bias, unrelated to x as in eval mode."""
    images = [rng.standard_normal(shape) for _ in range(2)]
    mean, weight, bias = rng.standard_normal((3, shape[-1]))
    return *images, mean, rng.uniform(0.5, 2, shape[-1]), weight, bias


# ---- statistics -----------------------------------------------------------------------------------------------------


@shapes
def test_the_statistics_agree_with_the_plain_loops(shape, agrees, rng):
    agrees("batch_statistics", 3 * rng.standard_normal(shape) + rng.standard_normal(shape[-1]))


@pytest.mark.parametrize("shape", [(64, 5), (8, 33, 31, 5), (40, 20, 12, 32)], ids=str)
def test_float32_statistics_stay_accurate_where_the_mean_is_large(shape, run, rng):
    """Of mean 1e4 and variance 1, E[x^2] - mean^2 keeps nothing in float32, whose steps at 1e8 are 8 wide."""
    x = (1e4 + rng.standard_normal(shape)).astype(np.float32)
    axes = tuple(range(x.ndim - 1))
    mean, variance = run("batch_statistics", x)
    assert abs(mean - x.mean(axes, np.float64)).max() <= 0.004  # four steps of float32 at 1e4
    assert abs(variance - x.var(axes, np.float64)).max() <= 1e-4


def test_a_constant_channel_has_variance_zero(run):
    mean, variance = run("batch_statistics", np.full((3, 4, 5, 2), 0.1))
    assert_close(mean, np.full(2, 0.1))
    assert (abs(variance) <= 1e-30).all()


# Rows of a pixel, of a few channels, and of the widths of networks; in chunks, and in one.
LARGE = pytest.mark.parametrize("shape", [(2**18, 2), (128, 32, 32, 3), (64, 32, 32, 16), (8, 7, 7, 512)], ids=str)


@LARGE
@pytest.mark.parametrize("value", [0.1, 7.7, -1234.5])
def test_a_constant_float32_channel_comes_out_as_zero(value, shape, run):
    """A mean with an error of 1e-6 of it would come out multiplied by 1 / sqrt(eps) = 316."""
    x, channels = np.full(shape, value, np.float32), shape[-1]
    mean, variance = run("batch_statistics", x)
    assert (mean == np.float32(value)).all()
    assert (variance >= 0).all() and (variance <= 1e-12 * value**2).all()
    one, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    assert not run("batch_norm_apply", x, mean, variance, one, zero, EPS).any()


@LARGE
def test_float32_statistics_and_sums_of_many_numbers_have_an_error_of_float32(shape, run, rng):
    """Also where the first numbers, from which a kernel may count, lie a hundred deviations from the mean."""
    x, axes, channels = rng.random(shape, np.float32), tuple(range(len(shape) - 1)), shape[-1]
    x[rng.random(shape) < 1e-4] = 300
    x[0] = 300
    mean, variance = run("batch_statistics", x)
    assert (abs(mean - x.mean(axes, np.float64)) <= 1e-5 * x.std(axes, np.float64)).all()
    np.testing.assert_allclose(variance, x.var(axes, np.float64), rtol=1e-5)
    grad, zero, one = np.full(shape, 0.1, np.float32), np.zeros(channels, np.float32), np.ones(channels, np.float32)
    _, grad_weight, grad_bias = run("batch_norm_backward", grad, x, zero, one, one, 0.0, False)
    np.testing.assert_allclose(grad_bias, grad.sum(axes, np.float64), rtol=5e-6)
    np.testing.assert_allclose(grad_weight, np.float32(0.1) * x.sum(axes, np.float64), rtol=5e-6)


@pytest.mark.parametrize("count", [1, 2, 60])
def test_the_running_statistics_agree_with_the_plain_loops(count, agrees, rng):
    running_mean, mean = rng.standard_normal((2, 5))
    running_variance, variance = rng.uniform(0.5, 2, (2, 5))
    agrees("update_running_statistics", running_mean, running_variance, mean, variance, 0.1, count)


def test_a_batch_of_one_number_leaves_the_running_variance_finite(run):
    """It has no sample variance, so that its population variance, 0, is taken."""
    zero, one = np.zeros(1), np.ones(1)
    running = run("update_running_statistics", zero, one, np.full(1, 5.0), zero, 0.25, 1)
    assert_close(running, [[1.25], [0.75]])


# ---- the layer ------------------------------------------------------------------------------------------------------


@shapes
@modes
def test_batch_norm_agrees_with_the_plain_loops(shape, training, agrees, rng):
    x, grad, mean, variance, weight, bias = with_dtype(draw(rng, shape), np.float32)
    agrees("batch_norm_apply", x, mean, variance, weight, bias, EPS)
    agrees("batch_norm_backward", grad, x, mean, variance, weight, EPS, training)


def test_batch_norm_agrees_with_the_plain_loops_where_the_mean_is_large(agrees, rng):
    """x * scale + shift instead of (x - mean) * scale would lose what distinguishes the numbers of a channel."""
    x, grad, mean, variance, weight, bias = draw(rng, (4, 5, 6, 3))
    x, mean = with_dtype((x + 1e4, mean + 1e4), np.float32)
    agrees("batch_norm_apply", x, mean, variance, weight, bias, EPS)
    agrees("batch_norm_backward", grad, x, mean, variance, weight, EPS, True)


@shapes
def test_a_batch_comes_out_with_mean_zero_and_variance_one(shape, run, rng):
    x = 3 * rng.standard_normal(shape) + 2
    channels = shape[-1]
    y = run("batch_norm_apply", x, *run("batch_statistics", x), np.ones(channels), np.zeros(channels), 0.0)
    rows = y.reshape(-1, channels)
    assert abs(rows.mean(axis=0)).max() <= 1e-12
    assert abs(rows.var(axis=0) - 1).max() <= 1e-12


@shapes
@modes
def test_batch_norm_is_that_of_pytorch(shape, training, run, rng, torch):
    x, grad, mean, variance, weight, bias = draw(rng, shape)

    def batch_norm(x, weight, bias):
        running = (None, None) if training else (torch.tensor(mean), torch.tensor(variance))
        return nhwc(torch.nn.functional.batch_norm(nchw(x), *running, weight, bias, training, eps=EPS))

    expected, grads = torch_gradients(torch, batch_norm, [x, weight, bias], grad)
    if training:
        mean, variance = run("batch_statistics", x)
    y = run("batch_norm_apply", x, mean, variance, weight, bias, EPS)
    actual = run("batch_norm_backward", grad, x, mean, variance, weight, EPS, training)
    assert_close(y, expected)
    for ours, theirs in zip(actual, grads, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 5, 4)], ids=str)
def test_the_running_statistics_are_those_of_pytorch(shape, run, rng, torch):
    x = rng.standard_normal(shape)
    layer = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(shape[-1], momentum=0.3).double()
    layer(nchw(torch.tensor(x)))
    batch = run("batch_statistics", x)
    start = np.zeros(shape[-1]), np.ones(shape[-1])
    running = run("update_running_statistics", *start, *batch, 0.3, x.size // shape[-1])
    assert_close(running, [layer.running_mean.numpy(), layer.running_var.numpy()])


@pytest.mark.parametrize("deviations", [0, 3.9, 4.1, 100, 1e4])
def test_the_sums_keep_their_digits_however_far_the_mean_is(deviations, run, rng):
    """In standard deviations; from 4 on, the sums are taken from x less the mean."""
    exact = deviations + rng.standard_normal((300, 9, 9, 2))
    x, grad = exact.astype(np.float32), rng.standard_normal(exact.shape).astype(np.float32)
    mean, variance = run("batch_statistics", x)
    near = x.astype(np.float64) - deviations  # as float32 has it
    np.testing.assert_allclose(mean - deviations, near.mean(axis=(0, 1, 2)), atol=1e-6 * max(1, deviations))
    np.testing.assert_allclose(variance, near.var(axis=(0, 1, 2)), rtol=1e-5)
    weight = np.ones(2, np.float32)
    _, grad_weight, grad_bias = run("batch_norm_backward", grad, x, mean, variance, weight, 1e-5, True)
    normalised = (near - near.mean(axis=(0, 1, 2))) / near.std(axis=(0, 1, 2))
    atol = 3e-5 * np.sqrt(grad.size / 2) * max(1, deviations / 100)  # the mean itself is rounded
    np.testing.assert_allclose(grad_weight, (grad * normalised).sum(axis=(0, 1, 2), dtype=np.float64), atol=atol)
    np.testing.assert_allclose(
        grad_bias, grad.sum(axis=(0, 1, 2), dtype=np.float64), atol=1e-5 * np.sqrt(grad.size / 2)
    )
