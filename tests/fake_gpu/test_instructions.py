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
        ("b + row * depth + 16 * step", "b + (row + 900000) * depth + 16 * step", "cp.async: 0x.* is no global memory"),
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
    with pytest.raises(RuntimeError, match=re.escape(message)):
        wrong_by(rng, old, new)
