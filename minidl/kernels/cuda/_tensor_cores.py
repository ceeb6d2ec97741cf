"""The product of two tiles in shared memory, by tensor cores: bfloat16, or float32 rounded to TF32, summed in float32.

The instruction `mma` of a warp multiplies a matrix of 16 rows by one of 8 columns, both 8 words deep. A word is two
bfloat16 numbers or one TF32 number. For which thread holds which word, see the PTX ISA, "Matrix fragments for
mma.m16n8k16" (bfloat16) and "mma.m16n8k8" (TF32): counted in words, the two are the same.
"""

TENSOR_CORES = """
// Registers are limited so that at least this many blocks share a multiprocessor: one multiplies while another waits.
constexpr int BLOCKS = sizeof(index) == 4 ? 2 : 1;
constexpr bool PACKED = sizeof(stored) == 2;  // true if a word is two numbers
constexpr int WORDS = 16;  // in a line of a tile

// The nearest TF32 number: the last 13 bits of the mantissa become 0.
__device__ unsigned int to_tf32(float value) {
    unsigned int bits = __float_as_uint(value);
#ifdef HAS_INSTRUCTIONS
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
    bool finite = (bits & 0x7F800000) != 0x7F800000;
    if (finite) bits = (bits + 0x1000) & 0xFFFFE000;
#endif
    return bits;
}

// Word number `word` of a line of a tile, counted along the depth.
template <class T>
__device__ unsigned int word_of(const T& tile, int line, int word) {
    if constexpr (!PACKED)
        return to_tf32(tile.at(line, word));
    else if constexpr (T::along_depth)
        return *(const unsigned int*)&tile.numbers[line * T::STRIDE + 2 * word];
    else
        return tile.at(line, 2 * word).bits | (unsigned int)tile.at(line, 2 * word + 1).bits << 16;
}

// The product of two TF32 words, or the dot product of two words of bfloat16.
__device__ float word_product(unsigned int a, unsigned int b) {
    if constexpr (!PACKED) return __uint_as_float(a) * __uint_as_float(b);
    float lower = __uint_as_float(a << 16) * __uint_as_float(b << 16);
    return lower + __uint_as_float(a & 0xFFFF0000) * __uint_as_float(b & 0xFFFF0000);
}

#define MMA(kind)                                                                                                    \\
    asm volatile("mma.sync.aligned." kind " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \\
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                        \\
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// sums += a b, by all 32 threads of a warp. Thread 4 * g + t holds words t and t + 4 of rows g and g + 8 of a, words t
// and t + 4 of column g of b, and the sums in rows g and g + 8, columns 2 * t and 2 * t + 1.
__device__ void mma(float (&sums)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
#ifdef HAS_INSTRUCTIONS
    if constexpr (PACKED)
        MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    else
        MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#else
    // The plain code with the same result: the threads of the warp share their words.
    __shared__ unsigned int all_a[THREADS][4], all_b[THREADS][2];
    for (int i = 0; i < 4; i++) all_a[threadIdx.x][i] = a[i];
    for (int i = 0; i < 2; i++) all_b[threadIdx.x][i] = b[i];
    __syncwarp();
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x - lane;
    for (int i = 0; i < 4; i++) {
        int column = 2 * t + i % 2, half = i / 2;  // of the sum; half 1 is row g + 8
        for (int word = 0; word < 8; word++) {
            unsigned int left = all_a[warp + 4 * g + word % 4][half + 2 * (word / 4)];
            sums[i] += word_product(left, all_b[warp + 4 * column + word % 4][word / 4]);
        }
    }
    __syncwarp();  // before the next words are shared
#endif
}

// The sums of a warp: its part of the tile, cut into pieces of 16 rows and 8 columns.
struct Sums {
    static constexpr int ACROSS = TILE_COLUMNS == 128 ? 4 : TILE_COLUMNS == 64 ? 2 : 1, DOWN = THREADS / 32 / ACROSS;
    static constexpr int WARP_ROWS = TILE_ROWS / DOWN, WARP_COLUMNS = TILE_COLUMNS / ACROSS;
    static constexpr int PIECES_DOWN = WARP_ROWS / 16, PIECES_ACROSS = WARP_COLUMNS / 8;
    float sums[PIECES_DOWN][PIECES_ACROSS][4] = {};
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    int first_row = warp / ACROSS * WARP_ROWS + g, first_column = warp % ACROSS * WARP_COLUMNS;

    template <class TileA, class TileB>
    __device__ void add_product(const TileA& a_tile, const TileB& b_tile) {
        #pragma unroll
        for (int step = 0; step < WORDS / 8; step++) {  // a constant number of steps, or it is not unrolled
            const int word = t + 8 * step;
            unsigned int a[PIECES_DOWN][4], b[PIECES_ACROSS][2];
            #pragma unroll
            for (int m = 0; m < PIECES_DOWN; m++)
                for (int i = 0; i < 4; i++)
                    a[m][i] = word_of(a_tile, first_row + 16 * m + 8 * (i % 2), word + 4 * (i / 2));
            #pragma unroll
            for (int n = 0; n < PIECES_ACROSS; n++)
                for (int i = 0; i < 2; i++) b[n][i] = word_of(b_tile, first_column + 8 * n + g, word + 4 * i);
            #pragma unroll
            for (int m = 0; m < PIECES_DOWN; m++)
                for (int n = 0; n < PIECES_ACROSS; n++) mma(sums[m][n], a[m], b[n]);
        }
    }

    // Call put(row, column, sum, sum in the next column) for each pair of sums; row and column are those of the tile.
    template <class Put>
    __device__ void for_each_pair(Put put) {
        #pragma unroll
        for (int m = 0; m < PIECES_DOWN; m++)
            #pragma unroll
            for (int n = 0; n < PIECES_ACROSS; n++)
                for (int half = 0; half < 2; half++)
                    put(first_row + 16 * m + 8 * half, first_column + 8 * n + 2 * t, sums[m][n][2 * half],
                        sums[m][n][2 * half + 1]);
    }
};
"""
