"""GradScaler: the loss is scaled, the parameters get the gradients of the loss itself, and overflow skips a step."""

import copy
import logging

import numpy as np
import pytest

import minidl
from minidl import Parameter, Tensor
from minidl.optim import SGD, Adam


def train(scaler, optimizer, parameter, factors):
    """A step for each factor: the loss is factor * sum(parameter^2). Return whether each step was taken."""
    taken = []
    for factor in factors:
        loss = (parameter * parameter).sum() * factor
        scaler.scale(loss).backward()
        taken.append(scaler.step(optimizer))
        optimizer.zero_grad()
    return taken


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.01), lambda p: Adam(p, 0.1)])
def test_the_steps_are_those_without_scaling(make, device):
    numbers = np.array([1.0, -2.0, 0.5], np.float32)
    results = []
    for enabled in (True, False):
        parameter = Parameter(Tensor(numbers, device=device).data)
        scaler = minidl.GradScaler(enabled=enabled)
        assert train(scaler, make([parameter]), parameter, [1, 0.5, 2]) == [True] * 3
        results.append(parameter.numpy())
    np.testing.assert_array_equal(*results)  # a scale that is a power of 2 rounds nothing


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_overflow_skips_the_step_and_halves_the_scale(bad, device, caplog):
    parameter = Parameter(Tensor(np.ones(3, np.float32), device=device).data)
    optimizer = Adam([parameter], 0.1)
    scaler = minidl.GradScaler()
    before = copy.deepcopy((parameter.numpy(), optimizer.state_dict()))
    with caplog.at_level(logging.WARNING, logger="minidl"):
        assert train(scaler, optimizer, parameter, [bad, bad, bad]) == [False] * 3
    assert scaler.get_scale() == 2.0**13
    np.testing.assert_array_equal(parameter.numpy(), before[0])
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, before[1][name])
    (line,) = caplog.messages  # said once
    assert "the loss scale falls from 65536 to 32768" in line
    assert train(scaler, optimizer, parameter, [1]) == [True]


def test_one_bad_number_among_many_gradients_is_found():
    parameters = [Parameter(np.ones(shape, np.float32)) for shape in ((2, 3), (), (5,))]
    scaler, optimizer = minidl.GradScaler(), SGD(parameters, 0.1)
    for p in parameters:
        p.grad = Tensor(np.ones(p.shape, np.float32))
    parameters[1].grad = Tensor(np.float32(np.inf))
    assert scaler.step(optimizer) is False
    assert parameters[0].numpy().sum() == 6


def test_infinities_of_both_signs_do_not_cancel():
    parameter = Parameter(np.ones(2, np.float32))
    parameter.grad = Tensor(np.array([np.inf, -np.inf], np.float32))
    with np.errstate(invalid="ignore"):
        assert minidl.GradScaler().step(SGD([parameter], 0.1)) is False


def test_leaves_that_share_a_gradient_are_divided_once():
    a, b = Parameter(np.zeros(2, np.float32)), Parameter(np.zeros(2, np.float32))
    scaler = minidl.GradScaler()
    scaler.scale((a + b).sum()).backward()
    scaler.step(SGD([a, b], 1.0))
    np.testing.assert_array_equal(a.numpy(), [-1, -1])
    np.testing.assert_array_equal(b.numpy(), [-1, -1])


def test_a_loss_in_float16_is_scaled_in_float32(device):
    """The first scale, 65536, is infinite in float16."""
    loss = Tensor(np.float16(1.5), device=device)
    scaled = minidl.GradScaler().scale(loss)
    assert scaled.dtype == np.float32 and scaled.item() == 1.5 * 65536


def test_the_scale_grows_after_enough_good_steps_and_is_saved():
    parameter = Parameter(np.ones(1, np.float32))
    optimizer, scaler = SGD([parameter], 0.0), minidl.GradScaler(8.0, growth_interval=3)
    train(scaler, optimizer, parameter, [1, 1])
    other = minidl.GradScaler(growth_interval=3)
    other.load_state_dict(scaler.state_dict())
    for each in (scaler, other):
        assert each.get_scale() == 8
        train(each, optimizer, parameter, [1])
        assert each.get_scale() == 16
        train(each, optimizer, parameter, [1, 1, np.inf, 1, 1])  # the count begins again
        assert each.get_scale() == 8


@pytest.mark.parametrize(
    "options",
    [{"init_scale": 0.0}, {"growth_factor": 0.5}, {"backoff_factor": 1.0}, {"growth_interval": 0}, {"init_scale": "a"}],
)
def test_options_without_meaning_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"GradScaler: expected {name} in"):
        minidl.GradScaler(**options)


def test_without_float16_it_does_nothing():
    scaler = minidl.GradScaler(enabled=False)
    loss = Tensor(2.0)
    assert scaler.scale(loss) is loss
    assert scaler.get_scale() == 1
