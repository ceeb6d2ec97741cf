"""Tensor: what it holds, how it is written, and its operators for any shapes."""

import doctest
import operator
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minidl
from minidl import Buffer, Parameter, Tensor
from minidl.nn import Linear
from minidl.system.gpu import require_cupy
from tests.kernels.compare import assert_close, torch_gradients
from tests.ops.case import gradients

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


def assert_same_in_pytorch(torch, function, shapes, device, theirs=None, low=-2, high=2):
    """function(*tensors) and its gradients are those of PyTorch, for random float64 numbers between low and high."""
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(low, high, shape) for shape in shapes]
    grad = rng.standard_normal(function(*map(Tensor, arrays)).shape)
    y, grads = gradients(function, arrays, grad, device)
    expected_y, expected = torch_gradients(torch, theirs or function, arrays, grad)
    for actual, wanted in zip([y, *grads], [expected_y, *expected], strict=True):
        assert actual.flags.c_contiguous
        assert_close(actual, wanted)


# -- any shapes --------------------------------------------------------------------------------------------------------

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
NUMBERS = st.sampled_from([-2, 3, 0.5, -1.25])
each_operator = pytest.mark.parametrize("function", OPERATORS.values(), ids=OPERATORS)


@each_operator
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
def test_operands_of_any_shapes_broadcast(function, shapes, device, torch):
    assert_same_in_pytorch(torch, function, shapes.input_shapes, device, low=0.5)


@each_operator
@given(shape=SHAPES, number=NUMBERS)
@settings(max_examples=30)
def test_a_number_may_stand_on_either_side(function, shape, number, device, torch):
    assert_same_in_pytorch(torch, lambda x: function(x, number), [shape], device, low=0.5)
    assert_same_in_pytorch(torch, lambda x: function(number, x), [shape], device, low=0.5)


@given(shapes=hnp.mutually_broadcastable_shapes(signature="(n,k),(k,m)->(n,m)", max_dims=2, max_side=4))
def test_matrices_in_batches_of_any_shape_multiply(shapes, device, torch):
    assert_same_in_pytorch(torch, operator.matmul, shapes.input_shapes, device)


@given(shape=SHAPES, exponent=st.sampled_from([-2, -0.5, 0, 0.5, 1, 2, 3.0]))
@settings(max_examples=30)
def test_powers_of_any_shape(shape, exponent, device, torch):
    assert_same_in_pytorch(torch, lambda x: x**exponent, [shape], device, low=0.5)


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "sigmoid", "tanh"])
@given(shape=SHAPES)
@settings(max_examples=20)
def test_functions_of_each_number_take_any_shape(name, shape, device, torch):
    assert_same_in_pytorch(torch, lambda x: getattr(x, name)(), [shape], device, low=0.5)


@st.composite
def shapes_and_dims(draw):
    """A shape, and some of its dimensions as sum() takes them."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    axes = st.integers(-len(shape), len(shape) - 1)
    several = st.lists(axes, min_size=1, max_size=len(shape), unique_by=lambda axis: axis % len(shape)).map(tuple)
    return shape, draw(st.one_of(st.none(), axes, several))


@pytest.mark.parametrize("name", ["sum", "mean", "amax"])
@given(shape_and_dim=shapes_and_dims(), keepdim=st.booleans())
def test_reductions_over_any_dimensions(name, shape_and_dim, keepdim, device, torch):
    shape, dim = shape_and_dim
    every = tuple(range(len(shape)))
    theirs = {"sum": torch.sum, "mean": torch.mean, "amax": torch.amax}[name]
    assert_same_in_pytorch(
        torch,
        lambda x: getattr(x, name)(dim, keepdim),
        [shape],
        device,
        lambda x: theirs(x, every if dim is None else dim, keepdim),
    )


@given(shape_and_dim=shapes_and_dims(), keepdim=st.booleans())
def test_the_variance_over_any_dimensions(shape_and_dim, keepdim, device, torch):
    shape, dim = shape_and_dim
    assert_same_in_pytorch(
        torch,
        lambda x: x.var(dim, keepdim, correction=0),
        [shape],
        device,
        lambda x: torch.var(x, dim, keepdim=keepdim, correction=0),
    )


@given(shape=SHAPES, data=st.data())
def test_any_order_of_the_dimensions(shape, data, device, torch):
    dims = tuple(data.draw(st.permutations(range(len(shape)))))
    assert_same_in_pytorch(torch, lambda x: x.permute(dims), [shape], device)


@given(shape=SHAPES, data=st.data())
def test_any_shape_of_as_many_numbers(shape, data, device, torch):
    new_shape = tuple(data.draw(st.permutations(shape)))
    assert_same_in_pytorch(torch, lambda x: x.reshape(new_shape), [shape], device)


@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4), data=st.data())
def test_any_slice(shape, data, device, torch):
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True).filter(_has_only_forward_steps))
    assert_same_in_pytorch(torch, lambda x: x[index], [shape], device)


def _has_only_forward_steps(index):
    """PyTorch has no others."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part.step is None or part.step > 0 for part in parts if isinstance(part, slice))


def test_backward_steps(device):
    y, (grad_x,) = gradients(lambda x: x[::-2], [np.arange(5.0)], np.array([1.0, 2.0, 3.0]), device)
    np.testing.assert_array_equal(y, [4, 2, 0])
    np.testing.assert_array_equal(grad_x, [3, 0, 2, 0, 1])


@given(shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4), data=st.data())
def test_arrays_of_indices_that_repeat(shape, data, device, torch):
    picked = hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=6))
    index = tuple(np.asarray(part) for part in data.draw(picked))
    assert_same_in_pytorch(
        torch, lambda x: x[index], [shape], device, lambda x: x[tuple(torch.tensor(part) for part in index)]
    )


# -- what it holds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, "float32"),
        ([1.5, 2], "float32"),
        ([], "float32"),
        ([[1, 2], [3, 4]], "int64"),
        ([True, False], "bool"),
        (np.ones(2), "float64"),
        (np.ones(2, np.float32), "float32"),
        (np.arange(3, dtype=np.uint8), "uint8"),
        (np.float64(1.5), "float64"),
        ([Tensor([1.0]), Tensor([2.0])], "float32"),
    ],
    ids=str,
)
def test_floats_become_float32_integers_int64_and_arrays_stay_what_they_are(data, dtype, device):
    x = Tensor(data, device=device)
    assert x.dtype == dtype
    np.testing.assert_array_equal(x.numpy(), np.asarray(data))


def test_a_dtype_may_be_asked_for(device):
    assert Tensor([1.5], "float64", device).dtype == np.float64
    assert Tensor(np.ones(2), np.float32, device).dtype == np.float32
    assert str(Tensor([1.5], "bfloat16", device).dtype) == "bfloat16"


def test_an_array_keeps_its_memory():
    array = np.zeros(3)
    x = Tensor(array)
    assert x.data is array
    assert x.numpy() is array
    assert Tensor(x).data is array
    assert x.detach().data is array


@pytest.mark.parametrize(
    "array", [np.ones((3, 4)).T, np.ones((4, 6))[:, ::2], np.asfortranarray(np.ones((2, 3))), np.ones((2, 3))[::-1]]
)
def test_memory_is_contiguous_whatever_the_array_was(array, device):
    x = Tensor(array, device=device)
    assert x.data.flags.c_contiguous
    np.testing.assert_array_equal(x.numpy(), array)


@pytest.mark.parametrize("data", ["abc", None, [1, "a"], {1: 2}, 1j, np.array(["a"]), np.array([1j])], ids=str)
def test_what_is_no_numbers_makes_no_tensor(data):
    with pytest.raises(TypeError, match=r"Tensor: expected real numbers, or a NumPy or CuPy array of them, got"):
        Tensor(data)


def test_another_librarys_array_is_not_taken_for_one_on_a_gpu(torch):
    assert Tensor(torch.ones(3)).device == Tensor(torch.ones(3).numpy()).device == "cpu"
    with pytest.raises(TypeError, match=r"Tensor: expected real numbers, or a NumPy or CuPy array of them, got"):
        Tensor(torch.ones(3, dtype=torch.complex64))


def test_lists_have_equal_lengths():
    with pytest.raises(TypeError, match=r"Tensor: expected lists of equal lengths, got \[\[1\], \[2, 3\]\]"):
        Tensor([[1], [2, 3]])


def test_its_facts(device):
    x = Tensor(np.zeros((2, 3)), device=device)
    assert (x.shape, x.ndim, x.dtype, x.device, x.numel(), len(x)) == ((2, 3), 2, np.float64, device, 6, 2)


def test_a_scalar_has_no_length(device):
    with pytest.raises(TypeError, match=r"len.*\(\).*item"):
        len(Tensor(1.0, device=device))


def test_it_iterates_over_its_first_dimension(device):
    rows = list(Tensor([[1, 2], [3, 4]], device=device))
    assert [row.numpy().tolist() for row in rows] == [[1, 2], [3, 4]]


def test_one_number_leaves_as_a_number(device):
    x = Tensor([[2.5]], device=device)
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    assert isinstance(Tensor([3], device=device).item(), int)


@pytest.mark.parametrize("convert", [Tensor.item, float, int, bool])
def test_several_numbers_do_not_leave_as_one(convert, device):
    with pytest.raises(ValueError, match=r"item.*one element.*\(2,\)"):
        convert(Tensor([1.0, 2.0], device=device))


def test_numpy_takes_it_for_an_array(device):
    x = Tensor([1.0, 2.0], device=device)
    assert np.asarray(x).dtype == np.float32
    assert np.asarray(x, np.float64).dtype == np.float64
    assert np.array(x) is not x.data


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Tensor([1.0, 2.5]), "Tensor([1. , 2.5], shape=(2,), float32)"),
        (lambda: Tensor(3), "Tensor(3, shape=(), int64)"),
        (lambda: Tensor([1.0], requires_grad=True), "Tensor([1.], shape=(1,), float32, requires_grad)"),
        (lambda: Tensor([1.0], requires_grad=True) + 1, "Tensor([2.], shape=(1,), float32, from Add)"),
        (lambda: Parameter([1.0]), "Parameter([1.], shape=(1,), float32, requires_grad)"),
        (lambda: Tensor([[1.0], [2.0]]), "Tensor([[1.],\n        [2.]], shape=(2, 1), float32)"),
    ],
)
def test_repr_shows_the_numbers_and_the_facts(make, expected):
    assert repr(make()) == expected


def test_repr_of_many_numbers_is_short(device):
    x = Tensor(np.zeros((100, 100, 100)), device=device)
    assert len(repr(x)) < 1000
    assert device == "cpu" or device in repr(x)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_requires_grad_can_be_switched_on_leaves(device):
    x = Tensor([1.0], device=device)
    assert not x.requires_grad
    x.requires_grad = True
    (x * 2).sum().backward()
    assert x.grad.item() == 2
    x.requires_grad = True  # changes nothing
    assert x.grad.item() == 2
    x.requires_grad = False
    assert x.grad is None
    assert not (x * 2).requires_grad


def test_requires_grad_of_a_result_is_not_ones_choice(device):
    y = Tensor([1.0], device=device, requires_grad=True) * 2
    for wanted in (True, False):
        with pytest.raises(RuntimeError, match=r"requires_grad.*computed by Mul.*detach\(\)"):
            y.requires_grad = wanted


@pytest.mark.parametrize("data", [[1, 2], [True]], ids=["int64", "bool"])
def test_only_floats_have_gradients(data):
    with pytest.raises(TypeError, match=r"requires_grad.*floating-point.*(int64|bool).*\.to\('float32'\)"):
        Tensor(data, requires_grad=True)


def test_grad_is_a_tensor_like_the_tensor_and_can_be_set(device):
    x = Tensor([1.0, 2.0], device=device, requires_grad=True)
    assert x.grad is None
    x.grad = Tensor([3.0, 4.0], device=device)
    assert not isinstance(x._node.grad, Tensor)  # the graph holds arrays, never what has a graph of its own
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [5, 6])
    assert (x.grad.dtype, x.grad.device, x.grad.requires_grad) == (x.dtype, device, False)
    x.grad = None
    assert x.grad is None


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (Tensor([1.0]), r"grad: expected .* float32 \(2,\).*got float32 \(1,\)"),
        (Tensor(np.ones(2)), r"grad: expected .* float32 \(2,\).*got float64 \(2,\)"),
        (np.ones(2, np.float32), r"grad: expected a Tensor, got ndarray"),
    ],
    ids=["shape", "dtype", "an array"],
)
def test_a_gradient_unlike_the_tensor_is_refused(grad, message, device):
    x = Tensor([1.0, 2.0], device=device, requires_grad=True)
    with pytest.raises((TypeError, ValueError), match=message):
        x.grad = grad.to(device) if isinstance(grad, Tensor) else grad
    assert x.grad is None


def test_a_computed_tensor_keeps_no_gradient_unless_it_is_asked_to(device):
    y = Tensor([1.0], device=device, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match=r"grad: this tensor keeps none.*requires_grad=True.*retain_grad\(\)"):
        y.grad = y.detach()
    y.retain_grad()
    y.grad = y.detach()
    assert y.grad.item() == 2
    y.grad = None
    assert y.grad is None


def test_the_examples_in_the_docstrings_are_right():
    results = doctest.testmod(minidl.tensor)
    assert results.attempted > 0 and results.failed == 0


READS = """
import minidl
y = minidl.Tensor([1.0], requires_grad=True) * 2
z = y * 3
z.retain_grad()
z.sum().backward()
assert y.grad is None  # line 7
assert y.grad is None
assert z.grad.item() == 1
assert minidl.Tensor([1.0]).grad is None
"""


def test_reading_the_gradient_of_a_computed_tensor_warns_once_in_a_program():
    result = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True, check=True)
    warning = "UserWarning: grad: a computed tensor keeps none; call its retain_grad() before backward()"
    assert result.stderr.count("Warning") == 1
    assert f"<string>:7: {warning}" in result.stderr


def test_a_frozen_parameter_is_still_a_parameter():
    parameter = Parameter([1.0], requires_grad=False)
    assert isinstance(parameter, Parameter)
    assert not parameter.requires_grad
    assert Parameter([1.0]).requires_grad
    assert not Buffer([1.0]).requires_grad


def test_results_of_parameters_are_plain_tensors():
    assert type(Parameter([1.0]) * 2) is Tensor
    assert type(Buffer([1.0]) + 1) is Tensor


# -- dtypes and devices ------------------------------------------------------------------------------------------------

NUMBERS_OF_NUMPY = [np.float64(2), np.float32(2), np.float16(2), np.int64(2), np.int32(2), np.sqrt(4)]


@pytest.mark.parametrize("number", NUMBERS_OF_NUMPY, ids=lambda number: number.dtype.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_of_numpy_promotes_nothing(number, dtype, device):
    x = Tensor(np.array([1.0, 2.0]), dtype, device, requires_grad=True)
    results = [op(a, b) for op in OPERATORS.values() for a, b in ((x, number), (number, x))]
    results += [x**number, x.clip(number, None), x.clip(None, number), minidl.maximum(x, number)]
    assert {result.dtype for result in results} == {np.dtype(dtype)}
    sum(result.sum() for result in results).backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize(
    "function", [operator.truediv, Tensor.exp, Tensor.log, Tensor.sqrt, Tensor.sigmoid, Tensor.tanh]
)
def test_integers_do_not_become_float64_on_the_quiet(function, device):
    x = Tensor([1, 2], device=device)
    with pytest.raises(TypeError, match=r"floating-point.*int64.*\.to\('float32'\)"):
        function(x, x) if function is operator.truediv else function(x)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x + 0.5,
        lambda x: 0.5 * x,
        lambda x: x / 2.0,
        lambda x: x**0.5,
        lambda x: x.clip(0.5),
        lambda x: (x > 1) * 2,
        lambda x: (x > 1) + 0.5,
    ],
)
def test_a_number_that_the_dtype_cannot_hold_is_an_error(use, device):
    with pytest.raises(TypeError, match=r"got the number .*(int64|bool).*\.to\('float32'\)"):
        use(Tensor([1, 2], device=device))


@pytest.mark.parametrize("use", [Tensor.mean, Tensor.var, lambda x: (x > 1).mean()])
def test_there_is_no_mean_of_integers(use, device):
    with pytest.raises(
        TypeError, match=r"(mean|var): expected floating-point x, got (int64|bool); convert it with .to\('float32'\)"
    ):
        use(Tensor([1, 2], device=device))


def test_integers_stay_integers(device):
    x = Tensor([1, 2, 3], device=device)
    results = [x + 1, 2 * x, x - x, x**2, -x, x.clip(2, 3), x.sum(), x.max(), x[[0, 1]]]
    assert {result.dtype for result in results} == {np.dtype("int64")}


@each_operator
def test_mixed_dtypes_are_an_error_with_the_remedy(function, device):
    a, b = Tensor([1.0], "float32", device), Tensor([1.0], "float64", device)
    with pytest.raises(TypeError, match=r"(add|sub|mul|div): .*dtype float32 and float64.*\.to\('float32'\)"):
        function(a, b)


def test_mixed_devices_are_an_error_with_the_remedy(monkeypatch):
    a, b = Tensor([1.0]), Tensor([1.0])
    monkeypatch.setattr("minidl.tensor.device_of", lambda array: "cuda" if array is b.data else "cpu")
    with pytest.raises(TypeError, match=r"add: .*device cpu and cuda.*\.to\('cpu'\)"):
        a + b


@each_operator
def test_an_array_on_the_left_makes_a_tensor_not_an_array_of_objects(function):
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    for y in (function(np.array([3.0, 4.0]), x), function(x, np.array([3.0, 4.0])), function(np.float64(3), x)):
        assert type(y) is Tensor
        assert y.requires_grad
    np.testing.assert_array_equal(function(np.array([3.0, 4.0]), x).numpy(), function(np.array([3.0, 4.0]), x.numpy()))
    assert type(np.ones((3, 2)) @ x.reshape(2, 1)) is Tensor


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_give_bools_without_a_gradient(name, device):
    compare = getattr(operator, name)
    a, b = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    x = Tensor(a, device=device, requires_grad=True)
    for other, expected in ((Tensor(b, device=device), compare(a, b)), (2, compare(a, 2))):
        y = compare(x, other)
        assert y.dtype == bool
        assert not y.requires_grad
        np.testing.assert_array_equal(y.numpy(), expected)


def test_tensors_are_keys_by_identity():
    a, b = Tensor([1.0]), Tensor([1.0])
    assert len({a, b, a}) == 2


def test_argmax_is_the_first_of_the_largest(device):
    x = Tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]], device=device)
    np.testing.assert_array_equal(x.argmax(1).numpy(), [1, 0])
    assert x.argmax().item() == 1
    assert x.argmax(1).dtype == np.int64


def test_shapes_come_in_one_piece_or_in_several(device):
    x = Tensor(np.arange(6), device=device)
    for shape in ((2, 3), [2, 3]):
        assert x.reshape(shape).shape == x.reshape(*shape).shape == (2, 3)
    y = x.reshape(1, 2, 3)
    assert y.permute((2, 0, 1)).shape == y.permute([2, 0, 1]).shape == y.permute(2, 0, 1).shape == (3, 1, 2)
    assert x.reshape(np.int64(3), -1).shape == (3, 2)
    assert x.reshape(np.int64(6)).shape == (6,)


def test_dims_come_as_numbers_tuples_or_lists(device):
    x = Tensor(np.ones((2, 3, 4)), device=device, requires_grad=True)
    for dim, shape in ((1, (2, 4)), (np.int64(1), (2, 4)), ((0, 2), (3,)), ([0, 2], (3,))):
        y = x.sum(dim)
        assert y.shape == shape
        y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 4)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x: x + Tensor(np.ones(4, np.float32)), r"add: shapes \(2, 3\) and \(4,\) do not broadcast; reshape"),
        (lambda x: x @ x, r"matmul: expected \(..., n, k\) @ \(..., k, m\), got \(2, 3\) @ \(2, 3\); reshape"),
        (lambda x: x @ x[0], r"matmul.*\(2, 3\) @ \(3,\); reshape a vector"),
        (lambda x: x.reshape(4), r"reshape: the 6 elements of \(2, 3\) do not fit \(4,\)"),
        (lambda x: x.permute(0), r"permute: \(0,\) is not a permutation of the dimensions of \(2, 3\)"),
        (lambda x: x.permute(0, 0), r"permute: \(0, 0\) is not a permutation"),
        (lambda x: x.permute(0, 2), r"permute: \(0, 2\) is not a permutation"),
        (lambda x: x.sum(2), r"sum: dim 2 is not a dimension of \(2, 3\)"),
        (lambda x: x.max((0, -3)), r"max: dim -3 is not a dimension of \(2, 3\)"),
        (lambda x: x[:0].mean(), r"mean: expected a tensor that is not empty, got shape \(0, 3\)"),
        (lambda x: x[:0].amax(), r"amax: expected at least one number to compare, got shape \(0, 3\)"),
        (lambda x: x[:0].max(0), r"amax: expected at least one number to compare along dim 0, got shape \(0, 3\)"),
        (lambda x: x[:, :0].argmax(1), r"argmax: expected at least one number to compare along dim 1, got shape"),
        (lambda x: x.to("cudo"), r"to: expected a device \('cpu', 'cuda', 'cuda:N'\) or a dtype, got 'cudo'"),
        (lambda x: Tensor(x, device="tpu"), r"expected device 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
    ],
)
def test_errors_name_the_operation_what_it_got_and_the_remedy(use, message, device):
    with pytest.raises(ValueError, match=message):
        use(Tensor(np.ones((2, 3), np.float32), device=device).to("cpu"))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x: x**x, r"\*\*: expected a number as exponent, got Tensor; use \(b \* a\.log\(\)\)\.exp\(\)"),
        (
            lambda x: operator.add(x, [1]),
            r"add: inputs of dtype float32 and int64; .* or an array with minidl.Tensor\(array, 'float32'",
        ),
        (lambda x: -x.to("uint8"), "mul: got the number -1 and a tensor of uint8, which cannot hold it; convert the"),
        (lambda x: x.to("int8") + 200, "add: got the number 200 and a tensor of int8, which cannot hold it"),
        (
            lambda x: x.to("int64") ** -1,
            r"\*\*: expected a floating-point x, got int64; convert it with .to\('float32'",
        ),
        (lambda x: x.__setitem__(0, 1.0), r"x\[index\] = value: write minidl.where\(mask, value, x\), or x.data"),
        (lambda x: x.sum(1.5), r"sum: expected dim to be a whole number, got 1\.5"),
        (lambda x: x.mean("a"), "mean: expected dim to be a whole number, got 'a'"),
        (lambda x: x.amax((0, None)), "amax: expected dim to be a whole number, got None"),
        (lambda x: x.argmax(0.0), r"argmax: expected dim to be a whole number, got 0\.0"),
        (lambda x: x + None, "expected real numbers"),
        (lambda x: x + "a", "expected real numbers"),
        (lambda x: minidl.apply(minidl.Function, x.numpy()), "function: expected a Tensor, got ndarray; wrap it"),
    ],
)
def test_operands_of_the_wrong_kind_are_refused(use, message):
    with pytest.raises(TypeError, match=message):
        use(Tensor([1.0]))


class CupyWithoutGpu:
    """What there is of CuPy where it is installed and finds no driver, or a driver and no GPU."""

    ndarray = type("ndarray", (), {})

    class cuda:  # noqa: N801 - CuPy's name
        class runtime:  # noqa: N801
            CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})

            @classmethod
            def getDeviceCount(cls):  # noqa: N802
                raise cls.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    @classmethod
    def get_default_memory_pool(cls):
        return cls.cuda.runtime.getDeviceCount()  # every question to the device is the same error


@pytest.fixture
def no_cupy_yet():
    """`require_cupy` remembers a CuPy that works."""
    require_cupy.cache_clear()
    yield
    require_cupy.cache_clear()


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, r"device 'cuda' needs CuPy: pip install \"minidl\[cuda13\]\""),
        (CupyWithoutGpu, r"device 'cuda': CuPy finds no GPU \(cudaErrorNoDevice: .*\); use device 'cpu'"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_that_says_what_is(cupy, message, monkeypatch, no_cupy_yet):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    x = Tensor([1.0])
    for move in (lambda: x.to("cuda"), lambda: Tensor([1.0], device="cuda"), lambda: Linear(2, 3).to("cuda")):
        with pytest.raises(RuntimeError, match=message):
            move()
    assert (x + x).item() == 2  # and work goes on


def test_a_cupy_that_finds_no_gpu_does_not_stop_training_on_the_cpu(monkeypatch, no_cupy_yet):
    monkeypatch.setitem(sys.modules, "cupy", CupyWithoutGpu)
    with minidl.explain_out_of_memory(8):
        total = minidl.ones(2, 3).sum().item()
    assert total == 6


def test_minidl_does_not_import_cupy():
    code = "import minidl, sys; x = minidl.Tensor([1.0]); x + x; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
