"""Another dtype, another device."""

import numpy as np
import pytest

import minidl
from minidl import Tensor
from minidl.ops.convert import Move
from tests.ops.case import Case

CASES = [
    Case("cast", lambda x: x.to("float64").to(x.dtype), lambda torch, x: x * 1, [(2, 3)], is_linear=True),
    Case("move", lambda x: minidl.apply(Move, x, device=x.device), lambda torch, x: x * 1, [(2, 3)], is_linear=True),
]


@pytest.mark.parametrize(("ours", "other"), [("float32", "float64"), ("float64", "float32")])
def test_a_gradient_comes_back_in_the_dtype_it_left_in(ours, other, device):
    x = Tensor([1.0, 2.0], ours, device, requires_grad=True)
    y = x.to(other)
    assert y.dtype == other
    y.backward(Tensor([3.0, 4.0], other, device))
    assert x.grad.dtype == ours
    np.testing.assert_array_equal(x.grad.numpy(), [3, 4])


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_no_gradient_goes_through_what_is_not_a_float(dtype, device):
    x = Tensor([0.0, 2.7], device=device, requires_grad=True)
    y = x.to(dtype)
    assert not y.requires_grad
    assert y.dtype == dtype


def test_there_and_back_again(device):
    x = Tensor([1.0, 2.0], requires_grad=True)
    x.to(device).to("cpu").backward(Tensor([3.0, 4.0]))
    np.testing.assert_array_equal(x.grad.numpy(), [3, 4])


def test_nothing_is_done_where_nothing_changes(device):
    x = Tensor([1.0], device=device)
    assert x.to(device) is x
    assert x.to("float32") is x
