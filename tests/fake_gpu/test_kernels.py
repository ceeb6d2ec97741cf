"""The fake GPU runs kernels as a GPU does, and sees what is wrong with them: their arguments, their barriers."""

import cupy
import numpy as np
import pytest

from minidl.kernels.cuda._launch import HEADER
from tests import fake_gpu

COPY = 'extern "C" __global__ void copy(const real* x, real* y, index count) {\n%s}\n'


def kernel(name, source, real="float", index="int"):
    return cupy.RawKernel(f"#define real {real}\n#define index {index}\n{HEADER}{source}", name)


def device(*numbers, dtype=np.float32):
    return cupy.array(numbers, dtype)


# -- kernels -----------------------------------------------------------------------------------------------------------


def test_each_thread_has_its_place():
    source = """
    extern "C" __global__ void place(int* y) {
        int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        y[block * blockDim.x * blockDim.y * blockDim.z + thread] = 100 * block + thread;
    }
    """
    y = cupy.empty((2 * 3 * 4, 5 * 6 * 7), np.int32)
    kernel("place", source)((2, 3, 4), (5, 6, 7), (y,))
    np.testing.assert_array_equal(y.get(), 100 * np.arange(24)[:, None] + np.arange(210))


def test_a_kernel_gets_an_address_and_no_strides():
    x, y = device(1, 2, 3, 4), cupy.empty(2, np.float32)
    kernel("copy", COPY % "index i = threadIdx.x; y[i] = x[i];")((1,), (2,), (x[1::2], y, np.int32(2)))
    assert y.get().tolist() == [2, 3]


@pytest.mark.parametrize("index", ["int", "long long"])
def test_a_python_number_is_passed_in_64_bits(index):
    copy = kernel("copy", COPY % "if (threadIdx.x < count) y[threadIdx.x] = x[threadIdx.x];", index=index)
    arrays = device(1, 2), cupy.empty(2, np.float32)
    wrong, right = (2, np.int32(2)) if index == "int" else (np.int32(2), 2)
    with pytest.raises(TypeError, match=r"argument 2 is vi\d, the kernel reads vi\d"):
        copy((1,), (2,), (*arrays, wrong))
    copy((1,), (2,), (*arrays, right))
    assert arrays[1].get().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x, n: (x, x), "expected 3 arguments, got 2"),
        (lambda x, n: (x, x.astype(np.float64), n), "argument 1 is pf8, the kernel reads pf4"),
        (lambda x, n: (x, n, n), "argument 1 is vi4, the kernel reads pf4"),
        (lambda x, n: (x.get(), x, n), "Unsupported type <class 'numpy.ndarray'>"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        kernel("copy", COPY % "")((1,), (1,), arguments(device(1), np.int32(1)))


@pytest.mark.parametrize(("grid", "block"), [((0,), (1,)), ((1,), (1025,)), ((1, 65536), (1,)), ((1,), (1, 1, 65))])
def test_what_a_gpu_cannot_launch_is_refused(grid, block):
    with pytest.raises(RuntimeError, match="cannot be launched"):
        kernel("copy", COPY % "")(grid, block, (device(1), device(1), np.int32(1)))


@pytest.mark.parametrize("place", [-1, 2])
def test_a_number_written_beside_an_array_is_noticed(place):
    with pytest.raises(RuntimeError, match="wrote beside the array that is argument 1"):
        kernel("copy", COPY % f"y[{place}] = 1;")((1,), (1,), (device(1), cupy.empty(2, np.float32), np.int32(1)))
        cupy.cuda.Device().synchronize()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("((float4*)(y + 1))[0] = {0, 0, 0, 0};", "misaligned address 0x"),
        ("__shared__ real numbers[4]; numbers[count + 3] = x[0];", "index 4 is out of bounds"),
        ("real* nothing = count ? nullptr : y; nothing[0] = x[0];", "address 0x0"),
    ],
)
def test_an_address_that_a_gpu_does_not_take_is_an_error(body, message):
    with pytest.raises(RuntimeError, match=rf"copy: line \d+: .*{message}"):
        kernel("copy", COPY % body)((1,), (1,), (device(1), cupy.empty(8, np.float32), np.int32(1)))
        cupy.cuda.Device().synchronize()


def test_a_mistake_in_the_source_is_an_error_with_its_line():
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"copy\.cu:\d+.*'nonsense' was not declared"):
        kernel("copy", COPY % "nonsense;")((1,), (1,), (device(1), device(1), np.int32(1)))


def test_a_launch_takes_numbers_as_they_are_then():
    fill = cupy.RawKernel('extern "C" __global__ void fill(int* x, int value) { x[threadIdx.x] = value; }', "fill")
    x, value = cupy.zeros(2, np.int32), np.array(3, np.int32)
    with fake_gpu.settings(streams="lazy"):
        fill((1,), (2,), (x, value[()]))
        value[...] = 4
    assert x.get().tolist() == [3, 3]


def test_shared_memory_whose_size_the_launch_gives():
    source = """extern "C" __global__ void reverse(float* x, int n) {
        extern __shared__ float numbers[];
        numbers[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = numbers[n - 1 - threadIdx.x];
    }"""
    x, reverse = cupy.arange(8, dtype=np.float32), cupy.RawKernel(source, "reverse")
    reverse((1,), (8,), (x, np.int32(8)), shared_mem=32)
    assert x.get().tolist() == list(range(7, -1, -1))
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        reverse((1,), (8,), (x, np.int32(8)), shared_mem=100_000)
    reverse.max_dynamic_shared_size_bytes = 100_000
    reverse((1,), (8,), (x, np.int32(8)), shared_mem=100_000)
    assert x.get().tolist() == list(range(8))
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        reverse.max_dynamic_shared_size_bytes = 228 * 1024


@pytest.mark.parametrize(
    ("declared", "call", "dynamic", "fits"),
    [
        (50_000, "", 0, True),  # a function that nobody calls takes nothing
        (50_000, "fill();", 0, False),
        (40_000, "fill();", 9_152, True),
        (40_000, "fill();", 9_156, False),
    ],
)
def test_the_limit_of_shared_memory_is_that_of_all_together(declared, call, dynamic, fits):
    source = """
    __device__ void fill() { __shared__ volatile char numbers[%d]; numbers[threadIdx.x] = 1; }
    extern "C" __global__ void take(int* x) { %s x[0] = 1; }
    """
    x, take = cupy.zeros(1, np.int32), cupy.RawKernel(source % (declared, call), "take")
    if fits:
        take((1,), (1,), (x,), shared_mem=dynamic)
        assert x.get().tolist() == [1]
    else:
        with pytest.raises(cupy.cuda.driver.CUDADriverError, match="cannot be launched"):
            take((1,), (1,), (x,), shared_mem=dynamic)


def test_a_captured_kernel_runs_when_the_graph_is_launched():
    x, y = cupy.empty(2, np.float32), cupy.empty(2, np.float32)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        kernel("copy", COPY % "y[threadIdx.x] = x[threadIdx.x];")((1,), (2,), (x, y, np.int32(2)))
        graph = stream.end_capture()
    assert np.isnan(y.get()).all()
    x.set(np.array([3, 4], np.float32))
    graph.launch()
    assert y.get().tolist() == [3, 4]


def test_fresh_memory_is_garbage_of_whatever_origin():
    x = device(1, 2, 3)
    for fresh in (cupy.empty(3, np.float32), cupy.empty_like(x), cupy.ndarray((3,), np.float32)):
        assert np.isnan(fresh.get()).all()


# -- threads that wait for each other ----------------------------------------------------------------------------------

TOTALS = """
extern "C" __global__ void totals(const real* x, real* y, index count) {
    index i = thread_number();
    real total = block_sum(i < count ? x[i] : (real)0);
    y[i] = total + block_sum((real)1);
}
"""


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("real", ["float", "double"])
def test_block_sum_is_the_sum_for_every_thread(order, real):
    x = np.arange(600).astype({"float": np.float32, "double": np.float64}[real])
    y = cupy.empty((3, 256), x.dtype)
    with fake_gpu.settings(order=order):
        kernel("totals", TOTALS, real)((3,), (256,), (cupy.array(x), y, np.int32(600)))
    expected = [x[:256].sum() + 256, x[256:512].sum() + 256, x[512:].sum() + 256]
    np.testing.assert_array_equal(y.get(), np.repeat(expected, 256).reshape(3, 256))


def reversed_numbers(barrier, order):
    """What a block gets that reverses x in shared memory, with a barrier between writing and reading or without."""
    source = """
    __shared__ real numbers[64];
    numbers[threadIdx.x] = x[threadIdx.x];
    %s
    y[threadIdx.x] = numbers[count - 1 - threadIdx.x];
    """
    x, y = cupy.arange(64, dtype=np.float32), cupy.empty(64, np.float32)
    with fake_gpu.settings(order=order):
        kernel("copy", COPY % (source % barrier))((1,), (64,), (x, y, np.int32(64)))
    return y.get().tolist()


def test_a_missing_barrier_shows_in_the_order_of_the_threads():
    expected = list(reversed(range(64)))
    assert reversed_numbers("__syncthreads();", "ascending") == expected
    assert reversed_numbers("__syncthreads();", "descending") == expected
    assert str(reversed_numbers("", "ascending")) != str(reversed_numbers("", "descending"))


@pytest.mark.parametrize(
    "diverge",
    [
        "if (threadIdx.x < 7) return;\n__syncthreads();",
        "if (threadIdx.x < 7) {\n__syncthreads();\n} else {\n__syncthreads();\n}",
        "if (threadIdx.x > 7) __syncwarp();",
    ],
)
def test_threads_that_wait_in_vain_are_an_error_and_the_next_kernel_runs(diverge):
    arguments = cupy.zeros(64, np.float32), cupy.zeros(64, np.float32), np.int32(64)
    with pytest.raises(RuntimeError, match=r"copy: \d+ of the block's 64 threads wait at line"):
        kernel("copy", COPY % diverge)((1,), (64,), arguments)
        cupy.cuda.Device().synchronize()
    assert reversed_numbers("__syncthreads();", "ascending") == list(reversed(range(64)))


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize(
    ("shuffle", "expected"),
    [
        ("__shfl_down_sync(0xffffffff, value, 3)", lambda lane: np.where(lane < 29, lane + 3, lane)),
        ("__shfl_up_sync(0xffffffff, value, 3)", lambda lane: np.where(lane < 3, lane, lane - 3)),
        ("__shfl_xor_sync(0xffffffff, value, 5)", lambda lane: lane ^ 5),
        ("__shfl_sync(0xffffffff, value, 5)", lambda lane: 0 * lane + 5),
        ("__shfl_down_sync(0xffffffff, value, 4, 8)", lambda lane: np.where(lane % 8 < 4, lane + 4, lane)),
        ("__ballot_sync(0xffffffff, threadIdx.x % 32 < 4)", lambda lane: 0 * lane + 15),
    ],
)
def test_the_threads_of_a_warp_exchange_numbers(shuffle, expected, order):
    source = f"real value = x[threadIdx.x]; if (threadIdx.x < count) y[threadIdx.x] = {shuffle};"
    lane = np.arange(64) % 32
    x, y = cupy.array(lane.astype(np.float32)), cupy.zeros(64, np.float32)
    with fake_gpu.settings(order=order):
        kernel("copy", COPY % source)((1,), (64,), (x, y, np.int32(32)))
    np.testing.assert_array_equal(y.get(), np.where(np.arange(64) < 32, expected(lane), 0))
