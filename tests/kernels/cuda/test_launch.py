"""What is around a launch: compiling, memory of blocks, limits."""

import importlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest

import minidl
from minidl import Tensor
from minidl.functional import relu


@pytest.fixture
def launch(kernels):
    return importlib.import_module("minidl.kernels.cuda._launch")


@pytest.fixture
def compiling(kernels, monkeypatch):
    """The module, as in a process that has compiled nothing yet."""
    module = importlib.import_module("minidl.kernels.cuda._compile")
    monkeypatch.setattr(module.Compiling, "seconds", 0.0)
    monkeypatch.setattr(module.Compiling, "told", False)
    return module


@pytest.fixture
def make_kernel(launch):
    """CudaKernel, taken off the list of all kernels again."""
    made = []

    def make(*arguments):
        made.append(launch.CudaKernel(*arguments))
        return made[-1]

    yield make
    for kernel in made:
        launch.CudaKernel.every.remove(kernel)


class Rejected:
    """A RawKernel whose compilation fails."""

    name = "triple"

    def __init__(self, error):
        self.error = error

    @property
    def kernel(self):
        raise self.error


def test_a_kernel_that_the_compiler_rejects_is_reported_with_its_message(compiling):
    import cupy

    class Rejection(cupy.cuda.compiler.CompileException):
        def __init__(self):
            Exception.__init__(self, "identifier x is undefined")

        def __str__(self):
            return "identifier x is undefined"

    message = r"triple: the CUDA compiler rejects .* \d+\..*please report .*python -m minidl.*\n.*x is undefined"
    with pytest.raises(RuntimeError, match=message):
        compiling.compile_now(Rejected(Rejection()))


def test_missing_headers_of_cuda_name_the_remedy(compiling):
    error = RuntimeError("Failed to find CUDA headers. Please install CUDA toolkit headers")
    with pytest.raises(RuntimeError, match=r"needs the headers of CUDA.*pip install \"minidl\[cuda13\]\""):
        compiling.compile_now(Rejected(error))
    with pytest.raises(RuntimeError, match=r"^something else$"):
        compiling.compile_now(Rejected(RuntimeError("something else")))


def test_one_line_says_that_kernels_are_compiled(compiling, monkeypatch, caplog):
    clock = iter(range(100))  # each compilation takes a second
    monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with caplog.at_level(logging.WARNING, logger="minidl"):
        for _ in range(3):
            compiling.compile_now(SimpleNamespace(kernel=None))
    (line,) = caplog.messages
    assert line.startswith("minidl: compiling CUDA kernels")


def test_what_is_compiled_quickly_is_not_worth_a_line(compiling, monkeypatch, caplog):
    monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    with caplog.at_level(logging.WARNING, logger="minidl"):
        compiling.compile_now(SimpleNamespace(kernel=None))
    assert not caplog.messages


def test_the_capability_is_checked_for_each_gpu(launch, make_kernel, device, monkeypatch):
    """M2: a process that computes on an old GPU after a new one."""
    import cupy

    x = Tensor(np.ones(1, np.float32), device=device)
    kernel = make_kernel("quadruple", 'extern "C" __global__ void quadruple(real* x) { x[0] *= 4; }')
    kernel.launch(1, 1, (x.data,), np.float32)
    monkeypatch.setattr(kernel, "lowest_architecture", 999)
    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: 1)
    with pytest.raises(RuntimeError, match=r"compute capability 99\.9 or more"):
        kernel.launch(1, 1, (x.data,), np.float32)


def test_constants_and_types_stand_at_the_head_of_the_source(launch, make_kernel, device):
    x = Tensor(np.ones(1, np.float32), device=device)
    kernel = make_kernel("add_size", 'extern "C" __global__ void add_size(real* x, index n) { x[0] += SIZE * n; }')
    kernel.launch(1, 1, (x.data, 5), np.float32, {"SIZE": 3})
    assert x.numpy() == 16
    head = kernel.source_for("float64", True, (("SIZE", 3),)).splitlines()[:4]
    assert head == ["#define stored double", "#define real double", "#define index long long", "#define SIZE 3"]


def test_the_limit_of_the_memory_holds_for_captured_steps_too(device):
    import cupy

    pool = cupy.get_default_memory_pool()
    x = Tensor(np.ones(2**20, np.float32), device=device)  # 4 MiB
    pool.free_all_blocks()
    before = pool.get_limit()
    pool.set_limit(size=pool.total_bytes() + 6 * 2**20)
    try:
        step = minidl.cuda_graph(lambda x: relu(relu(x)))
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            step(x)
    finally:
        pool.set_limit(size=before)
    assert relu(x).numpy().sum() == 2**20


def test_a_step_that_is_deleted_gives_its_memory_back(device):
    """M1: the copies of outputs, too, which are allocated in the graph's pool."""
    import cupy

    x = Tensor(np.ones(1000, np.float32), device=device)
    step = minidl.cuda_graph(lambda x: relu(x).sum())
    for _ in range(4):
        step(x)
    pool = step._graph.pool
    assert pool.total_bytes() > 0
    del step
    assert pool.total_bytes() == 0
    assert cupy.get_default_memory_pool() is not pool
