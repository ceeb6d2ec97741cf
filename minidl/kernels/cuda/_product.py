"""A matrix product whose operands are functions from indices to addresses, so that no matrix has to exist in memory.

A block of threads computes a tile of the result. Step by step along the depth it copies a tile of each operand to
shared memory. While it multiplies two tiles, the next two are being copied. The products are computed in one of two
ways: each thread computes a few rows and columns (`_multiply_add`: float32 and float64, on any GPU), or tensor cores
compute them (`_tensor_cores`: bfloat16, and float32 rounded to TF32).

Volkov, Demmel 2008, "Benchmarking GPUs to tune dense linear algebra".
"""

import math

import numpy as np

from minidl.kernels.cuda._launch import FLOATS, OLDEST, WITH_BFLOAT16, CudaKernel
from minidl.kernels.cuda._multiply_add import MULTIPLY_ADD
from minidl.kernels.cuda._tensor_cores import TENSOR_CORES
from minidl.system.precision import tf32_is_on

TILE_ROWS, THREADS = 128, 256
LARGEST_COPY = 16  # bytes that one instruction can copy to shared memory

TILES = (
    f"constexpr int THREADS = {THREADS}, TILE_ROWS = {TILE_ROWS};\n"
    + """
// Special instructions are used on GPUs that have them, unless a test asks for the plain code with the same result.
#if __CUDA_ARCH__ >= 800 && !defined(PLAIN)
#define HAS_INSTRUCTIONS
#endif

constexpr int DEPTH = 64 / sizeof(stored);  // elements along the depth in a tile
constexpr int BESIDE = 16 / sizeof(stored), BELOW = 8;  // unused elements, see Tile

// The number of elements in that many bytes; at least one.
__device__ constexpr int run_of(int bytes) {
    return bytes > (int)sizeof(stored) ? bytes / (int)sizeof(stored) : 1;
}

// Two neighbouring elements, written at once.
template <typename Number>
struct alignas(2 * sizeof(Number)) Pair {
    Number first, second;
};

// A tile of an operand: some lines (rows of the left operand, columns of the right one), each DEPTH long. Elements that
// are neighbours in the operand's memory are neighbours here: in a line if ALONG_DEPTH, else across lines. A few unused
// elements at the end of each row put the elements that a warp reads at once into different banks.
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

// Start to copy RUN elements to shared memory, without waiting for them. If `from` is null, zeros are written instead;
// the instruction then still needs a valid address, `any`.
template <int RUN>
__device__ void copy(stored* to, const stored* from, const stored* any) {
#ifdef HAS_INSTRUCTIONS
    constexpr int bytes = RUN * sizeof(stored);
    if constexpr (bytes >= 4) {
        unsigned int address = (unsigned int)__cvta_generic_to_shared(to);
        if constexpr (bytes == 16)  // past the L1 cache: no thread of this block reads them again
            asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;"
                         :: "r"(address), "l"(from ? from : any), "n"(bytes), "r"(from ? bytes : 0) : "memory");
        else
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                         :: "r"(address), "l"(from ? from : any), "n"(bytes), "r"(from ? bytes : 0) : "memory");
        return;
    }
#endif
    Run<RUN> run = {};
    if (from) run = *(const Run<RUN>*)from;
    *(Run<RUN>*)to = run;
}

// The copies started since the last call become a group.
__device__ void end_group_of_copies() {
#ifdef HAS_INSTRUCTIONS
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until all groups but the last one have arrived.
__device__ void wait_for_all_groups_but_one() {
#ifdef HAS_INSTRUCTIONS
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

// Copies one thread's share of an operand's tiles. An operand has
//   Line line(index)   a row (of the left operand) or a column (of the right one), computed by division only once,
//   Step step(index)   a position along the depth, computed likewise; advance(Step&, count) moves it on,
//   at(Line, Step)     the address of an element, or null if the element is 0; `numbers` is that of the first one.
// RUN elements are copied at a time: they are neighbours in memory, and either all or none of them are null.
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
            if constexpr (T::ROWS * ACROSS % THREADS != 0)
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
// y[row * columns + column] = bias[column] + sum over first <= k < end of a(row, k) b(k, column), for one tile. An
// operand with along_depth is contiguous along the depth. BYTES_A and BYTES_B are copied at a time.
template <class A, class B, typename Number>
__device__ void multiply(
    const A& a, const B& b, const real* bias, Number* y, index rows, index columns, index first, index end
) {
    using TileA = Tile<TILE_ROWS, A::along_depth>;
    using TileB = Tile<TILE_COLUMNS, B::along_depth>;
    __shared__ TileA a_tiles[2];
    __shared__ TileB b_tiles[2];
    // Neighbouring blocks share rows of a, so that these are read from the cache.
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
        end_group_of_copies();  // empty in the last step, so that the last group but one is always this step's
        wait_for_all_groups_but_one();
        __syncthreads();
        sums.add_product(a_tiles[now], b_tiles[now]);
        __syncthreads();  // before the tiles are overwritten
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

# With and without tensor cores. With more columns in a tile, multiply-add would need more registers than there are.
WAYS, WIDEST = {False: MULTIPLY_ADD, True: TENSOR_CORES}, {False: 64, True: 128}


def product_kernels(name: str, source: str, examples: list[dict[str, int]]) -> dict[bool, CudaKernel]:
    """{False: kernel, True: kernel with tensor cores}, from a source that calls multiply()."""

    def kernel(tensor_cores: bool, dtypes, lowest_architecture):
        whole = TILES + WAYS[tensor_cores] + PRODUCT + source
        possible = [constants for constants in examples if constants["TILE_COLUMNS"] <= WIDEST[tensor_cores]]
        return CudaKernel(name, whole, dtypes, possible, lowest_architecture)

    return {False: kernel(False, FLOATS, OLDEST), True: kernel(True, ("float32", "bfloat16"), WITH_BFLOAT16)}


def launch_product(kernels, rows: int, columns: int, slabs: int, operands, arguments: tuple, constants) -> None:
    """Run a kernel that calls multiply(), with a block for each tile of (rows, columns) and each slab of the depth.

    `operands` are two pairs, for a and for b: the array and the length of its runs of neighbouring elements.
    """
    dtype = operands[0][0].dtype
    tensor_cores = str(dtype) == "bfloat16" or (dtype == np.float32 and tf32_is_on())
    width = next((width for width in (16, 32, 64) if columns <= width), WIDEST[tensor_cores])
    bytes_at_once = {f"BYTES_{name}": copied_at_once(*pair) for name, pair in zip("AB", operands, strict=True)}
    blocks = -(-rows // TILE_ROWS) * -(-columns // width), slabs
    constants = constants | {"TILE_COLUMNS": width} | bytes_at_once
    kernels[tensor_cores].launch(blocks, THREADS, arguments, dtype, constants)


def copied_at_once(array, length: int) -> int:
    """Bytes that one instruction can copy: at most 16, and a divisor of both the run's length and the address."""
    return math.gcd(length * array.itemsize, array.data.ptr, LARGEST_COPY)
