"""Winograd's convolution F(4x4, 3x3): 36 multiplications for 16 outputs of a 3x3 kernel, instead of 144.

A tile of 4x4 outputs sees a tile d of 6x6 inputs. With g the kernel and three matrices that evaluate polynomials at six
points and interpolate between them (see `interpolation`),

    y = A^T [(G g G^T) * (B^T d B)] A,   * number by number

(Winograd 1980; Lavin, Gray 2015, "Fast algorithms for convolutional neural networks", section 4.2). On the 36 numbers
of a flattened tile, B^T . B is one product with the 36x36 matrix kron(B^T, B^T); and what is done number by number for
one pair of channels is, for all channels together, 36 matrix products. So everything is a product of matrices:

    U = kron(G, G) g                  (36, C, O)
    V = kron(B^T, B^T) d              (tiles, 36, C)
    M[:, k] = V[:, k] U[k]            (tiles, 36, O)
    y = kron(A^T, A^T) M              (tiles, 16, O)

The gradients are the transposes of these linear maps: dL/dx is the convolution of dL/dy with the turned kernel, and
dL/dg = kron(G^T, G^T) (V[:, k]^T [kron(A, A) dL/dy][:, k]). (measured) With the tiles first, the small products of each
tile stay in the innermost cache: they are twice as fast as one large product over all tiles.
"""

import functools

import numpy as np

from minidl.kernels.cpu._im2col import within
from minidl.kernels.cpu._parallel import even_slices, map_chunks, scratch, sum_chunks

TILE, SEEN = 4, 6  # a tile of 4x4 outputs sees 6x6 inputs
PRODUCTS = SEEN * SEEN

# Besides infinity. (measured) In float32 the largest error is a fifth of that with the usual 0, 1, -1, 2, -2, as the
# powers of these points stay closer together: 1.6e-6 of the largest output, for 64 channels of random numbers.
POINTS = 0, 5 / 8, -5 / 8, 3 / 2, -3 / 2


def interpolation(points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A^T, G, B^T) of the formula y = A^T [(G g) * (B^T d)] for a tile in one dimension (Toom 1963, Cook 1966).

    Let p_i be the product of (x - a_k) over the points a_k other than a_i. The kernel's polynomial is evaluated at each
    point, G[i, j] = a_i^j / p_i(a_i); row i of B^T holds the coefficients of p_i; and A^T[j, i] = a_i^j. The last row,
    or column, is that of the point infinity: the highest coefficient, and the product over all points.
    """
    n = len(points) + 1
    a_t, g, b_t = np.zeros((TILE, n)), np.zeros((n, 3)), np.zeros((n, n))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        a_t[:, i] = [point**j for j in range(TILE)]
        g[i] = [point**j / np.prod([point - other for other in others]) for j in range(3)]
        b_t[i, :-1] = np.poly(others)[::-1]
    a_t[-1, -1] = g[-1, -1] = 1
    b_t[-1] = np.poly(points)[::-1]
    return a_t, g, b_t


A_T, G, B_T = interpolation(POINTS)
MATRICES = {"A_T": A_T, "G": G, "B_T": B_T, "G_TURNED": G[:, ::-1]}  # the last for the kernel turned by 180 degrees

# (measured) Tiles in a block: fewer make the products slow, more leave the cache, for 64 channels as for 512; with
# fewer channels there may be more, tiles * channels = 2^13. But a small batch is cut into four blocks where they have
# at least 32 tiles, so that there is work for several threads.
BLOCK_TILES, BLOCK_COLUMNS, LEAST_TILES, LEAST_BLOCKS = 160, 2**13, 32, 4
# So many threads at most compute dL/dweight, as each needs two arrays that are four times as large as the weights.
WEIGHT_PARTS = 4
# Weights of which the transform is computed at a time, 0.6 MB of float32.
WEIGHT_CHUNK = 2**12


@functools.cache
def squared(matrix: str, dtype) -> np.ndarray:
    """kron(M, M): M applied to the rows and to the columns of a flattened square."""
    return np.kron(MATRICES[matrix], MATRICES[matrix]).astype(dtype)


def forward(x, weight, bias, stride, padding):
    """conv2d_forward for 3x3 kernels and stride 1; the stride is there for the signature."""
    return _convolve(x, transform_weight(weight, "G"), bias, padding)


def _convolve(x, u, bias, padding):
    tiling = Tiling(x.shape, u.shape[2], padding)
    y = np.empty(tiling.output_shape, x.dtype)

    def convolve(number, _):
        block = tiling.blocks[number]
        v = transform_input(x, block, tiling)  # (tiles, 36, C)
        m = scratch("winograd_products", (len(v), PRODUCTS, u.shape[2]), x.dtype)
        np.matmul(v.transpose(1, 0, 2), u, out=m.transpose(1, 0, 2))  # (36, tiles, C) @ (36, C, O)
        tiles = scratch("winograd_tiles", (len(v), TILE * TILE, u.shape[2]), x.dtype)
        np.matmul(squared("A_T", x.dtype), m, out=tiles)
        if bias is not None:
            tiles += bias
        block.put_outputs(tiles, y)

    map_chunks(convolve, len(tiling.blocks), 1)
    return y


def backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx: dL/dy convolved with the turned kernel."""
    u = transform_weight(weight, "G_TURNED").transpose(0, 2, 1)  # (36, C, O) -> (36, O, C)
    return _convolve(grad, u, None, (2 - padding[0], 2 - padding[1]))


def backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight: the same 36 products transposed, then the transform of the kernel transposed."""
    *_, c, o = weight_shape
    tiling = Tiling(x.shape, o, padding)
    blocks_per_part = -(-len(tiling.blocks) // WEIGHT_PARTS)

    def correlate(first, last):
        total = scratch("winograd_total", (PRODUCTS, c, o), grad.dtype)
        for block in tiling.blocks[first:last]:
            v = transform_input(x, block, tiling).transpose(1, 2, 0)  # (36, C, tiles)
            g = transform_grad(grad, block).transpose(1, 0, 2)  # (36, tiles, O)
            add_product(v, g, total, is_first=block is tiling.blocks[first])
        return squared("G", grad.dtype).T @ total.reshape(PRODUCTS, c * o)

    return sum_chunks(correlate, len(tiling.blocks), blocks_per_part).reshape(weight_shape)


def backward(grad, x, weight, stride, padding):
    """(dL/dx, dL/dweight). They share nothing: one needs the inputs' tiles, the other the outputs'."""
    grad_x = backward_x(grad, weight, x.shape, stride, padding)
    return grad_x, backward_weight(grad, x, weight.shape, stride, padding)


def transform_weight(weight, matrix: str) -> np.ndarray:
    """U: (3, 3, C, O) -> (36, C, O), with G or G_TURNED."""
    _, _, c, o = weight.shape
    u = np.empty((PRODUCTS, c * o), weight.dtype)
    taps = weight.reshape(9, c * o)

    def transform(start, stop):
        np.matmul(squared(matrix, weight.dtype), taps[:, start:stop], out=u[:, start:stop])

    map_chunks(transform, c * o, WEIGHT_CHUNK)
    return u.reshape(PRODUCTS, c, o)


def transform_input(x, block: "Block", tiling: "Tiling") -> np.ndarray:
    """V of a block's input tiles: (tiles, 36, C), in this thread's scratch."""
    tiles = block.input_tiles(x, tiling)  # (tiles, 36, C)
    v = scratch("winograd_input", tiles.shape, x.dtype)
    return np.matmul(squared("B_T", x.dtype), tiles, out=v)


def transform_grad(grad, block: "Block") -> np.ndarray:
    """kron(A, A) dL/dy of a block's output tiles: (tiles, 36, O), in this thread's scratch."""
    tiles = block.output_tiles(grad)  # (tiles, 16, O)
    g = scratch("winograd_grad", (len(tiles), PRODUCTS, grad.shape[3]), grad.dtype)
    return np.matmul(squared("A_T", grad.dtype).T, tiles, out=g)


class Tiling:
    """How an output of (N, OH, OW, O) is cut into tiles, and the tiles into blocks that are worked on at a time."""

    def __init__(self, x_shape, out_channels: int, padding):
        n, h, w, _ = x_shape
        self.padding = padding
        self.output_shape = n, h + 2 * padding[0] - 2, w + 2 * padding[1] - 2, out_channels
        rows, self.columns = (-(-size // TILE) for size in self.output_shape[1:3])
        most = max(BLOCK_TILES, BLOCK_COLUMNS // out_channels)
        tiles = min(most, max(LEAST_TILES, n * rows * self.columns // LEAST_BLOCKS))
        self.blocks = [
            Block(images, tile_rows, self.columns)
            for images in even_slices(n, max(1, round(tiles / (rows * self.columns))))
            for tile_rows in even_slices(rows, max(1, round(tiles / self.columns)))
        ]


class Block:
    """Some rows of tiles of some images."""

    def __init__(self, images: slice, tile_rows: slice, columns: int):
        self.images, self.columns = images, columns
        self.outputs = slice(TILE * tile_rows.start, TILE * tile_rows.stop)  # rows of y
        self.rows = tile_rows.stop - tile_rows.start

    def input_tiles(self, x, tiling: Tiling) -> np.ndarray:
        """The tiles (tiles, 36, C) of the padded input, which overlap by two numbers."""
        top, left = self.outputs.start - tiling.padding[0], -tiling.padding[1]
        bottom, right = top + TILE * self.rows + 2, left + TILE * self.columns + 2
        seen, top, left = within(x[self.images], top, bottom, left, right)
        rows = self._rows_of_tiles(seen, SEEN, top, left)
        tiles = scratch("winograd_gathered", (rows.size // SEEN, PRODUCTS, x.shape[3]), x.dtype)
        tiles.reshape(-1).view(rows.dtype).reshape(rows.shape)[...] = rows
        return tiles

    def output_tiles(self, grad) -> np.ndarray:
        """The tiles (tiles, 16, O) of grad, zeros where they hang over the edge."""
        outputs = grad[self.images, self.outputs]
        whole, _, _ = within(outputs, 0, TILE * self.rows, 0, TILE * self.columns)
        rows = self._rows_of_tiles(whole, TILE)
        tiles = scratch("winograd_tiles", (rows.size // TILE, TILE * TILE, grad.shape[3]), grad.dtype)
        tiles.reshape(-1).view(rows.dtype).reshape(rows.shape)[...] = rows
        return tiles

    def put_outputs(self, tiles, y) -> None:
        """output_tiles in reverse: write tiles to their places in y; what hangs over the edge is dropped."""
        outputs = y[self.images, self.outputs]
        n, h, w, o = outputs.shape
        fits = (h, w) == (TILE * self.rows, TILE * self.columns)
        whole = outputs if fits else scratch("padded", (n, TILE * self.rows, TILE * self.columns, o), y.dtype)
        rows = self._rows_of_tiles(whole, TILE)
        rows[...] = tiles.reshape(-1).view(rows.dtype).reshape(rows.shape)
        if not fits:
            outputs[...] = whole[:, :h, :w]

    def _rows_of_tiles(self, x, size: int, top: int = 0, left: int = 0) -> np.ndarray:
        """The view (n, rows, columns, size) of x from (top, left) on; its items are the rows of size x size tiles."""
        image, row, pixel, _ = x.strides
        run = np.dtype(f"V{size * pixel}")  # see _im2col
        shape, strides = (len(x), self.rows, self.columns, size), (image, TILE * row, TILE * pixel, row)
        return np.ndarray(shape, run, x, top * row + left * pixel, strides)


def add_product(a, b, total, is_first: bool) -> None:
    """total += a b; or total = a b, where it is the first."""
    if is_first:
        np.matmul(a, b, out=total)
    else:
        total += np.matmul(a, b, out=scratch("product", total.shape, total.dtype))
