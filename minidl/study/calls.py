"""A call of a kernel or of an op's backward, with its arguments by name: what mistakes and exercises are about."""

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import ops as ops_package
from minidl.kernels import reference
from minidl.ops.arithmetic import sum_to_shape
from minidl.ops.function import Context, Function
from minidl.study import residual

# The arguments that a kernel writes into. All other kernels return new arrays.
WRITTEN = {
    "update_running_statistics": ("running_mean", "running_variance"),
    "sgd_update": ("parameters", "velocities"),
    "adam_update": ("parameters", "means", "squares", "steps"),
}

BESIDE_THE_KERNELS = (sum_to_shape, residual.residual_end_forward, residual.residual_end_backward)


class Call:
    """The arguments of one call, by name: `call.x`.

    `call()` is the right result, and `call(x=other)` the right result for another x. It is one array or a tuple of
    arrays, as the function returns it. Of a kernel that writes into its arguments it is a tuple of what was written.
    """

    def __init__(self, function: Callable, arguments: dict[str, Any]):
        self.function, self.arguments = function, arguments

    def __getattr__(self, name: str):
        try:
            return self.__dict__["arguments"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __call__(self, **changed):
        return self.function(**{**self.arguments, **changed})


@functools.cache
def kernels() -> dict[str, Callable]:
    """Each kernel of `kernels/reference.py` by its name, and what the course has beside them."""
    found = {name: value for name, value in vars(reference).items() if inspect.isfunction(value) and name[0] != "_"}
    return found | {function.__name__: function for function in BESIDE_THE_KERNELS}


@functools.cache
def ops() -> dict[str, type[Function]]:
    """Each op, that is each `Function` in `minidl/ops`, by the name of its class."""
    found = {}
    for file in pkgutil.iter_modules(ops_package.__path__):
        module = importlib.import_module(f"minidl.ops.{file.name}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, Function) and value.__module__ == module.__name__:
                found[name] = value
    del found["Function"]
    return found


def result_names(name: str) -> tuple[str, ...]:
    """What a kernel returns, as its docstring names it: ("dL/dx", "dL/dweight"). Of updates: what they write."""
    if name in WRITTEN:
        return WRITTEN[name]
    several = re.match(r"\((\w+(?:, \w+)+)\)[:,. ]", inspect.getdoc(kernels().get(name)) or "")
    if several:
        return tuple(part.replace("grad_", "dL/d") for part in several[1].split(", "))
    endings = {"_weight": "dL/dweight", "bias_backward": "dL/dbias", "entropy_backward": "dL/dlogits"}
    endings |= {"_backward": "dL/dx", "_backward_x": "dL/dx", "sum_to_shape": "the gradient", "": "y"}
    return (next(result for ending, result in endings.items() if name.endswith(ending)),)


def returning(name: str, kernel: Callable) -> Callable:
    """The kernel itself; if it writes into its arguments, a function that returns what a call on copies has written."""
    if name not in WRITTEN:
        return kernel

    def on_copies(**arguments):
        copies = map_arrays(np.copy, arguments)
        kernel(**copies)
        return tuple(arrays_in([copies[argument] for argument in WRITTEN[name]]))

    return on_copies


def backward_of(op: type[Function]) -> Callable:
    """`op.backward` as a function of dL/dy and of what forward saved; it returns a tuple with a gradient per input."""

    right = op.backward  # not looked up at each call: a mistake may be planted in its place

    def backward(grad, saved, needs_grad):
        ctx = Context(needs_grad)
        ctx.save(*saved)
        grads = right(ctx, grad)
        return grads if isinstance(grads, tuple) else (grads,)

    return backward


def map_arrays(function: Callable, value):
    """`value` with each array in it, in whatever nesting of lists, tuples and dicts, replaced by function(array)."""
    if isinstance(value, dict):
        return {name: map_arrays(function, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_arrays(function, item) for item in value)
    return function(value) if isinstance(value, np.ndarray) else value


def arrays_in(value) -> list[np.ndarray]:
    """All arrays in nested lists, tuples and dicts, as one list."""
    found: list[np.ndarray] = []
    map_arrays(found.append, value)
    return found
