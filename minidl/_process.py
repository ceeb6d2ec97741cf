"""Two settings of the process that NumPy's speed depends on. Each is left alone where the user has chosen otherwise.

`MINIDL_TUNE=0` in the environment switches both off.
"""

import ctypes
import os
import sys
import warnings
from pathlib import Path

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

# mallopt's parameters, from glibc's malloc.h, and the values: blocks up to 32 MiB (the largest threshold that glibc
# accepts) come from the heap, and the heap keeps up to 2 GiB of freed memory for the next step.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 2**31 - 1
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 32 * 2**20


def tune() -> None:
    """Called once, before NumPy is imported."""
    if os.environ.get("MINIDL_TUNE") != "0":
        choose_blas_kernels()
        keep_freed_memory()


def choose_blas_kernels() -> None:
    """Have OpenBLAS use AVX-512 on AMD CPUs that have it.

    It does not know Zen 4 and Zen 5 and would fall back to its AVX2 kernels, at half the speed. The choice is made when
    NumPy is loaded: later, it is too late (see `warn_of_slow_blas`).
    """
    if "numpy" not in sys.modules and needs_core_type(cpu_info()):
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def cpu_info() -> str:
    """What Linux says of the CPU; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def needs_core_type(info: str) -> bool:
    """Whether this is an AMD CPU with AVX-512. OpenBLAS knows Intel's by itself."""
    return "AuthenticAMD" in info and set(info.split()) >= AVX512


def warn_of_slow_blas() -> None:
    """Say so, once, if OpenBLAS was loaded before minidl and runs without the AVX-512 that the CPU has."""
    if os.environ.get("MINIDL_TUNE") == "0" or not needs_core_type(cpu_info()):
        return
    from threadpoolctl import threadpool_info

    types = {library.get("architecture") for library in threadpool_info() if library["internal_api"] == "openblas"}
    if types & {"Haswell", "Zen"} and "OPENBLAS_CORETYPE" not in os.environ:
        warnings.warn(
            "OpenBLAS runs its AVX2 kernels on a CPU with AVX-512, at about half the speed, because NumPy was imported "
            "before minidl: import minidl first, or set OPENBLAS_CORETYPE=SkylakeX",
            RuntimeWarning,
            stacklevel=2,
        )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: else each step returns its arrays to the system and pays in page faults.

    (measured) 40 arrays of 8 MB held, then freed: 56 ms and 20,568 page faults before, 13 ms and none after.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
