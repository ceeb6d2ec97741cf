"""Convolution as a product whose patches are never copied, for all shapes.

By im2col and cuBLAS it is `_conv_im2col`, which CuPy cannot capture in a graph; a captured step is to have the bits of
an eager one, so that neither uses it.
"""

from minidl.kernels.cuda import _conv_implicit


def conv2d_forward(x, weight, bias, stride, padding):
    """y[n, i, j] = bias + (patch of x at (i, j)) . weight: (N, H, W, C), (KH, KW, C, O) -> (N, OH, OW, O)."""
    return _conv_implicit.forward(x, weight, bias, stride, padding)


def conv2d_backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx, (N, H, W, C), of dL/dy, (N, OH, OW, O)."""
    return _conv_implicit.backward_x(grad, weight, x_shape, stride, padding)


def conv2d_backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight, (KH, KW, C, O)."""
    return _conv_implicit.backward_weight(grad, x, weight_shape, stride, padding)


def conv2d_backward(grad, x, weight, stride, padding):
    """(dL/dx, dL/dweight) where both are wanted."""
    return _conv_implicit.backward(grad, x, weight, stride, padding)
