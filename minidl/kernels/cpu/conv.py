"""Convolution: which algorithm for which shape. Both, `_conv_im2col` and `_conv_winograd`, have the same functions."""

import math

from minidl.kernels.cpu import _conv_im2col, _conv_winograd

# (measured) Winograd's transforms cost more than they save for fewer channels, or for fewer tiles: those of the weights
# cost the same for one tile as for a thousand. Backward they compete with im2col's two gradients from one matrix.
WINOGRAD_CHANNELS, FORWARD_TILES, BACKWARD_TILES = 32, 128, 256

ALGORITHMS = "auto", "im2col"


def set_convolution(algorithm: str) -> None:
    """Compute convolutions on the CPU by "im2col" alone, or by Winograd's algorithm too where it is faster ("auto").

    "auto" is the default. Winograd's F(4x4, 3x3) serves 3x3 kernels with stride 1 and at least 32 channels. It computes
    4x4 outputs together from 6x6 inputs, by sums in which inputs outside of an output's window cancel. In float32 they
    cancel up to rounding: an input of 1e6 adds an error of about 0.3 to outputs as far as 5 pixels away, where the
    weights are those of `nn.Conv2d` (up to 5e-6 of the largest |x| times the largest |weight|). One NaN or infinity
    makes up to 8x8 outputs NaN, not 3x3. With "im2col" only the outputs whose window holds an input depend on it.

    The two give different bits, about 1e-6 of the largest output apart. Each gives the same bits on every run and with
    any number of threads. The setting holds for the whole process, and has no effect on a GPU.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"set_convolution: expected one of {', '.join(map(repr, ALGORITHMS))}, got {algorithm!r}")
    global _choice
    _choice = algorithm


def get_convolution() -> str:
    """The algorithms that convolutions on the CPU may use: "auto" or "im2col"."""
    return _choice


_choice = "auto"


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
    """A function of the shapes and the setting, so that the same bits come out wherever it runs."""
    n, h, w, _ = x_shape
    kh, kw, c, o = weight_shape
    fits = (kh, kw) == (3, 3) and stride == (1, 1) and max(padding) <= 2
    pays = min(c, o) >= WINOGRAD_CHANNELS and n * math.ceil(h / 4) * math.ceil(w / 4) >= least_tiles
    return _conv_winograd if fits and pays and _choice == "auto" else _conv_im2col
