"""im2col: every patch of an image that a kernel sees becomes a row of a matrix.

Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing".
"""

from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu._pieces import even_slices, scratch

# (measured) Numbers in a matrix of columns, 2 MB of float32. Smaller ones stay in a core's own cache, but then the
# threads wait for each other and the GIL; larger ones leave the shared cache as well.
COLUMN_ELEMENTS = 2**19
# A small batch is cut into this many pieces, so that several threads have work; but (measured) a piece of fewer
# multiplications, about 0.1 ms, is not worth waking a thread for.
LEAST_PIECES, LEAST_MULTIPLICATIONS = 4, 2**23


class Piece(NamedTuple):
    """Some rows of pixels of some images: all rows of a few images, or a few rows of one. y[piece] are these pixels."""

    images: slice
    rows: slice


def pieces_of(images: int, rows: int, images_at_once: int, rows_at_once: int) -> list[Piece]:
    """All rows of all images, at most that many at once."""
    if images_at_once >= images and rows_at_once >= rows:
        return [Piece(slice(0, images), slice(0, rows))]
    return [
        Piece(some_images, some_rows)
        for some_images in even_slices(images, max(1, images_at_once))
        for some_rows in even_slices(rows, max(1, rows_at_once))
    ]


class Patches(NamedTuple):
    """The patches that a kernel of (KH, KW) pixels sees in images (N, H, W, C), one for each output (i, j).

    Patch (i, j) begins at row i SH - PH and column j SW - PW; outside the images are zeros.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_size: tuple[int, int]

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
        seen, top, left = self._seen(x[piece.images], piece.rows)
        n, oh, ow = len(seen), piece.rows.stop - piece.rows.start, self.output_size[1]
        if kh == kw == 1 and seen.shape[1:3] == (oh, ow):
            return seen.reshape(n * oh * ow, c)  # a 1x1 kernel sees the pixels themselves
        columns = scratch("columns", (n * oh * ow, kh * kw * c), x.dtype)
        runs = self._runs(seen, oh, top, left)
        columns.view(runs.dtype).reshape(runs.shape)[...] = runs
        return columns

    def put(self, columns: np.ndarray, y: np.ndarray, piece: Piece) -> None:
        """The way back, for patches side by side, without padding: write them into y, but for what lies outside."""
        (kh, kw), ow, rows = self.kernel_size, self.output_size[1], piece.rows
        inside = y[piece.images, rows.start * kh : rows.stop * kh]
        n, oh, c = len(inside), rows.stop - rows.start, y.shape[3]
        fits = inside.shape[1:3] == (oh * kh, ow * kw)
        whole = inside if fits else scratch("padded", (n, oh * kh, ow * kw, c), y.dtype)
        runs = self._runs(whole, oh, 0, 0)
        runs[...] = columns.reshape(-1).view(runs.dtype).reshape(runs.shape)
        if not fits:
            inside[...] = whole[:, : inside.shape[1], : inside.shape[2]]

    def _seen(self, x: np.ndarray, rows: slice) -> tuple[np.ndarray, int, int]:
        """(array, top, left): images that hold all pixels which these rows of outputs see; the first is at (top, left).

        The array is x itself if no output sees padding. Otherwise it is a copy of the pixels that are seen, with zeros
        as padding, in this thread's scratch. It is contiguous.
        """
        (kh, kw), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        n, h, w, c = x.shape
        top, bottom = rows.start * sh - ph, (rows.stop - 1) * sh - ph + kh
        left, right = -pw, (self.output_size[1] - 1) * sw - pw + kw
        if top >= 0 and left >= 0 and bottom <= h and right <= w:
            return np.ascontiguousarray(x), top, left
        seen = scratch("padded", (n, bottom - top, right - left, c), x.dtype)
        # x[:, first_row:last_row, first_column:last_column] is copied. It is empty where nothing but padding is seen.
        first_row, first_column = max(top, 0), max(left, 0)
        last_row, last_column = max(first_row, min(bottom, h)), max(first_column, min(right, w))
        middle = seen[:, first_row - top : last_row - top]
        seen[:, : first_row - top] = seen[:, last_row - top :] = 0
        middle[:, :, : first_column - left] = middle[:, :, last_column - left :] = 0
        middle[:, :, first_column - left : last_column - left] = x[:, first_row:last_row, first_column:last_column]
        return seen, 0, 0

    def _runs(self, x: np.ndarray, oh: int, top: int, left: int) -> np.ndarray:
        """The view (n, OH, OW, KH) of the patches in x, the first of which begins at (top, left).

        An item is a run: the KW pixels of a row of a patch, which lie side by side. (measured) Copying runs takes a
        third less time than copying numbers. Their dtype is not np.dtype((np.void, n)): that clears a KeyboardInterrupt
        about to be raised (NumPy's npy_ctypes_check).
        """
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        image, row, pixel, _ = x.strides
        shape, strides = (len(x), oh, self.output_size[1], kh), (image, sh * row, sw * pixel, row)
        return np.ndarray(shape, f"V{kw * x.shape[3] * x.itemsize}", x, top * row + left * pixel, strides)
