"""A product of matrices whose numbers are fetched where they lie, so that neither matrix has to exist in memory.

A block of threads computes a tile of the result. Step by step along the depth it copies a tile of each operand to
shared memory, and while it multiplies these, the copies of the next two are under way. Products are computed in one of
two ways: by each thread for a few rows and columns of its own (`_multiply_add`: any numbers, on any GPU), or by tensor
cores (`_tensor_cores`: bfloat16, and float32 rounded to TF32).

Volkov, Demmel 2008, "Benchmarking GPUs to tune dense linear algebra".
"""

import math

import numpy as np

from minidl.kernels.cuda._launch import FLOATS, OLDEST, WITH_BFLOAT16, CudaKernel
from minidl.kernels.cuda._multiply_add import MULTIPLY_ADD
from minidl.kernels.cuda._tensor_cores import TENSOR_CORES
from minidl.system.precision import tf32_is_on

TILE_ROWS, THREADS = 128, 256
LARGEST_COPY = 16  # bytes that one instruction brings to shared memory

TILES = (
    f"constexpr int THREADS = {THREADS}, TILE_ROWS = {TILE_ROWS};\n"
    + """
// Instructions that only a GPU has are used where it has them, unless a test asks for their plain twins.
#if __CUDA_ARCH__ >= 800 && !defined(PLAIN)
#define HAS_INSTRUCTIONS
#endif

constexpr int DEPTH = 64 / sizeof(stored);  // numbers along the depth that a tile holds
constexpr int BESIDE = 16 / sizeof(stored), BELOW = 8;  // unused numbers, for which see Tile

// How many numbers are that many bytes; at least one.
__device__ constexpr int run_of(int bytes) {
    return bytes > (int)sizeof(stored) ? bytes / (int)sizeof(stored) : 1;
}

// What two numbers side by side are written as, at once.
template <typename Number>
struct alignas(2 * sizeof(Number)) Pair {
    Number first, second;
};

// Some lines of an operand (rows of the left one, columns of the right one), DEPTH long. Numbers that lie side by side
// in memory do so here: those of a line if ALONG_DEPTH, else those of different lines. A few unused numbers at the end
// of each row let the numbers that a warp reads at once lie in different banks.
template <int LINES, bool ALONG_DEPTH>
struct Tile {
    static constexpr bool along_depth = ALONG_DEPTH;
    static constexpr int ROWS = ALONG_DEPTH ? LINES : DEPTH, WIDTH = ALONG_DEPTH ? DEPTH : LINES;
    static constexpr int STRIDE = WIDTH + (ALONG_DEPTH ? BESIDE : BELOW);
    alignas(16) stored numbers[ROWS * STRIDE];
    __device__ stored at(int line, int depth) const {
        return numbers[ALONG_DEPTH ? line * STRIDE + depth : depth * STRIDE + line];
    }
};

template <int RUN>
struct alignas(RUN * sizeof(stored)) Run {
    stored numbers[RUN];
};

// Copy RUN numbers to shared memory, without waiting for them; zeros where `from` is null, for which the instruction
// wants some address in the device's memory all the same.
template <int RUN>
__device__ void copy(stored* to, const stored* from, const stored* any) {
#ifdef HAS_INSTRUCTIONS
    constexpr int bytes = RUN * sizeof(stored);
    if constexpr (bytes >= 4) {
        unsigned int address = (unsigned int)__cvta_generic_to_shared(to);
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :: "r"(address), "l"(from ? from : any), "n"(bytes), "r"(from ? bytes : 0) : "memory");
        return;
    }
#endif
    Run<RUN> run = {};
    if (from) run = *(const Run<RUN>*)from;
    *(Run<RUN>*)to = run;
}

// What has been copied since the last call becomes a group.
__device__ void end_group_of_copies() {
#ifdef HAS_INSTRUCTIONS
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until all groups but the last have arrived.
__device__ void wait_for_all_groups_but_one() {
#ifdef HAS_INSTRUCTIONS
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

// What a thread copies to the tiles of an operand, which has
//   Line line(index)   where a row (or a column) of the product begins in it,
//   Step step(index)   a position along the depth, which advance(Step, count) moves on,
//   at(Line, Step)     the address of a number, or null where it is 0; `numbers` is that of the first.
// Both are found by division once only. RUN numbers are copied at a time: they lie side by side, all or none is 0.
template <class Operand, int LINES, bool ALONG_DEPTH, int RUN>
struct Copier {
    using T = Tile<LINES, ALONG_DEPTH>;
    static constexpr int ACROSS = T::WIDTH / RUN, TURNS = (T::ROWS * ACROSS + THREADS - 1) / THREADS;
    static constexpr int LINE_COUNT = ALONG_DEPTH ? TURNS : 1, STEP_COUNT = ALONG_DEPTH ? 1 : TURNS;

    const Operand& operand;
    typename Operand::Line lines[LINE_COUNT];
    typename Operand::Step steps[STEP_COUNT];
    index depth_left;
    int row = threadIdx.x / ACROSS, column = threadIdx.x % ACROSS * RUN;

    __device__ Copier(const Operand& operand, index first_line, index first_depth, index end_depth)
        : operand(operand), depth_left(end_depth - first_depth) {
        for (int i = 0; i < LINE_COUNT; i++)
            lines[i] = operand.line(first_line + (ALONG_DEPTH ? row + i * (THREADS / ACROSS) : column));
        for (int i = 0; i < STEP_COUNT; i++)
            steps[i] = operand.step(first_depth + (ALONG_DEPTH ? column : row + i * (THREADS / ACROSS)));
    }

    __device__ void copy_next(T& tile) {
        #pragma unroll
        for (int i = 0; i < TURNS; i++) {
            int my_row = row + i * (THREADS / ACROSS), depth = ALONG_DEPTH ? column : my_row;
            if (my_row >= T::ROWS) break;
            bool inside = depth < depth_left;
            const stored* from = inside ? operand.at(lines[ALONG_DEPTH ? i : 0], steps[ALONG_DEPTH ? 0 : i]) : nullptr;
            copy<RUN>(tile.numbers + my_row * T::STRIDE + column, from, operand.numbers);
        }
        #pragma unroll
        for (int i = 0; i < STEP_COUNT; i++) operand.advance(steps[i], DEPTH);
        depth_left -= DEPTH;
    }
};
"""
)

PRODUCT = """
// y[row * columns + column] = bias[column] + sum over first <= k < end of a(row, k) b(k, column), for one tile. The
// operands say whether their numbers lie side by side along the depth; RUN_A and RUN_B of them are copied at a time.
template <class A, class B, typename Number>
__device__ void multiply(
    const A& a, const B& b, const real* bias, Number* y, index rows, index columns, index first, index end
) {
    using TileA = Tile<TILE_ROWS, A::along_depth>;
    using TileB = Tile<TILE_COLUMNS, B::along_depth>;
    __shared__ TileA a_tiles[2];
    __shared__ TileB b_tiles[2];
    // Neighbouring blocks share rows of a, which the cache then holds.
    index across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    index first_row = blockIdx.x / across * TILE_ROWS, first_column = blockIdx.x % across * TILE_COLUMNS;
    Copier<A, TILE_ROWS, A::along_depth, run_of(BYTES_A)> copy_a(a, first_row, first, end);
    Copier<B, TILE_COLUMNS, B::along_depth, run_of(BYTES_B)> copy_b(b, first_column, first, end);
    Sums sums;

    copy_a.copy_next(a_tiles[0]);
    copy_b.copy_next(b_tiles[0]);
    end_group_of_copies();
    int now = 0;
    for (index k = first; k < end; k += DEPTH, now = 1 - now) {
        if (k + DEPTH < end) {
            copy_a.copy_next(a_tiles[1 - now]);
            copy_b.copy_next(b_tiles[1 - now]);
        }
        end_group_of_copies();  // an empty one at the end, so that the last but one is always this step's
        wait_for_all_groups_but_one();
        __syncthreads();
        sums.add_product(a_tiles[now], b_tiles[now]);
        __syncthreads();  // before anybody overwrites the tiles
    }
    sums.for_each_pair([=](int tile_row, int tile_column, real one, real other) {
        index row = first_row + tile_row, column = first_column + tile_column;
        if (row >= rows || column >= columns) return;
        bool both = column + 1 < columns;
        if (bias) {
            one += bias[column];
            if (both) other += bias[column + 1];
        }
        Number* to = y + row * columns + column;
        if (columns % 2 == 0) {
            *(Pair<Number>*)to = {one, other};
        } else {
            to[0] = one;
            if (both) to[1] = other;
        }
    });
}
"""

# By whether tensor cores are used. A wider tile of multiply-add would have more sums than a thread has registers.
WAYS, WIDEST = {False: MULTIPLY_ADD, True: TENSOR_CORES}, {False: 64, True: 128}  # columns


def product_kernels(name: str, source: str, examples: list[dict[str, int]]) -> dict[bool, CudaKernel]:
    """The kernel of a function that calls multiply(), computing in either of the two ways."""

    def kernel(tensor_cores: bool, dtypes, lowest_architecture):
        whole = TILES + WAYS[tensor_cores] + PRODUCT + source
        possible = [constants for constants in examples if constants["TILE_COLUMNS"] <= WIDEST[tensor_cores]]
        return CudaKernel(name, whole, dtypes, possible, lowest_architecture)

    return {False: kernel(False, FLOATS, OLDEST), True: kernel(True, ("float32", "bfloat16"), WITH_BFLOAT16)}


def launch_product(kernels, rows: int, columns: int, slabs: int, operands, arguments: tuple, constants) -> None:
    """Run a kernel that calls multiply(): a block for each tile of (rows, columns), and for each slab of the depth.

    `operands` are, for a and for b, the array and the length of which a multiple lies side by side in it.
    """
    dtype = operands[0][0].dtype
    tensor_cores = str(dtype) == "bfloat16" or (dtype == np.float32 and tf32_is_on())
    width = next((width for width in (16, 32, 64) if columns <= width), WIDEST[tensor_cores])
    bytes_at_once = {f"BYTES_{name}": copied_at_once(*pair) for name, pair in zip("AB", operands, strict=True)}
    blocks = -(-rows // TILE_ROWS) * -(-columns // width), slabs
    constants = constants | {"TILE_COLUMNS": width} | bytes_at_once
    kernels[tensor_cores].launch(blocks, THREADS, arguments, dtype, constants)


def copied_at_once(array, length: int) -> int:
    """How many bytes one instruction can copy: as many as the length is a multiple of, aligned, and 16 at most."""
    return math.gcd(length * array.itemsize, array.data.ptr, LARGEST_COPY)
