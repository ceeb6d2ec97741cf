"""What a recording holds, and that it changes nothing."""

import itertools
import sys
import threading
import weakref

import numpy as np
import pytest
from models.resnet import cifar_resnet

import minidl
from minidl import Function, Tensor, nn
from minidl.functional import cross_entropy, mse_loss, relu
from minidl.ops.activation import ReLU
from minidl.ops.arithmetic import Add, Mul
from minidl.ops.conv import Conv2d
from minidl.ops.convert import Cast
from minidl.study.record import Input, norm, record
from minidl.training import nvtx


class Double(Function):
    """y = 2 x."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Twice(Double):
    """Double by another name: it inherits both methods."""


class Same(Function):
    """y = x, and the very array."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.fixture
def x():
    return Tensor(np.array([1.0, -2.0, 3.0]), requires_grad=True)


@pytest.fixture
def images(rng):
    return Tensor(rng.standard_normal((4, 32, 32, 3), np.float32))


def step(model, images):
    loss = cross_entropy(model(images), np.arange(len(images)))
    loss.backward()
    return loss


def names(ops):
    return [op.function.__name__ for op in ops]


def subclasses(function):
    for below in function.__subclasses__():
        yield below
        yield from subclasses(below)


def methods():
    """Both methods of all operations, as they lie in the classes."""
    return {
        (function, name): vars(function).get(name)
        for function in [Function, *subclasses(Function)]
        for name in ("forward", "backward", "__init_subclass__")
    }


# -- it changes nothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_the_numbers_are_the_same_bits(keep, images):
    model, recorded = cifar_resnet(8), cifar_resnet(8)
    loss = step(model, images)
    with record(recorded, keep):
        recorded_loss = step(recorded, images)
    assert recorded_loss.item() == loss.item()
    for a, b in zip(model.named_tensors(Tensor), recorded.named_tensors(Tensor), strict=True):
        np.testing.assert_array_equal(a[1].numpy(), b[1].numpy())
    for a, b in zip(model.parameters(), recorded.parameters(), strict=True):
        np.testing.assert_array_equal(a.grad.numpy(), b.grad.numpy())


def test_afterwards_every_function_is_the_same_object(images):
    """So a step costs what it did before."""
    model = cifar_resnet(8)
    before, dicts = methods(), {name: dict(vars(module)) for name, module in model.named_modules()}
    with record(model):
        assert methods() != before
        step(model, images)
    after = methods()
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == dicts


def calls(program):
    """How many functions a program enters, in Python and in C."""
    events = []
    sys.setprofile(lambda frame, event, argument: events.append(event))
    try:
        program()
    finally:
        sys.setprofile(None)
    return events.count("call"), events.count("c_call")


def test_a_step_outside_of_a_recording_costs_what_it_did_before():
    """Times differ from run to run; the calls do not."""
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GlobalAvgPool()), minidl.ones(2, 8, 8, 3)

    def train():
        model.zero_grad()
        step(model, images)

    train()
    before = calls(train)
    with record(model):
        during = calls(train)
    assert calls(train) == before
    assert during[0] > before[0]


def test_after_an_exception_too(x):
    model, before = nn.Linear(3, 2), methods()
    with pytest.raises(KeyError), record(model):
        raise KeyError
    assert methods() == before
    assert "forward" not in vars(model)
    with record(model):  # and another recording may begin
        pass


def test_a_module_with_a_forward_of_its_own_keeps_it(x):
    model = nn.ReLU()
    model.forward = own = lambda x: x * 2
    with record(model) as recording:
        model(x)
    assert model.forward is own
    assert names(recording.ops) == ["Mul"]


def test_recordings_do_not_nest(x):
    with record(nn.ReLU()) as recording:
        with pytest.raises(RuntimeError, match=r"record: expected one recording at a time.*leave its `with` block"):
            record(nn.ReLU()).__enter__()
        relu(x)
    assert names(recording.ops) == ["ReLU"]


def test_a_recording_needs_the_model():
    with pytest.raises(TypeError, match=r"record: expected a Module, got function"), record(relu):
        pass


def test_profilers_ranges_go_together_with_a_recording(x, monkeypatch):
    monkeypatch.setattr(nvtx, "_time_range", lambda: lambda name: threading.Lock())
    model = nn.Sequential(nn.ReLU())
    with record(model), minidl.emit_nvtx(model):
        model(x)
    assert "forward" not in vars(model) and "forward" not in vars(model[0])


# -- operations --------------------------------------------------------------------------------------------------------


def test_operations_come_with_their_layers_shapes_and_arguments():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Linear(48, 2))
    with record(model) as recording:
        loss = model(minidl.randn(5, 4, 4, 2)).sum()
        loss.backward()
    assert names(recording.ops) == ["Conv2d", "ReLU", "Reshape", "Linear", "Sum"]
    assert [op.layer for op in recording.ops] == ["0", "1.0", "1.1", "2", None]
    assert [op.number for op in recording.ops] == [0, 1, 2, 3, 4]
    conv, _, reshape, linear, _ = recording.ops
    assert conv.input_shapes == ((5, 4, 4, 2), (3, 3, 2, 3), (3,)) and conv.shape == (5, 4, 4, 3)
    assert conv.hyperparameters == {"stride": (1, 1), "padding": (1, 1)}
    assert conv.needs_grad == (False, True, True)
    assert (conv.dtype, conv.value.shape) == (np.float32, conv.shape)
    assert [(call.layer, call.module) for call in recording.calls[:2]] == [("", model), ("0", model[0])]
    assert conv.call is recording.calls[1] and conv.call.parent is recording.calls[0]
    assert reshape.call.parent.layer == "1"
    assert linear.macs == 5 * 48 * 2 and conv.macs == 5 * 4 * 4 * 3 * (3 * 3 * 2)
    assert reshape.macs == 0


def test_the_matrix_product_has_multiply_adds(rng):
    with record(nn.ReLU()) as recording:
        Tensor(rng.standard_normal((2, 3, 4))) @ Tensor(rng.standard_normal((2, 4, 5)))
    assert recording.ops[0].macs == 2 * 3 * 4 * 5


def test_values_gradients_and_norms_are_those_of_the_step(x):
    with record(nn.ReLU()) as recording:
        y = relu(x)
        loss = (y * y).sum()
        loss.backward()
    first, product, total = recording.ops
    np.testing.assert_array_equal(first.value, [1, 0, 3])
    np.testing.assert_array_equal(first.saved[0], [1, 0, 3])
    np.testing.assert_array_equal(first.grad, [2, 0, 6])
    np.testing.assert_array_equal(first.input_grads[0], [2, 0, 6])
    np.testing.assert_array_equal(product.input_grads, [[1, 0, 3]] * 2)  # both contributions
    np.testing.assert_array_equal(total.grad, 1)
    assert first.value_norm == pytest.approx(10**0.5) and first.grad_norm == pytest.approx(40**0.5)


@pytest.mark.parametrize("array", [np.array([3, 4]), np.array([True]), np.zeros((0, 2)), np.float32([1e30, 0])])
def test_the_norm_is_that_of_l2_for_any_numbers(array):
    assert norm(array) == pytest.approx(float(np.linalg.norm(array.astype(np.float64))))


def test_at_a_skip_connection_the_contributions_add_up_to_the_gradient(images):
    """A block's input goes to its first convolution and past it to the sum."""
    model = cifar_resnet(8)
    with record(model) as recording:
        step(model, images)
    forks = [op for op in recording.ops if len(recording.consumers(op)) > 1]
    assert [op.layer for op in forks] == ["", "layer1.0", "layer2.0"]
    for fork in forks:
        contributions = [op.input_grads[number] for op, number in recording.consumers(fork)]
        assert len(contributions) == 2
        np.testing.assert_array_equal(sum(contributions), fork.grad)
    assert [(op.function, number) for op, number in recording.consumers(forks[0])] == [(Conv2d, 0), (Add, 1)]


def test_inputs_are_operations_or_have_names():
    class Model(nn.Module):
        def __init__(self):
            self.weight = minidl.Parameter([2.0])
            self.shift = minidl.Buffer([1.0])

        def forward(self, x, others):
            return (x * self.weight + self.shift) * others[0] * 3

    model, x, y = Model(), Tensor([4.0]), Tensor([5.0])
    with record(model) as recording:
        mse_loss(model(x, others=[y]), Tensor([1.0])).backward()
    times, plus, by_other, by_three, loss = recording.ops
    found = [(source.name, source.kind) for source in (*times.inputs, plus.inputs[1], by_other.inputs[1])]
    assert found == [("x", "input"), ("weight", "parameter"), ("shift", "buffer"), ("others.0", "input")]
    assert (by_three.inputs[1].name, by_three.inputs[1].kind) == ("3", "constant")
    assert loss.inputs[0] is by_three and plus.inputs[0] is times
    assert times.inputs[1].value is model.weight.data
    assert recording.consumers(times.inputs[1]) == [(times, 1)]


def test_absent_inputs_are_none():
    with record(nn.Linear(3, 2, bias=False)) as recording:
        recording.model(minidl.randn(1, 3))
    assert recording.ops[0].inputs[2] is None and recording.ops[0].input_shapes[2] is None


def test_operations_of_ones_own_are_recorded_under_their_names(x):
    with record(nn.ReLU()) as recording:

        class Inside(Function):
            """Defined while a recording is open."""

            forward, backward = staticmethod(lambda ctx, x: x * 3), staticmethod(lambda ctx, grad: grad * 3)

        for function in (Double, Twice, Inside):
            minidl.apply(function, x).sum().backward()
    assert names(recording.ops[::2]) == ["Double", "Twice", "Inside"]
    assert [op.input_grads[0].tolist() for op in recording.ops[::2]] == [[2] * 3, [2] * 3, [3] * 3]
    assert "forward" not in vars(Twice)
    assert Inside.forward(None, 1) == 3 and not hasattr(Inside.forward, "__wrapped__")
    assert len(recording.ops) == 6


def test_an_operation_that_calls_others_is_one(x):
    class Outer(Function):
        """Computes with tensors inside."""

        @staticmethod
        def forward(ctx, x):
            return (Tensor(Double.forward(ctx, x)) * 2).data

        @staticmethod
        def backward(ctx, grad):
            return Double.backward(ctx, grad) * 2

    with record(nn.ReLU()) as recording:
        minidl.apply(Outer, x).backward(Tensor(np.ones(3)))
    assert names(recording.ops) == ["Outer"]
    np.testing.assert_array_equal(recording.ops[0].input_grads[0], [4, 4, 4])


def test_an_operation_that_returns_its_input_is_told_apart_from_it(x):
    with record(nn.ReLU()) as recording:
        y = x * 2
        same = minidl.apply(Same, y)
        (y * 3 + same).sum().backward()
    double, same, triple, plus, _ = recording.ops
    assert (same.inputs[0], triple.inputs[0], plus.inputs) == (double, double, (triple, same))
    np.testing.assert_array_equal(x.grad.numpy(), [8, 8, 8])


def test_integers_and_bools_pass_through():
    with record(nn.ReLU()) as recording:
        (Tensor([1, 2, 3])[[0, 1]] + 1).sum()
        Tensor([True, False])[0]
    assert names(recording.ops) == ["GetItem", "Add", "Sum", "GetItem"]
    assert recording.ops[2].value_norm == 5 and recording.ops[3].value_norm == 1
    assert all(op.keeps == () and op.grad is None for op in recording.ops)


def test_a_result_of_integers_has_no_backward_that_anything_is_kept_for(x):
    class Signs(Double):
        @staticmethod
        def forward(ctx, x):
            ctx.save(x)
            return np.sign(x).astype(np.int64)

    with record(nn.ReLU()) as recording:
        minidl.apply(Signs, x)
    assert recording.ops[0].keeps == ()


def test_without_gradients_nothing_is_kept(x):
    with minidl.no_grad(), record(nn.ReLU()) as recording:
        relu(x)
    assert recording.ops[0].needs_grad == (False,)
    assert recording.ops[0].keeps == ()
    assert recording.ops[0].backward_seconds is None


def test_frozen_parameters_have_no_gradient(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    with record(model) as recording:
        model(images).sum().backward()
    first, _, last, _ = recording.ops
    assert first.inputs[1].kind == "parameter" and first.needs_grad == (False, False, False)
    assert first.input_grads is None and first.keeps == ()
    assert last.input_grads[0] is None and last.input_grads[1] is not None


def test_a_model_may_be_called_twice(x):
    model = nn.Linear(3, 3)
    with record(model) as recording:
        model(model(Tensor(np.ones((1, 3), np.float32)))).sum().backward()
    first, second, _ = recording.ops
    assert (first.layer, second.layer, second.inputs[0]) == ("", "", first)
    assert first.call is not second.call
    assert first.inputs[1] is second.inputs[1]
    assert recording.consumers(first.inputs[1]) == [(first, 1), (second, 1)]


def test_a_module_with_two_names_has_the_first(x):
    layer = nn.ReLU()
    model = nn.Sequential(layer, layer)
    with record(model) as recording:
        model(x)
    assert [op.layer for op in recording.ops] == ["0", "0"]
    assert [call.layer for call in recording.calls] == ["", "0", "0"]
    assert "forward" not in vars(layer)


def test_recompute_saves_everything_inside(images):
    plain, recomputed = cifar_resnet(8), cifar_resnet(8, recompute=True)
    with record(plain) as expected:
        step(plain, images)
    with record(recomputed) as recording:
        step(recomputed, images)
    assert [(op.function, op.layer) for op in recording.ops] == [(op.function, op.layer) for op in expected.ops]
    for op, other in zip(recording.ops, expected.ops, strict=True):
        np.testing.assert_array_equal(op.grad, other.grad)


def test_other_threads_are_not_recorded(x):
    model = nn.ReLU()
    with record(model) as recording:
        thread = threading.Thread(target=lambda: model(x).sum().backward())
        thread.start()
        thread.join()
        model(x)
    assert names(recording.ops) == ["ReLU"]
    np.testing.assert_array_equal(x.grad.numpy(), [1, 0, 1])


def test_a_backward_of_before_is_not_recorded(x):
    loss = (x * x).sum()
    with record(nn.ReLU()) as recording:
        loss.backward()
    assert recording.ops == []
    np.testing.assert_array_equal(x.grad.numpy(), [2, -4, 6])


def test_an_operation_describes_itself_in_one_line(x):
    with record(nn.ReLU()) as recording:
        y = x * 1
        for _ in range(100):
            y = y + y  # 2^100 ways lead to the first one
    assert repr(recording.ops[0]) == "Op(0, Mul, layer=None, shape=(3,))"
    assert len(repr(recording.ops[-1])) < 100 and len(repr(recording.ops[0].keeps)) < 1000


# -- what fails --------------------------------------------------------------------------------------------------------


class Fails(nn.Module):
    """Raises an error."""

    def forward(self, x):
        """Raise it."""
        raise ZeroDivisionError


class Catches(nn.Module):
    """Goes on without the part that fails."""

    def __init__(self, other):
        self.part, self.other = Fails(), other

    def forward(self, x):
        """(...) -> (...)."""
        try:
            return self.part(x)
        except ZeroDivisionError:
            return self.other(x)


def test_the_layer_that_failed_has_a_name(x):
    model = nn.Sequential(nn.ReLU(), nn.Sequential(Fails()))
    with pytest.raises(ZeroDivisionError), record(model) as recording:
        model(x)
    assert recording.failed_layer == "1.0"
    assert names(recording.ops) == ["ReLU"]


def test_a_failure_that_was_caught_is_none(x):
    with record(Catches(nn.ReLU())) as recording:
        recording.model(x)
    assert recording.failed_layer is None
    with pytest.raises(ZeroDivisionError), record(Catches(Fails())) as recording:
        recording.model(x)
    assert recording.failed_layer == "other"


def test_a_captured_step_says_how_it_can_be_recorded(x, monkeypatch):
    monkeypatch.setattr("minidl.study.record.is_capturing", lambda array: True)
    with pytest.raises(RuntimeError, match=r"captured step.*step\.function"), record(nn.ReLU()):
        relu(x)


def test_wrong_arguments_are_the_errors_that_they_always_are(x):
    model = nn.Linear(3, 2)
    with pytest.raises(TypeError, match="argument"), record(model):
        model(x, x)
    with pytest.raises(ValueError, match=r"linear"), record(model) as recording:
        model(x)
    assert recording.failed_layer == ""


# -- memory ------------------------------------------------------------------------------------------------------------


def test_views_share_their_memory(x):
    with record(nn.ReLU()) as recording:
        y = x * 2
        (y.reshape(3, 1) * y).sum().backward()
    double, _, product, _ = recording.ops
    assert len(product.keeps) == 1  # both inputs are views of one array
    assert product.keeps[0].source is double
    assert product.keeps[0].nbytes == 24
    assert product.keeps[0].kept_by == [product]
    assert isinstance(double.keeps[0].source, Input)


def test_what_two_operations_save_is_one_array(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with record(model) as recording:
        model(images).sum().backward()
    _, activation, conv, _ = recording.ops
    assert activation.keeps[0] is conv.keeps[0]
    assert activation.keeps[0].kept_by == [activation, conv]
    assert activation.keeps[0].nbytes == activation.value.nbytes
    assert activation.keeps[0].source is activation


@pytest.mark.usefixtures("no_garbage_collector")
def test_without_keep_no_array_is_held(x):
    saved = []

    class Saves(Function):
        """Saves a large array, one in a tuple and a number."""

        @staticmethod
        def forward(ctx, x, *, index, factor):
            array = np.zeros(1000)
            ctx.save(array, (array,), 7)
            saved.append(weakref.ref(array))
            return x * factor

        @staticmethod
        def backward(ctx, grad):
            return grad

    index = np.arange(3)
    with record(nn.ReLU(), keep=False) as recording:
        y = minidl.apply(Saves, x * 1, index=(index, 0), factor=2)
        value = weakref.ref(y.data)
        loss = y.sum()
        assert saved[0]() is not None
        loss.backward()
        assert saved[0]() is None
        del y
        assert value() is None
    op = recording.ops[1]
    assert (op.value, op.grad, op.input_grads) == (None, None, None)
    assert op.saved == (None, (None,), 7)
    assert op.hyperparameters == {"index": (None, 0), "factor": 2}
    assert op.inputs[0] is recording.ops[0] and recording.ops[0].inputs[0].value is None
    assert op.grad_norm == pytest.approx(3**0.5)
    assert [memory.nbytes for memory in op.keeps] == [8000]


@pytest.mark.usefixtures("no_garbage_collector")
def test_with_keep_values_and_gradients_are_held(x):
    with record(nn.ReLU()) as recording:
        y = x * 2
        value = weakref.ref(y.data)
        y.sum().backward()
        del y
    assert recording.ops[0].value is value()


def test_an_array_is_not_taken_for_one_that_died_at_the_same_address(x):
    """Small arrays are allocated where others were just freed."""
    with record(nn.ReLU(), keep=False) as recording, minidl.no_grad():
        for _ in range(200):
            relu(Tensor(np.ones(3)) * Tensor(np.full(3, 2.0)))
    products, activations = recording.ops[::2], recording.ops[1::2]
    assert {op.function for op in products} == {Mul} and {op.function for op in activations} == {ReLU}
    assert all(a.inputs == (p,) for p, a in zip(products, activations, strict=True))
    assert all(isinstance(source, Input) for p in products for source in p.inputs)


# -- on a device -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [False, True])
def test_a_step_is_recorded_on_any_device(other, device, rng):
    """In float32, and in the other dtype of the device."""
    dtype = ("bfloat16" if device == "cuda" else "float64") if other else "float32"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).to(device)
    model = model.to("float64") if dtype == "float64" else model
    with record(model) as recording:
        step(model, Tensor(rng.standard_normal((2, 8, 8, 3)), device=device).to(dtype))
    ops = [op for op in recording.ops if op.function is not Cast]
    assert names(ops) == ["Conv2d", "BatchNorm", "ReLU", "Reshape", "Linear", "CrossEntropy"]
    assert [op.layer for op in ops] == ["0", "1", "2", "3", "4", None]
    for below, op in itertools.pairwise(ops[:5]):
        assert op.inputs[0] is below
    assert all(op.backward_seconds > 0 and op.grad_norm >= 0 and op.forward_seconds > 0 for op in ops)
    assert ops[2].keeps[0].kept_by == [ops[2], ops[4]]
    assert str(ops[0].dtype) == dtype
