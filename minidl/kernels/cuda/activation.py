"""Elementwise functions."""

import cupy

from minidl.kernels.cuda._launch import CudaKernel, contiguous

ADD = CudaKernel(
    "add",
    """
// A thread for each element.
extern "C" __global__ void add(const stored* a, const stored* b, stored* y, index count) {
    index i = thread_number();
    if (i < count) y[i] = (real)a[i] + (real)b[i];
}
""",
)


def add(a, b):
    """a + b, for arrays of the same shape."""
    if a.shape != b.shape:
        raise ValueError(f"add: expected arrays of the same shape, got {a.shape} and {b.shape}")
    a, b = contiguous(a), contiguous(b)
    y = cupy.empty_like(a)
    ADD.for_each(a.size, a, b, y, a.size, dtype=a.dtype)
    return y


RELU_FORWARD = CudaKernel(
    "relu_forward",
    """
// A thread for each element. A NaN is not below 0, so it stays and shows.
extern "C" __global__ void relu_forward(const stored* x, stored* y, index count) {
    index i = thread_number();
    if (i < count) y[i] = x[i] < 0 ? stored(0) : x[i];
}
""",
)


def relu_forward(x):
    """y = max(x, 0)."""
    x = contiguous(x)
    y = cupy.empty_like(x)
    RELU_FORWARD.for_each(x.size, x, y, x.size, dtype=x.dtype)
    return y


RELU_BACKWARD = CudaKernel(
    "relu_backward",
    """
// A thread for each element.
extern "C" __global__ void relu_backward(const stored* grad, const stored* y, stored* grad_x, index count) {
    index i = thread_number();
    if (i < count) grad_x[i] = y[i] <= 0 ? stored(0) : grad[i];  // where y is NaN, the gradient passes
}
""",
)


def relu_backward(grad, y):
    """dL/dx = dL/dy where y > 0 or NaN, else 0."""
    grad, y = contiguous(grad), contiguous(y)
    grad_x = cupy.empty_like(grad)
    RELU_BACKWARD.for_each(grad.size, grad, y, grad_x, grad.size, dtype=grad.dtype)
    return grad_x
