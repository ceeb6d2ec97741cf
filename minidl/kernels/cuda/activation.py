"""Elementwise functions."""

import cupy

from minidl.kernels.cuda._launch import CudaKernel
from minidl.kernels.cuda._vectors import EXAMPLES, VECTORS, aligned, for_each_vector

ADD = CudaKernel(
    "add",
    VECTORS
    + """
// A thread for each vector.
extern "C" __global__ void add(const stored* a, const stored* b, stored* y, index count) {
    index i = thread_number();
    if (i < count) store(y, i, load(a, i) + load(b, i));
}
""",
    examples=EXAMPLES,
)


def add(a, b):
    """a + b, for arrays of the same shape."""
    if a.shape != b.shape:
        raise ValueError(f"add: expected arrays of the same shape, got {a.shape} and {b.shape}")
    a, b = aligned(a), aligned(b)
    y = cupy.empty_like(a)
    for_each_vector(ADD, a, b, y)
    return y


RELU_FORWARD = CudaKernel(
    "relu_forward",
    VECTORS
    + """
// A thread for each vector. A NaN is not below 0, so it stays and shows.
extern "C" __global__ void relu_forward(const stored* x, stored* y, index count) {
    index i = thread_number();
    if (i >= count) return;
    Numbers result = load(x, i);
    for (int k = 0; k < VECTOR; k++) result.number[k] = result.number[k] < 0 ? (real)0 : result.number[k];
    store(y, i, result);
}
""",
    examples=EXAMPLES,
)


def relu_forward(x):
    """y = max(x, 0)."""
    x = aligned(x)
    y = cupy.empty_like(x)
    for_each_vector(RELU_FORWARD, x, y)
    return y


RELU_BACKWARD = CudaKernel(
    "relu_backward",
    VECTORS
    + """
// A thread for each vector. Where y is NaN, the gradient passes.
extern "C" __global__ void relu_backward(const stored* grad, const stored* y, stored* grad_x, index count) {
    index i = thread_number();
    if (i >= count) return;
    Numbers result = load(grad, i), output = load(y, i);
    for (int k = 0; k < VECTOR; k++) result.number[k] = output.number[k] <= 0 ? (real)0 : result.number[k];
    store(grad_x, i, result);
}
""",
    examples=EXAMPLES,
)


def relu_backward(grad, y):
    """dL/dx = dL/dy where y > 0 or NaN, else 0."""
    grad, y = aligned(grad), aligned(y)
    grad_x = cupy.empty_like(grad)
    for_each_vector(RELU_BACKWARD, grad, y, grad_x)
    return grad_x
