"""Pooling: one number for each window of each channel."""

import numpy as np

from minidl.kernels.cpu._channels import keep_where
from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, rows_of, scratch, slices
from minidl.kernels.cpu._threads import map_pieces
from minidl.kernels.shapes import output_size, tap_dtype


def max_pool2d_forward(x, kernel_size, stride, padding, ceil_mode):
    """(y, best_tap): the largest number of each window, and its tap u*KW + v, the first among equals.

    The padding is -inf, so that it is never the largest. A NaN is larger than anything, so that it is seen.
    """
    windows = _Windows(x.shape, kernel_size, stride, padding, ceil_mode)
    y = np.empty(windows.output_shape, x.dtype)
    best_tap = np.empty(windows.output_shape, tap_dtype(kernel_size))
    first_real_tap = windows.first_real_tap().astype(best_tap.dtype)

    def pool(some):
        padded = windows.padded(x[some], -np.inf)
        best = y[some]
        best[...] = windows.seen_by(0, padded)
        for tap in range(1, len(windows.taps)):
            np.maximum(best, windows.seen_by(tap, padded), out=best)
        taps = _first_tap_that_holds(best, windows, padded, best_tap.dtype)
        # Where all is -inf, a tap on the padding must not come first.
        np.maximum(taps, first_real_tap, out=best_tap[some])

    map_pieces(pool, windows.pieces)
    return y, best_tap


def _first_tap_that_holds(best, windows, padded, dtype):
    """The first tap of each window whose number is the best one."""
    none = np.iinfo(dtype).max
    first, candidate = scratch("first_tap", best.shape, dtype), scratch("candidate", best.shape, dtype)
    first[...] = none
    for tap in range(len(windows.taps)):
        # In unsigned whole numbers: True - 1 = 0, so candidate = 0 | tap = tap where the tap holds the best number.
        # False - 1 = 255 = none, so candidate = none elsewhere. (measured) Faster than a masked copy.
        np.subtract(windows.seen_by(tap, padded) == best, 1, out=candidate, dtype=dtype, casting="unsafe")
        np.bitwise_or(candidate, dtype.type(tap), out=candidate)
        np.minimum(first, candidate, out=first)
    if first.max() == none:  # somewhere the best number is NaN, which is not equal to itself
        for tap in reversed(range(len(windows.taps))):
            first[np.isnan(windows.seen_by(tap, padded))] = tap
    return first


def max_pool2d_backward(grad, best_tap, x_shape, kernel_size, stride, padding):
    """dL/dx: each window's dL/dy goes to its best tap."""
    windows = _Windows(x_shape, kernel_size, stride, padding, out_size=grad.shape[1:3])
    grad_x = np.empty(x_shape, grad.dtype)

    def scatter(some):
        padded = np.zeros(windows.padded_shape(some.stop - some.start), grad.dtype)
        grads, from_tap = grad[some], scratch("from_tap", grad[some].shape, grad.dtype)
        for tap in range(len(windows.taps)):
            windows.seen_by(tap, padded)[...] += keep_where(best_tap[some] == tap, grads, out=from_tap)
        grad_x[some] = windows.cropped(padded)

    map_pieces(scatter, windows.pieces)
    return grad_x


def avg_pool2d_forward(x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """y: the mean of each window; the zeros of the padding count as numbers of it if count_include_pad."""
    windows = _Windows(x.shape, kernel_size, stride, padding, ceil_mode)
    y = np.empty(windows.output_shape, x.dtype)
    share = windows.share(count_include_pad, x.dtype)  # (OH, OW, 1)

    def pool(some):
        padded = windows.padded(x[some], 0)
        total = y[some]
        total[...] = windows.seen_by(0, padded)
        for tap in range(1, len(windows.taps)):
            total += windows.seen_by(tap, padded)
        total *= share

    map_pieces(pool, windows.pieces)
    return y


def avg_pool2d_backward(grad, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """dL/dx: each window's dL/dy in equal shares to the numbers it was the mean of."""
    windows = _Windows(x_shape, kernel_size, stride, padding, ceil_mode)
    grad_x = np.empty(x_shape, grad.dtype)
    share = windows.share(count_include_pad, grad.dtype)

    def scatter(some):
        padded = np.zeros(windows.padded_shape(some.stop - some.start), grad.dtype)
        shares = grad[some] * share
        for tap in range(len(windows.taps)):
            windows.seen_by(tap, padded)[...] += shares
        grad_x[some] = windows.cropped(padded)

    map_pieces(scatter, windows.pieces)
    return grad_x


def global_avg_pool_forward(x):
    """y[n, c]: the mean of channel c of image n: (N, H, W, C) -> (N, C)."""
    n, h, w, c = x.shape
    columns = np.ones((1, h), x.dtype) @ x.reshape(n, h, w * c)
    return (columns.reshape(n, w, c).sum(axis=1, dtype=np.float64) / (h * w)).astype(x.dtype)


def global_avg_pool_backward(grad, x_shape):
    """dL/dx: dL/dy / (H W), at every pixel."""
    _, h, w, _ = x_shape
    return np.broadcast_to((grad / (h * w))[:, None, None, :], x_shape).copy()


class _Windows:
    """The windows over images of one shape: what a tap (u, v) sees in all windows at once."""

    def __init__(self, x_shape, kernel_size, stride, padding, ceil_mode=False, out_size=None):
        n, h, w, c = x_shape
        self.size, self.kernel_size, self.stride, self.padding = (h, w), kernel_size, stride, padding
        self.output_size = out_size or output_size((h, w), kernel_size, stride, padding, ceil_mode)
        self.output_shape = (n, *self.output_size, c)
        self.channels = c
        self.taps = [(u, v) for u in range(kernel_size[0]) for v in range(kernel_size[1])]
        self.pieces = slices(n, rows_of(PIECE_ELEMENTS, h * w * c))  # images

    def padded_shape(self, images):
        """Room for the padding, and for the last windows where they hang over it."""
        reach = [(self.output_size[i] - 1) * self.stride[i] + self.kernel_size[i] for i in (0, 1)]
        return (images, *(max(reach[i], self.size[i] + self.padding[i]) for i in (0, 1)), self.channels)

    def padded(self, x, value):
        """x with that value around it; x itself where the windows fit without."""
        if self.padded_shape(len(x)) == x.shape:
            return x
        padded = np.full(self.padded_shape(len(x)), value, x.dtype)
        self.cropped(padded)[...] = x
        return padded

    def cropped(self, padded):
        """The images inside their padding."""
        (h, w), (ph, pw) = self.size, self.padding
        return padded[:, ph : ph + h, pw : pw + w]

    def seen_by(self, tap, padded):
        """The (N, OH, OW, C) numbers at that tap of their windows: a view."""
        (u, v), (sh, sw), (oh, ow) = self.taps[tap], self.stride, self.output_size
        return padded[:, u : u + sh * oh : sh, v : v + sw * ow : sw]

    def first_real_tap(self):
        """(OH, OW, 1): the first tap of each window that lies inside the images and not on the padding."""
        first = [np.maximum(self.padding[i] - self.stride[i] * np.arange(self.output_size[i]), 0) for i in (0, 1)]
        return (first[0][:, None] * self.kernel_size[1] + first[1])[:, :, None]

    def share(self, count_include_pad, dtype):
        """1 / the count of numbers in each window, (OH, OW, 1). What lies beyond the padding is never counted."""
        inside = np.zeros((1, *self.padded_shape(1)[1:3], 1), dtype)
        counted = inside[:, : self.size[0] + 2 * self.padding[0], : self.size[1] + 2 * self.padding[1]]
        (counted if count_include_pad else self.cropped(inside))[...] = 1
        return 1 / sum(self.seen_by(tap, inside) for tap in range(len(self.taps)))[0]
