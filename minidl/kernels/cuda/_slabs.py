"""How kernels that work channel by channel distribute rows over threads, and combine the results of the threads."""

from typing import NamedTuple

from minidl.kernels.cuda._launch import THREADS

WIDTH = 32  # neighbouring channels in a block: a warp then reads 128 contiguous bytes of float32
BLOCKS_AT_ONCE = 1024  # that a large GPU runs at once: 8 blocks of 256 threads on each of 132 multiprocessors
ROWS_PER_SUM = 32  # rows that a thread adds up itself, before the threads of its block are added up

# Put before the source of such a kernel. A block has 256 threads; the grid is (groups of channels, slabs of rows).
SLABS = """
// The elements x[first + k * stride], for k = 0 .. count - 1, that a thread works on.
struct Walk {
    index first, stride, count;
};

// Thread (x, y) works on channel x of its group, that is channel thread_number(), in the rows y, y + blockDim.y,
// y + 2 * blockDim.y ... of its slab. Beyond the last channel and the last row there is nothing to do. (The count is
// computed before the loop, so that the compiler can read ahead.)
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

// The sum of `value` over the threads of a channel, in a fixed order; all of them receive it.
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
    __syncthreads();  // before `partial` is written again
    return value;
}
"""


class Slabs(NamedTuple):
    """The number of slabs that the rows are cut into, the rows per thread, and the blocks and threads of the launch."""

    count: int
    rows_per_thread: int
    blocks: tuple[int, int]
    threads: tuple[int, int]


def cut(rows: int, channels: int, rows_per_thread: int, most_blocks: int) -> Slabs:
    """Slabs with `rows_per_thread` rows, or more if there would otherwise be more than `most_blocks` blocks.

    The slabs depend on the shape alone, so that sums are the same on every GPU.
    """
    width = min(WIDTH, 1 << (channels - 1).bit_length())  # a power of two
    height = THREADS // width
    groups = -(-channels // width)
    most_slabs = max(most_blocks // groups, 1)
    rows_per_thread = max(rows_per_thread, -(-rows // (height * most_slabs)))
    count = max(-(-rows // (height * rows_per_thread)), 1)
    return Slabs(count, rows_per_thread, (groups, count), (width, height))


def cut_for_sums(rows: int, channels: int) -> Slabs:
    """Slabs for a sum over all rows. Each slab has a partial sum."""
    return cut(rows, channels, ROWS_PER_SUM, BLOCKS_AT_ONCE)


def one_slab(rows: int, channels: int) -> Slabs:
    """All rows in a single slab, to add up the partial sums."""
    return cut(rows, channels, 1, 1)
