"""A case: an operation at work on inputs of given shapes, and the same in PyTorch. `test_every_op.py` runs them all."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minidl import Tensor


def normal(rng, shapes):
    """N(0, 1)."""
    return [rng.standard_normal(shape) for shape in shapes]


def positive(rng, shapes):
    """Between 0.5 and 2."""
    return [rng.uniform(0.5, 2, shape) for shape in shapes]


def away_from_zero(rng, shapes):
    """Of either sign, between 0.5 and 2 in size."""
    return [rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape) for shape in shapes]


def distinct(rng, shapes):
    """No two numbers of all inputs closer than 0.25, and none closer to 0 than half of that: no kink is near."""
    sizes = [math.prod(shape) for shape in shapes]
    numbers = (rng.permutation(sum(sizes)) - sum(sizes) // 2 + 0.5) / 4
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


class Constant:
    """An array that a case needs beside its inputs. Each device keeps a copy, as a captured step cannot make one."""

    def __init__(self, array):
        self.array, self.copies = np.asarray(array), {}

    def on(self, device) -> Tensor:
        if device not in self.copies:
            self.copies[device] = Tensor(self.array, device=device)
        return self.copies[device]


class Case(NamedTuple):
    """`ours` takes Tensors of these shapes, `theirs` PyTorch and its tensors, in minidl's layouts."""

    name: str
    ours: Callable
    theirs: Callable
    shapes: Sequence[tuple]
    draw: Callable = normal
    is_linear: bool = False  # in each input, the others held
    kept_in_float32: Sequence[int] = ()  # numbers of the inputs that stay float32 beside bfloat16 and float16

    def __str__(self):
        return self.name

    def arrays(self):
        """The same float64 arrays at every call."""
        return self.draw(np.random.default_rng(0), self.shapes)

    def tensors(self, device, dtype=np.float64):
        """The arrays as leaves of a graph."""
        dtypes = self.dtypes(dtype)
        return [Tensor(x, d, device, requires_grad=True) for x, d in zip(self.arrays(), dtypes, strict=True)]

    def dtypes(self, dtype):
        """The dtype of each input, where that of the others is `dtype`."""
        keeps = self.kept_in_float32 if str(dtype) in ("bfloat16", "float16") else ()
        return [np.float32 if i in keeps else dtype for i in range(len(self.shapes))]


def gradients(function, arrays, grad, device):
    """(y, [dL/d(array), ...]) of y = function(*tensors) for dL/dy = grad, as NumPy arrays."""
    tensors = [Tensor(array, device=device, requires_grad=True) for array in arrays]
    y = function(*tensors)
    y.backward(Tensor(grad, device=device))
    return y.numpy(), [tensor.grad.numpy() for tensor in tensors]


def same_in_both(name, function, *shapes, draw=normal, is_linear=False):
    """A case that is written alike in minidl and in PyTorch."""
    return Case(name, function, lambda torch, *tensors: function(*tensors), shapes, draw, is_linear)
