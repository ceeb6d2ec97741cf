"""im2col: every patch of an image that a kernel sees becomes a row of a matrix, called `columns`.

Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing".
"""

from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu._pieces import even_slices, scratch

# (measured) Elements of `columns` for one piece: 2 MB of float32. Smaller pieces would fit into a core's own cache, but
# make the threads wait for each other and for the GIL. Larger ones do not even fit into the shared cache.
COLUMN_ELEMENTS = 2**19
# Even a small batch is cut into 4 pieces, so that several threads have work, unless the pieces get too small:
# (measured) below 2^23 multiplications, about 0.1 ms, waking a thread costs more than it saves.
LEAST_PIECES, LEAST_MULTIPLICATIONS = 4, 2**23


class Piece(NamedTuple):
    """A part of the output y, as the index y[piece]: all rows of a few images, or a few rows of one image."""

    images: slice
    rows: slice


def pieces_of(images: int, rows: int, images_at_once: int, rows_at_once: int) -> list[Piece]:
    """All rows of all images, in pieces of at most `images_at_once` images and `rows_at_once` rows."""
    if images_at_once >= images and rows_at_once >= rows:
        return [Piece(slice(0, images), slice(0, rows))]
    return [
        Piece(some_images, some_rows)
        for some_images in even_slices(images, max(1, images_at_once))
        for some_rows in even_slices(rows, max(1, rows_at_once))
    ]


class Patches(NamedTuple):
    """The patches that a kernel of (KH, KW) pixels sees in images (N, H, W, C): one for each window (i, j).

    The first pixel of patch (i, j) is (h, w) = (i*SH - PH, j*SW - PW). Pixels outside the image are 0.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_size: tuple[int, int]

    def cut(self, images: int, channels: int, out_channels: int) -> list[Piece]:
        """The output of a convolution, cut into pieces that suit the cache and the threads."""
        oh, ow = self.output_size
        row = ow * self.kernel_size[0] * self.kernel_size[1] * channels  # elements of `columns` for one row of outputs
        count = min(LEAST_PIECES, images * oh * row * out_channels // LEAST_MULTIPLICATIONS)
        rows_at_once = max(1, min(COLUMN_ELEMENTS // row, images * oh // max(1, count)))
        return pieces_of(images, oh, rows_at_once // oh, rows_at_once)

    def columns(self, x: np.ndarray, piece: Piece) -> np.ndarray:
        """(N, H, W, C) -> (n*OH*OW, KH*KW*C): a row for each window of a piece, in this thread's scratch."""
        (kh, kw), c = self.kernel_size, x.shape[3]
        seen, top, left = self._seen(x[piece.images], piece.rows)
        n, oh, ow = len(seen), piece.rows.stop - piece.rows.start, self.output_size[1]  # of this piece
        if kh == kw == 1 and seen.shape[1:3] == (oh, ow):
            return seen.reshape(n * oh * ow, c)  # a 1x1 kernel sees the pixels themselves
        columns = scratch("columns", (n * oh * ow, kh * kw * c), x.dtype)
        runs = self._runs(seen, oh, top, left)
        columns.view(runs.dtype).reshape(runs.shape)[...] = runs
        return columns

    def put(self, columns: np.ndarray, y: np.ndarray, piece: Piece) -> None:
        """The inverse of `columns`, if SH = KH, SW = KW and PH = PW = 0: write the patches to y, cut at its border."""
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
        """(seen, top, left): all pixels that these rows of windows see, the first of them at seen[:, top, left].

        `seen` is contiguous. It is x itself if no window sees padding. Otherwise it is a copy, in this thread's
        scratch, of the pixels that are seen, with zeros as padding.
        """
        (kh, kw), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        n, h, w, c = x.shape
        top, bottom = rows.start * sh - ph, (rows.stop - 1) * sh - ph + kh
        left, right = -pw, (self.output_size[1] - 1) * sw - pw + kw
        if top >= 0 and left >= 0 and bottom <= h and right <= w:
            return np.ascontiguousarray(x), top, left
        seen = scratch("padded", (n, bottom - top, right - left, c), x.dtype)
        # x[:, first_row:last_row, first_column:last_column] is copied. It is empty if only padding is seen.
        first_row, first_column = max(top, 0), max(left, 0)
        last_row, last_column = max(first_row, min(bottom, h)), max(first_column, min(right, w))
        middle = seen[:, first_row - top : last_row - top]
        seen[:, : first_row - top] = seen[:, last_row - top :] = 0
        middle[:, :, : first_column - left] = middle[:, :, last_column - left :] = 0
        middle[:, :, first_column - left : last_column - left] = x[:, first_row:last_row, first_column:last_column]
        return seen, 0, 0

    def _runs(self, x: np.ndarray, oh: int, top: int, left: int) -> np.ndarray:
        """The patches as a view (n, OH, OW, KH) of x, (n, H, W, C). The first patch starts at x[:, top, left].

        Each item is a run: one row of a patch, KW*C elements that are contiguous in x. (measured) Copying runs takes
        a third less time than copying elements. Their dtype is spelled f"V{bytes}", as np.dtype((np.void, bytes))
        swallows a pending KeyboardInterrupt (in NumPy's npy_ctypes_check).
        """
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        image, row, pixel, _ = x.strides
        shape, strides = (len(x), oh, self.output_size[1], kh), (image, sh * row, sw * pixel, row)
        return np.ndarray(shape, f"V{kw * x.shape[3] * x.itemsize}", x, top * row + left * pixel, strides)
