"""The product of two tiles by Hopper's instruction `wgmma`: bfloat16 or float16, on GPUs of compute capability 9.0.

Four warps, a warpgroup, multiply 64 rows by all columns of a tile, 16 deep. Unlike `mma` it reads both matrices from
shared memory by itself, so that no instruction loads them into registers. The sums are float32.

PTX ISA, "Asynchronous warpgroup level matrix multiply-accumulate operation using wgmma.mma_async". The compiler has
these instructions only if it is told to compile for sm_90a.
"""

_SOURCE = """
constexpr int BLOCKS = sizeof(index) != 4 || MANY_COPIES ? 2 : 3;  // of a multiprocessor

// How `wgmma` finds a matrix in a tile, from (line, depth) on. The lower word: its address, and how far apart groups of
// columns of the tile are; the upper word: how far apart 8 rows of it are, and the number of chunks that change places.
// Distances are in chunks of 16 bytes. (PTX ISA, "Matrix descriptor format"; for the order of the chunks, "Swizzling".)
template <class T>
__device__ unsigned long long descriptor(const T& tile, int line, int depth) {
    constexpr unsigned int GROUPS = T::ROWS * T::CHUNKS, EIGHT_ROWS = 8 * T::CHUNKS;
    constexpr unsigned int SWIZZLE = T::CHUNKS == 8 ? 1 : 2;
    unsigned int start = (unsigned int)__cvta_generic_to_shared(tile.numbers) / 16;
    unsigned int from_start = (tile.address(0, 0, line, depth) - tile.numbers) / CHUNK;
    unsigned int lower = start + (from_start + (GROUPS << 16)), upper = EIGHT_ROWS | SWIZZLE << 30;
    return (unsigned long long)upper << 32 | lower;
}

// The sums of a warpgroup: each warp has 16 of every 64 rows, and all columns.
struct Sums : Pieces<TILE_ROWS / 64, TILE_COLUMNS / 8, 64> {
    __device__ Sums() : Pieces(threadIdx.x / 32 * 16, 0) {}

    // Until finish_product() the threads go on, but must not touch the sums or the tiles.
    template <class TileA, class TileB>
    __device__ void start_product(const TileA& a, const TileB& b) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");  // the sums are in their registers
        #pragma unroll
        for (int depth = 0; depth < DEPTH; depth += 16)
            #pragma unroll
            for (int m = 0; m < TILE_ROWS / 64; m++)
                wgmma<!TileA::along_depth, !TileB::along_depth>(
                    sums[m], descriptor(a, 64 * m, depth), descriptor(b, 0, depth)
                );
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    }

    template <class TileA, class TileB>
    __device__ void finish_product(const TileA&, const TileB&) {
        asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(0) : "memory");
    }
};
"""


def _wgmma(columns: int) -> str:
    """A function that adds the product of 64 x 16 and 16 x `columns` numbers. One operand names one register."""
    count = columns // 2  # registers of a thread
    sums = ", ".join(f'"+f"(sums[{i // 4}][{i % 4}])' for i in range(count))
    names = ", ".join(f"%{i}" for i in range(count))

    def statement(kind: str) -> str:
        return (
            f'asm volatile("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {{{names}}}, '
            f'%{count}, %{count + 1}, 1, 1, 1, %{count + 2}, %{count + 3};" : {sums} '
            ': "l"(a), "l"(b), "n"(ACROSS_A), "n"(ACROSS_B) : "memory");'
        )

    return f"""
#if TILE_COLUMNS == {columns}
// sums += a b, where `a` and `b` are descriptors; ACROSS if the neighbours in a row are not along the depth.
template <int ACROSS_A, int ACROSS_B>
__device__ void wgmma(float (&sums)[{columns // 8}][4], unsigned long long a, unsigned long long b) {{
    if constexpr (same<stored, float16>)
        {statement("f16")}
    else
        {statement("bf16")}
}}
#endif
"""


WARPGROUP = "".join(map(_wgmma, (64, 128))) + _SOURCE
