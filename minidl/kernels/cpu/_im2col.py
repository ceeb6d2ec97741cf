"""im2col: every patch that a kernel sees becomes a row, so that a convolution is one matrix product.

Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing".
"""

from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu._parallel import even_slices, scratch

# (measured) Numbers in a matrix of columns, 2 MB of float32. Smaller ones stay in a core's own cache, but then the
# threads wait for each other and the GIL; larger ones leave the shared cache as well.
COLUMN_ELEMENTS = 2**19
# A small batch is cut into so many pieces, so that several threads have work; but (measured) a piece of fewer
# multiplications, about 0.1 ms, is not worth waking a thread for.
LEAST_PIECES, LEAST_MULTIPLICATIONS = 4, 2**23


def output_size(size: tuple[int, int], kernel_size, stride, padding) -> tuple[int, int]:
    """(OH, OW): how many times the kernel fits into the padded input."""
    return tuple((size[i] + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i in (0, 1))


class Piece(NamedTuple):
    """Some rows of pixels of some images: all rows of a few images, or a few rows of one."""

    images: slice
    rows: slice

    def of(self, y: np.ndarray) -> np.ndarray:
        """These pixels of y (N, OH, OW, C), as the rows of a matrix: a view."""
        return y[self.images, self.rows].reshape(-1, y.shape[3])


def cut(images: int, rows: int, elements_per_row: int, outputs: int) -> list[Piece]:
    """All rows of all images, in pieces that suit the cache and the threads.

    The elements are those of the columns, and each is multiplied `outputs` times.
    """
    pieces = min(LEAST_PIECES, images * rows * elements_per_row * outputs // LEAST_MULTIPLICATIONS)
    rows_at_once = max(1, min(COLUMN_ELEMENTS // elements_per_row, images * rows // max(1, pieces)))
    return [
        Piece(some_images, some_rows)
        for some_images in even_slices(images, max(1, rows_at_once // rows))
        for some_rows in even_slices(rows, rows_at_once)
    ]


class Patches:
    """The patches that a kernel sees in images (N, H, W, C), one for each pixel of its output.

    The first patch begins `before` rows and columns ahead of the first pixel; outside the images are zeros. `outputs`
    is the number of channels that will be made of each patch, which tells how much work a piece is.
    """

    def __init__(self, shape, kernel_size, stride, before, output_size, outputs):
        self.kernel_size, self.stride, self.before, self.output_size = kernel_size, stride, before, output_size
        self.length = kernel_size[0] * kernel_size[1] * shape[3]  # of a patch
        self.pieces = cut(shape[0], output_size[0], output_size[1] * self.length, outputs)

    def columns(self, x: np.ndarray, piece: Piece) -> np.ndarray:
        """The patches of a piece's pixels as the rows of a (pixels, KH*KW*C) matrix, in this thread's scratch."""
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        oh, ow = piece.rows.stop - piece.rows.start, self.output_size[1]
        top, left = piece.rows.start * sh - self.before[0], -self.before[1]
        seen, top, left = within(x[piece.images], top, top + (oh - 1) * sh + kh, left, left + (ow - 1) * sw + kw)
        n, h, w, c = seen.shape
        if self.length == c and (h, w) == (oh, ow):
            return seen.reshape(n * oh * ow, c)  # a 1x1 kernel sees the pixels themselves
        # (measured) kw pixels that lie side by side are copied as one item: a third faster than number by number.
        # Not np.dtype((np.void, n)): that clears a KeyboardInterrupt about to be raised (NumPy's npy_ctypes_check).
        run = np.dtype(f"V{kw * c * seen.itemsize}")
        image, row, pixel, _ = seen.strides
        start, strides = top * row + left * pixel, (image, sh * row, sw * pixel, row)
        patches = np.ndarray((n, oh, ow, kh), run, seen, start, strides)
        columns = scratch("columns", (n * oh * ow, self.length), x.dtype)
        columns.view(run).reshape(patches.shape)[...] = patches
        return columns


def within(x: np.ndarray, top: int, bottom: int, left: int, right: int) -> tuple[np.ndarray, int, int]:
    """An array that holds x[:, top:bottom, left:right], contiguous, and where that begins in it.

    It is x itself, if it reaches that far; else a copy in this thread's scratch, with zeros outside the images.
    """
    n, h, w, c = x.shape
    if top >= 0 and left >= 0 and bottom <= h and right <= w:
        return np.ascontiguousarray(x), top, left
    padded = scratch("padded", (n, bottom - top, right - left, c), x.dtype)
    rows, columns = _overlap(top, bottom, h), _overlap(left, right, w)
    inside = padded[:, rows.start - top : rows.stop - top]
    padded[:, : rows.start - top] = padded[:, rows.stop - top :] = 0
    inside[:, :, : columns.start - left] = inside[:, :, columns.stop - left :] = 0
    inside[:, :, columns.start - left : columns.stop - left] = x[:, rows, columns]
    return padded, 0, 0


def _overlap(start: int, stop: int, size: int) -> slice:
    """The part of start:stop that lies in 0:size; empty, but between start and stop, if there is none."""
    first = min(max(start, 0), stop)
    return slice(first, max(first, min(stop, size)))
