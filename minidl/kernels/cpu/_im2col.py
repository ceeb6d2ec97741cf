"""im2col: every patch of an image that a kernel sees becomes a row of a matrix, called `columns`.

Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing".
"""

import threading
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu._pieces import even_slices, remembered, scratch, workspace

# (measured) Elements of `columns` for one piece: 2 MB of float32. Smaller pieces would fit into a core's own cache, but
# make the threads wait for each other and for the GIL. Larger ones do not even fit into the shared cache.
COLUMN_ELEMENTS = 2**19
# What an element of `columns` takes of a bounded workspace: 8 bytes, and 8 in the buffers beside it, in each of 4
# threads. The real number of threads is not used, as no result may depend on it.
BYTES_FOR_A_COLUMN_ELEMENT = 64
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
        most = min(COLUMN_ELEMENTS, workspace() // BYTES_FOR_A_COLUMN_ELEMENT)
        rows_at_once = max(1, min(int(most // row), images * oh // max(1, count)))
        return pieces_of(images, oh, rows_at_once // oh, rows_at_once)

    def columns(self, x: np.ndarray, piece: Piece) -> np.ndarray:
        """(N, H, W, C) -> (n*OH*OW, KH*KW*C): a row for each window of a piece, in this thread's scratch."""
        if self == ((1, 1), (1, 1), (0, 0), x.shape[1:3]):
            return x[piece].reshape(-1, x.shape[3])  # a 1x1 kernel sees the pixels themselves
        images, rows = piece
        x = x[images]
        return remembered(Gather, self, x.shape, rows.start, rows.stop, x.dtype).columns_of(x)

    def put(self, columns: np.ndarray, y: np.ndarray, piece: Piece) -> None:
        """The inverse of `columns`, if SH = KH, SW = KW and PH = PW = 0: write the patches to y, cut at its border."""
        (kh, kw), ow, rows = self.kernel_size, self.output_size[1], piece.rows
        inside = y[piece.images, rows.start * kh : rows.stop * kh]
        n, oh, c = len(inside), rows.stop - rows.start, y.shape[3]
        fits = inside.shape[1:3] == (oh * kh, ow * kw)
        whole = inside if fits else scratch("uncut", (n, oh * kh, ow * kw, c), y.dtype)
        runs = self.runs(whole, oh, 0, 0)
        runs[...] = columns.reshape(-1).view(runs.dtype).reshape(runs.shape)
        if not fits:
            inside[...] = whole[:, : inside.shape[1], : inside.shape[2]]

    def runs(self, x: np.ndarray, oh: int, top: int, left: int) -> np.ndarray:
        """The patches as a view (n, OH, OW, KH) of x, (n, H, W, C). The first patch starts at x[:, top, left].

        Each item is a run: one row of a patch, KW*C elements that are contiguous in x. (measured) Copying runs takes
        a third less time than copying elements. Their dtype is spelled f"V{bytes}", as np.dtype((np.void, bytes))
        swallows a pending KeyboardInterrupt (in NumPy's npy_ctypes_check).
        """
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        image, row, pixel, _ = x.strides
        shape, strides = (len(x), oh, self.output_size[1], kh), (image, sh * row, sw * pixel, row)
        return np.ndarray(shape, f"V{kw * x.shape[3] * x.itemsize}", x, top * row + left * pixel, strides)


_thread = threading.local()  # `margins`: which part of this thread's buffer "padded" holds zeros


class Gather:
    """`Patches.columns` of a piece. The views of this thread's scratch are made once, and are used for every x.

    If windows see padding, the pixels that they see are first copied to the buffer "padded", between margins of zeros.
    The zeros are written again only if another shape has used the buffer since.
    """

    def __init__(self, patches: Patches, shape: tuple[int, ...], first_row: int, last_row: int, dtype):
        (kh, kw), (sh, sw), (ph, pw), (_, ow) = patches
        (n, h, w, c), oh = shape, last_row - first_row
        # What the windows see of an image: top:bottom, left:right. A part of it may be padding.
        top, bottom = first_row * sh - ph, (last_row - 1) * sh - ph + kh
        left, right = -pw, (ow - 1) * sw - pw + kw
        self.patches, self.origin = patches, (oh, top, left)
        self.columns = scratch("columns", (n * oh * ow, kh * kw * c), dtype)
        self.target = self.columns.view(f"V{kw * c * self.columns.itemsize}").reshape(n, oh, ow, kh)
        self.sees_padding = top < 0 or left < 0 or bottom > h or right > w
        if self.sees_padding:
            self.padded = scratch("padded", (n, bottom - top, right - left, c), dtype)
            self.runs = patches.runs(self.padded, oh, 0, 0)
            # The part of it that is on the image. It is empty if only padding is seen.
            rows, columns = range(h)[max(top, 0) : max(bottom, 0)], range(w)[max(left, 0) : max(right, 0)]
            self.source = np.s_[:, rows.start : rows.stop, columns.start : columns.stop]
            inside = np.s_[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            self.middle = self.padded[inside]
            self.margins = self.padded.shape, inside, dtype
            _thread.margins = None  # the buffer may be a new one

    def columns_of(self, x: np.ndarray) -> np.ndarray:
        """The columns of these images."""
        if not self.sees_padding:
            self.target[...] = self.patches.runs(np.ascontiguousarray(x), *self.origin)
            return self.columns
        if _thread.margins != self.margins:
            self.padded.fill(0)
            _thread.margins = self.margins
        self.middle[...] = x[self.source]
        self.target[...] = self.runs
        return self.columns
