"""Convolution (cross-correlation, as in every deep-learning framework) and its gradients."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class Conv2d(Function):
    """y[n,i,j,o] = bias[o] + sum over u, v, c of x[n,h,w,c] weight[u,v,c,o],   h = i SH + u - PH, w = j SW + v - PW.

    x (N, H, W, C), weight (KH, KW, C, O), bias (O,), y (N, OH, OW, O); strides SH, SW and zero padding PH, PW.
    (i, j) is an output pixel, that is a window; (u, v) is a tap of the kernel; (h, w) is the pixel of x under that tap.

    y is linear in each input, so each gradient is the same sum of products, taken over the other indices:
        dL/dx[n,h,w,c]      = sum over u, v, o  of dL/dy[n,i,j,o] weight[u,v,c,o]
        dL/dweight[u,v,c,o] = sum over n, i, j  of dL/dy[n,i,j,o] x[n,h,w,c]
        dL/dbias[o]         = sum over n, i, j  of dL/dy[n,i,j,o]

    With stride 1, i = h + PH - u: dL/dx is dL/dy convolved with the kernel rotated by 180 degrees.
    Saves x itself, not its im2col columns, which are KH KW times as large.
    """

    kept_in_float32 = 1, 2

    @staticmethod
    def forward(ctx, x, weight, bias, *, stride, padding):
        weight = weight.astype(x.dtype, copy=False)
        ctx.save(x, weight, stride, padding)
        return kernels_for(x).conv2d_forward(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        x, weight, stride, padding = ctx.saved
        kernels = kernels_for(x)
        needs_x, needs_weight, needs_bias = ctx.needs_grad
        grad_x, grad_weight = kernels.conv2d_backward(grad, x, weight, stride, padding, needs_x, needs_weight)
        return grad_x, grad_weight, kernels.bias_backward(grad) if needs_bias else None
