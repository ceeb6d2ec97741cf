"""How kernels that work channel by channel distribute rows over threads, and combine the results of the threads."""

import math
from typing import NamedTuple

from minidl.kernels.cuda._launch import THREADS
from minidl.kernels.cuda._vectors import VECTORS, vector_size

WIDTH = 32  # neighbouring vectors of channels in a block: the threads of a warp then read 512 contiguous bytes
MERGING_WIDTH = 8  # channels of a block that adds up partial sums: 32 bytes, the least that is read at once
ONE_CHANNEL = {"VECTOR": 1}  # in kernels that add up partial sums: there, more threads are better than wider accesses
MOST_BLOCKS = 65535  # CUDA's limit for the second dimension of a grid, the slabs
BLOCKS_AT_ONCE = 512  # that a large GPU runs at once: 4 blocks of 256 threads on each of 132 multiprocessors
# Rows that a thread adds up itself, before the threads of its block are added up. Few rows give many partial sums; over
# many rows rounding errors grow.
FEWEST_ROWS, MOST_ROWS = 8, 64
ROWS_WITHOUT_SUMS = 4  # of a thread that adds up nothing: all are read at once, and the channel's parameters only once

# Put before the source of such a kernel. A block has 256 threads; the grid is (groups of columns, slabs of rows). A
# column is a vector of VECTOR neighbouring channels: see `_vectors`.
SLABS = (
    VECTORS
    + """
// The vectors first + k * stride, for k = 0 .. count - 1, that a thread works on.
struct Walk {
    index first, stride, count;
};

// Thread (x, y) works on column x of its group, that is column thread_number(), in the rows y, y + blockDim.y,
// y + 2 * blockDim.y ... of its slab. Beyond the last column and the last row there is nothing to do. (The count is
// computed before the loop, so that the compiler can read ahead.)
__device__ Walk walk_down(index rows, index columns, index rows_per_thread) {
    index column = thread_number(), height = blockDim.y;
    index row = (index)blockIdx.y * height * rows_per_thread + threadIdx.y;
    int log2_height = __ffs(blockDim.y) - 1;  // it is a power of two, and a division takes much longer than a shift
    index left = row < rows && column < columns ? (rows - 1 - row >> log2_height) + 1 : 0;
    return {row * columns + column, height * columns, left < rows_per_thread ? left : rows_per_thread};
}

// True for the thread that has its column's sum, and writes it.
__device__ bool writes(index columns) {
    return threadIdx.y == 0 && thread_number() < columns;
}

// The sum of `value` over the threads of a column, in a fixed order. The first of them, y = 0, receives it.
template <typename Value>
__device__ Value sum_over_rows(Value value) {
    __shared__ Value partial[256];
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
    partial[thread] = value;
    __syncthreads();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        if ((int)threadIdx.y < half) partial[thread] = value = value + partial[thread + half * blockDim.x];
        __syncthreads();  // the last one: before `partial` is written again
    }
    return value;
}
"""
)


class Slabs(NamedTuple):
    """The number of slabs that the rows are cut into, the rows per thread, and the blocks and threads of the launch."""

    count: int
    rows_per_thread: int
    blocks: tuple[int, int]
    threads: tuple[int, int]

    @property
    def rows(self) -> int:
        """The rows of a slab; the last one may have fewer."""
        return self.rows_per_thread * self.threads[1]


def cut(rows: int, columns: int, rows_per_thread: int, most_blocks: int, most_width: int = WIDTH) -> Slabs:
    """Slabs with `rows_per_thread` rows, or more if there would otherwise be more than `most_blocks` blocks.

    The slabs depend on the shape alone, so that sums are the same on every GPU.
    """
    width = min(most_width, 1 << (columns - 1).bit_length())  # a power of two
    height = THREADS // width
    groups = -(-columns // width)
    most_slabs = max(most_blocks // groups, 1)
    rows_per_thread = max(rows_per_thread, -(-rows // (height * most_slabs)))
    count = max(-(-rows // (height * rows_per_thread)), 1)
    return Slabs(count, rows_per_thread, (groups, count), (width, height))


def cut_for_sums(rows: int, columns: int) -> Slabs:
    """Slabs for a sum over all rows. Each slab has a partial sum.

    Enough blocks for a large GPU, of which each thread has FEWEST_ROWS to MOST_ROWS rows.
    """
    for_few_blocks = cut(rows, columns, FEWEST_ROWS, BLOCKS_AT_ONCE)
    return cut(rows, columns, min(for_few_blocks.rows_per_thread, MOST_ROWS), MOST_BLOCKS)


def cut_without_sums(rows: int, columns: int) -> Slabs:
    """Slabs for a kernel that computes each number by itself."""
    return cut(rows, columns, ROWS_WITHOUT_SUMS, MOST_BLOCKS)


def one_slab(rows: int, columns: int) -> Slabs:
    """All rows in a single slab, to add up the partial sums."""
    return cut(rows, columns, 1, 1, MERGING_WIDTH)


def columns_of(x):
    """(rows, columns, constants) for a kernel on x, (..., C): a row has C / VECTOR columns."""
    channels = x.shape[-1]
    vector = vector_size(channels, x.dtype)
    return math.prod(x.shape[:-1]), channels // vector, {"VECTOR": vector}
