"""Products with a matrix, in blocks of its columns or rows, so that the threads together read it from memory once."""

import numpy as np

from minidl.kernels.cpu._pieces import rows_of, slices
from minidl.kernels.cpu._threads import map_pieces

# (measured, 4x25088 @ 25088x4096) Columns and rows of the matrix, and numbers of its gradient, in a block.
FORWARD_COLUMNS, BACKWARD_ROWS, GRADIENT_ELEMENTS = 256, 256, 2**16


def linear_forward(x, weight, bias):
    """y = x W + b: (N, in), (in, out) -> (N, out)."""
    y = np.empty((len(x), weight.shape[1]), x.dtype)

    def multiply(some):
        np.matmul(x, weight[:, some], out=y[:, some])
        if bias is not None:
            y[:, some] += bias[some]

    map_pieces(multiply, slices(weight.shape[1], FORWARD_COLUMNS), multiplications=x.size * weight.shape[1])
    return y


def linear_backward_x(grad, weight):
    """dL/dx = dL/dy W^T: (N, out), (in, out) -> (N, in)."""
    grad_x = np.empty((len(grad), weight.shape[0]), grad.dtype)
    grad_t = np.ascontiguousarray(grad.T)

    def multiply(some):
        grad_x[:, some] = (weight[some] @ grad_t).T

    map_pieces(multiply, slices(weight.shape[0], BACKWARD_ROWS), multiplications=grad.size * weight.shape[0])
    return grad_x


def linear_backward_weight(grad, x):
    """dL/dW = x^T dL/dy: (N, out), (N, in) -> (in, out)."""
    grad_weight = np.empty((x.shape[1], grad.shape[1]), grad.dtype)

    def multiply(some):
        np.matmul(x[:, some].T, grad, out=grad_weight[some])

    pieces = slices(x.shape[1], rows_of(GRADIENT_ELEMENTS, grad.shape[1]))
    map_pieces(multiply, pieces, multiplications=x.size * grad.shape[1])
    return grad_weight
