"""Products with a matrix, in blocks of its columns or rows, so that the threads together read it from memory once."""

import numpy as np

from minidl.kernels.cpu._parallel import chunk_length, map_chunks

# A block of the matrix that one thread works on: 1 MB of float32.
BLOCK_ELEMENTS = 2**18


def linear_forward(x, weight, bias):
    """y = x W + b: (N, in), (in, out) -> (N, out)."""
    y = np.empty((len(x), weight.shape[1]), x.dtype)

    def multiply(start, stop):
        y[:, start:stop] = x @ weight[:, start:stop]
        if bias is not None:
            y[:, start:stop] += bias[start:stop]

    map_chunks(multiply, weight.shape[1], chunk_length(weight.shape[0], BLOCK_ELEMENTS))
    return y


def linear_backward_x(grad, weight):
    """dL/dx = dL/dy W^T: (N, out), (in, out) -> (N, in)."""
    grad_x = np.empty((len(grad), weight.shape[0]), grad.dtype)

    def multiply(start, stop):
        grad_x[:, start:stop] = grad @ weight[start:stop].T

    map_chunks(multiply, weight.shape[0], chunk_length(weight.shape[1], BLOCK_ELEMENTS))
    return grad_x


def linear_backward_weight(grad, x):
    """dL/dW = x^T dL/dy: (N, out), (N, in) -> (in, out)."""
    grad_weight = np.empty((x.shape[1], grad.shape[1]), grad.dtype)

    def multiply(start, stop):
        np.matmul(x[:, start:stop].T, grad, out=grad_weight[start:stop])

    map_chunks(multiply, x.shape[1], chunk_length(grad.shape[1], BLOCK_ELEMENTS))
    return grad_weight
