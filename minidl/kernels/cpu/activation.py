"""Elementwise functions, computed piece by piece."""

import functools
import math

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, elementwise, scratch, slices
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


GELU_BLOCK = 2**15  # elements; a GELU makes 30 passes over a block and its scratch, which fit into a core's cache
BEYOND = 40.0  # where |x| is cut off: e^(-x^2 / 2) is 0 here, and infinity * 0 would be NaN

# For each dtype: the degree of the polynomial of `_tail`, and the largest |x| that it is made for. The error, of the
# order of the dtype's rounding, is multiplied by e^(-x^2 / 2), so that it does not matter further out.
GELU_ACCURACY = {"float32": (7, 4.0), "float64": (18, 9.0)}
TAIL_CENTRE = 2.5  # gives the smallest error, of the values that were tried


def gelu_forward(x, approximate, needs_slope):
    """(y, slope) with y = x P(x) and slope = dy/dx = P(x) + x p(x); None in place of a slope that is not needed."""
    compute = _gelu_by_tanh if approximate == "tanh" else _gelu
    flat = x.reshape(-1)
    y, slope = np.empty(flat.shape, x.dtype), np.empty(flat.shape, x.dtype) if needs_slope else None

    def fill(block):
        compute(flat[block], y[block], slope[block] if needs_slope else None)

    map_pieces(fill, slices(x.size, GELU_BLOCK), multiplications=0)
    return y.reshape(x.shape), slope.reshape(x.shape) if needs_slope else None


def gelu_backward(grad, slope):
    """dL/dx = dL/dy dy/dx, where `slope` is dy/dx."""
    return elementwise(np.multiply, grad, slope)


def _gelu(x, y, slope):
    """y = max(x, 0) - a P(-a) with a = |x|. The slope at -a is s = P(-a) - a p(a), and that at a is 1 - s.

    P(-a) is e^(-a^2 / 2) times the polynomial of `_tail`. So the small numbers of y keep their digits, of which 1 + erf
    would lose some, and P and p share an exponential.
    """
    (first, *others), scale, shift = _tail(x.dtype.name)
    a, tail, density = (scratch(name, x.shape, x.dtype) for name in ("gelu a", "gelu tail", "gelu density"))
    tail[...] = BEYOND  # (measured) an array is three times as fast as a number, as in relu_forward
    np.minimum(np.abs(x, out=a), tail, out=a)
    np.multiply(a, a, out=density)
    density *= -0.5
    np.exp(density, out=density)
    t = np.add(a, TAIL_CENTRE, out=y)
    np.divide(scale, t, out=t)
    t += shift
    tail[...] = first
    for coefficient in others:  # Horner's rule
        tail *= t
        tail += coefficient
    tail *= density  # P(-a)
    if slope is not None:
        density *= 1 / math.sqrt(2 * math.pi)
        np.multiply(a, density, out=slope)
        slope -= tail  # -s
        slope += 0.5
        slope *= np.sign(x, out=density)  # 1/2 - s, or s - 1/2
        slope += 0.5
    a *= tail
    tail[...] = 0
    np.subtract(np.maximum(x, tail, out=y), a, out=y)


def _gelu_by_tanh(x, y, slope):
    """y = x P with P = (1 + tanh(u)) / 2, u = c (x + k x^3). The slope is P + 2 P (1 - P) c (x + 3 k x^3)."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    low, p, cube = (scratch(name, x.shape, x.dtype) for name in ("gelu low", "gelu p", "gelu cube"))
    p[...] = -BEYOND
    np.maximum(x, p, out=low)
    np.minimum(low, np.negative(p, out=p), out=y)
    np.multiply(y, y, out=cube)
    cube *= y
    cube *= c * k
    y *= c
    np.tanh(np.add(y, cube, out=p), out=p)
    p += 1
    p *= 0.5
    if slope is not None:
        cube *= 3
        cube += y  # c (x + 3 k x^3)
        cube *= 2
        np.subtract(1, p, out=slope)
        slope *= cube
        slope += 1
        slope *= p
    np.multiply(low, p, out=y)


@functools.cache
def _tail(dtype: str):
    """(coefficients, scale, shift) of a polynomial in t with P(-a) e^(a^2 / 2) = polynomial(t), highest power first.

    t = scale / (a + TAIL_CENTRE) + shift falls from 1 at a = 0 to -1 at the largest a. The polynomial goes through the
    values of math.erfc at Chebyshev's points, which is nearly the best polynomial of its degree. A function of
    1 / (a + constant) times the exponential is an old form of erf (Hastings 1955; Abramowitz, Stegun 1964, 7.1.26).
    """
    degree, largest = GELU_ACCURACY[dtype]
    shift = -1 - 2 * TAIL_CENTRE / largest
    scale = TAIL_CENTRE * (1 - shift)

    def values(points):
        distances = scale / (points - shift) - TAIL_CENTRE
        return np.array([math.erfc(a / math.sqrt(2)) / 2 * math.exp(a * a / 2) for a in distances])

    chebyshev = np.polynomial.chebyshev
    return chebyshev.cheb2poly(chebyshev.chebinterpolate(values, degree))[::-1].tolist(), scale, shift
