"""The matrix product, as a product in the sense of `_product` for each pair of matrices of a batch.

It needs no cuBLAS, which CuPy cannot capture in a graph.
"""

import math

import cupy
import numpy as np

from minidl.kernels.cuda._fusion import computed
from minidl.kernels.cuda._launch import contiguous
from minidl.kernels.cuda._product import launch_product, product_kernels
from minidl.kernels.cuda.linear import linear_backward_weight

# For the tests: how the factors lie in memory, rows and columns of a tile, and bytes copied at once.
EXAMPLES = [
    {"A_BY_ROWS": a, "B_BY_ROWS": b, "TILE_ROWS": rows, "TILE_COLUMNS": columns}
    | {"BYTES_A": copied, "BYTES_B": copied, "BYTES_Y": copied}
    for a, b, rows, columns, copied in (
        (1, 1, 64, 16, 2),
        (1, 0, 64, 32, 8),
        (0, 1, 64, 64, 16),
        (0, 0, 128, 128, 16),
        (1, 0, 64, 128, 16),
    )
]

MATMUL = product_kernels(
    "matmul",
    """
// y = a b for each pair of matrices. The next pair begins next_a and next_b elements further on; 0 means that all pairs
// share a matrix.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) matmul(
    const stored* a, const stored* b, stored* y, index pairs, index rows, index columns, index depth, index next_a,
    index next_b
) {
    index tiles = gridDim.x / pairs, pair = blockIdx.x / tiles;
    Matrix<A_BY_ROWS != 0> left{a + pair * next_a, rows, A_BY_ROWS ? depth : rows};
    Matrix<B_BY_ROWS == 0> right{b + pair * next_b, columns, B_BY_ROWS ? columns : depth};
    const real* no_bias = nullptr;
    Rows<stored> result{y + pair * rows * columns, columns};
    multiply(left, right, no_bias, result, blockIdx.x % tiles, rows, columns, 0, depth);
}
""",
    EXAMPLES,
)


def matmul(a, b):
    """y = a b over the last two axes: (..., n, k), (..., k, m) -> (..., n, m). The other axes broadcast."""
    if a.dtype.kind in "biu":
        return a @ b  # a kernel of CuPy's
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y_shape = *batch, a.shape[-2], b.shape[-1]
    if 0 in y_shape or not a.shape[-1]:
        return cupy.zeros(y_shape, a.dtype)
    a, b = computed(a), computed(b)
    (a, a_by_rows), (b, b_by_rows) = _in_memory(a, batch), _in_memory(b, batch)
    if len(a) == len(b) == 1 and not a_by_rows:  # as a weight's gradient, whose depth is cut into slabs
        b = b[0] if b_by_rows else b[0].T
        return linear_backward_weight(b, a[0]).astype(a.dtype, copy=False).reshape(y_shape)
    if len(b) == 1 and a_by_rows:  # all rows in one product
        a = a.reshape(1, -1, a.shape[-1])
    return _product(a, b, a_by_rows, b_by_rows).reshape(y_shape)


def _in_memory(x, batch: tuple[int, ...]):
    """(x as contiguous matrices: one for each of the batch or one for all, True if they are stored by rows)."""
    if math.prod(x.shape[:-2]) > 1:
        x = cupy.broadcast_to(x, (*batch, *x.shape[-2:]))
    by_rows = x.flags.c_contiguous or not x.swapaxes(-1, -2).flags.c_contiguous
    x = contiguous(x if by_rows else x.swapaxes(-1, -2))
    return x.reshape(-1, *x.shape[-2:]), by_rows


def _product(a, b, a_by_rows: bool, b_by_rows: bool):
    """The products of the pairs (a[i], b[i]). If a or b is a single matrix, it is in all pairs."""
    rows, depth = a.shape[1:] if a_by_rows else a.shape[:0:-1]
    columns = b.shape[2] if b_by_rows else b.shape[1]
    pairs = max(len(a), len(b))
    y = cupy.empty((pairs, rows, columns), a.dtype)
    constants = {"A_BY_ROWS": int(a_by_rows), "B_BY_ROWS": int(b_by_rows)}
    steps = [rows * depth if len(a) > 1 else 0, depth * columns if len(b) > 1 else 0]
    operands = (a, a.shape[2]), (b, b.shape[2]), (y, columns)
    arguments = a, b, y, pairs, rows, columns, depth, *steps
    launch_product(MATMUL, rows, columns, pairs, operands, arguments, constants)
    return y
