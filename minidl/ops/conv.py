"""Convolution (cross-correlation, as every framework has it), and its two gradients."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class Conv2d(Function):
    """y[n,i,j,o] = bias[o] + sum over u, v, c of x[n, i s + u - p, j s + v - p, c] weight[u,v,c,o].

    x (N, H, W, C), weight (KH, KW, C, O), bias (O,), y (N, OH, OW, O), with stride s and padding p of zeros.

    y is linear in each input, so each gradient is the same triple sum, taken over the other indices:
        dL/dx[n,h,w,c]      = sum over u, v, o  of dL/dy[n,i,j,o] weight[u,v,c,o]   at i s + u - p = h, j s + v - p = w
        dL/dweight[u,v,c,o] = sum over n, i, j  of dL/dy[n,i,j,o] x[n, i s + u - p, j s + v - p, c]
        dL/dbias[o]         = sum over n, i, j  of dL/dy[n,i,j,o]

    With stride 1 the condition reads i = h + p - u: dL/dx is dL/dy convolved with the kernel turned by 180 degrees.
    Saves x itself and not its columns, which are KH KW times as large.
    """

    parameters = 1, 2

    @staticmethod
    def forward(ctx, x, weight, bias=None, *, stride, padding):
        weight = weight.astype(x.dtype, copy=False)
        ctx.save(x, weight, stride, padding)
        return kernels_for(x).conv2d_forward(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        x, weight, stride, padding = ctx.saved
        kernels = kernels_for(x)
        needs_x, needs_weight, *needs_bias = ctx.needs_grad
        grad_x = grad_weight = None
        if needs_x and needs_weight:
            grad_x, grad_weight = kernels.conv2d_backward(grad, x, weight, stride, padding)
        elif needs_x:
            grad_x = kernels.conv2d_backward_x(grad, weight, x.shape, stride, padding)
        elif needs_weight:
            grad_weight = kernels.conv2d_backward_weight(grad, x, weight.shape, stride, padding)
        grad_bias = [kernels.bias_backward(grad) if needed else None for needed in needs_bias]
        return grad_x, grad_weight, *grad_bias
