"""The end of a residual block, as a kernel would be written: the reference for an exercise of the course."""

from minidl.kernels.reference import batch_norm_apply, batch_norm_backward, relu_backward, relu_forward


def residual_end_forward(z, shortcut, mean, variance, weight, bias, eps):
    """y = relu(batch_norm(z) + shortcut): He et al. 2015, arXiv:1512.03385, equation 1.

    z is what the block's last convolution computes, (N, H, W, C); `shortcut` is the input of the block, of z's shape.
    mean and variance are those of z; they, weight and bias are (C,).
    """
    return relu_forward(batch_norm_apply(z, mean, variance, weight, bias, eps) + shortcut)


def residual_end_backward(grad, y, z, mean, variance, weight, eps):
    """(grad_z, grad_shortcut, grad_weight, grad_bias) of y = relu(batch_norm(z) + shortcut).

    With s = batch_norm(z) + shortcut: dL/ds = dL/dy where y > 0, else 0. A sum passes its gradient on to both of its
    terms, so dL/dshortcut = dL/ds, and dL/ds is the gradient that batch-norm gets: its terms through mean and variance
    are those of training.
    """
    grad_sum = relu_backward(grad, y)
    grad_z, grad_weight, grad_bias = batch_norm_backward(grad_sum, z, mean, variance, weight, eps, True)
    return grad_z, grad_sum, grad_weight, grad_bias
