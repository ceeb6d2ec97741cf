"""The same numbers in another arrangement. Drawn indices are in tests/test_tensor.py."""

import numpy as np
import pytest

import minidl
from minidl import Tensor
from tests.ops.case import Case, Constant, same_in_both

INDICES = {
    "an integer": 1,
    "a negative integer": -1,
    "a slice": slice(0, 1),
    "steps": np.s_[:, ::2],
    "None": np.s_[None, :, None],
    "an ellipsis": np.s_[..., 1],
    "a list with repeats": [1, 0, 1, 1],
    "two lists with repeats": ([0, 1, 0], [2, 2, 2]),
    "a list beside a slice": np.s_[:, [2, 0, 2], 1:3],
    "a mask": np.arange(24).reshape(2, 3, 4) % 5 == 0,
    "a whole number of NumPy": np.int64(1),
    "nothing at all": np.s_[:0],
}


def taken(name, index):
    return same_in_both(f"x[{name}]", lambda x: x[index], (2, 3, 4), is_linear=True)


def taken_on_the_device(name, index):
    """With an index whose arrays are on the device of x."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = [Constant(part) if isinstance(part, list | np.ndarray) else part for part in parts]

    def ours(x):
        return x[tuple(part.on(x.device) if isinstance(part, Constant) else part for part in parts)]

    return Case(f"x[{name}, on the device]", ours, lambda torch, x: x[index], [(2, 3, 4)], is_linear=True)


def concatenated(dim, *shapes, name=None):
    return Case(
        name or f"cat along {dim}",
        lambda *tensors: minidl.cat(tensors, dim),
        lambda torch, *tensors: torch.cat(tensors, dim),
        shapes,
    )


def stacked(dim, count=3, name=None):
    return Case(
        name or f"stack along {dim}",
        lambda *tensors: minidl.stack(tensors, dim),
        lambda torch, *tensors: torch.stack(tensors, dim),
        [(2, 3)] * count,
    )


CASES = [
    same_in_both("reshape", lambda x: x.reshape(4, -1), (2, 3, 4), is_linear=True),
    same_in_both("reshape to a scalar", lambda x: x.reshape(()), (1, 1), is_linear=True),
    same_in_both("permute", lambda x: x.permute(2, 0, 1), (2, 3, 4), is_linear=True),
    same_in_both("permute, counted from the end", lambda x: x.permute(-1, 0, -2), (2, 3, 4), is_linear=True),
    same_in_both("T", lambda x: x.T, (2, 3), is_linear=True),
    *(taken(name, index) for name, index in INDICES.items()),
    *(taken_on_the_device(name, index) for name, index in INDICES.items() if "list" in name or "mask" in name),
    same_in_both("a scalar with None", lambda x: x[None], (), is_linear=True),
    concatenated(0, (1, 3), (2, 3), (4, 3)),
    concatenated(-1, (2, 1, 3), (2, 1, 1)),
    concatenated(1, (2, 3)),
    concatenated(1, *[(2, 1 + i % 2) for i in range(9)], name="cat of nine"),
    stacked(0, 9, name="stack of nine"),
    stacked(0),
    stacked(1),
    stacked(-1),
]


def test_what_is_taken_twice_gets_both_gradients(device):
    x = Tensor([1.0, 2.0, 3.0], device=device, requires_grad=True)
    x[[2, 0, 2]].backward(Tensor([10.0, 20.0, 30.0], device=device))
    np.testing.assert_array_equal(x.grad.numpy(), [20, 0, 40])


def test_tensors_are_indices_too(device):
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], device=device, requires_grad=True)
    rows, columns = Tensor([0, 1, 1], device=device), Tensor([1, 0, 0], device=device)
    y = x[rows, columns]
    np.testing.assert_array_equal(y.numpy(), [2, 3, 3])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 1], [2, 0]])
    np.testing.assert_array_equal(x[x > 2].numpy(), [3, 4])


@pytest.mark.parametrize("index", [0, slice(None), [0, 1], ...], ids=str)
def test_a_part_has_memory_of_its_own(index, device):
    x = Tensor(np.ones((2, 3)), device=device)
    x[index].data[...] = 7
    assert x.max().item() == 1
