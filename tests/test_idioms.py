"""What people write who come from PyTorch and NumPy: it is right, or an error says what to write instead."""

import copy
import re

import numpy as np
import pytest

import minidl
from minidl import Buffer, Parameter, Tensor, no_grad
from minidl.functional import cross_entropy
from minidl.nn import Linear, Module
from minidl.optim import SGD


@pytest.fixture
def p(device):
    """A parameter with a gradient, 2 p."""
    p = Parameter(Tensor([1.0, 2.0], device=device))
    (p * p).sum().backward()
    return p


# -- an update by hand -------------------------------------------------------------------------------------------------


def test_a_parameter_is_updated_in_place_inside_no_grad(p):
    data = p.data
    with no_grad():
        p -= 0.1 * p.grad
    assert p.data is data and isinstance(p, Parameter) and p.requires_grad
    np.testing.assert_allclose(p.numpy(), [0.8, 1.6], rtol=1e-6)


def test_a_layer_keeps_a_parameter_that_is_updated_through_its_attribute():
    layer = Linear(2, 1)
    before = layer.weight.numpy().copy()
    with no_grad():
        layer.weight -= 1.0
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    np.testing.assert_array_equal(layer.weight.numpy(), before - 1)


def test_the_array_of_a_parameter_is_updated_by_a_tensor():
    p = Parameter([1.0, 2.0])
    (p * p).sum().backward()
    data = p.data
    p.data -= 0.1 * p.grad
    assert p.data is data
    np.testing.assert_allclose(p.numpy(), [0.8, 1.6], rtol=1e-6)


def test_all_four_operators_change_a_buffer_in_place(device):
    buffer = Buffer(Tensor([1.0, 2.0], device=device))
    data = buffer.data
    buffer += 1
    buffer *= 6
    buffer -= Tensor([2.0, 2.0], device=device)
    buffer /= 2
    assert buffer.data is data
    np.testing.assert_array_equal(buffer.numpy(), [5, 8])


def test_a_parameter_is_not_changed_in_place_while_operations_are_recorded(p):
    with pytest.raises(RuntimeError, match=r"in-place operation: .* requires grad.* inside `with minidl.no_grad"):
        p -= 0.1 * p.grad
    np.testing.assert_array_equal(p.numpy(), [1, 2])


def test_a_parameter_keeps_its_shape_and_dtype(p, device):
    with (
        no_grad(),
        pytest.raises(ValueError, match=r"in-place operation: expected \(2,\) float32 as before, got \(3, 2\)"),
    ):
        p += Tensor(np.ones((3, 2), np.float32), device=device)


def test_a_sum_of_losses_is_a_part_of_the_graph(p):
    total, p.grad = 0, None
    for factor in 1.0, 2.0:
        total += (factor * p).sum()
    total.backward()
    np.testing.assert_array_equal(p.grad.numpy(), [3, 3])


def test_other_tensors_are_replaced_and_not_changed(device):
    x = Tensor([1.0, 2.0], device=device)
    same = x
    x += 1
    assert same.numpy().tolist() == [1, 2] and x.numpy().tolist() == [2, 3]


# -- a graph whose parameters have changed -----------------------------------------------------------------------------


def test_backward_after_the_optimisers_step_is_an_error_that_says_so(device):
    layer = Linear(3, 2).to(device)
    images = Tensor(np.ones((4, 3), np.float32), device=device)
    images.requires_grad = True
    optimizer = SGD(layer.parameters(), lr=0.1)
    first, second = layer(images).sum(), layer(images * 2).sum()
    second.backward()
    optimizer.step()
    grad = layer.weight.grad.numpy().copy()
    with pytest.raises(RuntimeError, match=r"backward: Linear saved a parameter .* call backward before step"):
        first.backward()
    np.testing.assert_array_equal(layer.weight.grad.numpy(), grad)


def test_backward_after_an_update_by_hand_is_an_error_too(p):
    loss = (p * p).sum()
    with no_grad():
        p *= 2
    with pytest.raises(RuntimeError, match="backward: Mul saved a parameter that was changed since"):
        loss.backward()


CHANGED = {
    "seen by reshape": lambda x, p: (x * p.reshape(1, 2)).sum(),
    "seen by flatten": lambda x, p: (x * minidl.functional.flatten(p, 0)).sum(),
    "seen by detach": lambda x, p: (x * p.detach()).sum(),
    "seen by detach of reshape": lambda x, p: (x * p.reshape(2, 1).detach().reshape(2)).sum(),
    "an input of recompute": lambda x, p: minidl.recompute(lambda x, p: (x * p).sum(), x, p),
}


@pytest.mark.parametrize("use", CHANGED.values(), ids=CHANGED)
def test_backward_sees_through_what_shares_the_memory_of_a_changed_parameter(use, p):
    x = Tensor(np.ones(2, np.float32), device=p.device, requires_grad=True)
    loss = use(x, p)
    with no_grad():
        p *= 5
    with pytest.raises(RuntimeError, match="saved a parameter that was changed since"):
        loss.backward()
    assert x.grad is None


@pytest.mark.parametrize("use", CHANGED.values(), ids=CHANGED)
def test_what_shares_the_memory_of_a_parameter_can_be_used_after_its_change(use, p):
    x = Tensor(np.ones(2, np.float32), device=p.device, requires_grad=True)
    with no_grad():
        p *= 5
    use(x, p).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [5, 10])


@pytest.mark.parametrize("make", [Buffer, lambda data: Parameter(data, requires_grad=False)], ids=["buffer", "frozen"])
def test_backward_after_a_change_of_a_buffer_or_a_frozen_parameter_is_an_error(make, device):
    x = Tensor(np.ones(2, np.float32), device=device, requires_grad=True)
    state = make(Tensor([1.0, 2.0], device=device))
    loss = (x * state).sum()
    state *= 7
    with pytest.raises(RuntimeError, match="saved a parameter that was changed since"):
        loss.backward()


def test_backward_after_load_state_dict_is_an_error(device):
    layer = Linear(2, 2).to(device)
    x = Tensor(np.ones((1, 2), np.float32), device=device, requires_grad=True)
    loss = layer(x).sum()
    layer.load_state_dict({"weight": np.full((2, 2), 9.0), "bias": np.zeros(2)})
    with pytest.raises(RuntimeError, match="Linear saved a parameter that was changed since"):
        loss.backward()


def test_a_copy_of_a_parameter_has_changes_of_its_own(p):
    other = copy.deepcopy(p)
    loss = (other * other).sum()
    with no_grad():
        p *= 2
    loss.backward()


def test_an_array_of_indices_may_be_written_after_its_use(device):
    x = Tensor([1.0, 2.0, 3.0], device=device, requires_grad=True)
    indices = np.array([0, 1])
    loss = x[indices].sum()
    indices[:] = 2
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1, 0])


# -- gradients that are scaled by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (2, 1)], ids=["the same array", "a view of it"])
def test_scaling_one_gradient_in_place_changes_no_other(shape, device):
    p = Parameter(Tensor([1.0, 2.0], device=device))
    q = Parameter(Tensor(np.ones(shape, np.float32), device=device))
    (p + q.reshape(2)).sum().backward()
    for parameter in (p, q):
        parameter.grad.data[...] *= 0.5
    np.testing.assert_array_equal(p.grad.numpy().ravel(), [0.5, 0.5])
    np.testing.assert_array_equal(q.grad.numpy().ravel(), [0.5, 0.5])


def test_scaling_a_gradient_in_place_leaves_the_one_that_backward_began_with(device):
    x = Tensor([1.0, 2.0], device=device, requires_grad=True)
    start = Tensor([3.0, 4.0], device=device)
    (x + 1).backward(start)
    x.grad.data[...] *= 0.5
    np.testing.assert_array_equal(start.numpy(), [3, 4])


def test_operations_that_save_no_parameter_may_be_older_than_a_step(p):
    loss, p.grad = (p + 1).sum(), None
    with no_grad():
        p *= 2
    loss.backward()
    np.testing.assert_array_equal(p.grad.numpy(), [1, 1])


def test_a_recomputed_part_finds_out_that_its_parameters_have_changed():
    layer = Linear(3, 2)
    images = Tensor(np.ones((4, 3), np.float32), requires_grad=True)
    loss = minidl.recompute(layer, images).sum()
    loss_of_now = layer(images).sum()
    loss_of_now.backward()
    SGD(layer.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="backward: recompute saved a parameter that was changed since"):
        loss.backward()


# -- NumPy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [np.mean, np.sum, np.max, np.argmax, lambda t: np.clip(t, 0, 1), lambda t: np.reshape(t, 4)]
)
def test_numpys_functions_compute_with_tensors_that_require_no_grad(call):
    array = np.array([[3.0, -1.0], [2.0, 0.5]])
    np.testing.assert_array_equal(call(Tensor(array)), call(array))


def test_numpys_functions_take_named_tuples_of_tensors():
    np.testing.assert_array_equal(np.stack(Tensor([[3.0, 5.0], [2.0, 0.0]]).max(1)), [[5, 2], [1, 0]])


@pytest.mark.parametrize(
    "call",
    [
        np.mean,
        np.argsort,
        lambda t: np.concatenate([t, t]),
        lambda t: np.where(np.ones(2, bool), t, 0),
        lambda t: np.stack((np.ones(2), t)),
        lambda t: np.sum(a=t),
    ],
)
def test_numpys_functions_refuse_tensors_whose_gradient_they_would_lose(call):
    with pytest.raises(TypeError, match=r"numpy\.\w+: got a Tensor that requires grad.*\.detach\(\)\.numpy\(\)"):
        call(Tensor([1.0, 2.0], requires_grad=True))


@pytest.mark.parametrize("call", [np.exp, np.sqrt, np.isnan, np.add.reduce, lambda t: np.add(np.ones(1), 1, out=t)])
def test_numpys_ufuncs_refuse_tensors_and_say_what_to_use(call):
    with pytest.raises(TypeError, match=r"numpy\.\w+: got a Tensor; .*\.detach\(\)\.numpy\(\)"):
        call(Tensor([1.0]))


@pytest.mark.parametrize("operator", ["+", "-", "*", "/", "==", "!=", "<", "<=", ">", ">="])
@pytest.mark.parametrize("left", [np.array([1.0, 2.0, 3.0]), np.float64(2.0)], ids=["array", "number"])
def test_an_array_may_stand_on_the_left_of_every_operator(operator, left):
    x = Tensor(np.array([3.0, 2.0, 1.0]), requires_grad=True)
    y = eval(f"left {operator} x", {"left": left, "x": x})
    assert type(y) is Tensor
    np.testing.assert_array_equal(y.numpy(), eval(f"left {operator} x", {"left": left, "x": x.numpy()}))
    assert y.requires_grad == (operator in "+-*/")


def test_a_masked_array_and_a_long_double_are_refused():
    with pytest.raises(TypeError, match=r"Tensor: got a masked array.*\.filled\(value\)"):
        Tensor(np.ma.masked_array([1.0, 2.0], [True, False]))
    if np.longdouble(0).itemsize > 8:
        with pytest.raises(TypeError, match=r"Tensor: expected float64 at most.*\.astype\('float64'\)"):
            Tensor(np.ones(3, np.longdouble))


# -- PyTorch -----------------------------------------------------------------------------------------------------------


def test_the_maximum_along_a_dimension_comes_with_its_indices(device, torch):
    x = np.array([[3.0, 5.0, 5.0], [2.0, 0.0, 1.0]])
    for dim, keepdim in (0, False), (1, False), (-1, True):
        values, indices = Tensor(x, device=device).max(dim, keepdim)
        expected = torch.tensor(x).max(dim, keepdim)
        np.testing.assert_array_equal(values.numpy(), expected.values.numpy())
        np.testing.assert_array_equal(indices.numpy(), expected.indices.numpy())
    assert Tensor(x, device=device).max().item() == 5


def test_the_maximum_over_two_dimensions_has_no_indices():
    with pytest.raises(TypeError, match=r"argmax: expected one dimension, got \(0, 1\).*\.amax\(\(0, 1\)\)"):
        Tensor(np.ones((2, 3))).max((0, 1))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        *(("view", "x.reshape(...)"), ("cuda", 'x.to("cuda")'), ("size", "x.shape"), ("unsqueeze", "x[:, None] or x.")),
        *(("abs", "minidl.maximum(x, -x)"), ("min", "-(-x).max()"), ("zero_", "x.data[...] = 0")),
    ],
)
def test_methods_of_pytorch_are_named_with_what_to_write_instead(name, hint):
    with pytest.raises(AttributeError, match=rf"Tensor has no attribute '{name}'; write {re.escape(hint)}"):
        getattr(Tensor([1.0]), name)
    with pytest.raises(AttributeError, match=r"Parameter has no attribute 'wieght'$"):
        Parameter([1.0]).wieght  # noqa: B018 (the error is the point)


# -- modules -----------------------------------------------------------------------------------------------------------


def test_a_plain_tensor_does_not_replace_a_parameter():
    layer = Linear(2, 1)
    with pytest.raises(
        TypeError, match=r"Linear\.weight: expected a Parameter, got a Tensor.* minidl\.Parameter\(values\)"
    ):
        layer.weight = Tensor(np.ones((1, 2), np.float32))
    layer.weight = Parameter(np.ones((1, 2), np.float32))
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


class Holder(Module):
    """A module with one attribute."""

    def __init__(self, layers):
        self.layers = layers


@pytest.mark.parametrize("key", ["a.b", "cls/box", 1, ""])
def test_a_key_that_no_name_can_have_is_refused(key):
    with pytest.raises(ValueError, match=r"layers: expected a key that is a string without '\.' and '/', got"):
        Holder({key: Linear(1, 1)}).parameters()


def test_a_set_of_layers_is_refused():
    with pytest.raises(TypeError, match="layers: expected layers in a list, tuple or dict, got a set"):
        Holder({Linear(1, 1)}).parameters()


def test_other_dicts_and_sets_may_be_attributes_of_a_module():
    assert Holder({"a/b": 1, 2: "x", "c": {3}}).parameters() == []


def test_a_loss_of_changed_labels_is_that_of_the_labels_it_was_given():
    """The labels are copied, as `labels[...] = next_labels` is what a loop with a buffer of its own does."""
    labels = np.array([0, 1])
    logits = Tensor(np.array([[2.0, 1.0], [0.5, 3.0]]), requires_grad=True)
    loss = cross_entropy(logits, labels)
    labels[:] = 0
    loss.backward()
    expected = Tensor(logits.numpy(), requires_grad=True)
    cross_entropy(expected, np.array([0, 1])).backward()
    np.testing.assert_array_equal(logits.grad.numpy(), expected.grad.numpy())
