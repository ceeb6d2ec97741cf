"""Local response normalisation."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class LocalResponseNorm(Function):
    """y_c = x_c s_c^-beta,   s_c = k + alpha * the sum of x_d^2 over the window of `size` channels around c.

    With g = dL/dy: x_c acts on y_c directly, and through s_d on y_d for every d whose window contains c, so
        dL/dx_c = g_c s_c^-beta - 2 alpha beta x_c * the sum over those d of g_d y_d / s_d.
    Krizhevsky, Sutskever, Hinton 2012, section 3.3.
    """

    @staticmethod
    def forward(ctx, x, *, size: int, alpha: float, beta: float, k: float):
        y, scale = kernels_for(x).local_response_norm_forward(x, size, alpha, beta, k)
        ctx.save(x, y, scale, size, alpha, beta)
        return y

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).local_response_norm_backward(grad, *ctx.saved)
