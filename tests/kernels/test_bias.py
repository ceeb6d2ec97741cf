"""The gradient of a bias, for convolutions and linear layers alike."""

import numpy as np
import pytest

from tests.kernels.compare import assert_close

SHAPES = [(1, 1), (5, 3), (4, 1), (2, 3, 5, 4), (1, 4, 3, 1), (40, 20, 12, 32)]  # the last: several chunks
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
def test_the_bias_gradient_agrees_with_the_plain_loops(shape, agrees, rng):
    agrees("bias_backward", rng.standard_normal(shape))


@shapes
def test_the_bias_gradient_is_the_adjoint_of_adding_the_bias(shape, run, rng):
    """<b broadcast, g> = <b, bias_backward(g)>."""
    grad, bias = rng.standard_normal(shape), rng.standard_normal(shape[-1])
    broadcast = np.broadcast_to(bias, shape)
    difference = np.vdot(broadcast, grad) - np.vdot(bias, run("bias_backward", grad))
    assert abs(difference) <= 1e-12 * np.linalg.norm(broadcast) * np.linalg.norm(grad)


@shapes
def test_the_bias_gradient_is_that_of_pytorch(shape, run, rng, torch):
    grad = rng.standard_normal(shape)
    bias = torch.zeros(shape[-1], dtype=torch.float64, requires_grad=True)
    bias.expand(shape).backward(torch.tensor(grad))
    assert_close(run("bias_backward", grad), bias.grad.numpy())


@pytest.mark.parametrize("shape", [(2**18, 2), (128, 32, 32, 3)], ids=str)
def test_the_bias_gradient_of_many_float32_rows_has_an_error_of_float32(shape, run):
    grad_bias = run("bias_backward", np.full(shape, 0.1, np.float32))
    assert grad_bias.dtype == np.float32
    np.testing.assert_allclose(grad_bias, np.prod(shape[:-1]) * float(np.float32(0.1)), rtol=5e-6)
