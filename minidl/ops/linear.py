"""The fully connected (linear) layer."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class Linear(Function):
    """Y = X W + b: X (N, in), W (in, out), b (out,).

    dL/dX = dL/dY W^T,   dL/dW = X^T dL/dY,   dL/db = the sum of dL/dY over the batch.
    """

    kept_in_float32 = 1, 2

    @staticmethod
    def forward(ctx, x, weight, bias):
        weight = weight.astype(x.dtype, copy=False)
        ctx.save(x, weight)
        return kernels_for(x).linear_forward(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved
        kernels = kernels_for(x)
        needs_x, needs_weight, needs_bias = ctx.needs_grad
        grad_x = kernels.linear_backward_x(grad, weight) if needs_x else None
        grad_weight = kernels.linear_backward_weight(grad, x) if needs_weight else None
        return grad_x, grad_weight, kernels.bias_backward(grad) if needs_bias else None
