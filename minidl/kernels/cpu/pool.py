"""Pooling: one value for each window and channel."""

import numpy as np

from minidl.kernels.cpu._channels import keep_where
from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, rows_of, scratch, slices
from minidl.kernels.cpu._threads import map_pieces
from minidl.kernels.shapes import output_size, tap_dtype


def max_pool2d_forward(x, kernel_size, stride, padding, ceil_mode):
    """(y, best_tap): the maximum of each window, and its tap u*KW + v, the first one among equals.

    The padding is -inf, so that it is never the maximum. A NaN counts as larger than any number, so that it shows.
    """
    windows = _Windows(x.shape, kernel_size, stride, padding, ceil_mode)
    y = np.empty(windows.output_shape, x.dtype)
    best_tap = np.empty(windows.output_shape, tap_dtype(kernel_size))
    first_real_tap = windows.first_real_tap().astype(best_tap.dtype)

    def pool(piece):
        padded = windows.padded(x[piece], -np.inf)
        best = y[piece]
        best[...] = windows.seen_by(0, padded)
        for tap in range(1, len(windows.taps)):
            np.maximum(best, windows.seen_by(tap, padded), out=best)
        taps = _first_tap_that_holds(best, windows, padded, best_tap.dtype)
        # If all values of a window are -inf, the first tap that holds it may be on the padding.
        np.maximum(taps, first_real_tap, out=best_tap[piece])

    map_pieces(pool, windows.pieces, multiplications=0)
    return y, best_tap


def _first_tap_that_holds(best, windows, padded, dtype):
    """The first tap of each window that holds `best`, the maximum: (n, OH, OW, C)."""
    none = np.iinfo(dtype).max
    first, candidate = scratch("first_tap", best.shape, dtype), scratch("candidate", best.shape, dtype)
    first[...] = none
    for tap in range(len(windows.taps)):
        # Unsigned integers: where the tap holds the maximum, True - 1 = 0 and candidate = 0 | tap = tap. Elsewhere
        # False - 1 wraps around to 255 = none and candidate = none. (measured) Faster than a masked copy.
        np.subtract(windows.seen_by(tap, padded) == best, 1, out=candidate, dtype=dtype, casting="unsafe")
        np.bitwise_or(candidate, dtype.type(tap), out=candidate)
        np.minimum(first, candidate, out=first)
    if first.max() == none:  # a window has the maximum NaN, which is not equal to itself
        for tap in reversed(range(len(windows.taps))):
            first[np.isnan(windows.seen_by(tap, padded))] = tap
    return first


def max_pool2d_backward(grad, best_tap, x_shape, kernel_size, stride, padding):
    """dL/dx: the gradient of each window goes to its best tap."""
    windows = _Windows(x_shape, kernel_size, stride, padding, out_size=grad.shape[1:3])
    grad_x = np.empty(x_shape, grad.dtype)

    def scatter(piece):
        padded = np.zeros(windows.padded_shape(piece.stop - piece.start), grad.dtype)
        grads, from_tap = grad[piece], scratch("from_tap", grad[piece].shape, grad.dtype)
        for tap in range(len(windows.taps)):
            windows.seen_by(tap, padded)[...] += keep_where(best_tap[piece] == tap, grads, out=from_tap)
        grad_x[piece] = windows.cropped(padded)

    map_pieces(scatter, windows.pieces, multiplications=0)
    return grad_x


def avg_pool2d_forward(x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """y: the mean of each window. With count_include_pad the zeros of the padding count as pixels."""
    windows = _Windows(x.shape, kernel_size, stride, padding, ceil_mode)
    y = np.empty(windows.output_shape, x.dtype)
    share = windows.share(count_include_pad, x.dtype)  # (OH, OW, 1)

    def pool(piece):
        padded = windows.padded(x[piece], 0)
        total = y[piece]
        total[...] = windows.seen_by(0, padded)
        for tap in range(1, len(windows.taps)):
            total += windows.seen_by(tap, padded)
        total *= share

    map_pieces(pool, windows.pieces, multiplications=0)
    return y


def avg_pool2d_backward(grad, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """dL/dx: the gradient of each window, in equal shares to the pixels that were averaged."""
    windows = _Windows(x_shape, kernel_size, stride, padding, ceil_mode)
    grad_x = np.empty(x_shape, grad.dtype)
    share = windows.share(count_include_pad, grad.dtype)

    def scatter(piece):
        padded = np.zeros(windows.padded_shape(piece.stop - piece.start), grad.dtype)
        shares = grad[piece] * share
        for tap in range(len(windows.taps)):
            windows.seen_by(tap, padded)[...] += shares
        grad_x[piece] = windows.cropped(padded)

    map_pieces(scatter, windows.pieces, multiplications=0)
    return grad_x


def global_avg_pool_forward(x):
    """y[n, c]: the mean of channel c of image n, (N, H, W, C) -> (N, C)."""
    n, h, w, c = x.shape
    columns = np.ones((1, h), x.dtype) @ x.reshape(n, h, w * c)  # (N, H, W*C) -> (N, 1, W*C), the sums over H
    return (columns.reshape(n, w, c).sum(axis=1, dtype=np.float64) / (h * w)).astype(x.dtype)


def global_avg_pool_backward(grad, x_shape):
    """dL/dx[n, h, w, c] = dL/dy[n, c] / (H*W), (N, C) -> (N, H, W, C)."""
    _, h, w, _ = x_shape
    return np.broadcast_to((grad / (h * w))[:, None, None, :], x_shape).copy()


class _Windows:
    """The windows over images of a given shape. `seen_by` returns the pixels that one tap sees in all windows."""

    def __init__(self, x_shape, kernel_size, stride, padding, ceil_mode=False, out_size=None):
        n, h, w, c = x_shape
        self.size, self.kernel_size, self.stride, self.padding = (h, w), kernel_size, stride, padding
        self.output_size = out_size or output_size((h, w), kernel_size, stride, padding, ceil_mode)
        self.output_shape = (n, *self.output_size, c)
        self.channels = c
        self.taps = [(u, v) for u in range(kernel_size[0]) for v in range(kernel_size[1])]
        # (measured) Twice the usual elements take 10 to 25 % less time on two threads: a piece takes up to 24 calls.
        self.pieces = slices(n, rows_of(2 * PIECE_ELEMENTS, h * w * c))  # images

    def padded_shape(self, images):
        """The shape of the images with their padding, and more where the last windows reach beyond it (ceil_mode)."""
        reach = [(self.output_size[axis] - 1) * self.stride[axis] + self.kernel_size[axis] for axis in (0, 1)]
        return (images, *(max(reach[axis], self.size[axis] + self.padding[axis]) for axis in (0, 1)), self.channels)

    def padded(self, x, value):
        """x with a border of `value`, or x itself if no window needs one."""
        if self.padded_shape(len(x)) == x.shape:
            return x
        padded = np.full(self.padded_shape(len(x)), value, x.dtype)
        self.cropped(padded)[...] = x
        return padded

    def cropped(self, padded):
        """The images without their padding: a view."""
        (h, w), (ph, pw) = self.size, self.padding
        return padded[:, ph : ph + h, pw : pw + w]

    def seen_by(self, tap, padded):
        """The pixels under one tap of all windows: a view (N, OH, OW, C)."""
        (u, v), (sh, sw), (oh, ow) = self.taps[tap], self.stride, self.output_size
        return padded[:, u : u + sh * oh : sh, v : v + sw * ow : sw]

    def first_real_tap(self):
        """(OH, OW, 1): the first tap of each window that is on the image and not on the padding."""
        (oh, ow), (sh, sw), (ph, pw) = self.output_size, self.stride, self.padding
        u, v = np.maximum(ph - sh * np.arange(oh), 0), np.maximum(pw - sw * np.arange(ow), 0)
        return (u[:, None] * self.kernel_size[1] + v)[:, :, None]

    def share(self, count_include_pad, dtype):
        """(OH, OW, 1): 1 / the number of pixels that each window averages. Beyond the padding nothing is counted."""
        inside = np.zeros((1, *self.padded_shape(1)[1:3], 1), dtype)
        counted = inside[:, : self.size[0] + 2 * self.padding[0], : self.size[1] + 2 * self.padding[1]]
        (counted if count_include_pad else self.cropped(inside))[...] = 1
        return 1 / sum(self.seen_by(tap, inside) for tap in range(len(self.taps)))[0]
