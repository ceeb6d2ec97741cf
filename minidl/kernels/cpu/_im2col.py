"""im2col: every patch of an image that a kernel sees becomes a row of a matrix.

Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing".
"""

from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu._scratch import scratch
from minidl.kernels.cpu._slices import even_slices

# (measured) Numbers in a matrix of columns, 2 MB of float32. Smaller ones stay in a core's own cache, but then the
# threads wait for each other and the GIL; larger ones leave the shared cache as well.
COLUMN_ELEMENTS = 2**19
# A small batch is cut into this many pieces, so that several threads have work; but (measured) a piece of fewer
# multiplications, about 0.1 ms, is not worth waking a thread for.
LEAST_PIECES, LEAST_MULTIPLICATIONS = 4, 2**23


class Piece(NamedTuple):
    """Some rows of pixels of some images: all rows of a few images, or a few rows of one."""

    images: slice
    rows: slice

    def of(self, y: np.ndarray) -> np.ndarray:
        """These pixels of y (N, OH, OW, C), as the rows of a matrix: a view."""
        return y[self.images, self.rows].reshape(-1, y.shape[3])


def pieces_of(images: int, rows: int, images_at_once: int, rows_at_once: int) -> list[Piece]:
    """All rows of all images, at most that many at once."""
    return [
        Piece(some_images, some_rows)
        for some_images in even_slices(images, max(1, images_at_once))
        for some_rows in even_slices(rows, max(1, rows_at_once))
    ]


class Patches:
    """The patches that a kernel of (KH, KW) pixels sees in images (N, H, W, C), one for each output (i, j).

    Patch (i, j) begins at row i SH - PH and column j SW - PW; outside the images are zeros.
    """

    def __init__(self, kernel_size, stride, padding, output_size):
        self.kernel_size, self.stride, self.padding, self.output_size = kernel_size, stride, padding, output_size

    def cut(self, images: int, channels: int, out_channels: int) -> list[Piece]:
        """The outputs of a convolution in pieces that suit the cache and the threads."""
        oh, ow = self.output_size
        row = ow * self.kernel_size[0] * self.kernel_size[1] * channels  # numbers in the columns of a row of outputs
        count = min(LEAST_PIECES, images * oh * row * out_channels // LEAST_MULTIPLICATIONS)
        rows_at_once = max(1, min(COLUMN_ELEMENTS // row, images * oh // max(1, count)))
        return pieces_of(images, oh, rows_at_once // oh, rows_at_once)

    def columns(self, x: np.ndarray, piece: Piece) -> np.ndarray:
        """The patches of a piece's outputs as the rows of a (pixels, KH*KW*C) matrix, in this thread's scratch."""
        (kh, kw), c = self.kernel_size, x.shape[3]
        top, bottom, left, right = self._window(piece)
        seen, top, left = within(x[piece.images], top, bottom, left, right)
        n, oh, ow = len(seen), piece.rows.stop - piece.rows.start, self.output_size[1]
        if kh == kw == 1 and seen.shape[1:3] == (oh, ow):
            return seen.reshape(n * oh * ow, c)  # a 1x1 kernel sees the pixels themselves
        columns = scratch("columns", (n * oh * ow, kh * kw * c), x.dtype)
        self._runs_of(columns, n, oh)[...] = self._runs_in(seen, oh, top, left)
        return columns

    def put(self, columns: np.ndarray, y: np.ndarray, piece: Piece) -> None:
        """`columns` in reverse, for patches that do not overlap: write them into y; what lies outside is dropped."""
        top, bottom, left, right = self._window(piece)
        _, height, width, c = y.shape
        n, oh = piece.images.stop - piece.images.start, piece.rows.stop - piece.rows.start
        inside = y[piece.images, top:bottom, left:right]
        fits = bottom <= height and right <= width
        whole = inside if fits else scratch("padded", (n, bottom - top, right - left, c), y.dtype)
        self._runs_in(whole, oh, 0, 0)[...] = self._runs_of(columns, n, oh)
        if not fits:
            inside[...] = whole[:, : height - top, : width - left]

    def _window(self, piece: Piece) -> tuple[int, int, int, int]:
        """The pixels that a piece's outputs see: from row top to row bottom, from column left to column right."""
        (kh, kw), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        bottom, right = (piece.rows.stop - 1) * sh - ph + kh, (self.output_size[1] - 1) * sw - pw + kw
        return piece.rows.start * sh - ph, bottom, -pw, right

    # (measured) KW pixels that lie side by side are copied as one item, a run: a third faster than number by number.

    def _runs_in(self, x: np.ndarray, oh: int, top: int, left: int) -> np.ndarray:
        """The view (n, OH, OW, KH) of x: the rows of the patches. The first patch begins at (top, left)."""
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        image, row, pixel, _ = x.strides
        shape, strides = (len(x), oh, self.output_size[1], kh), (image, sh * row, sw * pixel, row)
        return np.ndarray(shape, _run_dtype(kw * x.shape[3] * x.itemsize), x, top * row + left * pixel, strides)

    def _runs_of(self, columns: np.ndarray, n: int, oh: int) -> np.ndarray:
        """The same view of the columns."""
        kh, _ = self.kernel_size
        run = _run_dtype(columns.nbytes // (n * oh * self.output_size[1] * kh))
        return columns.reshape(-1).view(run).reshape(n, oh, self.output_size[1], kh)


def _run_dtype(nbytes: int) -> np.dtype:
    """Items of that many bytes.

    Not np.dtype((np.void, n)): that clears a KeyboardInterrupt about to be raised (NumPy's npy_ctypes_check).
    """
    return np.dtype(f"V{nbytes}")


def within(x: np.ndarray, top: int, bottom: int, left: int, right: int) -> tuple[np.ndarray, int, int]:
    """(array, top, left): x itself if it holds x[:, top:bottom, left:right]; else a copy of that, padded with zeros.

    The array is contiguous. (top, left) is where the window begins in it. A copy lies in this thread's scratch.
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
