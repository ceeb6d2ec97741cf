"""Elementwise functions, computed piece by piece."""

import functools
import math

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, elementwise, slices
from minidl.kernels.cpu._threads import map_pieces


def add(a, b):
    """a + b, for arrays of the same shape."""
    if a.shape != b.shape:
        raise ValueError(f"add: expected arrays of the same shape, got {a.shape} and {b.shape}")
    return elementwise(np.add, a, b)


def relu_forward(x):
    """y = max(x, 0)."""
    zeros = np.zeros(min(x.size, PIECE_ELEMENTS), x.dtype)  # (measured) three times as fast as a scalar 0
    return elementwise(lambda piece, out: np.maximum(piece, zeros[: piece.size], out=out), x)


def relu_backward(grad, y):
    """dL/dx = dL/dy where y > 0 or NaN, else 0.

    As integers, the bits of y are 0 where y = 0 and larger elsewhere: the output of a ReLU is never negative. So
    min(bits, 1) is 0 or 1, and multiplied by the bits of dL/dy as integers it keeps or clears them. Example: y = [0, 2]
    and dL/dy = [inf, 3] give [0, 3]. With floats, 0 * inf would be NaN.
    """
    bits = np.dtype(f"u{y.itemsize}")
    ones = np.ones(min(y.size, PIECE_ELEMENTS), bits)  # (measured) as in relu_forward

    def keep(grad, y, out):
        np.minimum(y.view(bits), ones[: y.size], out=out.view(bits))
        np.multiply(out.view(bits), grad.view(bits), out=out.view(bits))

    return elementwise(keep, grad, y)


BEYOND = 40  # |x| is cut off here, where e^(-x^2 / 2) is 0, as infinity * 0 would be NaN

# For each dtype the degree of the polynomial of `_tail`, and the largest |x| that it is made for. Its error, of the
# order of the dtype's rounding, is multiplied by e^(-x^2 / 2), so that it does not matter further out.
GELU_ACCURACY = {"float32": (7, 4.0), "float64": (18, 9.0)}
TAIL_CENTRE = 2.5  # gives the smallest error, of the values that were tried


def gelu_forward(x, approximate, needs_slope):
    """(y, slope) with y = x P(x) and slope = dy/dx = P(x) + x p(x); None in place of a slope that is not needed."""
    compute, flat = _gelu_by_tanh if approximate == "tanh" else _gelu, x.reshape(-1)
    y, slope = np.empty(flat.shape, x.dtype), np.empty(flat.shape, x.dtype) if needs_slope else None

    def fill(piece):
        y[piece], slopes = compute(flat[piece])
        if needs_slope:
            slope[piece] = slopes()

    # (measured) A GELU makes 30 passes over a piece. Pieces of an eighth, which stay in a core's cache, take twice as
    # long on two threads, which then wait for the GIL.
    map_pieces(fill, slices(x.size, PIECE_ELEMENTS), multiplications=0)
    return y.reshape(x.shape), slope.reshape(x.shape) if needs_slope else None


def gelu_backward(grad, slope):
    """dL/dx = dL/dy dy/dx, where `slope` is dy/dx."""
    return elementwise(np.multiply, grad, slope)


def _gelu(x):
    """(y, a function that returns the slope), with y = max(x, 0) - a P(-a), a = |x|.

    P(-a) is e^(-a^2 / 2) times the polynomial of `_tail`. So the small numbers of y keep their digits, of which 1 + erf
    would lose some, and P and p share an exponential. The slope at -a is P(-a) - a p(a), and that at a is 1 minus this.
    """
    coefficients, scale, shift = _tail(x.dtype)
    a = np.minimum(abs(x), BEYOND)
    bell = np.exp(a * a * -0.5)
    tail = np.polyval(coefficients, scale / (a + TAIL_CENTRE) + shift) * bell
    y = np.maximum(x, 0) - a * tail
    return y, lambda: 0.5 + np.sign(x) * (0.5 - tail + a * bell * (1 / math.sqrt(2 * math.pi)))


def _gelu_by_tanh(x):
    """(y, a function that returns the slope), with P = (1 + tanh(u)) / 2, u = c (x + k x^3), p = 2 P (1 - P) du/dx."""
    c, low = math.sqrt(2 / math.pi), np.maximum(x, -BEYOND)
    near = np.minimum(low, BEYOND)
    cube = near * near * near * 0.044715
    probability = (1 + np.tanh(c * (near + cube))) * 0.5
    return low * probability, lambda: probability + probability * (1 - probability) * (2 * c) * (near + 3 * cube)


@functools.cache
def _tail(dtype: np.dtype):
    """(coefficients, scale, shift) of a polynomial in t with P(-a) e^(a^2 / 2) = polynomial(t), highest power first.

    t = scale / (a + TAIL_CENTRE) + shift falls from 1 at a = 0 to -1 at the largest a. The polynomial goes through the
    values of math.erfc at Chebyshev's points, which is nearly the best polynomial of its degree. A polynomial in
    1 / (a + constant) times the exponential is an old form of erf (Hastings 1955; Abramowitz, Stegun 1964, 7.1.26).
    """
    degree, largest = GELU_ACCURACY[dtype.name]
    shift = -1 - 2 * TAIL_CENTRE / largest
    scale = TAIL_CENTRE * (1 - shift)

    def values(points):
        distances = scale / (points - shift) - TAIL_CENTRE
        return [math.erfc(a / math.sqrt(2)) / 2 * math.exp(a * a / 2) for a in distances]

    chebyshev = np.polynomial.chebyshev
    coefficients = chebyshev.cheb2poly(chebyshev.chebinterpolate(values, degree))
    return coefficients[::-1].astype(dtype), scale, shift
