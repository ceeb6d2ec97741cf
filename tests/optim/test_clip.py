"""Gradient clipping."""

import math

import numpy as np
import pytest

from minidl import Parameter, Tensor
from minidl.optim import clip_grad_norm_
from tests.kernels.compare import assert_close

SHAPES = [(4, 5), (7,), ()]


def with_gradients(rng, dtype="float64", device="cpu"):
    """Parameters of zeros with random gradients."""
    parameters = [Parameter(Tensor(np.zeros(shape, dtype), device=device).data) for shape in SHAPES]
    for parameter in parameters:
        parameter.grad = Tensor(np.asarray(rng.standard_normal(parameter.shape), dtype), device=device)
    return parameters


def grads_of(parameters):
    return [parameter.grad.numpy().copy() for parameter in parameters]


def norm_of(grads):
    return math.sqrt(sum((grad**2).sum() for grad in grads))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("max_norm", [0.5, 1000.0], ids=["clipped", "small enough"])
def test_clipping_is_that_of_pytorch(max_norm, dtype, rng, device, torch):
    parameters = with_gradients(rng, dtype, device)
    theirs = [torch.zeros(p.shape, dtype=getattr(torch, dtype), requires_grad=True) for p in parameters]
    for ours, twin in zip(parameters, theirs, strict=True):
        twin.grad = torch.tensor(ours.grad.numpy())
    norm, expected_norm = clip_grad_norm_(parameters, max_norm), torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert isinstance(norm, float) and norm == pytest.approx(expected_norm.item(), rel=1e-6)
    for ours, twin in zip(parameters, theirs, strict=True):
        assert ours.grad.dtype == np.dtype(dtype)
        assert_close(ours.grad.numpy(), twin.grad.numpy(), 1e-6)  # PyTorch divides by norm + 1e-6


def test_the_common_norm_becomes_the_largest_one_allowed_and_the_direction_stays(rng, device):
    parameters = with_gradients(rng, device=device)
    before = grads_of(parameters)
    assert clip_grad_norm_(parameters, 0.1) == pytest.approx(norm_of(before), rel=1e-12)
    for old, new in zip(before, grads_of(parameters), strict=True):
        assert_close(new, old * (0.1 / norm_of(before)))
    assert norm_of(grads_of(parameters)) == pytest.approx(0.1, rel=1e-12)


def test_gradients_are_replaced_and_never_written_into(rng, device):
    parameters = with_gradients(rng, device=device)
    given = [parameter.grad for parameter in parameters]
    before = grads_of(parameters)
    clip_grad_norm_(parameters, 0.1)
    assert all(np.array_equal(tensor.numpy(), old) for tensor, old in zip(given, before, strict=True))
    assert not any(np.array_equal(p.grad.numpy(), old) for p, old in zip(parameters, before, strict=True))


def test_two_parameters_that_share_a_gradient_array_are_scaled_once_each(device):
    parameters = [Parameter(Tensor(np.zeros(2), device=device).data) for _ in range(2)]
    for parameter, shared in zip(parameters, [Tensor(np.ones(2), device=device)] * 2, strict=True):
        parameter.grad = shared
    assert clip_grad_norm_(iter(parameters), 1.0) == 2.0
    assert [grad.tolist() for grad in grads_of(parameters)] == [[0.5, 0.5]] * 2


def test_parameters_without_a_gradient_do_not_count(rng):
    parameters = with_gradients(rng)
    norm = norm_of(grads_of(parameters[1:]))
    parameters[0].grad = None
    frozen = Parameter(np.zeros(3), requires_grad=False)
    assert clip_grad_norm_([frozen, *parameters], 0.1) == pytest.approx(norm, rel=1e-12)
    assert parameters[0].grad is None and frozen.grad is None
    assert clip_grad_norm_([frozen], 0.1) == 0


def test_a_gradient_just_at_the_limit_is_left_as_it_is():
    parameter = Parameter(np.zeros(2))
    parameter.grad = Tensor(np.array([3.0, 4.0]))
    assert clip_grad_norm_([parameter], 5.0) == 5.0
    assert parameter.grad.numpy().tolist() == [3.0, 4.0]


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_a_largest_norm_that_is_not_above_0_is_refused(max_norm):
    with pytest.raises(ValueError, match="max_norm > 0"):
        clip_grad_norm_([], max_norm)


def test_a_single_parameter_is_refused():
    parameter = Parameter(np.ones((2, 2)))
    parameter.grad = Tensor(np.full((2, 2), 100.0))
    with pytest.raises(
        TypeError, match=r"clip_grad_norm_: expected a list of parameters, got Parameter; pass \[parameter"
    ):
        clip_grad_norm_(parameter, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_scaled(bad, rng, device):
    parameters = with_gradients(rng, device=device)
    grad = parameters[1].grad.numpy().copy()
    grad[3] = bad
    parameters[1].grad = Tensor(grad, device=device)
    before = grads_of(parameters)
    frozen = Parameter(np.zeros(3), requires_grad=False)
    with pytest.raises(ValueError, match=r"clip_grad_norm_: expected finite .* parameter 2 \(7,\)"):
        clip_grad_norm_([frozen, *parameters], 1.0)
    for after, old in zip(grads_of(parameters), before, strict=True):
        np.testing.assert_array_equal(after, old)


def test_large_float32_gradients_have_a_finite_norm(device):
    """The square of 1e20 is more than float32 holds."""
    parameters = [Parameter(Tensor(np.zeros(2, np.float32), device=device).data) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = Tensor(np.full(2, 1e20, np.float32), device=device)
    assert clip_grad_norm_(parameters, 1.0) == pytest.approx(2e20, rel=1e-6)
    for grad in grads_of(parameters):
        assert grad.dtype == np.float32
        np.testing.assert_allclose(grad, 0.5, rtol=1e-6)


def test_small_float32_gradients_have_a_norm_above_0(device):
    """The square of 1e-30 is less than float32 holds."""
    parameter = Parameter(Tensor(np.zeros(4, np.float32), device=device).data)
    parameter.grad = Tensor(np.full(4, 1e-30, np.float32), device=device)
    assert clip_grad_norm_([parameter], 1e-30) == pytest.approx(2e-30, rel=1e-6)
    np.testing.assert_allclose(parameter.grad.numpy(), 5e-31, rtol=1e-6)
