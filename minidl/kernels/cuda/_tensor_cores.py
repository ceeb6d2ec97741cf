"""The product of two tiles in shared memory, by tensor cores: bfloat16, float16, or float32 rounded to TF32.

The sums are float32. The instruction `mma` of a warp multiplies a matrix of 16 rows by one of 8 columns, both 8 words
deep. A word is two numbers of 2 bytes or one TF32 number. For which thread holds which word, see the PTX ISA, "Matrix
fragments for mma.m16n8k16" (bfloat16, float16) and "mma.m16n8k8" (TF32): counted in words, the two are the same. Turing
has only half of the first, which is 4 words deep.
"""

# For `mma` and for `wgmma` (`_warpgroup`).
PIECES = """
// Sums of a warp in pieces of 16 rows and 8 columns. In a piece, thread 4 * g + t has the sums in rows g and g + 8,
// columns 2 * t and 2 * t + 1. Pieces below each other are ROWS_APART.
template <int DOWN, int ACROSS, int ROWS_APART>
struct Pieces {
    float sums[DOWN][ACROSS][4] = {};
    int warp_row, warp_column;  // the first ones
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

    __device__ Pieces(int row, int column) : warp_row(row), warp_column(column) {}

    // Call put(row, column, sum, sum in the next column) for each pair of sums; row and column are those of the tile.
    template <class Put>
    __device__ void for_each_pair(Put put) {
        #pragma unroll
        for (int m = 0; m < DOWN; m++)
            #pragma unroll
            for (int n = 0; n < ACROSS; n++)
                for (int half = 0; half < 2; half++)
                    put(warp_row + g + ROWS_APART * m + 8 * half, warp_column + 8 * n + 2 * t, sums[m][n][2 * half],
                        sums[m][n][2 * half + 1]);
    }
};
"""

TENSOR_CORES = """
constexpr bool PACKED = sizeof(stored) == 2;  // true if a word is two numbers
// Registers are limited so that at least BLOCKS blocks share a multiprocessor: one multiplies while another waits.
constexpr int BLOCKS = sizeof(index) != 4 ? 1 : LARGEST || !PACKED || MANY_COPIES || MOST_STAGES == 2 ? 2 : 3;
constexpr int WORDS = 16;  // in a line of a tile
// The words of the second half of a line are loaded while the first half is multiplied, if registers are left for it.
// Without asynchronous copies they hold what is being copied.
#ifdef AMPERE
constexpr int STEPS_AT_ONCE = 2;
#else
constexpr int STEPS_AT_ONCE = 1;
#endif

// The nearest TF32 number: the last 13 bits of the mantissa become 0.
__device__ unsigned int to_tf32(float value) {
    unsigned int bits = __float_as_uint(value);
#ifdef AMPERE
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
    bool finite = (bits & 0x7F800000) != 0x7F800000;
    if (finite) bits = (bits + 0x1000) & 0xFFFFE000;
#endif
    return bits;
}

// TF32 word number `word` of a line of a tile, counted along the depth.
template <class T>
__device__ unsigned int word_of(const T& tile, int line, int word) {
    return to_tf32(tile.at(line, word));
}

// Load four matrices of 8 rows of 16 bytes, by all 32 threads of a warp: thread 8 * i + r has the address of row r of
// matrix i. Thread 4 * g + t receives in words[i] word t of row g of matrix i. If TRANSPOSED, it receives the 2-byte
// numbers 2 * t and 2 * t + 1 of column g. (PTX ISA, "ldmatrix".)
template <bool TRANSPOSED>
__device__ void load_matrices(unsigned int (&words)[4], const stored* row) {
#ifdef TURING
#define LOAD_MATRICES(kind)                                                                                          \\
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" kind ".shared.b16 {%0, %1, %2, %3}, [%4];"                          \\
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(address) : "memory")
    unsigned int address = (unsigned int)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED)
        LOAD_MATRICES(".trans");
    else
        LOAD_MATRICES("");
#else
    // The plain code with the same result: the threads of the warp share their addresses.
    __shared__ const unsigned short* rows[THREADS];
    rows[threadIdx.x] = (const unsigned short*)row;
    __syncwarp();
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x - lane;
    for (int i = 0; i < 4; i++) {
        const unsigned short* const* matrix = rows + warp + 8 * i;
        unsigned int one = TRANSPOSED ? matrix[2 * t][g] : matrix[g][2 * t];
        unsigned int other = TRANSPOSED ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
        words[i] = one | other << 16;
    }
    __syncwarp();  // before the next addresses are shared
#endif
}

// The address that a thread passes to load_matrices, for matrices of 8 lines and a chunk along the depth. Matrix 1 is
// 8 lines after matrix 0 (if DEPTH_FIRST, a chunk along the depth). Matrices 2 and 3 follow in the other direction.
// Matrix 0 begins at (line + lines_on, depth_on), where the last two are constants.
template <bool DEPTH_FIRST, class T>
__device__ const stored* row_of_matrices(const T& tile, int line, int lines_on, int depth_on) {
    int lane = threadIdx.x % 32, r = lane % 8, one = lane / 8 % 2, other = lane / 16;
    line += 8 * (DEPTH_FIRST ? other : one) + (T::along_depth ? r : 0);
    int depth = CHUNK * (DEPTH_FIRST ? one : other) + (T::along_depth ? 0 : r);
    return tile.address(line, depth, lines_on, depth_on);
}

// The product of two TF32 words, or the dot product of two words of two numbers.
template <class Number>
__device__ float word_product(unsigned int a, unsigned int b) {
    if constexpr (!PACKED) {
        return __uint_as_float(a) * __uint_as_float(b);
    } else {
        float sum = 0;
        for (int half = 0; half < 2; half++) {
            Number one, other;
            one.bits = a >> 16 * half;
            other.bits = b >> 16 * half;
            sum += float(one) * float(other);
        }
        return sum;
    }
}

#define MMA(kind)                                                                                                    \\
    asm volatile("mma.sync.aligned." kind " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \\
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                        \\
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#define HALF_MMA(kind, a0, a1, b)                                                                                    \\
    asm volatile("mma.sync.aligned." kind " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                     \\
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                        \\
                 : "r"(a0), "r"(a1), "r"(b))

// sums += a b, by all 32 threads of a warp. Thread 4 * g + t holds words t and t + 4 of rows g and g + 8 of a, words t
// and t + 4 of column g of b, and the sums in rows g and g + 8, columns 2 * t and 2 * t + 1.
__device__ void mma(float (&sums)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
#if defined(AMPERE)
    if constexpr (same<stored, float16>)
        MMA("m16n8k16.row.col.f32.f16.f16.f32");
    else if constexpr (PACKED)
        MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    else
        MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#elif defined(TURING)
    HALF_MMA("m16n8k8.row.col.f32.f16.f16.f32", a[0], a[1], b0);
    HALF_MMA("m16n8k8.row.col.f32.f16.f16.f32", a[2], a[3], b1);
#else
    // The plain code with the same result: the threads of the warp share their words.
    __shared__ unsigned int all_a[THREADS][4], all_b[THREADS][2];
    for (int i = 0; i < 4; i++) all_a[threadIdx.x][i] = a[i];
    all_b[threadIdx.x][0] = b0;
    all_b[threadIdx.x][1] = b1;
    __syncwarp();
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x - lane;
    for (int i = 0; i < 4; i++) {
        int column = 2 * t + i % 2, half = i / 2;  // of the sum; half 1 is row g + 8
        for (int word = 0; word < 8; word++) {
            unsigned int left = all_a[warp + 4 * g + word % 4][half + 2 * (word / 4)];
            sums[i] += word_product<stored>(left, all_b[warp + 4 * column + word % 4][word / 4]);
        }
    }
    __syncwarp();  // before the next words are shared
#endif
}

constexpr int WARPS_ACROSS = TILE_COLUMNS < 64 ? 1 : 2, WARPS_DOWN = THREADS / 32 / WARPS_ACROSS;
constexpr int WARP_ROWS = TILE_ROWS / WARPS_DOWN, WARP_COLUMNS = TILE_COLUMNS / WARPS_ACROSS;
constexpr int PIECES_DOWN = WARP_ROWS / 16, PIECES_ACROSS = WARP_COLUMNS / 8;

// The sums of a warp: its part of the tile.
struct Sums : Pieces<PIECES_DOWN, PIECES_ACROSS, 16> {
    __device__ Sums()
        : Pieces(threadIdx.x / 32 / WARPS_ACROSS * WARP_ROWS, threadIdx.x / 32 % WARPS_ACROSS * WARP_COLUMNS) {}

    // The words of 16 rows of a, from `row` of the warp on, that are 8 along the depth: those of `step`.
    template <class T>
    __device__ void load_a(unsigned int (&a)[4], const T& tile, int row, int step) const {
        if constexpr (PACKED || T::along_depth) {
            load_matrices<!T::along_depth>(a, row_of_matrices<false>(tile, warp_row, row, 2 * CHUNK * step));
            for (int i = 0; i < 4; i++) a[i] = PACKED ? a[i] : to_tf32(__uint_as_float(a[i]));
        } else {
            for (int i = 0; i < 4; i++)
                a[i] = word_of(tile, warp_row + row + g + 8 * (i % 2), 8 * step + t + 4 * (i / 2));
        }
    }

    // The words of 16 columns of b, likewise: two in the first 8 columns and two in the others.
    template <class T>
    __device__ void load_b(unsigned int (&b)[4], const T& tile, int column, int step) const {
        if constexpr (PACKED || T::along_depth) {
            load_matrices<!T::along_depth>(b, row_of_matrices<true>(tile, warp_column, column, 2 * CHUNK * step));
            for (int i = 0; i < 4; i++) b[i] = PACKED ? b[i] : to_tf32(__uint_as_float(b[i]));
        } else {
            for (int i = 0; i < 4; i++)
                b[i] = word_of(tile, warp_column + column + 8 * (i / 2) + g, 8 * step + t + 4 * (i % 2));
        }
    }

    template <class TileA, class TileB>
    __device__ void start_product(const TileA&, const TileB&) {}

    template <class TileA, class TileB>
    __device__ void finish_product(const TileA& a_tile, const TileB& b_tile) {
        #pragma unroll STEPS_AT_ONCE
        for (int step = 0; step < WORDS / 8; step++) {
            unsigned int a[PIECES_DOWN][4];
            #pragma unroll
            for (int m = 0; m < PIECES_DOWN; m++) load_a(a[m], a_tile, 16 * m, step);
            #pragma unroll
            for (int n = 0; n < PIECES_ACROSS; n += 2) {
                unsigned int b[4];
                load_b(b, b_tile, 8 * n, step);
                #pragma unroll
                for (int m = 0; m < PIECES_DOWN; m++) {
                    mma(sums[m][n], a[m], b[0], b[1]);
                    mma(sums[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
};
"""
