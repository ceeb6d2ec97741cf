"""Sums and maxima. Those with drawn shapes and dimensions are in tests/test_tensor.py."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.ops.reduce import as_kept
from tests.ops.case import Case, distinct, same_in_both


def largest(dim, keepdim=False):
    return Case(
        f"max over {dim}, keepdim={keepdim}",
        lambda x: x.max(dim, keepdim),
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


def test_equal_maxima_share_the_gradient(device):
    x = Tensor([[3.0, 1.0, 3.0], [0.0, 0.0, 0.0]], device=device, requires_grad=True)
    x.max(dim=1).backward(Tensor([4.0, 6.0], device=device))
    np.testing.assert_array_equal(x.grad.numpy(), [[2, 0, 2], [2, 2, 2]])


@pytest.mark.parametrize(
    ("dim", "kept"), [(None, (1, 1, 1)), ((), (2, 3, 4)), ((1,), (2, 1, 4)), ((-1, 0), (1, 3, 1))], ids=str
)
def test_as_kept_puts_the_lost_axes_back(dim, kept):
    x = np.zeros((2, 3, 4))
    assert as_kept(x.sum(dim), x.shape, dim).shape == kept
