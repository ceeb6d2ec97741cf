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
