"""A matrix product whose operands are functions from indices to addresses, so that no matrix has to exist in memory.

A block of threads computes a tile of the result. Step by step along the depth it copies a tile of each operand to
shared memory, which all its threads then read. The two tiles of a step are a stage. There are a few stages, so that
the tiles of the next steps are on their way while the block multiplies those of this step:

    step             0              1              2              3
    multiply     stage 0        stage 1        stage 2        stage 0
    copy to      stage 2        stage 0        stage 1        stage 2     with three stages: for two steps ahead

The products are computed in one of three ways: each thread computes a few rows and columns (`_multiply_add`: float32
and float64, on any GPU), or tensor cores compute them (`_tensor_cores`: bfloat16, float16, and float32 rounded to
TF32), on Hopper without the detour over registers (`_warpgroup`: bfloat16 and float16).

Volkov, Demmel 2008, "Benchmarking GPUs to tune dense linear algebra". For the stages: NVIDIA, CUTLASS, "Efficient GEMM
in CUDA".
"""

import math
from typing import NamedTuple

from minidl.kernels.cuda._launch import FLOATS, MOST_FOR_INT, OLDEST, WITH_BFLOAT16, CudaKernel
from minidl.kernels.cuda._multiply_add import MULTIPLY_ADD
from minidl.kernels.cuda._tensor_cores import PIECES, TENSOR_CORES
from minidl.kernels.cuda._warpgroup import WARPGROUP
from minidl.system.precision import tf32_is_on

LARGEST_COPY = 16  # bytes that one instruction can copy to shared memory
# Rows of a tile: 128, but 64 if there were fewer blocks than two for each multiprocessor of a large GPU. The number is
# that of an H100 whatever the GPU, so that results do not depend on it.
TILE_ROWS, FEW_ROWS, ENOUGH_BLOCKS = 128, 64, 2 * 132
# Rows and columns of a tile at most, if only 2 or 4 bytes can be copied at a time: a thread then copies more often, and
# keeps an address for each copy in registers.
LARGEST_OF_SMALL_COPIES = {2: (64, 32), 4: (128, 64)}
WIDEST_OF_LARGE_ARRAYS = 64  # with indices of 8 bytes, in two registers

TILES = """
// Special instructions are used on GPUs that have them, unless a test asks for the plain code with the same result.
#ifndef PLAIN
#if __CUDA_ARCH__ >= 750
#define TURING  // matrices loaded at once, and multiplied in float16
#endif
#if __CUDA_ARCH__ >= 800
#define AMPERE  // asynchronous copies, tensor cores for bfloat16 and TF32, two numbers rounded at once
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && TILE_COLUMNS >= 64
#define HOPPER  // matrices multiplied where they are in shared memory; a waste for few columns
#endif
#endif

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

#ifdef AMPERE
constexpr int MOST_STAGES = 4;
#else
constexpr int MOST_STAGES = 2;  // the copies of the next step are in registers
#endif

constexpr int DEPTH = 64 / sizeof(stored);  // elements along the depth in a tile
constexpr int CHUNK = 16 / sizeof(stored);  // elements in the 16 bytes that an instruction reads or copies at most

constexpr bool LARGEST = TILE_ROWS * TILE_COLUMNS == 128 * 128;
constexpr bool MANY_COPIES = BYTES_A < 8 || BYTES_B < 8;  // for each thread, with an address each

// The number of elements in that many bytes; at least one.
__device__ constexpr int run_of(int bytes) {
    return bytes > (int)sizeof(stored) ? bytes / (int)sizeof(stored) : 1;
}

// Neighbouring elements, read or written at once.
template <int COUNT, typename Number = stored>
struct alignas(COUNT * sizeof(Number)) Run {
    Number numbers[COUNT];
};

// A tile of an operand: some lines (rows of the left operand, columns of the right one), each DEPTH long. Elements that
// are neighbours in the operand's memory are neighbours here: in a line if ALONG_DEPTH, else across lines.
//
// Shared memory has 32 banks of 4 bytes, and two addresses in the same bank are served one after the other. A warp
// reads the same chunk of eight neighbouring rows at once, or two chunks of four rows if they hold 4-byte numbers that
// are not along the depth. So that all of these lie in different banks, the chunks have another order in each of those
// rows: the number of a chunk is XORed with a number of the row.
template <int LINES, bool ALONG_DEPTH>
struct Tile {
    static constexpr bool along_depth = ALONG_DEPTH;
    static constexpr int ROWS = ALONG_DEPTH ? LINES : DEPTH, WIDTH = ALONG_DEPTH ? DEPTH : LINES;
    static constexpr int CHUNKS = WIDTH / CHUNK < 8 ? WIDTH / CHUNK : 8;  // 8 chunks are in all 32 banks
    static constexpr int GROUP = CHUNKS * CHUNK;  // columns that lie together, row by row; then those of the next group
    // How much the order changes from row to row. Multiply-add reads rows across lines as they are.
    static constexpr int TURN = ALONG_DEPTH ? 1 : ON_TENSOR_CORES ? sizeof(stored) / 2 : 0;
    alignas(1024) stored numbers[ROWS * WIDTH];  // 8 rows of 8 chunks, after which the order repeats

    static __device__ int place(int line, int depth) {
        int row = ALONG_DEPTH ? line : depth, column = ALONG_DEPTH ? depth : line;
        int chunk = column % GROUP / CHUNK ^ row / (8 / CHUNKS) * TURN % CHUNKS;
        return (column / GROUP * ROWS + row) * GROUP + chunk * CHUNK + column % CHUNK;
    }
    __device__ stored at(int line, int depth) const { return numbers[place(line, depth)]; }

    // The address of the element at (line + lines_on, depth + depth_on), where the last two are constants. As the order
    // of the chunks repeats after 8 rows, most of them is added by the instruction that uses the address.
    __device__ const stored* address(int line, int depth, int lines_on, int depth_on) const {
        constexpr int MANY = 8 * CHUNK;
        int rows_on = ALONG_DEPTH ? lines_on : depth_on, columns_on = ALONG_DEPTH ? depth_on : lines_on;
        int few_rows = rows_on % 8, few_columns = columns_on % MANY;
        line += ALONG_DEPTH ? few_rows : few_columns;
        depth += ALONG_DEPTH ? few_columns : few_rows;
        const stored* near = numbers + place(line, depth);
        return near + ((rows_on - few_rows) * GROUP + (columns_on - few_columns) * ROWS);
    }
};

template <int BYTES>
struct Words {
    using Type = Run<BYTES / 4, unsigned int>;
};
template <>
struct Words<2> {
    using Type = unsigned short;
};

// Copies of RUN elements from global to shared memory. Where the GPU can, the copy is only started, and arrives by the
// time its group is waited for. Else start() reads into registers and finish() writes what was read.
// If not `inside`, zeros are written, and nothing is read: `from` may then be any address.
template <int RUN>
struct Copy {
    static constexpr int BYTES = RUN * sizeof(stored);
#ifdef AMPERE
    static constexpr bool ASYNCHRONOUS = BYTES >= 4;
#else
    static constexpr bool ASYNCHRONOUS = false;
#endif
    using Type = typename Words<BYTES>::Type;
    Type words;

    __device__ void start(stored* to, const stored* from, bool inside) {
        if constexpr (!ASYNCHRONOUS) {
            words = {};
            if (inside) words = *(const Type*)from;
            return;
        }
#ifdef AMPERE
        unsigned int address = (unsigned int)__cvta_generic_to_shared(to);
        if constexpr (BYTES == 16)  // past the L1 cache: no thread of this block reads them again
            asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;"
                         :: "r"(address), "l"(from), "n"(BYTES), "r"(inside ? BYTES : 0) : "memory");
        else
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                         :: "r"(address), "l"(from), "n"(BYTES), "r"(inside ? BYTES : 0) : "memory");
#endif
    }
    __device__ void finish(stored* to) {
        if constexpr (!ASYNCHRONOUS) *(Type*)to = words;
    }
};

// The copies started since the last call become a group.
__device__ void end_group_of_copies() {
#ifdef AMPERE
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until all groups but the last few have arrived.
template <int FEW>
__device__ void wait_for_all_groups_but() {
#ifdef AMPERE
    asm volatile("cp.async.wait_group %0;" :: "n"(FEW) : "memory");
#endif
#ifdef HOPPER
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // what this thread has written, wgmma can read
#endif
}

// Copies one thread's share of an operand's tiles: at one position along the depth, elements of a few lines. An operand
// finds the address of an element as the sum of two parts, which are computed apart as each is needed many times:
//   Line line(index)   what a row (of the left operand) or a column (of the right one) adds, computed only once,
//   Step step(index)   a position along the depth; advance(Step&) moves it on by DEPTH,
//   Depth depth(Step)  what that position adds, computed once in a step,
//   inside(Line, Depth), address(Line, Depth)   of an element; if it is not inside, it is 0.
// RUN elements are copied at a time: they are neighbours in memory, and either all or none of them are inside.
template <class Operand, int LINES, int RUN>
struct Copier {
    static constexpr bool ALONG_DEPTH = Operand::along_depth;
    using T = Tile<LINES, ALONG_DEPTH>;
    static constexpr int ACROSS = ALONG_DEPTH ? DEPTH / RUN : THREADS / DEPTH;  // threads in a row of the tile
    static constexpr int LINES_AT_A_TIME = ALONG_DEPTH ? THREADS / ACROSS : ACROSS * RUN;
    static constexpr int TURNS = (LINES + LINES_AT_A_TIME - 1) / LINES_AT_A_TIME;

    int my_line = ALONG_DEPTH ? threadIdx.x / ACROSS : threadIdx.x % ACROSS * RUN;  // the first of them
    int my_depth = ALONG_DEPTH ? threadIdx.x % ACROSS * RUN : threadIdx.x / ACROSS;
    const Operand& operand;
    typename Operand::Line lines[TURNS];
    typename Operand::Step step;
    index depth_left;
    Copy<RUN> copies[TURNS];

    // Of the tiles from `first_line` on, and from `first_depth` on until `end_depth`.
    __device__ Copier(const Operand& operand, index first_line, index first_depth, index end_depth)
        : operand(operand), step(operand.step(first_depth + my_depth)), depth_left(end_depth - first_depth) {
        for (int i = 0; i < TURNS; i++) lines[i] = operand.line(first_line + my_line + i * LINES_AT_A_TIME);
    }

    __device__ stored* place(T& tile, int i) const {
        return (stored*)tile.address(my_line, my_depth, i * LINES_AT_A_TIME, 0);
    }

    __device__ bool in_tile(int i) const {
        return LINES % LINES_AT_A_TIME == 0 || my_line + i * LINES_AT_A_TIME < LINES;
    }

    __device__ void start(T& tile) {
        auto depth = operand.depth(step);
        #pragma unroll
        for (int i = 0; i < TURNS; i++)
            if (in_tile(i)) {
                bool inside = my_depth < depth_left & operand.inside(lines[i], depth);
                stored* to = place(tile, i);
                copies[i].start(to, operand.address(lines[i], depth), inside);
            }
        operand.advance(step);
        depth_left -= DEPTH;
    }

    __device__ void finish(T& tile) {
        #pragma unroll
        for (int i = 0; i < TURNS; i++)
            if (in_tile(i)) copies[i].finish(place(tile, i));
    }
};
"""

PRODUCT = """
// The simplest operand, a matrix in memory. Its lines are rows of the left operand or columns of the right one. It is
// stored row by row as (lines, depth) if ALONG_DEPTH, else as (depth, lines).
template <bool ALONG_DEPTH>
struct Matrix {
    static constexpr bool along_depth = ALONG_DEPTH;
    using Line = index;
    using Step = index;
    using Depth = index;
    const stored* numbers;
    index lines, width;  // of a line or a row: depth if ALONG_DEPTH, else lines
    __device__ Line line(index k) const { return k; }
    __device__ Step step(index k) const { return ALONG_DEPTH ? k : k * width; }
    __device__ void advance(Step& step) const { step += ALONG_DEPTH ? DEPTH : DEPTH * width; }
    __device__ Depth depth(Step step) const { return step; }
    __device__ bool inside(Line line, Depth) const { return line < lines; }
    __device__ const stored* address(Line line, Depth depth) const {
        return numbers + (depth + (ALONG_DEPTH ? line * width : line));
    }
};

// The rows of a result that is a row-major matrix.
template <typename N>
struct Rows {
    using Number = N;
    N* numbers;
    index width;
    __device__ N* row(index k) const { return numbers + k * width; }
};

// Two numbers, rounded to the type in which they are stored.
template <typename Number>
__device__ Run<2, Number> rounded(real one, real other) {
#ifdef AMPERE
    if constexpr (sizeof(Number) == 2) {
        union {
            unsigned int bits;
            Run<2, Number> run;
        } both;
        if constexpr (same<Number, float16>)
            asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both.bits) : "f"((float)other), "f"((float)one));
        else
            asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both.bits) : "f"((float)other), "f"((float)one));
        return both.run;
    }
#endif
    return {Number(one), Number(other)};
}

// Where a block puts its tile of the result y: for the rows and columns that y has, and from `first_row` and
// `first_column` on.
template <class Result>
struct Target {
    using Number = typename Result::Number;
    // Through shared memory, from which a thread copies 16 neighbouring bytes; else two neighbouring columns at a time.
    static constexpr bool THROUGH_SHARED = sizeof(Number) == 2 && BYTES_Y == 16;
    static constexpr int RUN = 16 / sizeof(Number), ACROSS = TILE_COLUMNS / RUN;
    static constexpr int WIDTH = TILE_COLUMNS + RUN;  // RUN more, so that rows begin in different banks

    const Result& y;
    index rows, columns, first_row, first_column;

    __device__ void put(Sums& sums, void* shared) const {
        sums.for_each_pair([=](int row, int column, real& one, real& other) {
            index y_row = first_row + row, y_column = first_column + column;
            Run<2, Number> pair = rounded<Number>(one, other);
            if constexpr (THROUGH_SHARED)
                *(Run<2, Number>*)((Number*)shared + row * WIDTH + column) = pair;
            else if (y_row < rows && y_column < columns)
                put_pair(y.row(y_row) + y_column, pair, y_column + 1 < columns);
        });
        if constexpr (THROUGH_SHARED) {
            __syncthreads();
            put_rows((const Number*)shared);
        }
    }

    static __device__ void put_pair(Number* to, Run<2, Number> pair, bool both) {
        if constexpr (BYTES_Y >= 2 * sizeof(Number)) {
            *(Run<2, Number>*)to = pair;  // the number of columns is even
        } else {
            to[0] = pair.numbers[0];
            if (both) to[1] = pair.numbers[1];
        }
    }

    __device__ void put_rows(const Number* shared) const {
        for (int i = threadIdx.x; i < TILE_ROWS * ACROSS; i += THREADS) {
            int row = i / ACROSS, column = i % ACROSS * RUN;
            if (first_row + row < rows && first_column + column < columns)
                *(Run<RUN, Number>*)(y.row(first_row + row) + first_column + column) =
                    *(const Run<RUN, Number>*)(shared + row * WIDTH + column);
        }
    }
};

template <class A, class B>
struct Stage {
    A a;
    B b;
};

// y(row, column) = bias[column] + sum over first <= k < end of a(row, k) b(k, column), for one tile of y. BYTES_A,
// BYTES_B and BYTES_Y are copied at a time.
template <class A, class B, class Result>
__device__ void multiply(
    const A& a, const B& b, const real* bias, const Result& y, index tile, index rows, index columns, index first,
    index end
) {
    using CopierA = Copier<A, TILE_ROWS, run_of(BYTES_A)>;
    using CopierB = Copier<B, TILE_COLUMNS, run_of(BYTES_B)>;
    using Tiles = Stage<typename CopierA::T, typename CopierB::T>;
    // As many as fit into 48 KB, but no more than MOST_STAGES. GPUs since Ampere have that much for two blocks at once.
    constexpr int FIT = 48 * 1024 / sizeof(Tiles), STAGES = FIT < MOST_STAGES ? FIT : MOST_STAGES;
    constexpr int UNROLLED = ON_TENSOR_CORES && MOST_STAGES > 2 ? STAGES : 1;
    alignas(1024) __shared__ char shared[STAGES * sizeof(Tiles)];
    Tiles* stages = (Tiles*)shared;
    // Neighbouring blocks share rows of a, so that these are read from the cache.
    index across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    index first_row = tile / across * TILE_ROWS, first_column = tile % across * TILE_COLUMNS;
    CopierA copy_a(a, first_row, first, end);
    CopierB copy_b(b, first_column, first, end);
    for (int i = 0; i < STAGES - 1; i++) {
        copy_a.start(stages[i].a);
        copy_b.start(stages[i].b);
        end_group_of_copies();
        copy_a.finish(stages[i].a);
        copy_b.finish(stages[i].b);
    }
    Sums sums;
    if (bias)
        sums.for_each_pair([=](int, int column, real& one, real& other) {
            if (first_column + column < columns) one = bias[first_column + column];
            if (first_column + column + 1 < columns) other = bias[first_column + column + 1];
        });
    for (index k = first; k < end;)
        #pragma unroll UNROLLED  // with tensor cores, so that the addresses of the stages are constants
        for (int now = 0; now < STAGES && k < end; now++, k += DEPTH) {
            Tiles& next = stages[(now + STAGES - 1) % STAGES];
            wait_for_all_groups_but<STAGES - 2>();  // those of the steps after this one
            __syncthreads();  // the tiles of this step are written, and those of the last step are read, by all threads
            sums.start_product(stages[now].a, stages[now].b);
            copy_a.start(next.a);
            copy_b.start(next.b);
            end_group_of_copies();
            sums.finish_product(stages[now].a, stages[now].b);
            copy_a.finish(next.a);
            copy_b.finish(next.b);
        }
    wait_for_all_groups_but<0>();  // zeros, copied for steps after the last one
    __syncthreads();  // before the tiles' memory is used for the result
    Target<Result>{y, rows, columns, first_row, first_column}.put(sums, shared);
}
"""


class Way(NamedTuple):
    """How the products of two tiles are computed."""

    source: str
    dtypes: tuple[str, ...]
    lowest_architecture: int
    threads: int  # of a block
    widest: int  # columns of a tile


SINGLE_PRECISION = PIECES + TENSOR_CORES
HALF_PRECISION = f"{PIECES}#ifdef HOPPER\n{WARPGROUP}\n#else\n{TENSOR_CORES}\n#endif\n"
# With more columns in a tile, multiply-add would need more registers than there are.
WAYS = {
    "multiply-add": Way(MULTIPLY_ADD, FLOATS, OLDEST, threads=256, widest=64),
    "tf32": Way(SINGLE_PRECISION, ("float32",), WITH_BFLOAT16, threads=128, widest=128),
    "bfloat16": Way(HALF_PRECISION, ("bfloat16",), WITH_BFLOAT16, threads=128, widest=128),
    "float16": Way(HALF_PRECISION, ("float16",), OLDEST, threads=128, widest=128),
}


def way_of(dtype) -> str:
    """The way to multiply arrays of that dtype."""
    if dtype.itemsize == 2:
        return dtype.type.__name__  # `dtype.name` takes ten times as long
    return "tf32" if dtype.itemsize == 4 and tf32_is_on() else "multiply-add"


def product_kernels(name: str, source: str, examples: list[dict[str, int]]) -> dict[str, CudaKernel]:
    """{way: kernel}, from a source that calls multiply()."""
    return {key: product_kernel(name, source, examples, way) for key, way in WAYS.items()}


def product_kernel(name: str, source: str, examples: list[dict[str, int]], way: Way) -> CudaKernel:
    """The kernel for one way."""
    on_tensor_cores = str(way.source is not MULTIPLY_ADD).lower()
    constants = f"constexpr int THREADS = {way.threads};\nconstexpr bool ON_TENSOR_CORES = {on_tensor_cores};\n"
    possible = [example for example in examples if example["TILE_COLUMNS"] <= way.widest]
    whole = constants + TILES + way.source + PRODUCT + source
    return CudaKernel(name, whole, way.dtypes, possible, way.lowest_architecture, way.source is HALF_PRECISION)


def launch_product(kernels, rows: int, columns: int, parts: int, operands, arguments: tuple, constants) -> None:
    """Run a kernel that calls multiply(), with a block for each tile of (rows, columns) and each of the `parts`.

    The parts are slabs of the depth, or products of their own. `operands` are three pairs, for a, b and the result: the
    array and the length of its runs of neighbouring elements.
    """
    dtype = operands[0][0].dtype
    way = way_of(dtype)
    bytes_at_once = {f"BYTES_{name}": copied_at_once(*pair) for name, pair in zip("ABY", operands, strict=True)}
    small = min(bytes_at_once["BYTES_A"], bytes_at_once["BYTES_B"])
    large = any(array.size > MOST_FOR_INT for array, _ in operands)
    widest = WIDEST_OF_LARGE_ARRAYS if large else WAYS[way].widest
    tile_rows, tile_columns = tile_of(rows, columns, parts, small, widest)
    blocks = -(-rows // tile_rows) * -(-columns // tile_columns) * parts
    constants = constants | {"TILE_ROWS": tile_rows, "TILE_COLUMNS": tile_columns} | bytes_at_once
    kernels[way].launch(blocks, WAYS[way].threads, arguments, dtype, constants)


def tile_of(rows: int, columns: int, parts: int, bytes_at_once: int, widest: int) -> tuple[int, int]:
    """Rows and columns of a tile. They depend on shapes and addresses alone, and no sum depends on them."""
    most_rows, most_columns = LARGEST_OF_SMALL_COPIES.get(bytes_at_once, (TILE_ROWS, widest))
    widest = min(widest, most_columns)
    tile_columns = min(next((width for width in (16, 32, 64) if columns <= width), widest), widest)
    blocks = -(-rows // TILE_ROWS) * -(-columns // tile_columns) * parts
    return FEW_ROWS if blocks < ENOUGH_BLOCKS else most_rows, tile_columns


def copied_at_once(array, length: int) -> int:
    """Bytes that one instruction can copy: at most 16, and a divisor of both the run's length and the address."""
    return math.gcd(length * array.itemsize, array.data.ptr, LARGEST_COPY)
