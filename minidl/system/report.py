"""The CPU, BLAS and GPU that minidl runs on, in words, and warnings about settings that make it slow.

The functions take what was read from the system as arguments, so that tests can pass the output of any machine.
"""

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
AVX2 = {"avx2", "fma"}

# OpenBLAS names its kernels after CPUs, its "core types" (`corename` in its driver/others/dynamic.c). These are the
# usual ones for x86 without AVX2, and without AVX-512. Any other name is assumed to be fast.
WITHOUT_AVX2 = {"prescott", "core2", "penryn", "nehalem", "barcelona", "sandybridge", "bulldozer", "piledriver"}
WITHOUT_AVX512 = WITHOUT_AVX2 | {"haswell", "excavator", "zen"}


# ---- the CPU ---------------------------------------------------------------------------------------------------------


def read_cpuinfo() -> str:
    """Return the content of Linux's /proc/cpuinfo; '' on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def cpu_field(cpuinfo: str, name: str) -> str:
    """Return the value of a field for the first CPU, or ''."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def cpu_flags(cpuinfo: str) -> set[str]:
    """The instruction sets of an x86 CPU; empty if unknown."""
    return set(cpu_field(cpuinfo, "flags").split())


def describe_cpu(cpuinfo: str, cpus: int) -> str:
    """The CPU's name, number of cores and instruction sets."""
    flags = cpu_flags(cpuinfo)
    name = cpu_field(cpuinfo, "model name") or platform.processor() or platform.machine()
    sets = [word for word, needed in (("AVX2", AVX2), ("AVX-512", AVX512)) if needed <= flags]
    return ", ".join([name, f"{cpus} core{'s' * (cpus != 1)} for this process", *sets])


# ---- BLAS, and threads -----------------------------------------------------------------------------------------------


def blas_in(libraries: Iterable[Mapping]) -> list[Mapping]:
    """The BLAS libraries among those that threadpool_info() found."""
    return [library for library in libraries if library["user_api"] == "blas"]


def describe_blas(libraries: Iterable[Mapping]) -> str:
    """Name, version, core type and threads of each BLAS. (Inside minidl's kernels BLAS runs on one thread.)"""
    words = [
        f"{blas['internal_api']} {blas['version']}, core type {blas.get('architecture', 'unknown')}, "
        f"threads {blas['num_threads']}"
        for blas in blas_in(libraries)
    ]
    return "; ".join(words) or "not recognised by threadpoolctl (Accelerate, for example)"


def describe_threads(threads: int, environment: Mapping[str, str]) -> str:
    """The number of threads, and the environment variable that set it."""
    wanted = environment.get("MINIDL_NUM_THREADS")
    return f"{threads}" if wanted is None else f"{threads} (MINIDL_NUM_THREADS={wanted})"


def describe_workspace(environment: Mapping[str, str]) -> str:
    """The bound of the scratch memory that the CPU kernels keep."""
    wanted = environment.get("MINIDL_WORKSPACE_MB")
    return "not bounded" if wanted is None else f"at most {wanted} MB (MINIDL_WORKSPACE_MB)"


def warnings_about_blas(libraries: Iterable[Mapping], flags: set[str], environment: Mapping[str, str]) -> list[str]:
    """One warning for each OpenBLAS that does not use all instruction sets of the CPU. Only OpenBLAS is checked."""
    warnings = []
    for blas in blas_in(libraries):
        core_type = blas.get("architecture") or ""
        better = better_core_type(core_type, flags)
        if blas["internal_api"] == "openblas" and better:
            remedy = remedy_for_openblas(better, environment.get("OPENBLAS_CORETYPE"))
            warnings.append(f"OpenBLAS runs its {core_type} kernels, but this CPU can do more: {remedy}")
    return warnings


def remedy_for_openblas(better: str, chosen: str | None) -> str:
    """How to get the better core type: the user set a slow one, or OpenBLAS does not recognise the CPU."""
    if chosen:
        return f"unset OPENBLAS_CORETYPE (it is {chosen})"
    return f"this OpenBLAS does not recognise the CPU: set OPENBLAS_CORETYPE={better} before starting Python"


def better_core_type(core_type: str, flags: set[str]) -> str | None:
    """Return a core type that uses more instruction sets of a CPU with these flags than `core_type`, or None."""
    if flags >= AVX512 and core_type.lower() in WITHOUT_AVX512:
        return "SkylakeX"
    if flags >= AVX2 and core_type.lower() in WITHOUT_AVX2:
        return "Haswell"
    return None


# ---- the GPU ---------------------------------------------------------------------------------------------------------


def describe_cupy() -> str:
    """CuPy's version and the CUDA of the driver, or the error: a broken CuPy can raise any exception."""
    try:
        import cupy
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        return 'none: pip install "minidl[cuda13]"' if absent else f"cannot be imported: {first_line(error)}"
    try:
        count, driver = cupy.cuda.runtime.getDeviceCount(), cupy.cuda.runtime.driverGetVersion()
    except Exception as error:
        return f"{cupy.__version__}, no GPU: {first_line(error)}"
    return f"{cupy.__version__}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}" + ("" if count else ", no GPU")


def describe_gpus() -> dict[str, str]:
    """{"cuda:0": name, compute capability, memory and the arithmetic of each dtype, ...}; empty if CuPy finds none."""
    try:
        import cupy

        runtime = cupy.cuda.runtime
        return {f"cuda:{i}": describe_gpu(runtime.getDeviceProperties(i)) for i in range(runtime.getDeviceCount())}
    except Exception:  # describe_cupy names it
        return {}


def describe_gpu(properties: Mapping) -> str:
    """One GPU in words, from its CUDA properties."""
    major, minor = properties["major"], properties["minor"]
    memory = f"{properties['totalGlobalMem'] / 2**30:,.0f} GiB"
    return f"{properties['name'].decode()}, compute capability {major}.{minor}, {memory}; {describe_dtypes(major)}"


def describe_dtypes(major: int) -> str:
    """What convolutions and linear layers use, for a GPU of compute capability `major`.x."""
    if major < 8:
        return "float16 by tensor cores, float32 by multiply-add; no bfloat16, no minidl.tf32()"
    return "bfloat16 and float16 by tensor cores, float32 by multiply-add, or by tensor cores inside minidl.tf32()"


def first_line(error: Exception) -> str:
    """The class of an error and the first line of its message, as CuPy's messages are long."""
    message = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {message}"
