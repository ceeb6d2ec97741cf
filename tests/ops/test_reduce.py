"""Sums and maxima. Those with drawn shapes and dimensions are in tests/test_tensor.py."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.ops.function import Context
from minidl.ops.reduce import Max, Sum, sum_over
from tests.kernels.compare import assert_close
from tests.ops.case import Case, distinct, same_in_both


def largest(dim, keepdim=False):
    return Case(
        f"amax over {dim}, keepdim={keepdim}",
        lambda x: x.amax(dim, keepdim),
        lambda torch, x: torch.amax(x, () if dim is None else dim, keepdim),
        [(2, 3, 4)],
        distinct,
    )


CASES = [
    same_in_both("sum", lambda x: x.sum(), (2, 3, 4), is_linear=True),
    same_in_both("sum over 1", lambda x: x.sum(1), (2, 3, 4), is_linear=True),
    same_in_both("sum over -1 and 0", lambda x: x.sum((-1, 0)), (2, 3, 4), is_linear=True),
    same_in_both("sum over 2 and 1, kept", lambda x: x.sum((2, 1), keepdim=True), (2, 3, 4), is_linear=True),
    same_in_both("sum of a scalar", lambda x: x.sum(), (), is_linear=True),
    same_in_both("mean over 0", lambda x: x.mean(0), (2, 3, 4), is_linear=True),
    same_in_both("var", lambda x: x.var(), (2, 3, 4)),
    same_in_both("var over -1, kept", lambda x: x.var(-1, keepdim=True), (2, 3, 4)),
    same_in_both("var of a population", lambda x: x.var((0, 1), correction=0), (2, 3, 4)),
    largest(None),
    largest(1),
    largest((0, -1)),
    largest((2, 1), keepdim=True),
]


@pytest.mark.parametrize(("shape", "dim"), [((10**6, 2), 0), ((1000, 1000, 2), (0, 1)), ((2, 10**6), 1)], ids=str)
def test_a_million_float32_numbers_are_added_with_an_error_of_float32(shape, dim, device):
    """One after the other they would come to 100958: each addition to a large sum is rounded to its last digit."""
    x = Tensor(np.full(shape, 0.1, np.float32), device=device)
    exact = float(np.float32(0.1))
    assert x.sum(dim).dtype == np.float32
    np.testing.assert_allclose(x.sum(dim).numpy(), 1e6 * exact, rtol=1e-7)
    np.testing.assert_allclose(x.mean(dim).numpy(), exact, rtol=2e-7)
    np.testing.assert_allclose(x.var(dim).numpy(), 0, atol=1e-14)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [(), []], ids=str)
@pytest.mark.parametrize(("ours", "theirs"), [("sum", "sum"), ("mean", "mean"), ("var", "var"), ("amax", "amax")])
def test_no_dimensions_are_all_dimensions_as_in_pytorch(ours, theirs, dim, keepdim, device, torch):
    x = np.arange(6.0).reshape(2, 3)
    expected = getattr(torch, theirs)(torch.tensor(x), dim, keepdim=keepdim)
    y = getattr(Tensor(x, device=device), ours)(dim, keepdim)
    assert y.shape == tuple(expected.shape)
    assert_close(y.numpy(), expected.numpy())


@pytest.mark.parametrize("dim", [(0, 0), (0, -2)], ids=str)
def test_a_dimension_that_is_named_twice_is_refused(dim):
    with pytest.raises(ValueError, match=r"sum: dim .* names a dimension of \(2, 3\) twice"):
        Tensor(np.zeros((2, 3))).sum(dim)


@pytest.mark.parametrize("shape", [(2,), (1, 2), ()], ids=str)
def test_the_gradient_of_a_number_that_a_million_rows_share_has_an_error_of_float32(shape, device):
    shared = Tensor(np.zeros(shape, np.float32), device=device, requires_grad=True)
    grad = Tensor(np.full((10**6, 2), 0.1, np.float32), device=device)
    (grad + shared).backward(grad)
    count = 10**6 if shape else 2 * 10**6
    np.testing.assert_allclose(shared.grad.numpy(), count * float(np.float32(0.1)), rtol=1e-7)


def test_equal_maxima_share_the_gradient(device):
    x = Tensor([[3.0, 1.0, 3.0], [0.0, 0.0, 0.0]], device=device, requires_grad=True)
    x.amax(dim=1).backward(Tensor([4.0, 6.0], device=device))
    np.testing.assert_array_equal(x.grad.numpy(), [[2, 0, 2], [2, 2, 2]])


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1.0), ("float16", 0.001), ("bfloat16", 1.0)])
def test_the_mean_of_many_halves_is_finite_and_accurate(dtype, value, device):
    """float16 ends at 65,504: neither the sum nor the count of 100,000 numbers fits."""
    x = Tensor(np.full(100_000, value, np.float32), device=device).to(dtype)
    for mean in (x.mean(), x.reshape(100_000, 1).mean(0)):
        assert str(mean.dtype) == dtype
        np.testing.assert_array_equal(mean.to("float32").numpy().ravel(), x[:1].to("float32").numpy())


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "uint64", "int64"])
def test_sums_of_integers_are_int64_as_in_pytorch(dtype, device):
    y = Tensor(np.array([1, 1], dtype), device=device).sum()
    assert y.dtype == np.int64 and (y - 5).item() == -3


def test_nans_are_the_maximum_and_share_its_gradient(device):
    x = Tensor([[np.nan, 1.0, np.nan], [0.0, 2.0, 1.0]], device=device, requires_grad=True)
    y = x.amax(dim=1)
    np.testing.assert_array_equal(y.numpy(), [np.nan, 2])
    y.backward(Tensor([4.0, 6.0], device=device))
    np.testing.assert_array_equal(x.grad.numpy(), [[2, 0, 2], [0, 6, 0]])


def test_an_infinite_gradient_of_a_maximum_leaves_the_other_numbers_0(device):
    x = Tensor([1.0, 3.0], device=device, requires_grad=True)
    x.max().backward(Tensor(np.float32(np.inf), device=device))
    assert x.grad.numpy().tolist() == [0, np.inf]


@pytest.mark.parametrize(
    ("dim", "kept"), [(None, (1, 1, 1)), ((), (2, 3, 4)), ((1,), (2, 1, 4)), ((-1, 0), (1, 3, 1))], ids=str
)
@pytest.mark.parametrize("keepdim", [False, True])
def test_reduced_axes_have_length_1_until_they_are_dropped(dim, kept, keepdim):
    x = np.arange(24.0).reshape(2, 3, 4)
    assert sum_over(x, dim).shape == kept
    for function, of_numpy in ((Sum, np.sum), (Max, np.max)):
        ctx = Context((True,))
        y = function.forward(ctx, x, dim=dim, keepdim=keepdim)
        np.testing.assert_array_equal(y, of_numpy(x, axis=dim, keepdims=keepdim))
        assert function.backward(ctx, y).shape == x.shape
