"""Matrix products in blocks of rows, where OpenBLAS multiplies these faster than the whole."""

import numpy as np

from minidl.kernels.cpu._scratch import scratch

# (measured) OpenBLAS multiplies small matrices, up to a million multiplications, without packing copies of them first:
# 150 instead of 124 GFLOP/s a core for 144 columns and 16 outputs. Blocks of fewer rows than these do not pay.
SMALL_PRODUCT, LEAST_ROWS = 10**6, 64


def multiply(a, b, out) -> None:
    """out = a b, a block of rows at a time where that is faster."""
    block = rows_of_a_block(len(a), b.size)
    np.matmul(a.reshape(-1, block, a.shape[1]), b, out=out.reshape(-1, block, out.shape[1]))


def add_product(a, b, total, is_first: bool) -> None:
    """total += a b, or total = a b if it is the first; the sum over blocks where that is faster."""
    block = rows_of_a_block(len(b), total.size)
    blocks = len(b) // block
    if is_first and blocks == 1:
        np.matmul(a, b, out=total)
        return
    products = scratch("products", (blocks, *total.shape), total.dtype)
    a_blocks = a.reshape(len(a), blocks, block).transpose(1, 0, 2)
    np.matmul(a_blocks, b.reshape(blocks, block, -1), out=products)
    product = products.sum(axis=0) if blocks > 1 else products[0]
    if is_first:
        total[...] = product
    else:
        total += product


def rows_of_a_block(rows: int, multiplications_of_a_row: int) -> int:
    """The largest power of two that divides the rows and makes a small product; else all rows."""
    block = rows & -rows
    while block * multiplications_of_a_row > SMALL_PRODUCT:
        block //= 2
    return block if block >= LEAST_ROWS else rows
