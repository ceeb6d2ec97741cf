"""Convolution: which algorithm for which shape. Both, `_conv_im2col` and `_conv_winograd`, have the same functions."""

import math

from minidl.kernels.cpu import _conv_im2col, _conv_winograd

# (measured) Winograd's transforms cost more than they save for fewer channels, or for fewer tiles: those of the weights
# cost the same for one tile as for a thousand. Backward they compete with im2col's two gradients from one matrix.
WINOGRAD_CHANNELS, FORWARD_TILES, BACKWARD_TILES = 32, 128, 256


def conv2d_forward(x, weight, bias, stride, padding):
    """y[n, i, j] = bias + (patch of x at (i, j)) . weight: (N, H, W, C), (KH, KW, C, O) -> (N, OH, OW, O)."""
    algorithm = _algorithm(x.shape, weight.shape, stride, padding, FORWARD_TILES)
    return algorithm.forward(x, weight, bias, stride, padding)


def conv2d_backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx, (N, H, W, C), of dL/dy, (N, OH, OW, O)."""
    algorithm = _algorithm(x_shape, weight.shape, stride, padding, BACKWARD_TILES)
    return algorithm.backward_x(grad, weight, x_shape, stride, padding)


def conv2d_backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight, (KH, KW, C, O)."""
    algorithm = _algorithm(x.shape, weight_shape, stride, padding, BACKWARD_TILES)
    return algorithm.backward_weight(grad, x, weight_shape, stride, padding)


def conv2d_backward(grad, x, weight, stride, padding):
    """(dL/dx, dL/dweight) where both are wanted, as they can share work."""
    algorithm = _algorithm(x.shape, weight.shape, stride, padding, BACKWARD_TILES)
    return algorithm.backward(grad, x, weight, stride, padding)


def _algorithm(x_shape, weight_shape, stride, padding, least_tiles):
    """A function of the shapes alone, so that the same bits come out wherever it runs."""
    n, h, w, _ = x_shape
    kh, kw, c, o = weight_shape
    fits = (kh, kw) == (3, 3) and stride == (1, 1) and max(padding) <= 2
    pays = min(c, o) >= WINOGRAD_CHANNELS and n * math.ceil(h / 4) * math.ceil(w / 4) >= least_tiles
    return _conv_winograd if fits and pays else _conv_im2col
