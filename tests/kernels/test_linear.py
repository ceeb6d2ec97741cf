"""The linear layer: a product with a matrix."""

import numpy as np
import pytest

from tests.kernels.compare import assert_close, torch_gradients

# N, in, out; the last three are large enough for several chunks
CASES = [(1, 1, 1), (1, 5, 3), (4, 1, 7), (3, 6, 1), (5, 7, 4), (1, 300, 900), (2, 300, 900), (2, 900, 300)]
cases = pytest.mark.parametrize(("n", "features", "outputs"), CASES)


def draw(rng, n, features, outputs):
    """x, weight, bias, grad."""
    return [rng.standard_normal(shape) for shape in ((n, features), (features, outputs), outputs, (n, outputs))]


@cases
def test_linear_agrees_with_the_plain_loops(n, features, outputs, agrees, rng):
    x, weight, bias, grad = draw(rng, n, features, outputs)
    agrees("linear_forward", x, weight, bias)
    agrees("linear_forward", x, weight, None)
    agrees("linear_backward_x", grad, weight)
    agrees("linear_backward_weight", grad, x)


@cases
def test_the_backward_passes_are_the_adjoints_of_the_forward_pass(n, features, outputs, run, rng):
    x, weight, _, grad = draw(rng, n, features, outputs)
    y = run("linear_forward", x, weight, None)
    scale = np.linalg.norm(y) * np.linalg.norm(grad)
    assert abs(np.vdot(x, run("linear_backward_x", grad, weight)) - np.vdot(y, grad)) <= 1e-12 * scale
    assert abs(np.vdot(weight, run("linear_backward_weight", grad, x)) - np.vdot(y, grad)) <= 1e-12 * scale


@cases
def test_linear_is_that_of_pytorch(n, features, outputs, run, rng, torch):
    x, weight, bias, grad = draw(rng, n, features, outputs)

    def linear(x, weight, bias):
        return torch.nn.functional.linear(x, weight.T, bias)  # (in, out) -> (out, in)

    y, (grad_x, grad_weight, grad_bias) = torch_gradients(torch, linear, [x, weight, bias], grad)
    assert_close(run("linear_forward", x, weight, bias), y)
    assert_close(run("linear_backward_x", grad, weight), grad_x)
    assert_close(run("linear_backward_weight", grad, x), grad_weight)
    assert_close(run("bias_backward", grad), grad_bias)
