"""The product of two tiles in shared memory, by multiply-add instructions: float32 and float64, on any GPU."""

MULTIPLY_ADD = """
// Registers are limited so that at least this many blocks share a multiprocessor.
constexpr int BLOCKS = sizeof(real) == 4 && sizeof(index) == 4 && BYTES_A == 16 && BYTES_B == 16 ? 2 : 1;

// The sums of a thread: a few rows and columns, so that an element read from shared memory is used several times. Its
// columns are neighbours, because the result is written in pairs; its rows are not.
struct Sums {
    static constexpr int THREAD_COLUMNS = TILE_COLUMNS < 64 ? 2 : TILE_COLUMNS / 16;
    static constexpr int ACROSS = TILE_COLUMNS / THREAD_COLUMNS, DOWN = THREADS / ACROSS;
    static constexpr int THREAD_ROWS = TILE_ROWS / DOWN;
    real sums[THREAD_ROWS][THREAD_COLUMNS] = {};
    int first_row = threadIdx.x / ACROSS, first_column = threadIdx.x % ACROSS * THREAD_COLUMNS;

    template <class TileA, class TileB>
    __device__ void start_product(const TileA&, const TileB&) {}

    template <class TileA, class TileB>
    __device__ void finish_product(const TileA& a_tile, const TileB& b_tile) {
        #pragma unroll
        for (int depth = 0; depth < DEPTH; depth++) {
            real a[THREAD_ROWS], b[THREAD_COLUMNS];
            for (int r = 0; r < THREAD_ROWS; r++) a[r] = a_tile.at(first_row + r * DOWN, depth);
            for (int c = 0; c < THREAD_COLUMNS; c++) b[c] = b_tile.at(first_column + c, depth);
            for (int r = 0; r < THREAD_ROWS; r++)
                for (int c = 0; c < THREAD_COLUMNS; c++) sums[r][c] += a[r] * b[c];
        }
    }

    // Call put(row, column, sum, sum in the next column) for each pair of sums; row and column are those of the tile.
    template <class Put>
    __device__ void for_each_pair(Put put) {
        #pragma unroll
        for (int r = 0; r < THREAD_ROWS; r++)
            #pragma unroll
            for (int c = 0; c < THREAD_COLUMNS; c += 2)
                put(first_row + r * DOWN, first_column + c, sums[r][c], sums[r][c + 1]);
    }
};
"""
