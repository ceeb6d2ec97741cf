"""Winograd's convolution F(4x4, 3x3): 36 multiplications for 16 outputs of a 3x3 kernel, instead of 144.

A tile of 4x4 outputs depends on a tile d of 6x6 inputs. Let g be the 3x3 kernel, and A, B, G the matrices that evaluate
polynomials at six points and interpolate between them (see `interpolation`). Then

    y = A^T [(G g G^T) * (B^T d B)] A,   where * is elementwise

(Winograd 1980; Lavin, Gray 2015, "Fast algorithms for convolutional neural networks", section 4.2). If a tile is
flattened to 36 elements, B^T d B is one product with the 36x36 matrix kron(B^T, B^T). And the elementwise products,
summed over the input channels, are 36 matrix products. So everything is a product of matrices:

    U = kron(G, G) g                  (36, C, O)
    V = kron(B^T, B^T) d              (tiles, 36, C)
    M[:, k] = V[:, k] U[k]            (tiles, 36, O), for k = 0 .. 35
    y = kron(A^T, A^T) M              (tiles, 16, O)

The gradients are the transposes of these linear maps: dL/dx is dL/dy convolved with the kernel turned by 180 degrees,
and dL/dg = kron(G^T, G^T) dL/dU with dL/dU[k] = V[:, k]^T dL/dM[:, k] and dL/dM = kron(A, A) dL/dy. (measured) With the
tiles as the first axis, the small products of a tile stay in the innermost cache: twice as fast as one large product.
"""

import functools
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu._im2col import Patches, Piece, pieces_of
from minidl.kernels.cpu._pieces import scratch, slices
from minidl.kernels.cpu._threads import map_pieces, sum_pieces
from minidl.kernels.shapes import output_size

# The sixth point is infinity. (measured, 64 channels of random numbers) With these five the largest float32 error is
# 1.6e-6 of the largest output, a fifth of that with 0, 1, -1, 2, -2: the powers of these points differ less in size.
POINTS = 0, 5 / 8, -5 / 8, 3 / 2, -3 / 2


def interpolation(points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A^T, G, B^T) of the formula y = A^T [(G g) * (B^T d)] for a tile in one dimension (Toom 1963, Cook 1966).

    Let p_i be the product of (x - a_k) over the points a_k other than a_i. The kernel's polynomial is evaluated at each
    point, G[i, j] = a_i^j / p_i(a_i). Row i of B^T holds the coefficients of p_i, and A^T[j, i] = a_i^j. The last row,
    or column, belongs to the point infinity: the highest coefficient, and the product over all points.
    """
    a_t, g, b_t = np.zeros((4, 6)), np.zeros((6, 3)), np.zeros((6, 6))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        a_t[:, i] = [point**j for j in range(4)]
        g[i] = [point**j / np.prod([point - other for other in others]) for j in range(3)]
        b_t[i, :-1] = np.poly(others)[::-1]
    a_t[-1, -1] = g[-1, -1] = 1
    b_t[-1] = np.poly(points)[::-1]
    return a_t, g, b_t


class Transforms(NamedTuple):
    """kron(T, T) for each matrix T of `interpolation`: it applies T to the rows and the columns of a flattened tile."""

    a_t: np.ndarray  # (16, 36)
    g: np.ndarray  # (36, 9)
    g_turned: np.ndarray  # (36, 9), for the kernel turned by 180 degrees
    b_t: np.ndarray  # (36, 36)


@functools.cache
def transforms(dtype) -> Transforms:
    """The transforms in the given dtype."""
    a_t, g, b_t = interpolation(POINTS)
    return Transforms(*(np.kron(matrix, matrix).astype(dtype) for matrix in (a_t, g, g[:, ::-1], b_t)))


# (measured, 64 and 512 channels) Blocks of 160 tiles are best: smaller ones make the products slow, larger ones do not
# fit into the cache. With fewer channels they may be larger, tiles * channels = 2^13. A small batch is cut into two
# blocks, so that two threads have work, but not into blocks of fewer than 32 tiles. With more blocks, of 0.1 ms each,
# the threads spend their time waiting for the GIL.
BLOCK_TILES, BLOCK_COLUMNS, LEAST_TILES, LEAST_BLOCKS = 160, 2**13, 32, 2
# At most 4 threads compute dL/dweight, because each of them needs two arrays 4 times as large as the weights.
WEIGHT_PARTS = 4
# How many pairs (c, o) of channels are transformed at a time: 0.6 MB of float32.
WEIGHT_CHUNK = 2**12


class Tiles:
    """The tiles of an output (N, OH, OW, O), cut into blocks. Tiles are im2col's patches with stride 4."""

    def __init__(self, n: int, out_size: tuple[int, int], out_channels: int, padding):
        rows, columns = (-(-size // 4) for size in out_size)
        self.inputs = Patches((6, 6), (4, 4), padding, (rows, columns))
        self.outputs = Patches((4, 4), (4, 4), (0, 0), (rows, columns))
        most = max(BLOCK_TILES, BLOCK_COLUMNS // out_channels)
        tiles = min(most, max(LEAST_TILES, n * rows * columns // LEAST_BLOCKS))
        self.blocks = pieces_of(n, rows, round(tiles / (rows * columns)), round(tiles / columns))


def forward(x, weight, bias, padding):
    """`conv2d_forward` for 3x3 kernels with stride 1."""
    return _convolve(x, transform_weight(weight, transforms(weight.dtype).g), bias, padding)


def backward_x(grad, weight, padding):
    """dL/dx: dL/dy convolved with the kernel turned by 180 degrees."""
    u = transform_weight(weight, transforms(weight.dtype).g_turned).transpose(0, 2, 1)  # (36, C, O) -> (36, O, C)
    return _convolve(grad, u, None, (2 - padding[0], 2 - padding[1]))


def _convolve(x, u, bias, padding):
    out_size, out_channels = output_size(x.shape[1:3], (3, 3), (1, 1), padding), u.shape[2]
    tiles = Tiles(len(x), out_size, out_channels, padding)
    y = np.empty((len(x), *out_size, out_channels), x.dtype)

    def convolve(block):
        v = transform_input(x, tiles.inputs, block)  # (tiles, 36, C)
        m = scratch("winograd_products", (len(v), 36, out_channels), x.dtype)
        np.matmul(v.transpose(1, 0, 2), u, out=m.transpose(1, 0, 2))  # (36, tiles, C) @ (36, C, O)
        outputs = scratch("winograd_outputs", (len(v), 16, out_channels), x.dtype)
        np.matmul(transforms(x.dtype).a_t, m, out=outputs)
        if bias is not None:
            outputs += bias
        tiles.outputs.put(outputs, y, block)

    map_pieces(convolve, tiles.blocks)
    return y


def backward_weight(grad, x, padding):
    """dL/dweight: the transposes of the 36 products, then the transpose of the kernel's transform."""
    c, o = x.shape[3], grad.shape[3]
    tiles = Tiles(len(x), grad.shape[1:3], o, padding)

    def correlate(blocks):
        total = scratch("winograd_total", (36, c, o), grad.dtype)
        for block in blocks:
            v = transform_input(x, tiles.inputs, block).transpose(1, 2, 0)  # (36, C, tiles)
            grad_m = transform_grad(grad, tiles.outputs, block).transpose(1, 0, 2)  # (36, tiles, O)
            if block is blocks[0]:
                np.matmul(v, grad_m, out=total)
            else:
                total += np.matmul(v, grad_m, out=scratch("product", total.shape, total.dtype))
        return transforms(grad.dtype).g.T @ total.reshape(36, c * o)

    parts = [tiles.blocks[some] for some in slices(len(tiles.blocks), -(-len(tiles.blocks) // WEIGHT_PARTS))]
    return sum_pieces(correlate, parts).reshape(3, 3, c, o)


def transform_weight(weight, transform: np.ndarray) -> np.ndarray:
    """U: (3, 3, C, O) -> (36, C, O). `transform` is `g` or `g_turned`."""
    _, _, c, o = weight.shape
    u = np.empty((36, c * o), weight.dtype)
    taps = weight.reshape(9, c * o)
    map_pieces(lambda piece: np.matmul(transform, taps[:, piece], out=u[:, piece]), slices(c * o, WEIGHT_CHUNK))
    return u.reshape(36, c, o)


def transform_input(x, patches: Patches, block: Piece) -> np.ndarray:
    """V of a block: x (N, H, W, C) -> (tiles, 36, C), in this thread's scratch."""
    d = patches.columns(x, block).reshape(-1, 36, x.shape[3])
    return np.matmul(transforms(x.dtype).b_t, d, out=scratch("winograd_input", d.shape, x.dtype))


def transform_grad(grad, patches: Patches, block: Piece) -> np.ndarray:
    """dL/dM of a block: dL/dy (N, OH, OW, O) -> (tiles, 36, O), in this thread's scratch."""
    tiles = patches.columns(grad, block).reshape(-1, 16, grad.shape[3])
    grad_m = scratch("winograd_grad", (len(tiles), 36, grad.shape[3]), grad.dtype)
    return np.matmul(transforms(grad.dtype).a_t.T, tiles, out=grad_m)
