"""The linear layer: products with a matrix, by cuBLAS, which reads a transposed matrix where it lies."""

import cupy

from minidl.kernels.cuda._bias import add_bias


def linear_forward(x, weight, bias):
    """y = x W + b: (N, in), (in, out) -> (N, out)."""
    y = cupy.matmul(x, weight)
    add_bias(y, bias)
    return y


def linear_backward_x(grad, weight):
    """dL/dx = dL/dy W^T: (N, out), (in, out) -> (N, in)."""
    return cupy.matmul(grad, weight.T)


def linear_backward_weight(grad, x):
    """dL/dW = x^T dL/dy: (N, out), (N, in) -> (in, out)."""
    return cupy.matmul(x.T, grad)
