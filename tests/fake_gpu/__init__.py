"""A fake GPU: `pytest --device fake` runs the real CuPy on the CPU, where no GPU is, on a CUDA driver of our own.

    pip install ".[test,fake-gpu]"                                       CuPy 14.2.0, CUDA's headers; and g++
    python -m pytest --device fake tests/kernels                         streams as late as CUDA allows
    FAKE_GPU_STREAMS=random:7 python -m pytest --device fake ...         in a random order; or eager
    FAKE_GPU_ORDER=descending python -m pytest --device fake ...         blocks, warps and threads backwards
    FAKE_GPU_ARCH=75 python -m pytest --device fake ...                  compute capability 7.5, not 9.0
    python -m tests.fake_gpu SCRIPT [ARGS]                               a script, or -m MODULE

How it works: CuPy loads "libcuda.so.1" by ctypes, and glibc takes a library of this name that is loaded already:
ours, driver.cpp. The functions of the CUDA runtime are linked into CuPy's own library; each that CuPy needs is
overwritten with a jump to ours (`_redirect`). All kernels, minidl's and CuPy's own, pass through one Python function
of CuPy's; ours (compiler.py) gives them to g++, below device.hpp, and the driver runs them thread by thread
(runtime.cpp). Instructions written as `asm` become calls of functions with the PTX ISA's formulas (instructions.hpp).
Arrays, dtypes, memory pools, streams and captures are CuPy's own.

What works: elementwise kernels, reductions, scans, indexing, casts to bfloat16 and float16; RawKernel, also with
shared memory whose size the launch gives; mma, ldmatrix, cp.async, cvt, and wgmma with -arch=sm_90a; streams, events,
pinned memory, memory pools; captures, which refuse what CUDA refuses, and graphs; float32 and float64 products by
cuBLAS (plain loops); argsort.

What is an error here, in the test that did it: a number written beside an array or behind shared memory; an argument of
another type than the parameter's; a barrier that some threads never reach; an asynchronous copy that nobody waits for;
an address that is null or misaligned; an index beyond a C array; an instruction that is unknown or has wrong operands;
a wgmma without its fences and its wait, or whose shared memory is written too early.
What makes results wrong: fresh memory and shared memory hold NaN; a stream, or an asynchronous copy, is as late as
allowed; a warp goes on until a barrier stops it.

What does not work: CUB, whose kernels exist for GPUs only (CUPY_ACCELERATORS is empty, so that CuPy reduces by kernels
of its own), Thrust but argsort, cuRAND, cuSOLVER, cuFFT; the rest of cuBLAS fails with CUBLAS_STATUS_NOT_SUPPORTED;
several devices; captures over several streams; host callbacks; managed and stream-ordered memory (cudaMallocAsync);
races between blocks; numbers below 1.2e-38, which a GPU takes for 0 (CuPy compiles with -ftz=true); time.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.fake_gpu import compiler

MODES = {"eager": 0, "lazy": 1, "random": 2}
ORDERS = {"ascending": 0, "descending": 1}
GUARD = 512  # bytes before an array that nobody may write; CuPy's pools align to that


class UnavailableError(RuntimeError):
    """Why the fake GPU cannot be had here."""


# -- modes -------------------------------------------------------------------------------------------------------------

DRIVER: list[ctypes.CDLL] = []  # empty until `install`
MODE, _, SEED = os.environ.get("FAKE_GPU_STREAMS", "lazy").partition(":")
SETTINGS = {"streams": MODE, "seed": int(SEED or 0), "order": os.environ.get("FAKE_GPU_ORDER", "ascending")}


def _set(streams: str, seed: int, order: str) -> None:
    DRIVER[0].fake_gpu_set_mode(MODES[streams], seed, ORDERS[order])


@contextlib.contextmanager
def settings(**changed):
    """Within this context the streams run in another mode, or the threads in another order. All work is done before."""
    _set(**SETTINGS | changed)
    try:
        yield
    finally:
        _set(**SETTINGS)


def finish() -> None:
    """Do all work that is left. RuntimeError if any of it, since somebody last waited, went wrong."""
    if DRIVER and (error := DRIVER[0].fake_gpu_finish()):
        raise RuntimeError(error.decode())


# -- start -------------------------------------------------------------------------------------------------------------


def install() -> None:
    """Let `import cupy` find a GPU. Must be called before CuPy is imported. UnavailableError: with the reason."""
    _check_machine()
    _check_settings()
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB's kernels are compiled for GPUs: use CuPy's own reductions
    driver = ctypes.CDLL(str(_driver()), mode=ctypes.RTLD_GLOBAL)
    driver.fake_gpu_finish.restype = driver.fake_gpu_signature.restype = ctypes.c_char_p
    from cupy_backends.cuda.api import runtime

    _redirect(runtime.__file__, driver)
    _replace_cublas(driver)
    import cupy

    if not hasattr(cupy.cuda.compiler, "_compile_module_with_cache"):
        raise UnavailableError(f"CuPy {cupy.__version__} compiles kernels in another way; CuPy 14.2.0 works")
    cupy.cuda.compiler._compile_module_with_cache = compiler.compile_module
    cupy.cuda.thrust.argsort = functools.partial(_argsort, driver)
    cupy.cuda.MemoryPool = _guarded(cupy.cuda.MemoryPool, driver)
    cupy._default_memory_pool = cupy.cuda.MemoryPool()
    cupy.cuda.set_allocator(cupy._default_memory_pool.malloc)
    cupy.RawKernel = _checked(cupy.RawKernel, driver)
    DRIVER.append(driver)
    _set(**SETTINGS)


def _check_settings() -> None:
    for name, got, possible in (
        ("FAKE_GPU_STREAMS", SETTINGS["streams"], MODES),
        ("FAKE_GPU_ORDER", SETTINGS["order"], ORDERS),
        ("FAKE_GPU_ARCH", compiler.ARCHITECTURE, (75, 80, 86, 90)),
    ):
        if got not in possible:
            raise UnavailableError(f"{name}: expected one of {', '.join(map(str, possible))}, got {got}")


def _check_machine() -> None:
    missing = [tool for tool in ("g++", "nm") if shutil.which(tool) is None]
    if missing:
        raise UnavailableError(f"it needs {' and '.join(missing)}")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UnavailableError(f"it needs Linux on x86_64, and this is {sys.platform} on {platform.machine()}")
    try:
        importlib.metadata.version("cupy-cuda13x")
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError('it needs CuPy for CUDA 13: pip install ".[fake-gpu]"') from None
    if "cupy" in sys.modules:
        raise UnavailableError("something imported CuPy before it")


def _driver() -> Path:
    """The library that CuPy takes for the driver's, as it has the name that CuPy asks for."""
    from cuda import pathfinder

    headers = pathfinder.find_nvidia_header_directory("cudart")
    if headers is None:
        raise UnavailableError("it needs the headers of CUDA: pip install '.[fake-gpu]'")
    here = compiler.HERE
    source = (here / "driver.cpp").read_text().replace('#include "runtime.cpp"\n', (here / "runtime.cpp").read_text())
    architecture = f"-DFAKE_GPU_ARCH={compiler.ARCHITECTURE}"
    return compiler.library(source, f"-I{headers}", architecture, "-Wl,-soname,libcuda.so.1")


def _redirect(library: str, driver: ctypes.CDLL) -> None:
    """Overwrite each function of the CUDA runtime that is linked into `library`, and that the driver has, by a jump."""
    table = re.findall(r"^(\w+) [tT] (\w+)$", _symbols(library), re.MULTILINE)
    symbols = {name: int(offset, 16) for offset, name in table}
    loaded = ctypes.CDLL(library)
    ours = re.findall(r" T (cuda[A-Z]\w+)$", _symbols(driver._name), re.MULTILINE)
    if missing := set(ours) - symbols.keys():
        raise UnavailableError(f"{library} lacks {', '.join(sorted(missing))}; CuPy 14.2.0 from PyPI has them")
    base = ctypes.cast(loaded.PyInit_runtime, ctypes.c_void_p).value - symbols["PyInit_runtime"]
    libc = ctypes.CDLL(None)
    for name in ours:
        offset = symbols[name]
        target = ctypes.cast(getattr(driver, name), ctypes.c_void_p).value
        jump = b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"  # mov rax, target; jmp rax
        page = (base + offset) & ~4095
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(8192), 7):
            raise UnavailableError("this machine forbids to overwrite code")
        ctypes.memmove(base + offset, jump, len(jump))


def _symbols(library: str) -> str:
    return subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout


def _replace_cublas(driver: ctypes.CDLL) -> None:
    """The products that the driver has; whatever else CuPy calls of cuBLAS fails with CUBLAS_STATUS_NOT_SUPPORTED."""
    from cuda import pathfinder

    cublas = importlib.util.find_spec("cupy_backends.cuda.libs.cublas").origin
    missing = [name for name in re.findall(r"U (cublas\w+)", _symbols(cublas)) if not hasattr(driver, name)]
    stub = "".join(f'extern "C" int {name}() {{ return 15; }}\n' for name in missing)
    soname = "-Wl,-soname,libcublas.so.13"
    ctypes.CDLL(str(compiler.library(stub, soname, "-Wl,--default-symver")), mode=ctypes.RTLD_GLOBAL)
    load = pathfinder.load_nvidia_dynamic_lib
    pathfinder.load_nvidia_dynamic_lib = lambda name: None if name == "cublas" else load(name)


def _argsort(driver, dtype, order, values, keys, shape) -> None:
    """In place of Thrust, of which the wheel has code for GPUs only."""
    import cupy

    stream = cupy.cuda.get_current_stream().ptr
    rows, count = math.prod(shape[:-1]), shape[-1]
    pointers = ctypes.c_char(dtype.char.encode()), *map(ctypes.c_void_p, (values, order))
    if driver.fake_gpu_argsort(*pointers, ctypes.c_longlong(rows), ctypes.c_longlong(count), ctypes.c_void_p(stream)):
        raise NotImplementedError(f"the fake GPU does not sort {dtype}")


# -- what CuPy does not check ------------------------------------------------------------------------------------------


def _guarded(memory_pool: type, driver: ctypes.CDLL) -> type:
    """MemoryPool, but fresh memory holds NaN, or -1, and so does what lies before and behind it: for the guards.

    A pool's memory may hold zeros, or the right numbers of before; CuPy rounds sizes up to 512 bytes.
    """
    import cupy

    class GuardedMemoryPool(memory_pool):
        def malloc(self, size):
            if not size:
                return super().malloc(size)
            piece = super().malloc(size + GUARD)
            begin, stream = piece.ptr + GUARD, cupy.cuda.get_current_stream().ptr
            places = piece.ptr, begin, begin + size, piece.mem.ptr + piece.mem.size, stream
            driver.fake_gpu_array(*map(ctypes.c_void_p, places))
            return piece + GUARD

    return GuardedMemoryPool


def _checked(raw_kernel: type, driver: ctypes.CDLL) -> type:
    """RawKernel, but an argument of another type than the parameter's is an error, not garbage."""

    class CheckedRawKernel(raw_kernel):
        def __call__(self, grid, block, args, **kwargs):
            if 0 in grid + block:  # CuPy takes it for 1
                raise RuntimeError(f"{self.name}: cannot be launched on a grid of {grid} blocks of {block} threads")
            parameters = driver.fake_gpu_signature(ctypes.c_void_p(self.kernel.ptr)).decode().split()
            if len(args) != len(parameters):
                raise TypeError(f"{self.name}: expected {len(parameters)} arguments, got {len(args)}")
            for i, (arg, parameter) in enumerate(zip(args, parameters, strict=True)):
                _check(f"{self.name}: argument {i}", arg, parameter)
            super().__call__(grid, block, args, **kwargs)

    return CheckedRawKernel


def _check(name: str, arg, parameter: str) -> None:
    """Compare with a parameter in three letters: p(ointer) or v(alue), NumPy's kind, bytes."""
    is_array = hasattr(arg, "__cuda_array_interface__") or isinstance(arg, np.ndarray)
    dtype = arg.dtype if is_array else np.asarray(arg).dtype
    got = f"{'p' if is_array else 'v'}{dtype.kind}{dtype.itemsize}"
    if isinstance(arg, np.ndarray):
        raise TypeError(f"{name}: Unsupported type {type(arg)}")
    # Vectors, void and bfloat16 may stand for any numbers.
    if got != parameter and not (parameter[1] == "?" and got[0] == parameter[0] == "p"):
        raise TypeError(f"{name} is {got}, the kernel reads {parameter}")
