"""Cross-entropy and mean squared error."""

import numpy as np
import pytest

from minidl.kernels import reference
from tests.kernels.compare import assert_close, torch_gradients

SHAPES = [(1, 2), (5, 3), (1, 7), (40, 1000)]  # N, K
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
smoothings = pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
GRAD = np.array(2.5)  # dL/dloss, which is not always 1


def draw(rng, shape):
    """logits, labels."""
    return 3 * rng.standard_normal(shape), rng.integers(0, shape[1], shape[0])


@shapes
@smoothings
def test_cross_entropy_agrees_with_the_plain_loops(shape, label_smoothing, agrees, rng):
    logits, labels = draw(rng, shape)
    agrees("cross_entropy_forward", logits, labels, label_smoothing)
    agrees("cross_entropy_backward", GRAD, reference.softmax_forward(logits), labels, label_smoothing)


def test_the_loss_of_equal_logits_is_the_logarithm_of_the_classes(run):
    loss, probabilities = run("cross_entropy_forward", np.zeros((3, 10)), np.array([0, 4, 9]), 0.0)
    assert_close(loss, np.log(10))
    assert_close(probabilities, np.full((3, 10), 0.1))


def test_a_confident_mistake_costs_its_logit_and_not_infinity(run):
    loss, _ = run("cross_entropy_forward", np.array([[1e4, 0.0]], np.float32), np.array([1]), 0.0)
    assert loss == 1e4


@smoothings
def test_the_gradient_of_a_row_sums_to_zero(label_smoothing, run, rng):
    """A constant added to all logits of a row leaves the loss as it is."""
    logits, labels = draw(rng, (5, 7))
    probabilities = reference.softmax_forward(logits)
    grad_logits = run("cross_entropy_backward", GRAD, probabilities, labels, label_smoothing)
    assert abs(grad_logits.sum(axis=1)).max() <= 1e-15
    assert abs(grad_logits).max() > 0.01


@shapes
@smoothings
def test_cross_entropy_is_that_of_pytorch(shape, label_smoothing, run, rng, torch):
    logits, labels = draw(rng, shape)

    def cross_entropy(logits):
        return torch.nn.functional.cross_entropy(logits, torch.tensor(labels), label_smoothing=label_smoothing)

    expected, (grad_logits,) = torch_gradients(torch, cross_entropy, [logits], GRAD)
    loss, probabilities = run("cross_entropy_forward", logits, labels, label_smoothing)
    assert_close(loss, expected)
    assert_close(run("cross_entropy_backward", GRAD, probabilities, labels, label_smoothing), grad_logits)


@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 3, 5, 4), (70, 1000)], ids=str)
def test_mse_loss_agrees_with_the_plain_loops(shape, agrees, rng):
    x, target = rng.standard_normal((2, *shape))
    agrees("mse_loss_forward", x, target)
    agrees("mse_loss_backward", GRAD, x, target)


@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 3, 5, 4)], ids=str)
def test_mse_loss_is_that_of_pytorch(shape, run, rng, torch):
    x, target = rng.standard_normal((2, *shape))
    loss, (grad_x, _) = torch_gradients(torch, torch.nn.functional.mse_loss, [x, target], GRAD)
    assert_close(run("mse_loss_forward", x, target), loss)
    assert_close(run("mse_loss_backward", GRAD, x, target), grad_x)


def test_an_impossible_class_costs_nothing_where_it_is_not_the_label(run):
    loss, _ = run("cross_entropy_forward", np.array([[0.0, -np.inf]]), np.array([0]), 0.0)
    assert loss == 0


@pytest.mark.parametrize("label", [3, 2**40])
def test_a_label_beyond_the_classes_does_not_pass_unseen(label, kernels, to_device, to_host):
    """On the CPU it is an error; on a GPU, where nobody waits to look at labels, the loss is NaN."""
    logits, labels = to_device(np.zeros((2, 3))), to_device(np.array([0, label]))
    try:
        loss, _ = kernels.cross_entropy_forward(logits, labels, 0.1)
    except IndexError:
        return
    assert np.isnan(to_host(loss))
