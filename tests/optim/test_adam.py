"""Adam and AdamW."""

import pytest

from minidl.optim import Adam, AdamW
from tests.kernels.compare import assert_close
from tests.optim.against_torch import TOLERANCE, assert_trains_like_pytorch
from tests.optim.problem import ADAM_OPTIONS, LR, train, values

adams = pytest.mark.parametrize("adam", [Adam, AdamW])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", ADAM_OPTIONS.values(), ids=ADAM_OPTIONS)
@adams
def test_adam_trains_like_pytorch(adam, options, dtype, problem, device, torch):
    theirs = getattr(torch.optim, adam.__name__)
    assert_trains_like_pytorch(adam, theirs, options, problem, dtype, device, torch)


@adams
def test_the_defaults_are_those_of_pytorch(adam, problem, torch):
    (ours, our_loss), (theirs, their_loss) = problem.minidl(), problem.torch(torch)
    train(adam(ours), our_loss)
    train(getattr(torch.optim, adam.__name__)(theirs), their_loss)
    for actual, expected in zip(values(ours), values(theirs), strict=True):
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-12)


@adams
def test_the_state_names_the_means_the_squares_and_the_counts_of_steps(adam, problem):
    parameters, make_loss = problem.minidl()
    optimizer = adam(parameters)
    train(optimizer, make_loss, steps=3)
    state = optimizer.state_dict()
    numbers = range(len(parameters))
    assert list(state) == [f"{name}.{i}" for name in ("mean", "square", "step") for i in numbers]
    assert all(state[f"step.{i}"] == 3 and state[f"step.{i}"].dtype == "int64" for i in numbers)


# Which of the four parameters get a gradient in each of twelve steps: one from the start, one later, one now and then.
HAVE_GRADIENTS = [{0, 1, 2, 3} if step >= 8 else {0, 3} if step % 3 else {0} for step in range(12)]


def train_in_part(optimizer, parameters, make_loss):
    """A step for each entry of HAVE_GRADIENTS, for either library."""
    for numbers in HAVE_GRADIENTS:
        optimizer.zero_grad()
        make_loss().backward()
        for number, parameter in enumerate(parameters):
            if number not in numbers:
                parameter.grad = None
        optimizer.step()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", ADAM_OPTIONS.values(), ids=ADAM_OPTIONS)
@adams
def test_each_parameter_counts_its_own_steps_as_in_pytorch(adam, options, dtype, problem, device, torch):
    (ours, our_loss), (theirs, their_loss) = problem.minidl(dtype, device), problem.torch(torch, dtype)
    optimizer, their_optimizer = adam(ours, LR, **options), getattr(torch.optim, adam.__name__)(theirs, LR, **options)
    train_in_part(optimizer, ours, our_loss)
    train_in_part(their_optimizer, theirs, their_loss)
    for actual, expected in zip(values(ours), values(theirs), strict=True):
        assert_close(actual, expected, TOLERANCE[dtype])
    counts = [int(their_optimizer.state[parameter]["step"]) for parameter in theirs]
    assert counts == [12, 4, 4, 9]
    assert [int(optimizer.state_dict()[f"step.{i}"]) for i in range(4)] == counts


@adams
def test_a_parameter_that_is_unfrozen_late_steps_as_in_pytorch(adam, problem, device, torch):
    ends = []
    for make, (parameters, make_loss) in (
        (adam, problem.minidl(device=device)),
        (getattr(torch.optim, adam.__name__), problem.torch(torch)),
    ):
        optimizer = make(parameters, LR)
        parameters[0].requires_grad = False
        train(optimizer, make_loss)
        parameters[0].requires_grad = True
        train(optimizer, make_loss, steps=3)
        ends.append(values(parameters))
    for actual, expected in zip(*ends, strict=True):
        assert_close(actual, expected)
