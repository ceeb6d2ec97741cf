"""Products with a matrix, in blocks of its columns or rows, so that the threads together read it from memory once."""

import numpy as np

from minidl.kernels.cpu._parallel import chunk_length, map_chunks

# (measured, 4x25088 @ 25088x4096) Columns and rows of the matrix, and numbers of its gradient, in a block.
FORWARD_COLUMNS, BACKWARD_ROWS, GRADIENT_ELEMENTS = 256, 256, 2**16


def linear_forward(x, weight, bias):
    """y = x W + b: (N, in), (in, out) -> (N, out)."""
    y = np.empty((len(x), weight.shape[1]), x.dtype)

    def multiply(start, stop):
        np.matmul(x, weight[:, start:stop], out=y[:, start:stop])
        if bias is not None:
            y[:, start:stop] += bias[start:stop]

    map_chunks(multiply, weight.shape[1], FORWARD_COLUMNS)
    return y


def linear_backward_x(grad, weight):
    """dL/dx = dL/dy W^T: (N, out), (in, out) -> (N, in)."""
    grad_x = np.empty((len(grad), weight.shape[0]), grad.dtype)
    grad_t = np.ascontiguousarray(grad.T)

    def multiply(start, stop):
        grad_x[:, start:stop] = (weight[start:stop] @ grad_t).T

    map_chunks(multiply, weight.shape[0], BACKWARD_ROWS)
    return grad_x


def linear_backward_weight(grad, x):
    """dL/dW = x^T dL/dy: (N, out), (N, in) -> (in, out)."""
    grad_weight = np.empty((x.shape[1], grad.shape[1]), grad.dtype)

    def multiply(start, stop):
        np.matmul(x[:, start:stop].T, grad, out=grad_weight[start:stop])

    map_chunks(multiply, x.shape[1], chunk_length(grad.shape[1], GRADIENT_ELEMENTS))
    return grad_weight
