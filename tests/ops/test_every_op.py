"""What is asked of every operation alike: the cases are listed in the test file of each."""

import inspect
import pkgutil
from importlib import import_module

import numpy as np
import pytest

import minidl.ops
from minidl import Function, Tensor, gradcheck
from minidl.autograd import Node
from tests.kernels.compare import TOLERANCE, assert_close, torch_gradients
from tests.ops.case import gradients

OPERATIONS = sorted(module.name for module in pkgutil.iter_modules(minidl.ops.__path__) if module.name != "function")
CASES = [(name, case) for name in OPERATIONS for case in import_module(f"tests.ops.test_{name}").CASES]

each_case = pytest.mark.parametrize("case", [pytest.param(case, id=f"{name}: {case}") for name, case in CASES])
each_linear_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{name}: {case}") for name, case in CASES if case.is_linear]
)


def run(case, device, dtype=np.float64):
    """(the inputs, the output, a random dL/d(output))."""
    inputs = case.tensors(device, dtype)
    y = case.ours(*inputs)
    return inputs, y, Tensor(np.random.default_rng(1).standard_normal(y.shape), dtype, device)


def nodes_below(node):
    """All nodes that this one was computed from, and itself."""
    return [node] + [below for source in node.inputs if isinstance(source, Node) for below in nodes_below(source)]


def test_every_operation_has_a_case():
    modules = [import_module(f"minidl.ops.{name}") for name in OPERATIONS]
    defined = {
        value.__name__
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Function) and value is not Function
    }
    assert len(defined) >= 35
    outputs = [run(case, "cpu", np.float32)[1] for _, case in CASES]
    assert {node.name for y in outputs for node in nodes_below(y._node)} == defined


@each_case
def test_the_gradients_are_the_slopes(case, device):
    gradcheck(case.ours, case.tensors(device))


@each_linear_case
def test_backward_is_the_adjoint_of_forward(case, device):
    """<f(x), g> = <x, f^T(g)> for an f that is linear in x: exact, and no step size to choose."""
    inputs, y, grad = run(case, device)
    y.backward(grad)
    scale = np.linalg.norm(y.numpy()) * np.linalg.norm(grad.numpy())  # the sums may cancel, their errors do not
    for x in inputs:
        assert abs(np.vdot(y.numpy(), grad.numpy()) - np.vdot(x.numpy(), x.grad.numpy())) <= 1e-12 * scale


@each_case
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
def test_values_and_gradients_are_those_of_pytorch(case, dtype, device, torch):
    arrays = [array.astype(dtype) for array in case.arrays()]
    grad = run(case, device, dtype)[2].numpy()
    y, grads = gradients(case.ours, arrays, grad, device)
    expected_y, expected_grads = torch_gradients(torch, lambda *tensors: case.theirs(torch, *tensors), arrays, grad)
    for actual, expected in zip([y, *grads], [expected_y, *expected_grads], strict=True):
        assert_close(actual, expected, TOLERANCE[dtype])


@each_case
def test_float32_stays_float32_and_memory_contiguous(case, device):
    inputs, y, grad = run(case, device, np.float32)
    y.backward(grad)
    for array in [y.data, *(x._node.grad for x in inputs)]:
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


@each_case
def test_no_array_that_an_operation_was_given_is_written_to(case, device):
    inputs = case.tensors(device)
    before = [x.numpy().copy() for x in inputs]
    make_read_only(inputs)
    y = case.ours(*inputs)
    grad = Tensor(np.random.default_rng(1).standard_normal(y.shape), device=device)
    before += [y.numpy().copy(), grad.numpy().copy()]
    make_read_only([y, grad])
    y.backward(grad)
    for tensor, array in zip([*inputs, y, grad], before, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def make_read_only(tensors):
    """From now on NumPy refuses to write into them. CuPy has no such flag."""
    for tensor in tensors:
        if tensor.device == "cpu":
            tensor.data.flags.writeable = False


@each_case
def test_an_input_that_wants_no_gradient_gets_none_and_leaves_the_others_theirs(case, device):
    everything, y, grad = run(case, device)
    y.backward(grad)
    for wanted in range(len(everything)):
        inputs = case.tensors(device)
        for i, x in enumerate(inputs):
            x.requires_grad = i == wanted
        case.ours(*inputs).backward(grad)
        assert [x.grad is not None for x in inputs] == [i == wanted for i in range(len(inputs))]
        assert_close(inputs[wanted].grad.numpy(), everything[wanted].grad.numpy())
