"""The stand-in for CuPy refuses what CuPy refuses, and runs a CUDA kernel as a GPU does.

With `--device fake` the same tests run on the real CuPy: what they expect of the stand-in is what CuPy does.
"""

import ast
import operator
import shutil
from pathlib import Path

import numpy as np
import pytest

import minidl
from tests import fake_gpu, stand_in

if fake_gpu.DRIVER:
    import cupy
else:
    from tests.stand_in import cupy

HEADER = next(
    ast.literal_eval(node.value)
    for node in ast.parse((Path(minidl.__file__).parent / "kernels/cuda/_launch.py").read_text()).body
    if isinstance(node, ast.Assign) and node.targets[0].id == "HEADER"
)
COPY = 'extern "C" __global__ void copy(const real* x, real* y, index count) {\n%s}\n'

of_the_stand_in = pytest.mark.skipif(bool(fake_gpu.DRIVER), reason="the stand-in is stricter here than CuPy")
runs_kernels = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def kernel(name, source, real="float", index="int"):
    return cupy.RawKernel(HEADER + source, name, (f"-Dreal={real}", f"-Dindex={index}"))


def threads_in(name):
    """The order of the blocks and threads within a context."""
    return fake_gpu.settings(order=name) if fake_gpu.DRIVER else stand_in.order(name)


def device(*numbers, dtype=np.float32):
    return cupy.array(numbers, dtype)


# -- arrays ------------------------------------------------------------------------------------------------------------


def assign(array, value):
    array[:] = value


@pytest.mark.parametrize(
    "mix",
    [
        lambda ours, numpys: ours + numpys,
        lambda ours, numpys: numpys + ours,
        lambda ours, numpys: ours @ numpys,
        lambda ours, numpys: operator.iadd(ours, numpys),
        lambda ours, numpys: ours == numpys,
        lambda ours, numpys: np.maximum(numpys, ours),
        lambda ours, numpys: np.concatenate([numpys, ours]),
        lambda ours, numpys: cupy.where(ours > 0, numpys, ours),
        lambda ours, numpys: cupy.exp(numpys),
        lambda ours, numpys: cupy.ascontiguousarray(numpys),
        lambda ours, numpys: cupy.matmul(ours, ours, out=numpys),
        lambda ours, numpys: assign(ours, numpys),
        lambda ours, numpys: assign(numpys, ours),
    ],
)
def test_arrays_of_host_and_device_do_not_mix(mix):
    with pytest.raises((TypeError, ValueError)):
        mix(device(1, 2), np.ones(2, np.float32))


@pytest.mark.parametrize("convert", [np.asarray, np.array, np.testing.assert_array_equal])
def test_nothing_becomes_a_numpy_array_by_itself(convert):
    with pytest.raises((TypeError, DeprecationWarning)):
        convert(device(1), *[1] * (convert is np.testing.assert_array_equal))


def test_numbers_mix_with_arrays():
    for number in (2, 2.0, np.float32(2)):
        for y in (number * device(3), device(3) * number):
            assert isinstance(y, cupy.ndarray)
            assert y.dtype == np.float32
            assert y.get().tolist() == [6]
        assert (number < device(1, 3)).get().tolist() == [False, True]


def test_what_has_no_dimensions_is_an_array_too():
    x = device(1, 2)
    for scalar in (x[0], x.sum(), x.max(), np.exp(x[0]), cupy.zeros(())):
        assert isinstance(scalar, cupy.ndarray)
        assert scalar.shape == ()
    assert (float(x[1]), int(x[1]), bool(x[1])) == (2.0, 2, True)
    with pytest.raises(TypeError, match=r"one element|0-dimensional"):
        float(x)


def test_get_is_a_copy():
    x = device(1, 2)
    x.get()[:] = 5
    assert x.get().tolist() == [1, 2]


def test_numpys_functions_stay_on_the_device():
    x = device(1, 2)
    zeros = np.zeros_like(x, shape=(3,))
    np.add.at(zeros, np.array([0, 0]), x)
    assert isinstance(zeros, cupy.ndarray)
    assert zeros.get().tolist() == [3, 0, 0]


def test_fresh_memory_is_garbage():
    assert np.isnan(cupy.empty((2, 3), np.float32).get()).all()
    assert np.isnan(cupy.empty_like(device(1, 2)).get()).all()


def test_an_array_like_a_transposed_one_is_transposed():
    assert cupy.empty_like(cupy.zeros((2, 3)).T).strides == cupy.zeros((2, 3)).T.strides


def test_an_array_like_another_takes_an_empty_shape_for_none():
    assert cupy.zeros_like(device(1, 2), shape=()).shape == (2,)  # unlike NumPy's
    assert cupy.zeros_like(device(1, 2), shape=(1,)).shape == (1,)


def test_what_is_made_contiguous_gets_a_dimension():
    assert cupy.ascontiguousarray(cupy.zeros(())).shape == (1,)  # in CuPy as in NumPy


# -- kernels -----------------------------------------------------------------------------------------------------------


@runs_kernels
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


@runs_kernels
def test_a_kernel_gets_an_address_and_no_strides():
    x, y = device(1, 2, 3, 4), cupy.empty(2, np.float32)
    kernel("copy", COPY % "index i = threadIdx.x; y[i] = x[i];")((1,), (2,), (x[1::2], y, np.int32(2)))
    assert y.get().tolist() == [2, 3]


@runs_kernels
@pytest.mark.parametrize("index", ["int", "long long"])
def test_a_python_number_is_passed_in_64_bits(index):
    copy = kernel("copy", COPY % "if (threadIdx.x < count) y[threadIdx.x] = x[threadIdx.x];", index=index)
    arrays = device(1, 2), cupy.empty(2, np.float32)
    wrong, right = (2, np.int32(2)) if index == "int" else (np.int32(2), 2)
    with pytest.raises(TypeError, match=r"argument 2 is vi\d, the kernel reads vi\d"):
        copy((1,), (2,), (*arrays, wrong))
    copy((1,), (2,), (*arrays, right))
    assert arrays[1].get().tolist() == [1, 2]


@runs_kernels
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


@runs_kernels
@pytest.mark.parametrize(("grid", "block"), [((0,), (1,)), ((1,), (1025,)), ((1, 65536), (1,)), ((1,), (1, 1, 65))])
def test_what_a_gpu_cannot_launch_is_refused(grid, block):
    with pytest.raises(RuntimeError, match="cannot be launched"):
        kernel("copy", COPY % "")(grid, block, (device(1), device(1), np.int32(1)))


@runs_kernels
@pytest.mark.parametrize("place", [-1, 2])
def test_a_number_written_beside_an_array_is_noticed(place):
    with pytest.raises(RuntimeError, match="wrote beside the array that is argument 1"):
        kernel("copy", COPY % f"y[{place}] = 1;")((1,), (1,), (device(1), cupy.empty(2, np.float32), np.int32(1)))
        cupy.cuda.Device().synchronize()


@runs_kernels
def test_a_mistake_in_the_source_is_an_error_with_its_line():
    with pytest.raises(RuntimeError, match=r"copy\.cu:\d+.*'nonsense' was not declared"):
        kernel("copy", COPY % "nonsense;")((1,), (1,), (device(1), device(1), np.int32(1)))


# -- threads that wait for each other ----------------------------------------------------------------------------------

TOTALS = """
extern "C" __global__ void totals(const real* x, real* y, index count) {
    index i = thread_number();
    real total = block_sum(i < count ? x[i] : (real)0);
    y[i] = total + block_sum((real)1);
}
"""


@runs_kernels
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("real", ["float", "double"])
def test_block_sum_is_the_sum_for_every_thread(order, real):
    x = np.arange(600).astype({"float": np.float32, "double": np.float64}[real])
    y = cupy.empty((3, 256), x.dtype)
    with threads_in(order):
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
    with threads_in(order):
        kernel("copy", COPY % (source % barrier))((1,), (64,), (x, y, np.int32(64)))
    return y.get().tolist()


@runs_kernels
def test_a_missing_barrier_shows_in_the_order_of_the_threads():
    expected = list(reversed(range(64)))
    assert reversed_numbers("__syncthreads();", "ascending") == expected
    assert reversed_numbers("__syncthreads();", "descending") == expected
    assert str(reversed_numbers("", "ascending")) != str(reversed_numbers("", "descending"))


@runs_kernels
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


@runs_kernels
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
    with threads_in(order):
        kernel("copy", COPY % source)((1,), (64,), (x, y, np.int32(32)))
    np.testing.assert_array_equal(y.get(), np.where(np.arange(64) < 32, expected(lane), 0))


# -- graphs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def capturing():
    """The current stream, which captures."""
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        yield stream
        if stream.is_capturing():
            stream.end_capture()


X = device(4, 1, 9, 16).reshape(2, 2)
ROWS = device(1, 0, 1, dtype=np.int64)


def counted(x):
    y = cupy.zeros((2, 2))
    y[0] = 5
    y[1] += x[0]
    y *= 2
    y[:, 1].fill(7)
    return y


def gathered(x):
    y = cupy.zeros((2, 2), np.float32)
    np.add.at(y, ROWS, x[ROWS])
    return y


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + 2,
        lambda x: np.exp(-x.T),
        lambda x: np.where(x > 3, x, 0).sum(axis=0, keepdims=True),
        lambda x: x.max(),
        lambda x: x.reshape(4)[1:].copy(),
        lambda x: np.broadcast_to(x.sum(), (3, 2)),
        lambda x: cupy.concatenate([x, x.astype(np.float64)]),
        lambda x: cupy.split(x * 2, 2)[1],
        lambda x: cupy.multiply(x, x, out=cupy.empty_like(x)),
        lambda x: cupy.array(x) * cupy.asarray(np.float32(2)) + cupy.arange(2, dtype=np.float32),
        lambda x: x[ROWS] + np.ones_like(x[ROWS]),
        counted,
        gathered,
    ],
)
def test_a_graph_computes_at_every_launch(compute):
    x = X.copy()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        y = compute(x)
        graph = stream.end_capture()
    for _ in range(2):
        expected = compute(x)
        assert y.get().tobytes() != expected.get().tobytes()
        graph.launch()
        assert (y.dtype, y.strides, y.get().tolist()) == (expected.dtype, expected.strides, expected.get().tolist())
        x += 1


@runs_kernels
def test_a_captured_kernel_runs_when_the_graph_is_launched(capturing):
    x, y = cupy.empty(2, np.float32), cupy.empty(2, np.float32)
    kernel("copy", COPY % "y[threadIdx.x] = x[threadIdx.x];")((1,), (2,), (x, y, np.int32(2)))
    graph = capturing.end_capture()
    assert np.isnan(y.get()).all()
    x.set(np.array([3, 4], np.float32))
    graph.launch()
    assert y.get().tolist() == [3, 4]


@of_the_stand_in
def test_what_is_a_view_is_one_in_a_capture_too(capturing):
    for view in (X.reshape(4), X.T, X[1:], X[0], np.broadcast_to(X, (3, 2, 2)), X.astype(np.float32, copy=False)):
        assert np.shares_memory(view._host, X._host)
    assert capturing.end_capture().operations == []


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (lambda x: x.get(), "D2H"),
        (lambda x: x[0, 0].item(), "D2H"),
        (lambda x: float(x[0, 0]), "D2H"),
        (lambda x: bool(x[0, 0] > 1), "D2H"),
        (lambda x: f"{x}", "D2H"),
        (lambda x: print(x), "D2H"),
        (lambda x: cupy.asarray(np.ones(1)), "H2D"),
        (lambda x: cupy.array([1, 2]), "H2D"),
        (lambda x: x.set(np.ones((2, 2), np.float32)), "H2D"),
        (lambda x: x[[0, 1]], "H2D"),
        (lambda x: assign(x[np.array([0, 1])], 1), "H2D"),
        (lambda x: x[x > 1], r"synchronous|D2H"),
        (lambda x: x @ x, "cuBLAS"),
        (lambda x: cupy.matmul(x, x, out=x), "cuBLAS"),
    ],
)
def test_what_cannot_be_captured_is_refused_and_the_capture_goes_on(capturing, copy, message):
    x = X.copy()
    with pytest.raises(RuntimeError, match=message):
        copy(x)
    capturing.end_capture().launch()
    copy(x)  # which nothing forbids any more


def test_waiting_spoils_a_capture(capturing):
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureUnsupported"):
        cupy.cuda.Device().synchronize()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        capturing.end_capture()
    assert not capturing.is_capturing()
    capturing.synchronize()


@of_the_stand_in
def test_only_a_stream_that_waits_for_no_other_captures():
    with pytest.raises(RuntimeError, match="non_blocking=True"):
        cupy.cuda.Stream().begin_capture()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorIllegalState"):
        cupy.cuda.get_current_stream().end_capture()


def test_memory_comes_from_the_pool_in_use():
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        cupy.zeros(1000)
    assert pool.total_bytes() >= 8000
    before = pool.total_bytes()
    cupy.zeros(1000)
    assert pool.total_bytes() == before
