"""The fake GPU driver: streams that really are late, captures that refuse what CUDA refuses."""

import contextlib
import ctypes
import subprocess
import sys
from pathlib import Path

import cupy
import numpy as np
import pytest

from minidl.system.copies import CopyRing
from tests import fake_gpu

MODES = [("eager", 0), ("lazy", 0), *[("random", seed) for seed in range(8)]]
runtime = cupy.cuda.runtime


@pytest.fixture
def lazy():
    with fake_gpu.settings(streams="lazy"):
        yield


@pytest.fixture(params=MODES, ids=lambda mode: f"{mode[0]}-{mode[1]}")
def any_mode(request):
    with fake_gpu.settings(streams=request.param[0], seed=request.param[1]):
        yield


def look(array):
    """The numbers in the memory of the device as they are now, without waiting."""
    address = ctypes.cast(array.data.ptr, ctypes.POINTER(ctypes.c_byte))
    return np.ctypeslib.as_array(address, (array.nbytes,)).view(array.dtype).reshape(array.shape).copy()


def pinned(values):
    values = np.asarray(values)
    memory = cupy.cuda.alloc_pinned_memory(values.nbytes)
    array = np.ndarray(values.shape, values.dtype, buffer=memory)
    array[...] = values
    return array


# -- streams -----------------------------------------------------------------------------------------------------------


def test_nothing_happens_before_somebody_waits(lazy):
    x = cupy.zeros(3)
    cupy.cuda.Device().synchronize()
    x += 1
    assert look(x).tolist() == [0, 0, 0]
    cupy.cuda.get_current_stream().synchronize()
    assert look(x).tolist() == [1, 1, 1]


def test_a_stream_keeps_its_order(any_mode):
    x = cupy.zeros(3)
    for i in range(1, 20):
        x *= i % 3
        x += i
    expected = 0
    for i in range(1, 20):
        expected = expected * (i % 3) + i
    assert x.get().tolist() == [expected] * 3


def handed_over(wait):
    """What a stream reads that another one writes, with or without an event between."""
    x, y = cupy.zeros(3), cupy.zeros(3)
    cupy.cuda.Device().synchronize()
    writer, reader = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with writer:
        x += 5
        written = writer.record()
    with reader:
        if wait:
            reader.wait_event(written)
        y[...] = x
        reader.synchronize()
    result = look(y).tolist()
    writer.synchronize()
    return result


def test_an_event_orders_two_streams(any_mode):
    assert handed_over(wait=True) == [5, 5, 5]


def test_a_missing_event_shows(lazy):
    assert handed_over(wait=False) == [0, 0, 0]


def test_a_missing_event_shows_in_some_random_orders():
    results = []
    for seed in range(20):
        with fake_gpu.settings(streams="random", seed=seed):
            results.append(handed_over(wait=False)[0])
    assert set(results) == {0, 5}


@pytest.mark.parametrize(("non_blocking", "expected"), [(False, 5), (True, 0)])
def test_the_default_stream_waits_for_blocking_streams_only(lazy, non_blocking, expected):
    x, y = cupy.zeros(1), cupy.zeros(1)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=non_blocking)
    with stream:
        x += 5
    y[...] = x
    cupy.cuda.Stream.null.synchronize()
    assert look(y).tolist() == [expected]
    stream.synchronize()


def test_an_event_is_done_when_its_stream_has_come_so_far(lazy):
    x, event, later = cupy.zeros(1), cupy.cuda.Event(), cupy.cuda.Event()
    event.record()
    x += 1
    later.record()
    assert not event.done
    event.synchronize()
    assert event.done
    assert look(x).tolist() == [0]
    later.synchronize()
    assert look(x).tolist() == [1]
    assert cupy.cuda.get_elapsed_time(event, later) >= 0


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_copy_from_pinned_memory_is_late(lazy):
    source, x = pinned([1.0, 2.0]), cupy.zeros(2)
    x.set(source)
    source[:] = 7
    assert x.get().tolist() == [7, 7]


def test_a_copy_from_other_memory_is_not(any_mode):
    source, x = np.array([1.0, 2.0]), cupy.zeros(2)
    x.set(source)
    source[:] = 7
    assert x.get().tolist() == [1, 2]


def test_an_event_guards_pinned_memory(any_mode):
    source, x, copied = pinned([1.0, 2.0]), cupy.zeros(2), cupy.cuda.Event()
    x.set(source)
    copied.record()
    copied.synchronize()
    source[:] = 7
    assert x.get().tolist() == [1, 2]


def test_the_copies_of_a_loader_are_neither_early_nor_late(any_mode):
    ring, sums = CopyRing(), []
    for i in range(8):
        (batch,) = ring.copy((np.full(100, i, np.float32),))
        sums.append((batch * 2).sum())
    assert [float(total) for total in sums] == [200 * i for i in range(8)]


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_is_taken_again_and_not_more_than_there_is():
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        address = cupy.empty(1000).data.ptr
        assert cupy.empty(1000).data.ptr == address
        free, total = cupy.cuda.Device().mem_info
        assert free < total
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(total, np.int8)
    pool.free_all_blocks()
    assert pool.total_bytes() == 0
    assert cupy.cuda.Device().mem_info[0] > free


# -- captures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def capturing():
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        yield stream
        with contextlib.suppress(runtime.CUDARuntimeError):
            stream.end_capture()


def memcpy(to, source, stream):
    runtime.memcpyAsync(to, source, 8, runtime.memcpyDefault, stream.ptr)


X, HOST = cupy.zeros(4), np.zeros(4)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stream: stream.synchronize(),
        lambda stream: cupy.cuda.Device().synchronize(),
        lambda stream: memcpy(X.data.ptr, HOST.ctypes.data, stream),
        lambda stream: memcpy(HOST.ctypes.data, X.data.ptr, stream),
    ],
)
def test_what_spoils_a_capture(capturing, spoil):
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorStreamCaptureUnsupported"):
        spoil(capturing)
    with pytest.raises(RuntimeError, match="invalidated"):
        capturing.is_capturing()
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        capturing.end_capture()
    assert not capturing.is_capturing()


def test_a_capture_must_begin_once_and_before_it_ends(capturing):
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorIllegalState"):
        capturing.begin_capture()
    capturing.end_capture()
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorIllegalState"):
        capturing.end_capture()


def test_a_capture_on_a_blocking_stream_forbids_the_default_stream():
    with cupy.cuda.Stream() as stream:
        stream.begin_capture()
        with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorStreamCaptureImplicit"):
            runtime.memsetAsync(X.data.ptr, 0, 8, 0)
        with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
            stream.end_capture()


def test_only_a_relaxed_capture_allows_new_memory():
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture(runtime.streamCaptureModeRelaxed)
    runtime.free(runtime.malloc(100))
    stream.end_capture()
    stream.begin_capture(runtime.streamCaptureModeGlobal)
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorStreamCaptureUnsupported"):
        runtime.malloc(100)
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        stream.end_capture()


def test_a_graph_runs_in_its_turn_and_reads_pinned_memory_when_it_runs(lazy):
    source, x, y = pinned(np.ones(4)), cupy.zeros(4), cupy.zeros(4)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        runtime.memcpyAsync(x.data.ptr, source.ctypes.data, x.nbytes, runtime.memcpyDefault, stream.ptr)
        y += x
        graph = stream.end_capture()
        graph.launch()
        source[:] = 2
        graph.launch()
        assert look(y).tolist() == [0] * 4
        stream.synchronize()
    assert look(y).tolist() == [4] * 4


GRID = cupy.array([[4, 1], [9, 16]], np.float32)
ROWS = cupy.array([1, 0, 1])


def assign(array, value):
    array[:] = value


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
    x = GRID.copy()
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
    x = GRID.copy()
    with pytest.raises(RuntimeError, match=message):
        copy(x)
    capturing.end_capture().launch()
    copy(x)  # which nothing forbids any more


# -- what CuPy computes with libraries and kernels of its own ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shapes", [((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,))])
def test_products(rng, dtype, shapes):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    for transpose in (lambda x: x, lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2) if x.ndim > 1 else x):
        y = transpose(cupy.array(a)) @ transpose(cupy.array(b))
        np.testing.assert_allclose(y.get(), a @ b, rtol=1e-5)


@pytest.mark.parametrize(
    "compute",
    [
        lambda xp, x: x.sum(axis=1),
        lambda xp, x: x.T.copy() / 3,
        lambda xp, x: xp.cumsum(x),
        lambda xp, x: xp.argsort(x.ravel()),
        lambda xp, x: xp.argsort(x, axis=1),
        lambda xp, x: x[x > 0],
        lambda xp, x: x[xp.array([2, 0, 2])],
        lambda xp, x: xp.concatenate([x] * 9),
        lambda xp, x: x.astype(np.float16) * 2,
        lambda xp, x: (x > 0).any(axis=0),
        lambda xp, x: xp.where(x > 0, x, 0).argmax(axis=1),
    ],
)
def test_cupys_own_kernels(rng, compute):
    x = rng.standard_normal((3, 700)).astype(np.float32)
    ours, expected = compute(cupy, cupy.array(x)).get(), compute(np, x)
    assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-3)


# -- scripts -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import cupy
import beside
x = cupy.arange(3) + beside.ONE
print(sys.argv[1:], cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(), x)
"""


def test_a_script_runs_on_the_fake_gpu(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("ONE = 1")
    command = [sys.executable, "-m", "tests.fake_gpu", tmp_path / "script.py", "--option", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "['--option', '2'] fake GPU [1 2 3]\n"), done.stderr


def test_without_cupy_the_remedy_is_named():
    program = (
        "import importlib.metadata as m, sys\n"
        "def version(name): raise m.PackageNotFoundError(name)\n"
        "m.version = version\n"
        "import pytest; sys.exit(pytest.main(['--device', 'fake', 'tests/fake_gpu']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert 'ERROR: --device fake: it needs CuPy for CUDA 13: pip install ".[fake-gpu]"' in done.stderr
