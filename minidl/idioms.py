"""What users of PyTorch and NumPy write by habit: it works here too, or the error says what to write instead."""

import numpy as np

from minidl.autograd import Leaf, is_grad_enabled

# NumPy's ufunc for `array - tensor`, and the method of the tensor that computes it.
OPERATORS = {
    np.add: "__radd__",
    np.subtract: "__rsub__",
    np.multiply: "__rmul__",
    np.divide: "__rtruediv__",
    np.matmul: "__rmatmul__",
    np.equal: "__eq__",
    np.not_equal: "__ne__",
    np.less: "__gt__",
    np.less_equal: "__ge__",
    np.greater: "__lt__",
    np.greater_equal: "__le__",
}

# Methods that tensors have in PyTorch, and what to write here for a tensor x.
IN_PYTORCH = {
    "abs": "minidl.maximum(x, -x)",
    "cpu": 'x.to("cpu")',
    "cuda": 'x.to("cuda")',
    "double": 'x.to("float64")',
    "flatten": "x.reshape(-1)",
    "float": 'x.to("float32")',
    "half": 'x.to("float16")',
    "long": 'x.to("int64")',
    "min": "-(-x).max()",
    "size": "x.shape",
    "squeeze": "x.reshape(...)",
    "std": "x.var(...).sqrt()",
    "tolist": "x.numpy().tolist()",
    "transpose": "x.permute(...)",
    "type": "x.to(dtype)",
    "unsqueeze": "x[:, None] or x.reshape(...)",
    "view": "x.reshape(...)",
    "zero_": "x.data[...] = 0",
}


class Idioms:
    """The part of `Tensor` that is for habits from other libraries."""

    __slots__ = ()

    is_state = False  # True for parameters and buffers: what a module holds

    # -- p -= lr * p.grad ----------------------------------------------------------------------------------------------

    def __iadd__(self, other):
        return self._assign(self + other)

    def __isub__(self, other):
        return self._assign(self - other)

    def __imul__(self, other):
        return self._assign(self * other)

    def __itruediv__(self, other):
        return self._assign(self / other)

    def _assign(self, value):
        """Write the values into a leaf, a parameter or a buffer, and return it. For any other tensor return `value`.

        So `p -= lr * p.grad` updates a parameter, as in PyTorch, and `total += loss` adds to the graph.
        """
        if not self.is_state and not isinstance(self._node, Leaf):
            return value
        if self.requires_grad and is_grad_enabled():
            raise RuntimeError(
                "in-place operation: this tensor requires grad, and its old values may be needed in backward; "
                "write it inside `with minidl.no_grad():`, or as x = x - y"
            )
        if (value.shape, value.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"in-place operation: expected {self.shape} {self.dtype} as before, got {value.shape} {value.dtype}"
            )
        self.data[...] = value.data
        self._version.count += 1
        return self

    def __setitem__(self, index, value):
        raise TypeError(
            "x[index] = value: write minidl.where(mask, value, x), or x.data[index] = value without autograd"
        )

    # -- NumPy ---------------------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        """`array - tensor` is a tensor; `array -= tensor` changes the array: `p.data -= lr * p.grad`."""
        if method == "__call__" and not options and ufunc in OPERATORS:
            if out is None:
                left, right = inputs
                return getattr(right, OPERATORS[ufunc])(left)
            if not any(isinstance(array, Idioms) for array in out):
                return ufunc(*map(_as_numpy, inputs), out=out)
        raise TypeError(f"numpy.{ufunc.__name__}: got a Tensor; {_remedy(ufunc.__name__)}")

    def __array_function__(self, function, types, args, kwargs):
        """NumPy's functions compute with the values of tensors that require no grad."""
        tensors = []
        args, kwargs = _as_numpy(args, tensors), {name: _as_numpy(value, tensors) for name, value in kwargs.items()}
        if any(tensor.requires_grad for tensor in tensors):
            name = function.__name__
            raise TypeError(f"numpy.{name}: got a Tensor that requires grad, which would be lost; {_remedy(name)}")
        return function(*args, **kwargs)

    # -- PyTorch -------------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str):
        hint = f"; write {IN_PYTORCH[name]}" if name in IN_PYTORCH else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}", name=name, obj=self)


def _as_numpy(value, tensors: list | None = None):
    """Return `value` with NumPy arrays for the tensors in it, at any depth, and collect those in `tensors`."""
    if isinstance(value, Idioms):
        if tensors is not None:
            tensors.append(value)
        return value.numpy()
    if isinstance(value, list | tuple):
        parts = [_as_numpy(part, tensors) for part in value]
        return parts if isinstance(value, list) else tuple(parts)  # also for a named tuple
    return value


def _remedy(name: str) -> str:
    method = f"use its method .{name}(), or " if name in ("exp", "log", "sqrt", "tanh", "clip", "sum", "mean") else ""
    return f"{method}compute with .detach().numpy() if no gradient is needed"
