"""A fake GPU: `pytest --device fake` runs the real CuPy on the CPU, where no GPU is, on a CUDA driver of our own.

    pip install ".[test,fake-gpu]"                                       CuPy 14.2.0, CUDA's headers; and g++
    python -m pytest --device fake tests/kernels                         streams as late as CUDA allows
    FAKE_GPU_STREAMS=random:7 python -m pytest --device fake ...         in a random order; or eager
    FAKE_GPU_ORDER=descending python -m pytest --device fake ...         blocks and their threads backwards

How it works: CuPy loads "libcuda.so.1" by ctypes, and glibc takes a library of this name that is loaded already:
ours, driver.cpp. The functions of the CUDA runtime are linked into CuPy's own library; each that CuPy needs is
overwritten with a jump to ours (`_redirect`). All kernels, minidl's and CuPy's own, pass through one Python function
of CuPy's; ours (compiler.py) gives them to g++, below kernels.hpp and tests/stand_in/device.hpp, and the driver runs
them thread by thread (tests/stand_in/runtime.cpp). Arrays, dtypes, memory pools, streams and captures are CuPy's own.

What works: elementwise kernels, reductions, scans, indexing, casts to bfloat16 and float16; RawKernel, also with
shared memory whose size the launch gives; streams, events, pinned memory, memory pools; captures, which refuse what
CUDA refuses, and graphs; products by cuBLAS in float16, bfloat16, float32 and float64 (plain loops); argsort. CuPy
checks no arguments of a RawKernel: here another type than the parameter's is an error. So is a kernel that writes
behind an array, or that waits in vain; a test that leaves such an error behind fails. Fresh arrays hold NaN.

What does not: CUB, Thrust but argsort, cuRAND, cuSOLVER, cuFFT (GPU code, or wheels that are not installed); the rest
of cuBLAS fails with CUBLAS_STATUS_NOT_SUPPORTED; several devices; captures over several streams; host callbacks;
managed and stream-ordered memory (cudaMallocAsync); races between blocks; time. `__CUDA_ARCH__` is not defined: what
is written for tensor cores and asynchronous copies does not run.

What comes next: two tests fail here and would fail on a GPU, though they pass on the stand-in (test_cuda_graph.py, "a
product by cuBLAS": CuPy multiplies 1 x 1 without cuBLAS; test_precision.py, the gradient of max in bfloat16). Then
.ci/run can run `--device fake` in place of the stand-in. tests/test_cuda_compiles.py and
tests/examples/test_on_a_device.py still use the stand-in. mma, ldmatrix and cp.async by the formulas of the PTX ISA,
a copy landing only at its wait. Guards before an array, not only behind it. driver.cpp is longer than the parts of
the stand-in that it can replace.
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
GUARD = 512  # bytes before an array that nobody may write; CuPy's pool aligns to so many
ORDERS = {"ascending": 0, "descending": 1}


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
    if SETTINGS["streams"] not in MODES:
        raise UnavailableError(f"FAKE_GPU_STREAMS: expected one of {', '.join(MODES)}, got {SETTINGS['streams']}")
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
            letters = driver.fake_gpu_signature(ctypes.c_void_p(self.kernel.ptr)).decode()
            count = len(letters) // 3
            if len(args) != count:
                raise TypeError(f"{self.name}: expected {count} arguments, got {len(args)}")
            for i, arg in enumerate(args):
                _check(f"{self.name}: argument {i}", arg, letters[i::count])
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
