"""How kernels that work channel by channel deal the rows of an array to threads, and add up what the threads have."""

from typing import NamedTuple

from minidl.kernels.cuda._launch import THREADS

WIDTH = 32  # channels side by side in a block: a warp then reads 128 bytes of float32 that lie together
BLOCKS_AT_ONCE = 1024  # what a large GPU runs side by side: 8 of 256 threads on each of 132 multiprocessors
ROWS_PER_SUM = 32  # rows that a thread adds up before its block does, while the GPU is kept busy

# What the source of such a kernel begins with. A block has 256 threads and is (group of channels, slab of rows).
SLABS = """
// The numbers x[i] that a thread works on, for k = 0 .. count - 1: i = first + k * stride.
struct Walk {
    index first, stride, count;
};

// Thread (x, y) walks down channel x of the group, which is thread_number(), through every blockDim.y-th row of the
// slab, from row y on. Where the group reaches beyond the last channel, or the slab beyond the last row, is nothing.
// (That the count is known before the loop lets the compiler read ahead.)
__device__ Walk walk_down(index rows, index channels, index rows_per_thread) {
    index channel = thread_number(), height = blockDim.y;
    index row = (index)blockIdx.y * height * rows_per_thread + threadIdx.y;
    index left = row < rows && channel < channels ? (rows - 1 - row) / height + 1 : 0;
    return {row * channels + channel, height * channels, left < rows_per_thread ? left : rows_per_thread};
}

// True for the thread that writes its channel's sum.
__device__ bool writes(index channels) {
    return threadIdx.y == 0 && thread_number() < channels;
}

// The sum of what the threads of one channel have, in a fixed order; each of them gets it.
template <typename Value>
__device__ Value sum_over_rows(Value value) {
    __shared__ Value partial[256];
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
    partial[thread] = value;
    __syncthreads();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        if ((int)threadIdx.y < half) partial[thread] = partial[thread] + partial[thread + half * blockDim.x];
        __syncthreads();
    }
    value = partial[threadIdx.x];
    __syncthreads();  // before anybody writes to it again
    return value;
}
"""


class Slabs(NamedTuple):
    """Rows cut into slabs; the rows of each thread in a slab; the blocks and threads of the launch."""

    count: int
    rows_per_thread: int
    blocks: tuple[int, int]
    threads: tuple[int, int]


def cut(rows: int, channels: int, rows_per_thread: int, most_blocks: int) -> Slabs:
    """Slabs with that many rows for each thread, or more, so that there are at most `most_blocks` blocks.

    A function of the shape alone, so that sums come out the same on every GPU.
    """
    width = min(WIDTH, 1 << (channels - 1).bit_length())  # a power of two
    height = THREADS // width
    groups = -(-channels // width)
    most_slabs = max(most_blocks // groups, 1)
    rows_per_thread = max(rows_per_thread, -(-rows // (height * most_slabs)))
    count = max(-(-rows // (height * rows_per_thread)), 1)
    return Slabs(count, rows_per_thread, (groups, count), (width, height))


def cut_for_sums(rows: int, channels: int) -> Slabs:
    """Slabs for a sum over all rows: one result for each slab."""
    return cut(rows, channels, ROWS_PER_SUM, BLOCKS_AT_ONCE)


def one_slab(rows: int, channels: int) -> Slabs:
    """All rows in one slab: for the sum over those results."""
    return cut(rows, channels, 1, 1)
