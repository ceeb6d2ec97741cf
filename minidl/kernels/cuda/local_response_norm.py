"""Local response normalisation across channels (Krizhevsky, Sutskever, Hinton 2012, section 3.3)."""

import cupy

from minidl.kernels.cuda._launch import CudaKernel, contiguous, real_dtype

LOCAL_RESPONSE_NORM_FORWARD = CudaKernel(
    "local_response_norm_forward",
    """
// A thread for each element. It reads neighbouring elements, which the threads beside it read too.
extern "C" __global__ void local_response_norm_forward(
    const stored* x, stored* y, real* scale, index size, real alpha, real beta, real k, index channels, index count
) {
    index i = thread_number();
    if (i >= count) return;
    index c = i % channels;
    index first = max(c - size / 2, (index)0), last = min(c + (size - 1) / 2, channels - 1);
    real squares = 0;
    for (index near = i - c + first; near <= i - c + last; near++) squares += (real)x[near] * (real)x[near];
    scale[i] = k + alpha * squares;
    y[i] = (real)x[i] * pow(scale[i], -beta);
}
""",
)


def local_response_norm_forward(x, size, alpha, beta, k):
    """(y, scale): scale_c = k + alpha * (sum of x^2 over the `size` channels around c), and y = x scale^-beta."""
    x = contiguous(x)
    y, scale = cupy.empty_like(x), cupy.empty_like(x, real_dtype(x.dtype))
    numbers = size, float(alpha), float(beta), float(k), x.shape[-1], x.size
    LOCAL_RESPONSE_NORM_FORWARD.for_each(x.size, x, y, scale, *numbers, dtype=x.dtype)
    return y, scale


LOCAL_RESPONSE_NORM_BACKWARD = CudaKernel(
    "local_response_norm_backward",
    """
// A thread for each element. Channel d has c near if and only if d is in the mirrored range around c.
extern "C" __global__ void local_response_norm_backward(
    const stored* grad, const stored* x, const stored* y, const real* scale, stored* grad_x,
    index size, real alpha, real beta, index channels, index count
) {
    index i = thread_number();
    if (i >= count) return;
    index c = i % channels;
    index first = max(c - (size - 1) / 2, (index)0), last = min(c + size / 2, channels - 1);
    real through_scale = 0;
    for (index near = i - c + first; near <= i - c + last; near++)
        through_scale += (real)grad[near] * (real)y[near] / scale[near];
    grad_x[i] = (real)grad[i] * pow(scale[i], -beta) - 2 * alpha * beta * (real)x[i] * through_scale;
}
""",
)


def local_response_norm_backward(grad, x, y, scale, size, alpha, beta):
    """dL/dx_c = g_c scale_c^-beta - 2 alpha beta x_c * (sum of g_d y_d / scale_d over the d that have c near)."""
    grad, x, y, scale = map(contiguous, (grad, x, y, scale))
    grad_x = cupy.empty_like(x)
    numbers = size, float(alpha), float(beta), x.shape[-1], x.size
    LOCAL_RESPONSE_NORM_BACKWARD.for_each(x.size, grad, x, y, scale, grad_x, *numbers, dtype=x.dtype)
    return grad_x
