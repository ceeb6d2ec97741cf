"""Batch normalisation."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.functional import batch_norm
from tests.kernels.compare import assert_close, nchw, nhwc
from tests.ops.case import Case, Constant, normal

MEAN, VARIANCE = Constant([0.3, -0.2, 1.0]), Constant([0.5, 2.0, 1.5])  # running values


def torch_batch_norm(torch, x, weight, bias, eps=1e-5, training=True):
    running = [None, None] if training else [torch.tensor(value.array, dtype=x.dtype) for value in (MEAN, VARIANCE)]
    return nhwc(torch.nn.functional.batch_norm(nchw(x), *running, weight, bias, training, eps=eps))


def our_batch_norm(x, weight, bias, training=True, **options):
    running = [None, None] if training else [value.on(x.device).to(weight.dtype) for value in (MEAN, VARIANCE)]
    return batch_norm(x, weight, bias, *running, training=training, **options)


def norm(name, shape, **options):
    """A case for x of that shape."""

    def ours(*tensors):
        return our_batch_norm(*tensors, **options)

    return Case(
        name,
        ours,
        lambda torch, *tensors: torch_batch_norm(torch, *tensors, **options),
        [shape, shape[-1:], shape[-1:]],
        normal,
        kept_in_float32=(1, 2),
    )


CASES = [
    norm("images", (2, 3, 2, 3)),
    norm("vectors", (5, 3)),
    norm("one channel", (3, 2, 2, 1)),
    norm("one image", (1, 3, 2, 3)),
    norm("one pixel", (4, 1, 1, 3)),
    norm("two numbers per channel", (2, 3), eps=0.1),
    norm("a large eps", (2, 3, 2, 3), eps=2.0),
    norm("evaluation", (2, 2, 2, 3), training=False),
    norm("evaluation, one number per channel", (1, 3), training=False),
]


@pytest.fixture
def x(device, rng):
    return Tensor(100 + 3 * rng.standard_normal((4, 5, 6, 3)), device=device, requires_grad=True)


@pytest.fixture
def ones(device):
    return Tensor(np.ones(3), device=device, requires_grad=True)


@pytest.fixture
def zeros(device):
    return Tensor(np.zeros(3), device=device, requires_grad=True)


def test_each_channel_of_the_output_has_mean_0_and_variance_1(x, ones, zeros):
    y = batch_norm(x, ones, zeros, eps=0)
    np.testing.assert_allclose(y.mean((0, 1, 2)).numpy(), 0, atol=1e-10)
    np.testing.assert_allclose(y.var((0, 1, 2), correction=0).numpy(), 1, rtol=1e-10)


def test_weight_and_bias_are_the_new_deviation_and_mean(x, device):
    y = batch_norm(x, Tensor(np.array([2.0, 3, 4]), device=device), Tensor(np.array([5.0, 6, 7]), device=device), eps=0)
    np.testing.assert_allclose(y.mean((0, 1, 2)).numpy(), [5, 6, 7], rtol=1e-10)
    np.testing.assert_allclose(y.var((0, 1, 2), correction=0).sqrt().numpy(), [2, 3, 4], rtol=1e-10)


def test_the_sum_of_the_outputs_does_not_depend_on_x(x, ones, zeros):
    """So a gradient check whose dL/dy is all ones would let any multiple of dL/dx pass."""
    batch_norm(x, ones, zeros).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 0, atol=1e-12)


def test_the_running_values_move_by_the_momentum_towards_the_samples_mean_and_variance(x, ones, zeros, device):
    mean, variance = Tensor(np.array([1.0, 2, 3]), device=device), Tensor(np.array([4.0, 5, 6]), device=device)
    arrays = mean.data, variance.data
    batch_norm(x, ones, zeros, mean, variance, momentum=0.25)
    assert mean.data is arrays[0] and variance.data is arrays[1]
    sample = x.numpy().reshape(-1, 3)
    assert_close(mean.numpy(), 0.75 * np.array([1, 2, 3]) + 0.25 * sample.mean(0))
    assert_close(variance.numpy(), 0.75 * np.array([4, 5, 6]) + 0.25 * sample.var(0, ddof=1))


def test_evaluation_uses_the_running_values_and_leaves_them(x, ones, zeros, device):
    mean, variance = MEAN.on(device), VARIANCE.on(device)
    y = batch_norm(x, ones, zeros, mean, variance, training=False, eps=0)
    assert_close(y.numpy(), (x.numpy() - MEAN.array) / np.sqrt(VARIANCE.array))
    np.testing.assert_array_equal(mean.numpy(), MEAN.array)
    np.testing.assert_array_equal(variance.numpy(), VARIANCE.array)


def test_a_large_mean_does_not_swallow_the_variance(device, rng):
    """E[x^2] - E[x]^2 would, in float32."""
    x = (1000 + rng.standard_normal((64, 4, 4, 1))).astype(np.float32)
    one, zero = Tensor([1.0], device=device), Tensor([0.0], device=device)
    y = batch_norm(Tensor(x, device=device), one, zero).numpy()
    exact = x.astype(np.float64)
    assert_close(y, (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5), 1e-3)


def test_a_later_training_step_does_not_change_the_gradient_of_an_evaluation(device, rng):
    """The running values are updated in place."""
    x = Tensor(rng.standard_normal((4, 3)), device=device, requires_grad=True)
    weight, bias, running_mean, running_var = (
        Tensor(np.full(3, value), device=device) for value in (1.0, 0.0, 0.0, 1.0)
    )
    y = batch_norm(x, weight, bias, running_mean, running_var, training=False, eps=0)
    batch_norm(x.detach() * 3, weight, bias, running_mean, running_var, momentum=0.5)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.ones((4, 3)))
