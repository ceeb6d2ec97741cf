"""Adam and AdamW."""

import pytest

from minidl.optim import Adam, AdamW
from tests.optim.against_torch import TOLERANCE, assert_trains_like_pytorch
from tests.optim.problem import ADAM_OPTIONS, train, values

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
def test_the_state_names_the_means_the_squares_and_the_count_of_steps(adam, problem):
    parameters, make_loss = problem.minidl()
    optimizer = adam(parameters)
    train(optimizer, make_loss, steps=3)
    state = optimizer.state_dict()
    numbers = range(len(parameters))
    assert list(state) == [*(f"mean.{i}" for i in numbers), *(f"square.{i}" for i in numbers), "steps.0"]
    assert state["steps.0"] == 3 and state["steps.0"].dtype == "int64"
