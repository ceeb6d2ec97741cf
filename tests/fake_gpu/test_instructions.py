"""Instructions of GPUs on the fake GPU: a product by tensor cores, and what it shows of mistakes in one."""

import re

import cupy
import numpy as np
import pytest

from tests import fake_gpu

# y = a b in tiles of 32 x 8, by two warps: three stages of copies, one barrier a step.
PRODUCT = """
struct bfloat16 { unsigned short bits; };
constexpr int STRIDE = 24, STAGES = 3, STAGE = (32 + 8) * STRIDE;  // in shared memory, in numbers

__device__ void copy(bfloat16* to, const bfloat16* from, bool inside) {
    unsigned int address = (unsigned int)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;"
                 :: "r"(address), "l"(from), "n"(16), "r"(inside ? 16 : 0) : "memory");
}

#define COMMIT asm volatile("cp.async.commit_group;" ::: "memory")
#define LOAD(kind, words, row)                                                                      \\
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" kind ".shared.b16 {%0, %1, %2, %3}, [%4];"         \\
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])                   \\
                 : "r"((unsigned int)__cvta_generic_to_shared(row)) : "memory")

extern "C" __global__ void product(const bfloat16* a, const bfloat16* b, float* y, int rows, int depth) {
    extern __shared__ __align__(16) bfloat16 shared[];
    int t = threadIdx.x, lane = t % 32, steps = depth / 16;
    auto load = [&](int step) {  // a is (rows, depth), b is (8, depth)
        bfloat16* stage = shared + step % STAGES * STAGE;
        int row = t / 2, column = t % 2 * 8;
        bool inside = row < rows;
        copy(stage + row * STRIDE + column, a + (inside ? row * depth : 0) + 16 * step + column, inside);
        if (t < 16) copy(stage + (32 + row) * STRIDE + column, b + row * depth + 16 * step + column, true);
    };
    float sums[4] = {};
    load(0);
    COMMIT;
    load(1);
    COMMIT;
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        if (step + 2 < steps) load(step + 2);
        COMMIT;
        const bfloat16* stage = shared + step % STAGES * STAGE;
        unsigned int wa[4], wb[4];
        LOAD("", wa, stage + (t / 32 * 16 + lane % 16) * STRIDE + lane / 16 * 8);
        LOAD("", wb, stage + (32 + lane % 8) * STRIDE + lane / 8 % 2 * 8);
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                     : "r"(wa[0]), "r"(wa[1]), "r"(wa[2]), "r"(wa[3]), "r"(wb[0]), "r"(wb[1]));
    }
    for (int i = 0; i < 4; i++)
        if (int row = t / 32 * 16 + lane / 4 + 8 * (i / 2); row < rows) y[row * 8 + lane % 4 * 2 + i % 2] = sums[i];
}
"""


def bfloat16(numbers):
    return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def wrong_by(rng, old="", new="", rows=32, stages=3):
    """The largest error of the product with a text in its source replaced. RuntimeError if the fake GPU finds it."""
    assert old in PRODUCT
    a, b = rng.integers(-8, 9, (rows, 80)), rng.integers(-8, 9, (8, 80))  # whole numbers: no rounding
    y = cupy.full((rows, 8), np.nan, np.float32)
    kernel = cupy.RawKernel(PRODUCT.replace(old, new) if old else PRODUCT, "product")
    arguments = cupy.array(bfloat16(a)), cupy.array(bfloat16(b)), y, np.int32(rows), np.int32(80)
    kernel((1,), (64,), arguments, shared_mem=stages * 40 * 24 * 2)
    return np.abs(y.get() - a @ b.T).max()


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("rows", [32, 27])
def test_a_product_by_tensor_cores_is_right(rng, rows, order):
    with fake_gpu.settings(order=order):
        assert wrong_by(rng, rows=rows) == 0


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"r"(wa[1]), "r"(wa[2])', '"r"(wa[2]), "r"(wa[1])'),  # parts of a fragment exchanged
        ('"r"(wb[0]), "r"(wb[1])', '"r"(wb[1]), "r"(wb[0])'),
        ('LOAD("", wb', 'LOAD(".trans", wb'),
        ("y[row * 8 + lane % 4 * 2 + i % 2]", "y[row * 8 + lane % 4 + 4 * (i % 2)]"),
        ("wait_group 1", "wait_group 2"),
        ("__syncthreads();", ""),
        ("load(step + 2);\n        COMMIT;", "{ load(step + 2); COMMIT; }"),  # the empty groups at the end
        ("STAGES = 3", "STAGES = 2"),  # overwritten while others read it
        ("load(1);\n    COMMIT;", "load(1);"),
    ],
)
def test_a_wrong_product_is_wrong(rng, old, new, order):
    with fake_gpu.settings(order=order):
        try:
            assert wrong_by(rng, old, new, rows=27) != 0  # it may be NaN
        except cupy.cuda.runtime.CUDARuntimeError as error:
            assert re.search("copies of thread .* are not waited for", str(error))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("STRIDE = 24", "STRIDE = 20", "cp.async: misaligned, 16 bytes at 40 of shared memory"),
        ("+ lane / 16 * 8", "+ lane / 16 * 4", "ldmatrix: misaligned, 16 bytes at 8 "),
        ("+ 16 * step + column, inside", "+ 16 * step + column + 1, inside", "cp.async: misaligned, 16 bytes at 0x"),
        ("wait_group 1", "wait_group 3", "asynchronous copies of thread 0 are not waited for"),
        ('"l"(from)', '"l"(&address)', "cp.async: 0x.* is no global memory"),
        ("shared + step % STAGES", "shared + step % 100", "cp.async: 16 bytes at 5760 are not in shared memory"),
        ('"n"(16)', '"n"(12)', "cp.async cannot copy 12 bytes"),
        ("to_shared(row)", "to_shared(&words)", "the address of shared memory is asked for"),
        ("row < rows) y", "row < rows) shared[2900].bits = 1, y", "wrote behind its 5760 bytes of shared memory"),
        ('LOAD("", wb', 'if (lane < 31) LOAD("", wb', "of the block's 64 threads wait at line"),
    ],
)
def test_a_fault_is_an_error(rng, old, new, message):
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=message):
        wrong_by(rng, old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("wait_group 1", "wait_group.read 1", "does not know this instruction"),
        ("mma.sync.aligned.m16n8k16", "mma.sync.aligned.m16n8k32", "mma.sync.aligned.m16n8k32"),
        ('"r"(wb[1])', '"f"(wb[1])', "does not know this instruction"),
        ("{%8, %9}", "{%9}", "does not know this instruction"),
        ("{%8, %9}", "{%8, %8}", "results need"),
        ('"+f"(sums[0])', '"=f"(sums[0])', "results need"),
        (' : "memory")\n\nextern', ")\n\nextern", 'clobber "memory"'),
        ("float sums[4]", "double sums[4]", "another type"),
    ],
)
def test_what_ptx_does_not_allow_is_an_error_of_the_compiler(rng, old, new, message):
    with pytest.raises(cupy.cuda.compiler.CompileException, match=re.escape(message)):
        wrong_by(rng, old, new)


# -- one instruction at a time -----------------------------------------------------------------------------------------

TYPES = {"r": "unsigned int", "f": "float", "h": "unsigned short"}


def run(text, results, others, words):
    """What the 32 threads of a warp get in `results`, letters of registers, from the (32, n) `words` in `others`."""
    registers = "".join(f"{TYPES[letter]} v{i}; read(v{i}, in[{i}]);\n" for i, letter in enumerate(results + others))
    outputs = ", ".join(f'"={letter}"(v{i})' for i, letter in enumerate(results))
    inputs = ", ".join(f'"{letter}"(v{i + len(results)})' for i, letter in enumerate(others))
    source = f"""
    template <class T> void read(T& to, unsigned int from) {{ memcpy(&to, &from, sizeof to); }}
    extern "C" __global__ void one(unsigned int (*all)[{len(results + others)}]) {{
        unsigned int* in = all[threadIdx.x];
        {registers}
        asm volatile("{text};" : {outputs} : {inputs} : "memory");
        {"".join(f"in[{i}] = 0; memcpy(&in[{i}], &v{i}, sizeof v{i});" for i in range(len(results)))}
    }}"""
    numbers = np.zeros((32, len(results + others)), np.uint32)
    numbers[:, len(results) :] = words
    memory = cupy.array(numbers)
    cupy.RawKernel(source, "one")((1,), (32,), (memory,))
    return memory.get()[:, : len(results)]


EDGES = [0.0, -0.0, 1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, np.inf, -np.inf, np.nan, 1e38, 7e4]


@pytest.mark.parametrize(
    ("text", "dtype"), [("cvt.rn.bf16.f32", "bfloat16"), ("cvt.rn.f16.f32", "float16"), ("cvt.rna.tf32.f32", "tf32")]
)
def test_numbers_are_rounded(rng, text, dtype):
    values = np.array([*EDGES, *rng.standard_normal(32 - len(EDGES))], np.float32)
    got = run(f"{text} %0, %1", "r" if dtype == "tf32" else "h", "f", values[:, None].view(np.uint32))[:, 0]
    if dtype == "tf32":
        expected = (
            np.sign(values) * np.floor(np.abs(values.astype(np.float64)) / ulp(values, 10) + 0.5) * ulp(values, 10)
        )
        got = got.view(np.float32)
    else:
        with np.errstate(over="ignore"):
            expected = values.astype(np.dtype(dtype)).astype(np.float32)
        got = got.astype(np.uint16).view(np.dtype(dtype)).astype(np.float32)
    special = ~np.isfinite(values) if dtype == "tf32" else np.zeros(32, bool)
    np.testing.assert_array_equal(got[~special], expected[~special])
    np.testing.assert_array_equal(got[special], values[special])


def ulp(values, bits):
    """The distance of neighbouring numbers with so many bits of the mantissa."""
    magnitude = np.abs(np.where(np.isfinite(values) & (values != 0), values, 1)).astype(np.float64)
    return 2.0 ** (np.floor(np.log2(magnitude)) - bits)


@pytest.mark.parametrize(("text", "dtype"), [("cvt.rn.bf16x2.f32", "bfloat16"), ("cvt.rn.f16x2.f32", "float16")])
def test_the_first_of_two_rounded_numbers_becomes_the_upper_half(rng, text, dtype):
    pairs = rng.standard_normal((32, 2)).astype(np.float32)
    got = run(f"{text} %0, %1, %2", "r", "ff", pairs.view(np.uint32))
    np.testing.assert_array_equal(got.view(np.dtype(dtype)), pairs[:, ::-1].astype(np.dtype(dtype)))


def test_float16_becomes_float32(rng):
    halves = np.array([0.0, -np.inf, np.nan, 6e-8, *rng.standard_normal(28)], np.float16)
    got = run("cvt.f32.f16 %0, %1", "f", "h", halves.view(np.uint16)[:, None])
    np.testing.assert_array_equal(got.view(np.float32)[:, 0], halves.astype(np.float32))


def test_all_of_a_copy_needs_no_size():
    source = """
    extern "C" __global__ void copy(const int4* x, int4* y) {
        __shared__ int4 shared[32];
        unsigned long long address;
        asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(shared + threadIdx.x));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((int)address), "l"(x + threadIdx.x) : "memory");
        asm volatile("cp.async.commit_group;\\n" ::: "memory");
        asm volatile("cp.async.wait_group %0;" :: "n"(0) : "memory");
        y[threadIdx.x] = shared[threadIdx.x];
    }"""
    x, y = cupy.arange(128, dtype=np.int32), cupy.zeros(128, np.int32)
    cupy.RawKernel(source, "copy")((1,), (32,), (x, y))
    np.testing.assert_array_equal(y.get(), np.arange(128))


def fragments(matrix, size, positions):
    """(32, words) of a matrix whose number i of the thread 4 * g + t stands at positions(i, g, t)."""
    count = matrix.size // 32
    numbers = np.array([[matrix[positions(i, lane // 4, lane % 4)] for i in range(count)] for lane in range(32)])
    return np.ascontiguousarray(numbers).view(np.uint32) if size == 2 else numbers.view(np.uint32)


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", and its siblings: row and column of number i.
PLACES = {
    "m16n8k16": (
        lambda i, g, t: (g + 8 * (i in (2, 3, 6, 7)), 2 * t + i % 2 + 8 * (i >= 4)),
        lambda i, g, t: (2 * t + i % 2 + 8 * (i >= 2), g),
    ),
    "m16n8k8": (lambda i, g, t: (g + 8 * (i >= 2), 2 * t + i % 2), lambda i, g, t: (2 * t + i, g)),
    "m16n8k8.tf32": (lambda i, g, t: (g + 8 * (i in (1, 3)), t + 4 * (i >= 2)), lambda i, g, t: (t + 4 * i, g)),
    "m16n8k4.tf32": (lambda i, g, t: (g + 8 * i, t), lambda i, g, t: (t, g)),
}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ("m16n8k16", "bfloat16"),
        ("m16n8k8", "bfloat16"),
        ("m16n8k16", "float16"),
        ("m16n8k8", "float16"),
        ("m16n8k8", "tf32"),
        ("m16n8k4", "tf32"),
    ],
)
def test_mma(rng, shape, dtype):
    depth, size = int(shape.rpartition("k")[2]), 4 if dtype == "tf32" else 2
    a_places, b_places = PLACES[shape + ".tf32" * (dtype == "tf32")]
    stored = np.dtype(np.float32 if dtype == "tf32" else dtype)
    a, b, c = (rng.integers(-9, 10, s).astype(np.float32) for s in ((16, depth), (depth, 8), (16, 8)))
    c_words = fragments(c, 4, lambda i, g, t: (g + 8 * (i >= 2), 2 * t + i % 2))
    words = [fragments(a.astype(stored), size, a_places), fragments(b.astype(stored), size, b_places), c_words]
    count_a, count_b = words[0].shape[1], words[1].shape[1]
    groups = np.split(np.arange(8 + count_a + count_b), np.cumsum([4, count_a, count_b]))
    operands = ", ".join("{" + ", ".join(f"%{i}" for i in group) + "}" for group in groups)
    name = {"bfloat16": "bf16", "float16": "f16", "tf32": "tf32"}[dtype]
    text = f"mma.sync.aligned.{shape}.row.col.f32.{name}.{name}.f32 {operands}"
    got = run(text, "ffff", "r" * (count_a + count_b) + "ffff", np.hstack(words))
    np.testing.assert_array_equal(
        got, fragments(a @ b + c, 4, lambda i, g, t: (g + 8 * (i >= 2), 2 * t + i % 2)).reshape(32, 4)
    )


def test_movmatrix(rng):
    matrix = rng.integers(0, 2**16, (8, 8)).astype(np.uint16)
    got = run("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1", "r", "r", matrix.view(np.uint32).reshape(32, 1))
    np.testing.assert_array_equal(np.ascontiguousarray(got).view(np.uint16).reshape(8, 8), matrix.T)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(rng, count, transposed):
    """Of the rows of 1, 2 or 4 matrices in shared memory, thread i names row i; the other threads name none."""
    names = ", ".join(f"%{i}" for i in range(count))
    source = f"""
    extern "C" __global__ void load(const uint4* rows, unsigned int* y) {{
        __shared__ uint4 shared[40];
        shared[threadIdx.x + 3] = rows[threadIdx.x];
        __syncwarp();
        unsigned int w[4], row = threadIdx.x < {8 * count} ? __cvta_generic_to_shared(shared + 3 + threadIdx.x) : 12345;
        asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{".trans" * transposed}.shared.b16 {{{names}}}, [%{count}];"
            : {", ".join(f'"=r"(w[{i}])' for i in range(count))} : "r"(row) : "memory");
        for (int i = 0; i < {count}; i++) y[32 * i + threadIdx.x] = w[i];
    }}"""
    matrices = rng.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    y = cupy.empty((count, 32), np.uint32)
    load = cupy.RawKernel(source, "load")
    load((1,), (32,), (cupy.array(matrices), y))
    expected = matrices[:count].transpose(0, 2, 1) if transposed else matrices[:count]
    np.testing.assert_array_equal(y.get().view(np.uint16).reshape(count, 8, 8), expected)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_copy_lands_when_it_is_waited_for_and_zeros_fill_it_up(size):
    """Number i of a row copies i of `size` bytes; the numbers are read before the wait and after it."""
    source = f"""
    extern "C" __global__ void copy(const unsigned char* x, unsigned char* y) {{
        __shared__ uint4 shared[32];
        asm volatile("cp.async.ca.shared.global [%0], [%1], {size}, %2;"
            :: "r"((unsigned int)__cvta_generic_to_shared(shared + threadIdx.x)), "l"(x), "r"((int)threadIdx.x)
            : "memory");
        for (int i = 0; i < {size}; i++) y[threadIdx.x * {2 * size} + i] = ((unsigned char*)(shared + threadIdx.x))[i];
        asm volatile("cp.async.wait_all;" ::: "memory");
        for (int i = 0; i < {size}; i++)
            y[threadIdx.x * {2 * size} + {size} + i] = ((unsigned char*)(shared + threadIdx.x))[i];
    }}"""
    x, y = cupy.arange(1, 17, dtype=np.uint8), cupy.zeros((size + 1, 2, size), np.uint8)
    cupy.RawKernel(source, "copy")((1,), (size + 1,), (x, y))
    assert (y.get()[:, 0] == 255).all()
    numbers, counts = np.arange(1, size + 1), np.arange(size + 1)[:, None]
    np.testing.assert_array_equal(y.get()[:, 1], np.where(numbers <= counts, numbers, 0))


# -- what a warpgroup does together ------------------------------------------------------------------------------------

hopper = pytest.mark.skipif(fake_gpu.compiler.ARCHITECTURE != 90, reason="the instructions of a warpgroup need sm_90a")

DESCRIPTOR = """
__device__ unsigned long long descriptor(const void* start, int leading, int stride, int swizzle) {
    unsigned int address = (unsigned int)__cvta_generic_to_shared(start);
    return address >> 4 | (unsigned long long)(leading >> 4) << 16 | (unsigned long long)(stride >> 4) << 32
         | (unsigned long long)swizzle << 62;
}
#define FENCE asm volatile("wgmma.fence.sync.aligned;" ::: "memory")
#define COMMIT asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory")
#define WAIT(groups) asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(groups) : "memory")
#define FENCE_COPIES asm volatile("fence.proxy.async.shared::cta;" ::: "memory")
"""

# y = a b in tiles of 128 x 128, by two warpgroups. A stage has 32 numbers of each row of a (K-major, in lines of 64
# bytes) and 32 rows of b (MN-major, in lines of 128 bytes, so half a row). A wgmma of the step before may still run.
WARPGROUPS = (
    DESCRIPTOR
    + """
constexpr int STAGES = 3, AHEAD = 1, A_BYTES = 128 * 64, STAGE = A_BYTES + 32 * 256;
alignas(1024) __shared__ char shared[STAGES * STAGE];

__device__ void copy(char* stage, unsigned int offset, int mask, const void* from) {
    unsigned int swizzled = offset ^ (offset >> 7 & mask) << 4;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"((unsigned int)__cvta_generic_to_shared(stage + swizzled)), "l"(from) : "memory");
}

__device__ void load(int step, const unsigned short* a, const unsigned short* b, int depth) {
    char* stage = shared + step % STAGES * STAGE;
    for (int i = threadIdx.x; i < 512; i += blockDim.x) {
        int row = i / 4, part = i % 4, k = i / 16, column = i % 16;
        copy(stage, 64 * row + 16 * part, 3, a + row * depth + 32 * step + 8 * part);
        copy(stage + A_BYTES, column / 8 * 4096 + k * 128 + column % 8 * 16, 7, b + (32 * step + k) * 128 + 8 * column);
    }
}

extern "C" __global__ void product(const unsigned short* a, const unsigned short* b, float* y, int depth) {
    int t = threadIdx.x, lane = t % 32, steps = depth / 32;
    float sums[64] = {};
    a += blockIdx.x * 128 * depth;
    for (int step = 0; step < AHEAD; step++) {
        load(step, a, b, depth);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" :: "n"(AHEAD - 1) : "memory");
        FENCE_COPIES;
        __syncthreads();
        if (step + AHEAD < steps) load(step + AHEAD, a, b, depth);
        asm volatile("cp.async.commit_group;" ::: "memory");
        FENCE;
        for (int k = 0; k < 32; k += 16) {
            const char* stage = shared + step % STAGES * STAGE;
            unsigned long long of_a = descriptor(stage + t / 128 * 4096 + 2 * k, 16, 512, 2);
            unsigned long long of_b = descriptor(stage + A_BYTES + 128 * k, 4096, 1024, 1);
            MULTIPLY;
        }
        COMMIT;
        WAIT(1);
    }
    WAIT(0);
    for (int i = 0; i < 64; i++) {
        int row = blockIdx.x * 128 + t / 32 * 16 + lane / 4 + 8 * (i / 2 % 2);
        int column = 8 * (i / 4) + lane % 4 * 2 + i % 2;
        y[row * 128 + column] = sums[i];
    }
}
"""
)


def multiply(n, dtype, transpose_a, transpose_b):
    """A statement that adds the product by the descriptors of_a and of_b to the array `sums`."""
    count, kind = n // 2, {"bfloat16": "bf16", "float16": "f16"}[dtype]
    text = (
        f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {{{', '.join(f'%{i}' for i in range(count))}}}, "
        f"%{count}, %{count + 1}, 1, 1, 1, %{count + 2}, %{count + 3};"
    )
    results = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
    others = f'"l"(of_a), "l"(of_b), "n"({transpose_a}), "n"({transpose_b})'
    return f'asm volatile("{text}" : {results} : {others} : "memory")'


def wrong_by_warpgroups(rng, *changes, dtype="bfloat16", threads=256, options=("-arch=sm_90a",)):
    """As `wrong_by`: the largest error of WARPGROUPS, after the replacements of texts in `changes`."""
    source = WARPGROUPS.replace("MULTIPLY", multiply(128, dtype, 0, 1))
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((256, 160), (160, 128)))
    of_16_bits = bfloat16 if dtype == "bfloat16" else lambda numbers: numbers.astype(np.float16).view(np.uint16)
    y = cupy.full((256, 128), np.nan, np.float32)
    arguments = cupy.array(of_16_bits(a)), cupy.array(of_16_bits(b)), y, np.int32(160)
    cupy.RawKernel(source, "product", options=options)((2,), (threads,), arguments)
    return np.abs(y.get() - a @ b).max()


@hopper
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_product_by_warpgroups_is_right(rng, dtype, order):
    with fake_gpu.settings(order=order):
        assert wrong_by_warpgroups(rng, dtype=dtype) == 0


@hopper
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("offset ^ (offset >> 7 & mask) << 4", "offset"),
        ("16, 512, 2)", "16, 512, 3)"),  # another swizzle
        ("16, 512, 2)", "16, 1024, 2)"),
        ("4096, 1024, 1)", "1024, 4096, 1)"),
        ('"n"(0), "n"(1)', '"n"(1), "n"(1)'),
        ("t / 128 * 4096", "0"),  # the second warpgroup reads the rows of the first one
        ("+ 2 * k, 16", "+ k, 16"),
        ("8 * (i / 4) + lane % 4 * 2 + i % 2;", "8 * (i / 4) + lane % 4 + 4 * (i % 2);"),
        ("__syncthreads();", ""),
        ("float sums[64] = {};", "float sums[64] = {1};"),
    ],
)
def test_a_wrong_product_by_warpgroups_is_wrong(rng, old, new, order):
    with fake_gpu.settings(order=order):
        assert wrong_by_warpgroups(rng, (old, new)) != 0  # it may be NaN


@hopper
def test_patterns_that_are_not_aligned_make_a_product_wrong(rng):
    two_stages = ("STAGES = 3", "STAGES = 2"), ("WAIT(1)", "WAIT(0)")
    assert wrong_by_warpgroups(rng, *two_stages) == 0
    assert wrong_by_warpgroups(rng, *two_stages, ("A_BYTES = 128 * 64", "A_BYTES = 128 * 64 + 512")) != 0


LOAD = "if (step + AHEAD < steps) load(step + AHEAD, a, b, depth);\n"
COMMIT_COPIES = '        asm volatile("cp.async.commit_group;" ::: "memory");\n'
WRITTEN = "shared memory that wgmma reads was written before it was waited for"


@hopper
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("WAIT(0);", "")], "wgmma of warp [07] are not waited for"),
        ([("        COMMIT;", "")], "wgmma of warp [07] are not waited for"),
        ([("        FENCE;", "")], "no wgmma.fence before the first wgmma"),
        ([("        FENCE;", "        if (!step) FENCE;")], "no wgmma.fence .* or since wgmma.wait_group"),
        ([("        FENCE_COPIES;", "")], "wgmma: thread [0-9]* copied to shared memory without fence.proxy.async"),
        (
            [("FENCE_COPIES;\n        __syncthreads();", "__syncthreads();\n        FENCE_COPIES;")],
            "without fence.proxy",
        ),
        ([("STAGES = 3", "STAGES = 2")], WRITTEN),
        ([("WAIT(1)", "WAIT(2)")], WRITTEN),
        ([("AHEAD = 1", "AHEAD = 2")], WRITTEN),
        # A warp waits for its own wgmma of the step before; others may not have waited for theirs.
        (
            [("AHEAD = 1", "AHEAD = 2"), (LOAD + COMMIT_COPIES, ""), ("WAIT(1);", "WAIT(1);" + LOAD + COMMIT_COPIES)],
            WRITTEN,
        ),
        ([("WAIT(1);", "shared[step % STAGES * STAGE + t] = 1; WAIT(0);")], WRITTEN),
        ([("COMMIT;", "if (t % 128 < 96) COMMIT;")], "wgmma of warp [37] are not waited for"),
        (
            [("stage + t / 128 * 4096", "stage + t / 32 * 1024")],
            "warps 0 and 1 of a warpgroup did not execute the same",
        ),
        (
            [("            asm", "            if (t % 128 < 96) asm")],
            "warps 0 and 3 of a warpgroup did not execute the same",
        ),
        ([("stage + t / 128 * 4096", "stage + lane * 16")], "lanes 0 and 1 have different descriptors"),
        ([("        FENCE;", "        if (lane < 31) FENCE;")], "of the block's 256 threads wait at line"),
    ],
)
def test_a_fault_of_a_warpgroup_is_an_error(rng, changes, message, order):
    with fake_gpu.settings(order=order):
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=message):
            wrong_by_warpgroups(rng, *changes)
        assert wrong_by_warpgroups(rng) == 0  # nothing is left behind


@hopper
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("16, 512, 2)", "16, 512, 0)", "no swizzle, or a base offset, is not emulated"),
        ("16, 512, 2)", "16, 512, 2) | 1ull << 49", "no swizzle, or a base offset, is not emulated"),
        ("1, 1, 1, %66", "0, 1, 1, %66", "scales other than 1"),
        ("1, 1, 1, %66", "1, 0, 1, %66", "scales other than 1"),
        ("1, 1, 1, %66", "1, 1, 0, %66", "scales other than 1"),
        ('"n"(1) : "memory")', '"n"(2) : "memory")', "a transposition other than 0 and 1"),
        ('"n"(0), "n"(1)', '"n"(0), "n"(0)', WRITTEN),  # reads on in the next stage
        ("4096, 1024, 1)", "65536, 1024, 1)", "wgmma: 16 bytes at 7[0-9]* are not in shared memory"),
    ],
)
def test_a_wgmma_that_cannot_be_is_an_error(rng, old, new, message):
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=message):
        wrong_by_warpgroups(rng, (old, new))


@hopper
def test_a_block_that_is_no_warpgroup_is_an_error(rng):
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="the block's threads are not warpgroups of 128"):
        wrong_by_warpgroups(rng, threads=192)


@hopper
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ([], (), "-arch=sm_90a is missing"),
        ([('"+f"(sums[63])', '"=f"(sums[63])')], ("-arch=sm_90a",), "results need"),
        ([("1, 1, 1, %66", "1, -1, 1, %66")], ("-arch=sm_90a",), "does not know this instruction"),
        ([("m64n128k16", "m64n64k16")], ("-arch=sm_90a",), "does not know this instruction"),
        ([('"n"(0), "n"(1) : "memory")', '"n"(0), "n"(1))')], ("-arch=sm_90a",), 'clobber "memory"'),
    ],
)
def test_a_wgmma_that_ptx_does_not_allow_is_an_error_of_the_compiler(rng, changes, options, message):
    with pytest.raises(cupy.cuda.compiler.CompileException, match=re.escape(message)):
        wrong_by_warpgroups(rng, *changes, options=options)


@hopper
def test_code_for_sm_90a_is_for_no_other_gpu(monkeypatch):
    source = """
    extern "C" __global__ void which(int* y) {
    #ifdef __CUDA_ARCH_FEAT_SM90_ALL
        *y = __CUDA_ARCH__ + __CUDA_ARCH_FEAT_SM90_ALL;
    #else
        *y = __CUDA_ARCH__;
    #endif
    }"""
    for options, expected in (((), 900), (("-arch=sm_90a",), 901)):
        y = cupy.zeros(1, np.int32)
        cupy.RawKernel(source, "which", options=options)((1,), (1,), (y,))
        assert y.get() == expected
    monkeypatch.setattr(fake_gpu.compiler, "ARCHITECTURE", 80)
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"sm_90a does not load on a GPU of .* 8\.0"):
        cupy.RawKernel(source + " ", "which", options=("-arch=sm_90a",)).compile()


def place(matrix, image, start, width, mn_major):
    """Write (mn, 16) numbers of 2 bytes into an image of shared memory; the descriptor but for its address.

    Tiles of 8 lines of `width` bytes; in line r the 16-byte part p stands at p ^ r, or p ^ r / 2, p ^ r / 4.
    """
    tile, parts = 8 * width, width // 16
    leading, stride = (4 * tile, 2 * tile) if mn_major else (16, 3 * tile)
    for (mn, k), number in np.ndenumerate(matrix):
        line, across = (k, mn) if mn_major else (mn, k)
        group, column = divmod(across, width // 2)
        part = column // 8 ^ line % 8 * parts // 8
        at = start + group * leading + line // 8 * stride + line % 8 * width + 16 * part + 2 * (column % 8)
        image[at // 2] = number
    return leading, stride, {128: 1, 64: 2, 32: 3}[width]


@hopper
@pytest.mark.parametrize(
    ("n", "dtype", "of_a", "of_b"),
    [
        (16, "bfloat16", (128, 0), (32, 1)),
        (16, "float16", (32, 0), (64, 1)),
        (32, "bfloat16", (64, 1), (64, 1)),
        (32, "float16", (32, 1), (32, 1)),
        (64, "bfloat16", (128, 1), (128, 0)),
        (64, "float16", (64, 0), (32, 1)),
        (128, "bfloat16", (64, 0), (32, 0)),
        (128, "float16", (128, 0), (64, 0)),
    ],
)
def test_each_layout_of_the_matrices_of_a_warpgroup(rng, n, dtype, of_a, of_b):
    a, b = rng.integers(-8, 9, (64, 16)), rng.integers(-8, 9, (n, 16))
    image = np.full(24576, 0x7FFF, np.uint16)  # NaN
    descriptors = [
        (start, *place(matrix.astype(np.dtype(dtype)).view(np.uint16), image, start, *layout))
        for matrix, start, layout in ((a, 0, of_a), (b, 24576, of_b))
    ]
    one, two = (f"descriptor(shared + {start}, {', '.join(map(str, others))})" for start, *others in descriptors)
    source = (
        DESCRIPTOR
        + f"""
    extern "C" __global__ void one(const uint4* image, float* y) {{
        alignas(1024) __shared__ char shared[49152];
        for (int i = threadIdx.x; i < 3072; i += 128) ((uint4*)shared)[i] = image[i];
        FENCE_COPIES;
        __syncthreads();
        float* sums = y + threadIdx.x * {n // 2};
        unsigned long long of_a = {one}, of_b = {two};
        FENCE;
        {multiply(n, dtype, of_a[1], of_b[1])};
        COMMIT;
        WAIT(0);
    }}"""
    )
    y = cupy.ones((4, 8, 4, n // 8, 2, 2), np.float32)  # warp, g, t, then the operands
    kernel = cupy.RawKernel(source, "one", options=("-arch=sm_90a",))
    kernel((1,), (128,), (cupy.array(image.view(np.uint32)), y))
    got = y.get().transpose(0, 4, 1, 3, 2, 5).reshape(64, n)
    np.testing.assert_array_equal(got, 1 + a @ b.T)


def test_shared_memory_lies_at_multiples_of_its_alignment():
    source = """
    __shared__ char before[24];
    extern "C" __global__ void addresses(unsigned int* y) {
        alignas(1024) __shared__ char first[1000];
        __shared__ char between[3];
        alignas(1024) __shared__ char second[2048];
        alignas(256) __shared__ char third[8];
        y[0] = __cvta_generic_to_shared(first), y[1] = __cvta_generic_to_shared(second);
        y[2] = __cvta_generic_to_shared(third) * 4, y[3] = __cvta_generic_to_shared(before);
        y[4] = __cvta_generic_to_shared(between);
    }"""
    y = cupy.zeros(5, np.uint32)
    cupy.RawKernel(source, "addresses")((1,), (1,), (y,))
    *aligned, before, between = y.get().tolist()
    assert [address % 1024 for address in aligned] == [0, 0, 0]
    assert len({*aligned, before, between}) == 5
