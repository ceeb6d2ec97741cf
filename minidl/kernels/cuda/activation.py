"""Elementwise functions."""

import cupy

from minidl.kernels.cuda._fusion import THEN_RELU, THEN_RELU_BACKWARD, Deferred, is_fusing, terms_of
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
    if is_fusing() and a.ndim > 1 and a.size and a.dtype == b.dtype:
        return Deferred(*terms_of(a), *terms_of(b))
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
    if type(x) is Deferred and x.is_pending:
        return x.followed_by(THEN_RELU)
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
    if type(grad) is Deferred and grad.is_pending:
        return grad.followed_by(THEN_RELU_BACKWARD, aligned(y))
    grad, y = aligned(grad), aligned(y)
    grad_x = cupy.empty_like(grad)
    for_each_vector(RELU_BACKWARD, grad, y, grad_x)
    return grad_x


GELU_FORWARD = CudaKernel(
    "gelu_forward",
    VECTORS
    + """
// A thread for each vector. `slope`, dy/dx, is written only if NEEDS_SLOPE. P(x) is erfc(-x / sqrt(2)) / 2, as 1 + erf
// would lose the digits of small numbers.
// Where |x| > 40, x p(x) is 0, and so is y for a negative x: there infinity * 0 would be NaN.
extern "C" __global__ void gelu_forward(const stored* x, stored* y, stored* slope, index count) {
    index i = thread_number();
    if (i >= count) return;
    Numbers result = load(x, i), slopes;
    for (int k = 0; k < VECTOR; k++) {
        real value = result.number[k] < -40 ? (real)-40 : result.number[k], near = value > 40 ? (real)40 : value;
        real square = near * near, probability, density;
        if (BY_TANH) {
            const real c = 0.79788456080286536;  // sqrt(2 / pi)
            real t = tanh(c * near * (1 + (real)0.044715 * square));
            probability = (1 + t) / 2;
            density = (1 - t * t) / 2 * c * (1 + 3 * (real)0.044715 * square);
        } else {
            probability = erfc(near * (real)-0.70710678118654752) / 2;
            density = (real)0.39894228040143268 * exp(square * (real)-0.5);  // e^(-x^2 / 2) / sqrt(2 pi)
        }
        result.number[k] = value * probability;
        slopes.number[k] = probability + near * density;
    }
    store(y, i, result);
    if (NEEDS_SLOPE) store(slope, i, slopes);
}
""",
    examples=tuple(
        {**example, "BY_TANH": by_tanh, "NEEDS_SLOPE": by_tanh} for example in EXAMPLES for by_tanh in (0, 1)
    ),
)


def gelu_forward(x, approximate, needs_slope):
    """(y, slope) with y = x P(x) and slope = dy/dx = P(x) + x p(x); None in place of a slope that is not needed."""
    x = aligned(x)
    y = cupy.empty_like(x)
    slope = cupy.empty_like(x) if needs_slope else y
    for_each_vector(GELU_FORWARD, x, y, slope, BY_TANH=int(approximate == "tanh"), NEEDS_SLOPE=int(needs_slope))
    return y, slope if needs_slope else None


MULTIPLY = CudaKernel(
    "multiply",
    VECTORS
    + """
// A thread for each vector.
extern "C" __global__ void multiply(const stored* a, const stored* b, stored* y, index count) {
    index i = thread_number();
    if (i < count) store(y, i, load(a, i) * load(b, i));
}
""",
    examples=EXAMPLES,
)


def gelu_backward(grad, slope):
    """dL/dx = dL/dy dy/dx, where `slope` is dy/dx."""
    grad, slope = aligned(grad), aligned(slope)
    grad_x = cupy.empty_like(grad)
    for_each_vector(MULTIPLY, grad, slope, grad_x)
    return grad_x
