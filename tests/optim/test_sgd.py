"""SGD, with momentum, Nesterov's momentum and weight decay."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.nn import BatchNorm2d, Conv2d, Linear, Sequential
from minidl.optim import SGD, weight_decay_groups
from tests.kernels.compare import assert_close
from tests.optim.against_torch import TOLERANCE, assert_trains_like_pytorch
from tests.optim.problem import LR, SGD_OPTIONS, train, values


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", SGD_OPTIONS.values(), ids=SGD_OPTIONS)
def test_sgd_trains_like_pytorch(options, dtype, problem, device, torch):
    assert_trains_like_pytorch(SGD, torch.optim.SGD, options, problem, dtype, device, torch)


def test_groups_have_weight_decays_of_their_own(problem, device, torch):
    def groups(parameters):
        w1, b1, w2, b2 = parameters
        return [{"params": [w1, w2], "weight_decay": 0.2}, {"params": [b1], "weight_decay": 0}, {"params": [b2]}]

    ours, our_loss = problem.minidl(device=device)
    theirs, their_loss = problem.torch(torch)
    train(SGD(groups(ours), LR, momentum=0.9, weight_decay=0.1), our_loss)
    train(torch.optim.SGD(groups(theirs), LR, momentum=0.9, weight_decay=0.1), their_loss)
    for actual, expected in zip(values(ours), values(theirs), strict=True):
        assert_close(actual, expected)


def test_groups_have_learning_rates_of_their_own(problem, device, torch):
    """PyTorch has the rate itself in a group, and its schedules multiply it."""

    def train_in_two_parts(optimizer, make_loss, set_rate):
        train(optimizer, make_loss)
        set_rate(LR / 4)
        train(optimizer, make_loss)

    def ours_in_groups(parameters):
        return [{"params": parameters[:2], "lr_scale": 8.0, "weight_decay": 0.01}, {"params": parameters[2:]}]

    ours, our_loss = problem.minidl(device=device)
    optimizer = SGD(ours_in_groups(ours), LR, momentum=0.8, weight_decay=0.1, nesterov=True)
    train_in_two_parts(optimizer, our_loss, lambda lr: setattr(optimizer, "lr", lr))
    assert optimizer.lr == LR / 4
    theirs, their_loss = problem.torch(torch)
    groups = [{"params": theirs[:2], "lr": 8 * LR, "weight_decay": 0.01}, {"params": theirs[2:]}]
    reference = torch.optim.SGD(groups, LR, momentum=0.8, weight_decay=0.1, nesterov=True)

    def set_rates(lr):
        for group, scale in zip(reference.param_groups, (8, 1), strict=True):
            group["lr"] = scale * lr

    train_in_two_parts(reference, their_loss, set_rates)
    for actual, expected in zip(values(ours), values(theirs), strict=True):
        assert_close(actual, expected)


def test_weight_decay_groups_spare_the_vectors(device):
    model = Sequential(Conv2d(2, 3, 1), BatchNorm2d(3), Linear(3, 2)).to(device)
    decayed, spared = weight_decay_groups(model, 0.25)
    conv, norm, linear = model
    assert [id(p) for p in decayed["params"]] == [id(conv.weight), id(linear.weight)]
    assert [id(p) for p in spared["params"]] == [id(conv.bias), id(norm.weight), id(norm.bias), id(linear.bias)]
    optimizer = SGD([decayed, spared], lr=1.0)
    before = values(model.parameters())
    for parameter in model.parameters():
        parameter.grad = parameter.detach() * 0
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        left = 0.75 if parameter.ndim > 1 else 1.0
        assert_close(parameter.numpy(), left * old, 1e-6)


def test_nesterov_without_momentum_is_refused(problem):
    with pytest.raises(ValueError, match="SGD: nesterov needs a momentum > 0, got 0"):
        SGD(problem.minidl()[0], LR, nesterov=True)


@pytest.mark.parametrize(("momentum", "count"), [(0.0, 0), (0.9, 4)])
def test_velocities_are_kept_where_there_is_momentum(momentum, count, problem):
    parameters, make_loss = problem.minidl()
    optimizer = SGD(parameters, LR, momentum)
    train(optimizer, make_loss)
    assert list(optimizer.state_dict()) == [f"velocity.{i}" for i in range(count)]
    assert all(np.any(velocity) for velocity in optimizer.state_dict().values())


def test_a_momentum_that_is_set_to_0_later_leaves_the_velocities(problem, device):
    parameters, make_loss = problem.minidl(device=device)
    optimizer = SGD(parameters, LR, 0.9)
    train(optimizer, make_loss, 1)
    before = optimizer.state_dict()
    optimizer.momentum = 0.0
    train(optimizer, make_loss, 1)
    after = optimizer.state_dict()
    assert before.keys() == after.keys() and len(after) == 4
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("nesterov", [False, True])
def test_three_steps_of_the_formula(nesterov, device):
    """That of the class, written out for one number."""
    p, v, lr, momentum, weight_decay = 2.0, 0.0, 0.1, 0.9, 0.25
    parameter = Tensor(np.array([p]), device=device, requires_grad=True)
    optimizer = SGD([parameter], lr, momentum, weight_decay, nesterov)
    for slope in (1.0, -3.0, 0.5):
        (parameter * slope).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        g = slope + weight_decay * p
        v = momentum * v + g
        p = p - lr * (g + momentum * v if nesterov else v)
    assert_close(parameter.numpy(), np.array([p]))
