"""Modules: what they are made of, and what is saved of them."""

import numpy as np
import pytest

from minidl import Buffer, Parameter, Tensor
from minidl.functional import relu
from minidl.nn import BatchNorm2d, Conv2d, Dropout, Flatten, GlobalAvgPool, Linear, Module, ReLU, Sequential
from minidl.optim import SGD


class Stack(Module):
    """Parameters, a buffer and modules in an order that is neither that of the alphabet nor that of their kinds."""

    def __init__(self):
        self.stem = Conv2d(3, 4, 3, padding=1, bias=False)
        self.scale = Parameter(np.ones(4, np.float32))
        self.branches = [Linear(4, 4), Linear(4, 4, bias=False)]
        self.title = "no part of the network"
        self.offsets = (Parameter(np.zeros(4, np.float32)), Buffer(np.full(4, 2, np.float32)), 3)
        self.bn = BatchNorm2d(4)
        self.absent = None

    def forward(self, x):
        x = relu(self.bn(self.stem(x) * self.scale + self.offsets[0] * self.offsets[1]))
        x = GlobalAvgPool()(x)
        return self.branches[0](x) + self.branches[1](x)


NAMES = [
    "scale",
    "offsets.0",
    "stem.weight",
    "branches.0.weight",
    "branches.0.bias",
    "branches.1.weight",
    "bn.weight",
    "bn.bias",
]
BUFFER_NAMES = ["offsets.1", "bn.running_mean", "bn.running_var"]


def names(named):
    return [name for name, _ in named]


def arrays_of(model):
    """The arrays of all parameters and buffers, themselves and not copies."""
    return [tensor.data for _, tensor in model.named_tensors(Parameter | Buffer)]


def filled(state, rng):
    """A state dict of the same shapes with other numbers."""
    return {name: rng.random(array.shape, np.float32) for name, array in state.items()}


def train_once(model, rng, device="cpu"):
    """One step of SGD on random images."""
    optimizer = SGD(model.parameters(), lr=0.1)
    loss = model(Tensor(rng.random((2, 5, 5, 3), np.float32), device=device)).sum()
    loss.backward()
    optimizer.step()


# -- what they are made of ---------------------------------------------------------------------------------------------


def test_parameters_and_buffers_are_found_in_attributes_and_lists_in_the_order_of_their_definition():
    model = Stack()
    assert names(model.named_parameters()) == NAMES
    assert names(model.named_buffers()) == BUFFER_NAMES
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]
    assert model.parameters()[0] is model.scale and model.parameters()[5] is model.branches[1].weight


def test_modules_are_found_with_their_paths_from_the_outside_in():
    model = Sequential(ReLU(), Stack())
    assert names(model.children()) == ["0", "1"]
    assert names(model.named_modules()) == ["", "0", "1", "1.stem", "1.branches.0", "1.branches.1", "1.bn"]
    assert dict(model.named_modules())["1.bn"] is model[1].bn


def test_a_shared_parameter_and_a_shared_module_are_named_once_at_their_first_place():
    class Tied(Module):
        def __init__(self):
            self.first, self.norm = Linear(3, 3, bias=False), BatchNorm2d(3)
            self.second, self.norm_again = Linear(3, 3), self.norm
            self.second.weight = self.first.weight

    model = Tied()
    assert names(model.named_parameters()) == ["first.weight", "norm.weight", "norm.bias", "second.bias"]
    assert names(model.named_buffers()) == ["norm.running_mean", "norm.running_var"]
    assert list(model.state_dict()) == [
        "first.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "second.bias",
    ]


def test_members_may_be_set_before_and_without_calling_the_base_class():
    class Before(Module):
        def __init__(self):
            self.weight = Parameter(np.zeros(2, np.float32))
            super().__init__()
            self.bias = Parameter(np.zeros(3, np.float32))

    class Without(Module):
        pass

    without = Without()
    without.late = Parameter(np.zeros(1, np.float32))
    assert names(Before().named_parameters()) == ["weight", "bias"]
    assert names(without.named_parameters()) == ["late"]
    assert without.training


def test_a_replaced_member_keeps_its_place_and_a_deleted_one_is_gone():
    model = Stack()
    model.scale = Parameter(np.zeros(4, np.float32))
    del model.bn
    model.offsets = ()
    assert names(model.named_parameters()) == ["scale", *NAMES[2:6]]


def test_what_a_subclass_of_sequential_adds_is_found_too():
    class Scaled(Sequential):
        def __init__(self):
            super().__init__(Linear(2, 2, bias=False), ReLU())
            self.scale = Parameter(np.ones(2, np.float32))

    assert names(Scaled().named_parameters()) == ["scale", "0.weight"]


def test_sequential_runs_its_modules_in_order_and_gives_them_out():
    class Affine(Module):
        def __init__(self, factor, offset):
            self.factor, self.offset = factor, offset

        def forward(self, x):
            return x * self.factor + self.offset

    model = Sequential(Affine(2, 1), Affine(10, 0), ReLU())
    assert model(Tensor([1.0, -3.0])).numpy().tolist() == [30.0, 0.0]
    assert len(model) == 3 and model[1].factor == 10 and model[-1] is model[2]


def test_a_hook_is_called_once_for_each_block_that_adds_it():
    layer, called = ReLU(), []

    def hook(module, inputs, output):
        called.append((module, len(inputs)))

    with layer.forward_hook(hook):
        with layer.forward_hook(hook):
            layer(Tensor([1.0]))
        assert called == [(layer, 1)] * 2
        layer(Tensor([1.0]))
    layer(Tensor([1.0]))
    assert called == [(layer, 1)] * 3


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Silent: define forward"):
        type("Silent", (Module,), {})()(Tensor([1.0]))


# -- what can be done to them ------------------------------------------------------------------------------------------


def test_a_frozen_parameter_stays_and_neither_gets_a_gradient_nor_changes(rng, device):
    model = Stack().to(device)
    frozen = model.branches[0].weight
    before = frozen.numpy().copy()
    frozen.requires_grad = False
    train_once(model, rng, device)
    assert names(model.named_parameters()) == NAMES
    assert "branches.0.weight" in model.state_dict()
    assert frozen.grad is None and np.array_equal(frozen.numpy(), before)
    assert all(p.grad is not None for p in model.parameters() if p is not frozen)
    model.zero_grad()


def test_zero_grad_forgets_the_gradients_of_all_parameters(rng, device):
    model = Stack().to(device)
    train_once(model, rng, device)
    model.zero_grad()
    assert [p.grad for p in model.parameters()] == [None] * len(NAMES)


def test_train_and_eval_reach_every_module_and_return_the_model():
    model = Sequential(Stack(), Dropout())
    modules = [module for _, module in model.named_modules()]
    assert all(module.training for module in modules)
    assert model.eval() is model and not any(module.training for module in modules)
    assert model.train() is model and all(module.training for module in modules)
    assert not model.train(False)[0].bn.training


def test_to_converts_all_floating_point_numbers_and_drops_the_gradients(rng):
    model = Sequential(Stack(), Dropout())
    train_once(model, rng)
    key = model[1].key.data.copy()
    before = model.state_dict()
    assert model.to("float64") is model
    assert {array.dtype for array in arrays_of(model)} == {np.dtype("float64"), np.dtype("uint32")}
    assert np.array_equal(model[1].key.data, key)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    assert model(Tensor(rng.random((2, 5, 5, 3)))).dtype == np.float64


def test_to_leaves_frozen_parameters_frozen():
    model = Linear(2, 2)
    model.weight.requires_grad = False
    model.to("float64")
    assert (model.weight.requires_grad, model.bias.requires_grad) == (False, True)


def test_the_arrays_of_parameters_and_buffers_stay_the_same_for_life(rng, device):
    model = Stack().to(device)
    arrays = arrays_of(model)
    values = [np.array(tensor.numpy()) for _, tensor in model.named_tensors(Parameter | Buffer)]
    train_once(model, rng, device)
    model.eval().train()
    model.load_state_dict(filled(model.state_dict(), rng))
    assert [id(array) for array in arrays_of(model)] == [id(array) for array in arrays]
    now = [tensor.numpy() for _, tensor in model.named_tensors(Parameter | Buffer)]
    assert not any(np.array_equal(old, new) for old, new in zip(values, now, strict=True))


def test_a_model_prints_its_parts_their_arguments_and_how_many_parameters_it_has():
    model = Sequential(Conv2d(3, 4, 3), Sequential(ReLU(), Flatten()), Linear(1000, 2))
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Conv2d(3 -> 4, 3x3, stride=(1, 1), padding=(0, 0), bias=True)  # 112 parameters\n"
        "  (1): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Flatten()\n"
        "  )\n"
        "  (2): Linear(1000 -> 2, bias=True)  # 2,002 parameters\n"
        ")  # 2,114 parameters"
    )


# -- what is saved -----------------------------------------------------------------------------------------------------


def test_a_state_dict_has_the_names_and_shapes_of_pytorch(torch):
    ours = Sequential(
        Conv2d(2, 5, (3, 1)), BatchNorm2d(5), ReLU(), Flatten(), Linear(30, 7, flattened_from=(2, 3, 5))
    ).state_dict()
    nn = torch.nn
    theirs = nn.Sequential(nn.Conv2d(2, 5, (3, 1)), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(30, 7))
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    del expected["1.num_batches_tracked"]
    assert {name: array.shape for name, array in ours.items()} == expected
    assert list(ours) == list(expected)
    assert all(type(array) is np.ndarray and array.dtype == np.float32 for array in ours.values())


ALIASING = [
    Linear(5, 1),
    Linear(1, 5),
    Linear(4, 4),
    Linear(4, 1, flattened_from=(2, 1, 2)),
    Conv2d(1, 4, 1),
    Conv2d(4, 1, 1),
    Conv2d(1, 1, 3),
    BatchNorm2d(3),
]


@pytest.mark.parametrize("module", ALIASING, ids=repr)
def test_a_state_dict_is_a_copy(module):
    state = module.state_dict()
    assert not any(np.shares_memory(saved, array) for saved in state.values() for array in arrays_of(module))
    module.load_state_dict(state)
    assert not any(np.shares_memory(saved, array) for saved in state.values() for array in arrays_of(module))


def test_buffers_that_are_not_persistent_are_neither_saved_nor_asked_for():
    model = Sequential(Linear(2, 2), Dropout())
    assert names(model.named_buffers()) == ["1.key"]
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    model.load_state_dict(model.state_dict())


def test_loading_brings_back_what_was_saved(rng, device):
    saved, model = Stack(), Stack().to(device)
    saved.load_state_dict(filled(saved.state_dict(), rng))
    model.load_state_dict(saved.state_dict())
    for name, array in model.state_dict().items():
        assert np.array_equal(array, saved.state_dict()[name])
    for ours, theirs in zip(model.parameters(), saved.parameters(), strict=True):
        assert np.array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize(("ours", "file"), [("float32", np.float64), ("float64", np.float32)])
def test_loading_keeps_the_dtype_of_the_model(ours, file, rng):
    model = Linear(3, 2).to(ours)
    state = {name: rng.integers(0, 9, array.shape).astype(file) for name, array in model.state_dict().items()}
    model.load_state_dict(state)
    assert {p.dtype for p in model.parameters()} == {np.dtype(ours)}
    assert all(np.array_equal(array, state[name]) for name, array in model.state_dict().items())


def test_loading_skips_the_batch_counts_of_pytorch():
    model = Sequential(BatchNorm2d(2))
    model.load_state_dict({**model.state_dict(), "0.num_batches_tracked": np.array(7)})


SHAPED = {"conv": Conv2d(2, 3, 1), "linear": Linear(4, 6), "flat": Linear(12, 2, flattened_from=(2, 3, 2))}

# What is done to a good state dict, and what the error must say.
SPOILED = {
    "missing": (lambda s: s.pop("linear.bias"), "missing ['linear.bias']"),
    "unexpected": (lambda s: s.update(extra=np.zeros(1)), "unexpected ['extra']"),
    "misspelt": (lambda s: s.update(bias=s.pop("linear.bias")), "missing ['linear.bias']; unexpected ['bias']"),
    "transposed": (
        lambda s: s.update({"linear.weight": np.zeros((4, 6))}),
        "linear.weight: expected (6, 4), got (4, 6)",
    ),
    "a convolution's weight without its kernel": (
        lambda s: s.update({"conv.weight": np.zeros((3, 2))}),
        "conv.weight: expected (3, 2, 1, 1), got (3, 2)",
    ),
    "a convolution's weight in the layout of the memory": (
        lambda s: s.update({"conv.weight": np.zeros((1, 1, 2, 3))}),
        "conv.weight: expected (3, 2, 1, 1), got (1, 1, 2, 3)",
    ),
    "a linear weight as a convolution's": (
        lambda s: s.update({"linear.weight": np.zeros((6, 1, 2, 2))}),
        "linear.weight: expected (6, 4), got (6, 1, 2, 2)",
    ),
    "a flattened weight as a convolution's": (
        lambda s: s.update({"flat.weight": np.zeros((2, 2, 2, 3))}),
        "flat.weight: expected (2, 12), got (2, 2, 2, 3)",
    ),
    "a flattened weight of another size": (
        lambda s: s.update({"flat.weight": np.zeros((2, 10))}),
        "flat.weight: expected (2, 12), got (2, 10)",
    ),
    "a number for a vector": (
        lambda s: s.update({"linear.bias": np.float32(1)}),
        "linear.bias: expected (6,), got ()",
    ),
    "one number for a vector of them": (
        lambda s: s.update({"linear.bias": np.zeros(1)}),
        "linear.bias: expected (6,), got (1,)",
    ),
    "two at once": (
        lambda s: s.update({"conv.bias": np.zeros(4), "linear.bias": np.zeros(5)}),
        "conv.bias: expected (3,), got (4,); linear.bias: expected (6,), got (5,)",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_a_state_dict_that_does_not_fit_is_refused_by_name_and_nothing_is_loaded(spoil, message, rng):
    class Net(Module):
        def __init__(self):
            vars(self).update(SHAPED)

    model = Net()
    before = model.state_dict()
    state = filled(before, rng)
    spoil(state)
    with pytest.raises(ValueError) as error:
        model.load_state_dict(state)
    assert message in str(error.value) and "nothing was loaded" in str(error.value)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


@pytest.mark.parametrize("state", [None, "resnet20.safetensors", [np.zeros(2)]], ids=repr)
def test_what_is_no_dict_is_not_a_state_dict(state):
    model = Linear(2, 2)
    for operation, owner in (("load_state_dict", model), (r"SGD\.load_state_dict", SGD(model.parameters(), 0.1))):
        with pytest.raises(
            TypeError, match=rf"^{operation}: expected a dict of arrays by name, got {type(state).__name__}"
        ):
            owner.load_state_dict(state)


def test_names_that_are_no_strings_are_unexpected():
    with pytest.raises(ValueError, match=r"nothing was loaded.*unexpected \[1\]"):
        ReLU().load_state_dict({1: np.zeros(2)})


def test_a_vector_is_no_matrix_of_one_row():
    model = Linear(1, 3, bias=False)
    with pytest.raises(ValueError, match=r"weight: expected \(3, 1\), got \(3,\)"):
        model.load_state_dict({"weight": np.zeros(3)})


def test_parts_are_found_in_lists_of_lists_and_in_dicts():
    class Nested(Module):
        def __init__(self):
            self.grid = [[Linear(1, 1)], [Linear(1, 1)]]
            self.heads = {"small": Linear(1, 2, bias=False)}

    names = [name for name, _ in Nested().named_parameters()]
    assert names[::2] == ["grid.0.0.weight", "grid.1.0.weight", "heads.small.weight"]


def test_a_module_is_not_converted_to_integers():
    with pytest.raises(ValueError, match="floating-point"):
        Linear(1, 1).to("int64")


@pytest.mark.parametrize("target", ["gpu", None, 3])
def test_a_module_is_not_moved_to_what_is_no_device(target):
    with pytest.raises(ValueError, match="to: expected a device"):
        Linear(1, 1).to(target)


NO_REAL_NUMBERS = {
    "complex": np.zeros(6, np.complex64),
    "strings": np.array(["x"] * 6),
    "objects": np.array([None] * 6),
    "dates": np.zeros(6, "datetime64[s]"),
}


@pytest.mark.parametrize("value", NO_REAL_NUMBERS.values(), ids=NO_REAL_NUMBERS)
def test_what_is_no_array_of_real_numbers_is_refused_before_anything_is_copied(value):
    model = Sequential(Linear(4, 6), Linear(6, 6))
    before = model.state_dict()
    state = {name: array + 1 for name, array in before.items()} | {"1.bias": value}
    for check_or_load in (model.check_state_dict, model.load_state_dict):
        with pytest.raises(ValueError, match=r"nothing was loaded.*1\.bias: expected .*real numbers"):
            check_or_load(state)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float16", "float64", "longdouble"])
def test_real_numbers_of_any_dtype_are_loaded(dtype):
    model = Linear(2, 3)
    model.load_state_dict({"weight": np.ones((3, 2), dtype), "bias": np.zeros(3, dtype)})
    assert model.weight.numpy().tolist() == [[1, 1, 1]] * 2 and model.weight.dtype == np.float32


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool"])
def test_integers_are_not_loaded_into_a_parameter(dtype):
    """They would be quantised weights without their scale."""
    with pytest.raises(ValueError, match=f"weight: expected real numbers like float32, got {dtype}; bias: expected"):
        Linear(2, 3).load_state_dict({"weight": np.ones((3, 2), dtype), "bias": np.zeros(3, dtype)})


def test_numbers_with_a_fraction_are_not_loaded_into_a_buffer_of_integers():
    class Counting(Module):
        def __init__(self):
            self.seen = Buffer(np.zeros(2, np.int64))

    model = Counting()
    with pytest.raises(ValueError, match=r"seen: expected real numbers like int64, got float32"):
        model.load_state_dict({"seen": np.zeros(2, np.float32)})
    model.load_state_dict({"seen": np.ones(2, np.int32)})
    assert model.seen.numpy().tolist() == [1, 1]


def test_everything_that_does_not_fit_is_said_at_once():
    model = Sequential(Linear(2, 2), Linear(2, 2))
    state = model.state_dict() | {"more": np.zeros(1), "0.bias": np.zeros(9), "1.bias": np.zeros(2, complex)}
    del state["0.weight"]
    with pytest.raises(ValueError) as error:
        model.load_state_dict(state)
    for problem in (
        "missing ['0.weight']",
        "unexpected ['more']",
        "0.bias: expected (2,), got (9,)",
        "1.bias: expected",
    ):
        assert problem in str(error.value)


def test_a_long_list_of_what_does_not_fit_is_cut_off():
    model = Sequential(*(Linear(2, 2) for _ in range(50)))
    state = {f"other.{i}": np.zeros(1) for i in range(100_000)}
    with pytest.raises(
        ValueError, match=r"missing \['0\.weight', .* 94 more.*unexpected \['other\.0', .* 99,994 more"
    ) as error:
        model.load_state_dict(state)
    assert len(str(error.value)) < 1000
    wrong = {name: np.zeros(7) for name in model.state_dict()}
    with pytest.raises(ValueError, match=r"0\.weight: expected \(2, 2\), got \(7,\); .* 94 more") as error:
        model.load_state_dict(wrong)
    assert len(str(error.value)) < 1000
