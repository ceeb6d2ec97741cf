"""The updates of parameters, in place."""

import itertools

import numpy as np
import pytest

from tests.kernels.compare import assert_close

SHAPES = [(1,), (7, 5), (3, 3, 2, 4), (300, 500)]  # the last: several chunks
LR = np.array(0.1)
UPDATES = 4

# momentum, weight_decay, nesterov
SGD_CASES = [*itertools.product([0.9, 0.5], [0.0, 0.01], [False, True]), (0.0, 0.0, False), (0.0, 0.01, False)]
sgd_cases = pytest.mark.parametrize(("momentum", "weight_decay", "nesterov"), SGD_CASES)
# weight_decay, decoupled
ADAM_CASES = list(itertools.product([0.0, 0.1], [False, True]))
adam_cases = pytest.mark.parametrize(("weight_decay", "decoupled"), ADAM_CASES)
BETAS_EPS = 0.9, 0.99, 1e-3  # an eps that matters


def draw(rng):
    return [rng.standard_normal(shape) for shape in SHAPES]


def zeros():
    return [np.zeros(shape) for shape in SHAPES]


@sgd_cases
def test_sgd_agrees_with_the_plain_loops(momentum, weight_decay, nesterov, agrees, rng):
    parameters, grads, velocities = draw(rng), draw(rng), draw(rng) if momentum else []
    agrees("sgd_update", parameters, grads, velocities, LR, momentum, weight_decay, nesterov)


@adam_cases
@pytest.mark.parametrize("before", [(0, 0, 0, 0), (1, 1, 1, 1), (999, 0, 30, 2)], ids=str)
def test_adam_agrees_with_the_plain_loops(before, weight_decay, decoupled, agrees, rng):
    parameters, grads, means, squares = draw(rng), draw(rng), draw(rng), [array**2 for array in draw(rng)]
    options = [np.array(count) for count in before], LR, *BETAS_EPS, weight_decay, decoupled
    agrees("adam_update", parameters, grads, means, squares, *options)


def test_adam_counts_the_steps_of_many_parameters_once_each(run):
    """More than the CUDA kernel writes into its table with one launch."""
    many = 70
    ones = [np.ones(3) for _ in range(many)]
    counts = [np.array(number) for number in range(many)]
    *_, counts = run("adam_update", ones, ones, ones, ones, counts, LR, *BETAS_EPS, 0.0, False)
    assert [int(count) for count in counts] == list(range(1, many + 1))
    assert {count.dtype for count in counts} == {np.dtype("int64")}


def test_plain_sgd_steps_against_the_gradient(run):
    parameters, velocities = run("sgd_update", [np.array([1.0])], [np.array([2.0])], [], LR, 0.0, 0.0, False)
    assert_close(parameters[0], [0.8])
    assert velocities == []


def test_the_first_step_of_adam_has_the_length_of_the_learning_rate(run):
    """Bias correction: mean_hat = g and sqrt(square_hat) = |g| whatever the betas."""
    state = [np.array([1.0, 1.0])], [np.array([0.5, -20.0])], [np.zeros(2)], [np.zeros(2)]
    parameters, _, _, steps = run("adam_update", *state, [np.array(0)], LR, 0.9, 0.999, 0.0, 0.0, False)
    assert_close(parameters[0], [0.9, 1.1])
    assert steps == [1]


def train_with_torch(torch, optimizer, gradients, parameters, **options):
    """The parameters after one update for each list of gradients."""
    tensors = [torch.tensor(array) for array in parameters]
    optimizer = optimizer(tensors, lr=float(LR), **options)
    for grads in gradients:
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        optimizer.step()
    return [tensor.numpy() for tensor in tensors]


@sgd_cases
def test_sgd_is_that_of_pytorch(momentum, weight_decay, nesterov, run, rng, torch):
    parameters, gradients = draw(rng), [draw(rng) for _ in range(UPDATES)]
    options = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    expected = train_with_torch(torch, torch.optim.SGD, gradients, parameters, **options)
    velocities = zeros() if momentum else []
    for grads in gradients:
        parameters, velocities = run("sgd_update", parameters, grads, velocities, LR, momentum, weight_decay, nesterov)
    for actual, wanted in zip(parameters, expected, strict=True):
        assert_close(actual, wanted)


@adam_cases
def test_adam_is_that_of_pytorch(weight_decay, decoupled, run, rng, torch):
    parameters, gradients = draw(rng), [draw(rng) for _ in range(UPDATES)]
    beta1, beta2, eps = BETAS_EPS
    options = {"betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}
    optimizer = torch.optim.AdamW if decoupled else torch.optim.Adam
    expected = train_with_torch(torch, optimizer, gradients, parameters, **options)
    means, squares, steps = zeros(), zeros(), [np.array(0) for _ in SHAPES]
    for grads in gradients:
        state = parameters, grads, means, squares, steps, LR
        parameters, means, squares, steps = run("adam_update", *state, beta1, beta2, eps, weight_decay, decoupled)
    for actual, wanted in zip(parameters, expected, strict=True):
        assert_close(actual, wanted)


def test_a_parameter_that_cannot_be_written_in_place_is_an_error(kernels, to_device):
    parameter = to_device(np.ones((3, 2))).T
    with pytest.raises(ValueError, match="copy"):
        kernels.sgd_update([parameter], [parameter], [], LR, 0.0, 0.0, False)
