"""Element-wise operations (+ - * / **, exp, log, ...) and the matrix product.

NumPy's functions call CuPy's for CuPy arrays, so only the matrix product depends on the device. Inputs broadcast as in
NumPy. The gradient of a broadcast input is summed over the axes along which the input was repeated.
"""

import numpy as np

from minidl.kernels import add, kernels_for
from minidl.ops.function import Function
from minidl.ops.reduce import sum_over


def sum_to_shape(grad, shape: tuple[int, ...]):
    """Sum grad over the axes along which an array of `shape` was repeated: the transpose (adjoint) of broadcasting."""
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    repeated = tuple(axis for axis in range(grad.ndim) if axis < added or shape[axis - added] != grad.shape[axis])
    return sum_over(grad, repeated).reshape(shape)


class Add(Function):
    """y = a + b.   dL/da = dL/dy,   dL/db = dL/dy."""

    reads = "itself"

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a.shape, b.shape)
        return add(a, b)

    @staticmethod
    def backward(ctx, grad):
        a_shape, b_shape = ctx.saved
        return sum_to_shape(grad, a_shape), sum_to_shape(grad, b_shape)


class Sub(Function):
    """y = a - b.   dL/da = dL/dy,   dL/db = -dL/dy."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a.shape, b.shape)
        return a - b

    @staticmethod
    def backward(ctx, grad):
        a_shape, b_shape = ctx.saved
        return sum_to_shape(grad, a_shape), sum_to_shape(-grad, b_shape)


class Mul(Function):
    """y = a b.   dL/da = b dL/dy,   dL/db = a dL/dy."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        grad_a = sum_to_shape(grad * b, a.shape) if ctx.needs_grad[0] else None
        grad_b = sum_to_shape(grad * a, b.shape) if ctx.needs_grad[1] else None
        return grad_a, grad_b


class Div(Function):
    """y = a / b.   dL/da = dL/dy / b,   dL/db = -dL/dy a / b^2 = -dL/dy y / b."""

    floats_only = True

    @staticmethod
    def forward(ctx, a, b):
        y = a / b
        ctx.save(a.shape, b, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        a_shape, b, y = ctx.saved
        grad_a = grad / b
        grad_b = sum_to_shape(-grad_a * y, b.shape) if ctx.needs_grad[1] else None
        return sum_to_shape(grad_a, a_shape), grad_b


class Pow(Function):
    """y = x^p for a constant number p.   dL/dx = p x^(p-1) dL/dy."""

    in_float32 = True

    @staticmethod
    def forward(ctx, x, *, exponent: float):
        ctx.save(x, exponent)
        return x**exponent

    @staticmethod
    def backward(ctx, grad):
        x, exponent = ctx.saved
        if exponent == 0:  # 0 * x^-1 would be NaN at x = 0
            return np.zeros_like(grad)
        return grad * (exponent * x ** (exponent - 1))


class MatMul(Function):
    """Y = A B over the last two axes; the others broadcast.   dL/dA = dL/dY B^T,   dL/dB = A^T dL/dY."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return kernels_for(a).matmul(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        kernels = kernels_for(grad)
        grad_a = sum_to_shape(kernels.matmul(grad, b.swapaxes(-1, -2)), a.shape) if ctx.needs_grad[0] else None
        grad_b = sum_to_shape(kernels.matmul(a.swapaxes(-1, -2), grad), b.shape) if ctx.needs_grad[1] else None
        return grad_a, grad_b


class Exp(Function):
    """y = e^x.   dL/dx = y dL/dy."""

    floats_only = True

    @staticmethod
    def forward(ctx, x):
        y = np.exp(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return grad * y


class Log(Function):
    """y = ln x.   dL/dx = dL/dy / x."""

    floats_only = True

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return np.log(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return grad / x


class Sqrt(Function):
    """y = sqrt(x).   dL/dx = dL/dy / (2 y)."""

    floats_only = True

    @staticmethod
    def forward(ctx, x):
        y = np.sqrt(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return grad / (2 * y)


class Sigmoid(Function):
    """y = 1 / (1 + e^-x).   dL/dx = y (1 - y) dL/dy.

    Computed from t = e^-|x|, which cannot overflow: y = 1 / (1 + t) for x >= 0 and t / (1 + t) for x < 0. Both forms
    are accurate. Where y rounds to 1 (in float32, for x >= 17), dL/dx is 0, as in PyTorch.
    """

    floats_only = in_float32 = True

    @staticmethod
    def forward(ctx, x):
        t = np.exp(-np.abs(x))
        y = np.where(x >= 0, 1, t) / (1 + t)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return grad * y * (1 - y)


class Tanh(Function):
    """y = tanh x.   dL/dx = (1 - y^2) dL/dy."""

    floats_only = True

    @staticmethod
    def forward(ctx, x):
        y = np.tanh(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return grad * (1 - y * y)


class Clip(Function):
    """y = min(max(x, low), high).   dL/dx = dL/dy where low <= x <= high, and 0 elsewhere.

    A NaN stays NaN. It is not between the bounds, so its dL/dx is 0, as in PyTorch.
    """

    in_float32 = True

    @staticmethod
    def forward(ctx, x, *, low: float | None, high: float | None):
        y = np.clip(x, low, high)
        ctx.save(x == y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (inside,) = ctx.saved
        return np.where(inside, grad, 0)


class Maximum(Function):
    """y = max(a, b).   dL/dy goes to the larger of the two; if they are equal, half to each.

    If one of them is NaN, y is NaN and both receive dL/dy. All this is as in PyTorch.
    """

    in_float32 = True

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return np.maximum(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        shared = np.where(a == b, 0.5 * grad, grad)
        grad_a, grad_b = np.where(a < b, 0, shared), np.where(a > b, 0, shared)
        return sum_to_shape(grad_a, a.shape), sum_to_shape(grad_b, b.shape)


class Where(Function):
    """y = a where the condition is True, else b.   dL/dy goes to the one that was taken, 0 to the other."""

    in_float32 = True

    @staticmethod
    def forward(ctx, a, b, *, condition):
        ctx.save(a.shape, b.shape, condition)
        return np.where(condition, a, b)

    @staticmethod
    def backward(ctx, grad):
        a_shape, b_shape, condition = ctx.saved
        return sum_to_shape(np.where(condition, grad, 0), a_shape), sum_to_shape(np.where(condition, 0, grad), b_shape)
