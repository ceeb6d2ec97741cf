"""Functions of each number alone, in chunks."""

import numpy as np

from minidl.kernels.cpu._channels import CHUNK_ELEMENTS, relu_gradient
from minidl.kernels.cpu._parallel import map_chunks


def add(a, b):
    """a + b, of one shape: where two gradients meet."""
    if a.shape != b.shape:
        raise ValueError(f"backward: two gradients of one tensor have the shapes {a.shape} and {b.shape}")
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    total = np.empty(flat_a.shape, a.dtype)
    map_chunks(
        lambda start, stop: np.add(flat_a[start:stop], flat_b[start:stop], out=total[start:stop]),
        a.size,
        CHUNK_ELEMENTS,
    )
    return total.reshape(a.shape)


def relu_forward(x):
    """y = max(x, 0)."""
    flat = x.reshape(-1)
    y = np.empty(flat.shape, x.dtype)
    zeros = np.zeros(min(x.size, CHUNK_ELEMENTS), x.dtype)  # (measured) three times as fast as the number 0

    def cut(start, stop):
        np.maximum(flat[start:stop], zeros[: stop - start], out=y[start:stop])

    map_chunks(cut, x.size, CHUNK_ELEMENTS)
    return y.reshape(x.shape)


def relu_backward(grad, y):
    """dL/dx = dL/dy where y > 0 or NaN, else 0."""
    flat_grad, flat_y = grad.reshape(-1), y.reshape(-1)
    grad_x = np.empty(flat_y.shape, grad.dtype)

    def mask(start, stop):
        relu_gradient(flat_grad[start:stop], flat_y[start:stop], out=grad_x[start:stop])

    map_chunks(mask, y.size, CHUNK_ELEMENTS)
    return grad_x.reshape(y.shape)
