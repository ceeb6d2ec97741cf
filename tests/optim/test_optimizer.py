"""What all optimisers share."""

import math
import re

import numpy as np
import pytest

from minidl import Buffer, Parameter, Tensor
from minidl.nn import Linear, Sequential
from minidl.optim import SGD, Adam, AdamW
from tests.optim.problem import LR, OPTIMIZERS, STEPS, train, values

optimizers = pytest.mark.parametrize(("make", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)
each_class = pytest.mark.parametrize("make", [SGD, Adam, AdamW])


def all_state(optimizer):
    """The optimiser's arrays of state, themselves."""
    return [array for arrays in optimizer.state().values() for array in arrays]


@optimizers
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_run_that_is_resumed_has_the_bits_of_an_uninterrupted_one(make, options, dtype, problem, device):
    whole, whole_loss = problem.minidl(dtype, device)
    train(make(whole, LR, **options), whole_loss)
    first, first_loss = problem.minidl(dtype, device)
    before = make(first, LR, **options)
    train(before, first_loss, STEPS // 2)
    second, second_loss = problem.minidl(dtype, device)
    for ours, saved in zip(second, first, strict=True):
        ours.data[...] = saved.data
    after = make(second, LR, **options)
    after.load_state_dict(before.state_dict())
    train(after, second_loss, STEPS - STEPS // 2)
    for actual, expected in zip(values(second), values(whole), strict=True):
        np.testing.assert_array_equal(actual, expected)


@optimizers
def test_the_arrays_of_parameters_and_state_stay_the_same_for_life(make, options, problem, device):
    parameters, make_loss = problem.minidl(device=device)
    optimizer = make(parameters, LR, **options)
    arrays = [*(p.data for p in parameters), *all_state(optimizer), *optimizer._rates.values()]
    train(optimizer, make_loss, 2)
    optimizer.lr = LR / 2
    optimizer.load_state_dict(optimizer.state_dict())
    now = [*(p.data for p in parameters), *all_state(optimizer), *optimizer._rates.values()]
    assert [id(array) for array in now] == [id(array) for array in arrays]
    assert optimizer.lr == LR / 2


@optimizers
def test_a_step_writes_into_no_gradient(make, options, problem, device):
    parameters, make_loss = problem.minidl(device=device)
    optimizer = make(parameters, LR, **options)
    train(optimizer, make_loss, 1)
    grads = [p.grad for p in parameters]
    before = values(grads)
    optimizer.step()
    assert all(np.array_equal(old, grad.numpy()) for old, grad in zip(before, grads, strict=True))


@optimizers
@pytest.mark.parametrize("how", ["no gradient", "frozen"])
def test_parameters_without_a_gradient_are_left_alone(make, options, how, problem, device):
    parameters, make_loss = problem.minidl(device=device)
    optimizer = make(parameters, LR, **options)
    train(optimizer, make_loss, 2)
    before, state = values(parameters), optimizer.state_dict()
    if how == "frozen":
        parameters[1].requires_grad = False
    else:
        parameters[1].grad = None
    optimizer.step()
    changed = [not np.array_equal(old, p.numpy()) for old, p in zip(before, parameters, strict=True)]
    assert changed == [True, False, True, True]
    later = optimizer.state_dict()
    assert all(np.array_equal(later[name], state[name]) for name in state if name.endswith(".1"))
    optimizer.zero_grad()


@optimizers
def test_a_step_without_any_gradient_changes_no_parameter(make, options, problem):
    parameters, _ = problem.minidl()
    make(parameters, LR, **options).step()
    assert all(np.array_equal(p.numpy(), start) for p, start in zip(parameters, problem.start, strict=True))


@each_class
def test_zero_grad_forgets_all_gradients(make, problem):
    parameters, make_loss = problem.minidl()
    optimizer = make(parameters, LR)
    make_loss().backward()
    optimizer.zero_grad()
    assert [p.grad for p in parameters] == [None] * 4


@pytest.mark.parametrize(("make", "options"), [(SGD, {"momentum": 0.9}), (Adam, {})], ids=["SGD", "Adam"])
def test_a_state_dict_is_a_copy(make, options, problem):
    parameters, make_loss = problem.minidl()
    optimizer = make(parameters, LR, **options)
    state = optimizer.state_dict()
    before = {name: array.copy() for name, array in state.items()}
    train(optimizer, make_loss, 1)
    assert all(np.array_equal(state[name], array) for name, array in before.items())
    assert not all(np.array_equal(optimizer.state_dict()[name], array) for name, array in before.items())


# What is done to a good state dict of SGD or Adam, and the name that the error must give.
SPOILED = {
    "missing": (lambda state, name: state.pop(name), "{}"),
    "unexpected": (lambda state, name: state.update(extra=np.zeros(1)), "extra"),
    # A model ignores names with this end, an optimizer has none.
    "unexpected, ignored by a model": (lambda state, name: state.update(num_batches_tracked=np.zeros(1)), "tracked"),
    "wrong shape": (lambda state, name: state.update({name: np.zeros((8, 6))}), "{}"),
    "complex numbers": (lambda state, name: state.update({name: state[name] * 1j}), "{}: expected real numbers"),
    "strings": (lambda state, name: state.update({name: np.full(state[name].shape, "x")}), "{}: expected real numbers"),
    "a shape that would broadcast": (lambda state, name: state.update({name: np.zeros((1, 8))}), "{}"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize(
    ("make", "options", "name"),
    [(SGD, {"momentum": 0.9}, "velocity.0"), (Adam, {}, "mean.0"), (Adam, {}, "square.0")],
)
def test_a_state_that_does_not_fit_is_refused_whole(spoil, message, make, options, name, problem):
    parameters, make_loss = problem.minidl()
    optimizer = make(parameters, LR, **options)
    train(optimizer, make_loss, 2)
    before = optimizer.state_dict()
    state = {key: array + 1 for key, array in before.items()}
    spoil(state, name)
    with pytest.raises(ValueError, match=f"{make.__name__}.load_state_dict: .*{message.format(name)}"):
        optimizer.load_state_dict(state)
    assert all(np.array_equal(array, before[key]) for key, array in optimizer.state_dict().items())


def test_the_state_of_another_rule_is_refused(problem):
    parameters, _ = problem.minidl()
    with pytest.raises(ValueError, match=r"SGD.load_state_dict: .*velocity.0"):
        SGD(parameters, LR).load_state_dict(SGD(parameters, LR, momentum=0.9).state_dict())


@each_class
@pytest.mark.parametrize("lr", [-1e-9, math.nan, math.inf])
def test_a_learning_rate_that_is_none_is_refused_at_once_and_later(make, lr, problem):
    parameters, _ = problem.minidl()
    message = re.escape(f"{make.__name__}: expected lr in [0, inf), got {lr}")
    with pytest.raises(ValueError, match=message):
        make(parameters, lr)
    optimizer = make(parameters, 0.0)
    with pytest.raises(ValueError, match=message):
        optimizer.lr = lr
    assert optimizer.lr == 0


@each_class
@pytest.mark.parametrize("parameters", [[], [{"params": []}]], ids=["parameters", "groups"])
def test_an_optimizer_of_nothing_is_refused(make, parameters):
    with pytest.raises(ValueError, match=f"{make.__name__}: expected at least one parameter, got none"):
        make(parameters, LR)


@each_class
def test_parameters_may_come_from_an_iterator_alone_or_in_a_group(make):
    def end(wrap):
        parameter = Parameter(np.ones(2))
        optimizer = make(wrap(iter([parameter])), LR)
        parameter.grad = parameter.detach()
        optimizer.step()
        return parameter.numpy().tolist()

    alone = end(lambda parameters: parameters)
    assert alone != [1.0, 1.0]
    assert end(lambda parameters: [{"params": parameters}]) == alone


@each_class
def test_a_group_with_an_option_that_is_not_supported_is_refused(make, problem):
    parameters, _ = problem.minidl()
    with pytest.raises(ValueError, match=f"{make.__name__}: .*'lr'"):
        make([{"params": parameters, "lr": 0.1}], LR)


@each_class
def test_a_parameter_that_is_given_twice_is_refused(make, problem):
    parameters, _ = problem.minidl()
    with pytest.raises(ValueError, match=f"{make.__name__}: .*twice"):
        make([{"params": parameters}, {"params": parameters[1:2], "weight_decay": 0.0}], LR)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_parameter_that_is_not_in_a_list_is_refused(make):
    with pytest.raises(TypeError, match=r"pass \[parameter\]"):
        make(Parameter(np.zeros(3)), lr=0.1)


# What is no hyper-parameter, by class: the options, and what the error must say.
BAD_OPTIONS = [
    (SGD, {"lr": math.inf}, "SGD: expected lr in [0, inf), got inf"),
    (SGD, {"lr": "0.1"}, "SGD: expected lr in [0, inf), got '0.1'"),
    (SGD, {"lr": None}, "SGD: expected lr in [0, inf), got None"),
    (SGD, {"lr": LR, "weight_decay": math.nan}, "SGD: expected weight_decay in [0, inf), got nan"),
    (SGD, {"lr": LR, "weight_decay": -0.1}, "SGD: expected weight_decay in [0, inf), got -0.1"),
    (SGD, {"lr": LR, "momentum": 1.0}, "SGD: expected momentum in [0, 1), got 1.0"),
    (SGD, {"lr": LR, "momentum": -1}, "SGD: expected momentum in [0, 1), got -1"),
    (SGD, {"lr": LR, "momentum": math.nan}, "SGD: expected momentum in [0, 1), got nan"),
    (Adam, {"betas": (1, 0.9)}, "Adam: expected beta1 in [0, 1), got 1"),
    (Adam, {"betas": (0.9, math.nan)}, "Adam: expected beta2 in [0, 1), got nan"),
    (Adam, {"betas": (0.9, 2)}, "Adam: expected beta2 in [0, 1), got 2"),
    (AdamW, {"betas": (-0.1, 0.9)}, "AdamW: expected beta1 in [0, 1), got -0.1"),
    (AdamW, {"eps": -1}, "AdamW: expected eps in [0, inf), got -1"),
    (Adam, {"eps": math.inf}, "Adam: expected eps in [0, inf), got inf"),
    (Adam, {"weight_decay": math.inf}, "Adam: expected weight_decay in [0, inf), got inf"),
]


@pytest.mark.parametrize(("make", "options", "message"), BAD_OPTIONS, ids=[message for *_, message in BAD_OPTIONS])
def test_a_hyper_parameter_outside_its_range_is_refused(make, options, message, problem):
    parameters, _ = problem.minidl()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(parameters, **options)


@pytest.mark.parametrize("wrong", [{"lr_scale": 1.0}, Parameter(np.zeros(2))], ids=["no params", "a parameter"])
def test_each_group_is_a_dict_with_parameters(wrong):
    for groups in ([{"params": [Parameter(np.zeros(3))]}, wrong], [wrong, {"params": [Parameter(np.zeros(3))]}]):
        with pytest.raises(ValueError, match=r'SGD: expected groups {"params": \[...\], ...}, got '):
            SGD(groups, LR)


@each_class
@pytest.mark.parametrize("weight_decay", [math.nan, -1e-9, None])
def test_the_weight_decay_of_a_group_is_checked_too(make, weight_decay, problem):
    parameters, _ = problem.minidl()
    message = re.escape(f"{make.__name__}: expected weight_decay in [0, inf), got {weight_decay}")
    with pytest.raises(ValueError, match=message):
        make([{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": weight_decay}], LR)


@each_class
@pytest.mark.parametrize("scale", [math.nan, -1.0, None])
def test_the_scale_of_a_groups_rate_is_checked(make, scale, problem):
    parameters, _ = problem.minidl()
    with pytest.raises(ValueError, match=re.escape(f"{make.__name__}: expected lr_scale in [0, inf), got {scale}")):
        make([{"params": parameters, "lr_scale": scale}], LR)


@each_class
def test_the_scale_of_a_group_multiplies_the_rate_whenever_it_is_set(make, problem, device):
    """Two groups of scale 1/2 at twice the rate are one group without."""
    plain, plain_loss = problem.minidl(device=device)
    scaled, scaled_loss = problem.minidl(device=device)
    train(make(plain, LR), plain_loss)
    groups = [{"params": scaled[:1], "lr_scale": 0.5}, {"params": scaled[1:], "lr_scale": 0.5}]
    train(make(groups, 2 * LR), scaled_loss)
    for actual, expected in zip(values(scaled), values(plain), strict=True):
        np.testing.assert_array_equal(actual, expected)


@each_class
def test_numbers_of_numpy_and_the_ends_of_the_ranges_are_taken(make, problem):
    parameters, make_loss = problem.minidl()
    make(parameters, np.float32(LR), weight_decay=np.int64(0))
    make(parameters, np.array(0.0), weight_decay=np.array(0.1))
    groups = [{"params": parameters, "weight_decay": np.array(0.1), "lr_scale": np.array(2.0)}]
    train(make(groups, LR), make_loss, 1)
    train(SGD(parameters, 0, momentum=0), make_loss, 1)
    train(Adam(parameters, 0, betas=(0, 0), eps=0), make_loss, 1)


# What is no list of parameters: it, and what the error says that it got.
NO_PARAMETERS = {
    "a model": (lambda: Sequential(Linear(2, 2)), "got Sequential"),
    "a layer": (lambda: Linear(2, 2), "got Linear"),
    "names too": (lambda: Linear(2, 2).named_parameters(), "got tuple"),
    "a state dict": (lambda: Linear(2, 2).state_dict(), "got str"),
    "an array": (lambda: np.zeros((2, 2)), "got ndarray"),
    "arrays": (lambda: [np.zeros(2)], "got ndarray"),
    "nothing": (lambda: None, "got NoneType"),
    "modules in a group": (lambda: [{"params": Sequential(Linear(2, 2))}], "got Sequential"),
    "a parameter in a group": (lambda: [{"params": Parameter(np.zeros(2))}], "got Parameter"),
    "a tensor that is not learned": (lambda: [Tensor(np.zeros(2))], r"got Tensor\(.*, float64\)"),
    "a buffer": (lambda: [Buffer(np.zeros(2))], r"got Buffer\(.*, float64\)"),
    "a computed tensor": (lambda: [Parameter(np.zeros(2)) * 2], r"got Tensor\(.*, from Mul\)"),
}


@each_class
@pytest.mark.parametrize(("make_parameters", "got"), NO_PARAMETERS.values(), ids=NO_PARAMETERS)
def test_what_is_no_list_of_parameters_is_refused(make, make_parameters, got):
    with pytest.raises(TypeError, match=f"^{make.__name__}: expected .*{got}.*pass .*parameters"):
        make(make_parameters(), LR)


@each_class
def test_leaves_that_are_no_parameters_and_frozen_parameters_are_taken(make):
    leaf, frozen = Tensor([1.0], requires_grad=True), Parameter(np.ones(1), requires_grad=False)
    optimizer = make([leaf, frozen], LR)
    leaf.sum().backward()
    optimizer.step()
    assert leaf.item() < 1 and frozen.item() == 1
