"""A product of matrices whose numbers are fetched one by one, so that neither matrix has to exist in memory.

The tiled product of Volkov, Demmel 2008, "Benchmarking GPUs to tune dense linear algebra": a block of threads computes
a tile of the result, step by step along the depth, from a tile of a and one of b in shared memory; each thread has a
few rows and columns of it in registers, so that a number it reads from shared memory is used several times.
"""

from minidl.kernels.cuda._launch import CudaKernel

TILE_ROWS, TILE_DEPTH, THREADS = 128, 16, 256

# What the source of such a kernel begins with. A Problem has three functions, a(row, k), b(k, column) and
# put(row, column, value), and a constant: whether a number of a and the next one in memory share a column, not a row.
PRODUCT = """
// put(row, column, sum over first_k <= k < last_k of a(row, k) b(k, column)), for one tile of rows and columns.
// The rows and columns of a thread are not side by side but a block's width apart, so that what the threads of a warp
// read from shared memory, and write, lies together.
template <typename Problem>
__device__ void multiply(Problem problem, index rows, index columns, index first_k, index last_k) {
    const int WIDTH = TILE_COLUMNS / THREAD_COLUMNS, HEIGHT = THREADS / WIDTH, THREAD_ROWS = TILE_ROWS / HEIGHT;
    __shared__ real a_tile[TILE_DEPTH][TILE_ROWS + 1];  // a column more: the numbers of a column are in different banks
    __shared__ real b_tile[TILE_DEPTH][TILE_COLUMNS];
    index first_row = (index)blockIdx.x * TILE_ROWS, first_column = (index)blockIdx.y * TILE_COLUMNS;
    int my_row = threadIdx.x / WIDTH, my_column = threadIdx.x % WIDTH;
    real sums[THREAD_ROWS][THREAD_COLUMNS] = {};

    for (index k = first_k; k < last_k; k += TILE_DEPTH) {
        for (int i = threadIdx.x; i < TILE_ROWS * TILE_DEPTH; i += THREADS) {
            int row = Problem::a_by_columns ? i % TILE_ROWS : i / TILE_DEPTH;
            int depth = Problem::a_by_columns ? i / TILE_ROWS : i % TILE_DEPTH;
            bool inside = first_row + row < rows && k + depth < last_k;
            a_tile[depth][row] = inside ? problem.a(first_row + row, k + depth) : (real)0;
        }
        for (int i = threadIdx.x; i < TILE_COLUMNS * TILE_DEPTH; i += THREADS) {
            int depth = i / TILE_COLUMNS, column = i % TILE_COLUMNS;
            bool inside = first_column + column < columns && k + depth < last_k;
            b_tile[depth][column] = inside ? problem.b(k + depth, first_column + column) : (real)0;
        }
        __syncthreads();
        #pragma unroll
        for (int depth = 0; depth < TILE_DEPTH; depth++) {
            real a[THREAD_ROWS], b[THREAD_COLUMNS];
            for (int r = 0; r < THREAD_ROWS; r++) a[r] = a_tile[depth][my_row + r * HEIGHT];
            for (int c = 0; c < THREAD_COLUMNS; c++) b[c] = b_tile[depth][my_column + c * WIDTH];
            for (int r = 0; r < THREAD_ROWS; r++) {
                for (int c = 0; c < THREAD_COLUMNS; c++) sums[r][c] += a[r] * b[c];
            }
        }
        __syncthreads();  // before anybody overwrites the tiles
    }
    for (int r = 0; r < THREAD_ROWS; r++) {
        for (int c = 0; c < THREAD_COLUMNS; c++) {
            index row = first_row + my_row + r * HEIGHT, column = first_column + my_column + c * WIDTH;
            if (row < rows && column < columns) problem.put(row, column, sums[r][c]);
        }
    }
}
"""


def tiling(columns: int) -> dict[str, int]:
    """The constants of PRODUCT for a result with so many columns: tiles no wider than need be."""
    width = next((width for width in (16, 32, 64) if columns <= width), 64)
    constants = {"TILE_ROWS": TILE_ROWS, "TILE_COLUMNS": width, "TILE_DEPTH": TILE_DEPTH, "THREADS": THREADS}
    return constants | {"THREAD_COLUMNS": 4 if width == 64 else 2}


def launch_product(kernel: CudaKernel, rows: int, columns: int, slabs: int, arguments: tuple, dtype, constants) -> None:
    """Run a kernel that calls multiply(): a block for each tile of (rows, columns), and for each slab of the depth."""
    tiles = -(-rows // TILE_ROWS), -(-columns // constants["TILE_COLUMNS"]), slabs
    kernel.launch(tiles, THREADS, arguments, dtype, constants)
