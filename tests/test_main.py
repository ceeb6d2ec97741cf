"""`python -m minidl`: what it says of machines that this one is not."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import minidl
from minidl import __main__ as program
from minidl.system import report

AVX2_FLAGS = "fpu sse2 fma avx avx2"
AVX512_FLAGS = f"{AVX2_FLAGS} avx512f avx512dq avx512bw avx512vl"
ZEN_5 = (
    f"processor\t: 0\nmodel name\t: AMD EPYC 9755\nflags\t\t: {AVX512_FLAGS}\n\nprocessor\t: 1\nmodel name\t: other\n"
)
ZEN_3 = f"processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: {AVX2_FLAGS}\n"
NOT_KNOWN = "this OpenBLAS does not recognise the CPU"


def library(architecture, internal_api="openblas"):
    return {
        "user_api": "blas",
        "internal_api": internal_api,
        "version": "0.3.31",
        "num_threads": 2,
        "architecture": architecture,
    }


OPENMP = {"user_api": "openmp", "internal_api": "openmp", "version": None, "num_threads": 2}
MKL = library("avx2", "mkl")
OLD_THREADPOOLCTL = {name: value for name, value in library("").items() if name != "architecture"}


def warnings(libraries, cpuinfo, environment=()):
    return report.warnings_about_blas(libraries, report.cpu_flags(cpuinfo), dict(environment))


# -- python -m minidl --------------------------------------------------------------------------------------------------


def test_the_program_prints_a_line_for_each_thing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "minidl"], capture_output=True, text=True, check=True, timeout=600
    )
    table, _, rest = done.stdout.partition("\n\n")
    names = [line.split()[0] for line in table.splitlines()]
    assert names == ["minidl", "Python", "NumPy", "CPU", "BLAS", "threads", "scratch", "CuPy", "malloc"]
    assert {line.index(line.split(maxsplit=1)[1]) for line in table.splitlines()} == {9}
    assert minidl.__version__ in table
    assert not rest or rest.startswith("warning: OpenBLAS")


def test_it_says_what_it_warns_of(monkeypatch, capsys):
    monkeypatch.setattr(program, "read_cpuinfo", lambda: ZEN_5)
    monkeypatch.setattr(program, "threadpool_info", lambda: [library("Haswell")])
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    program.main()
    assert capsys.readouterr().out.endswith("can do more: unset OPENBLAS_CORETYPE (it is Haswell)\n")


# -- warnings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core_type", ["Haswell", "Zen", "Sandybridge", "Prescott"])
def test_a_core_type_without_avx512_on_a_cpu_with_it_is_slow(core_type):
    (warning,) = warnings([OPENMP, library(core_type)], ZEN_5)
    assert core_type in warning
    assert f"{NOT_KNOWN}: set OPENBLAS_CORETYPE=SkylakeX before starting Python" in warning


def test_whoever_has_chosen_a_slow_core_type_is_told_to_unset_it():
    (warning,) = warnings([library("Haswell")], ZEN_5, {"OPENBLAS_CORETYPE": "Haswell"}.items())
    assert "unset OPENBLAS_CORETYPE (it is Haswell)" in warning
    assert NOT_KNOWN not in warning


def test_a_core_type_without_avx2_on_a_cpu_with_it_is_slow():
    (warning,) = warnings([library("Nehalem")], ZEN_3)
    assert "set OPENBLAS_CORETYPE=Haswell" in warning


@pytest.mark.parametrize("core_type", ["SkylakeX", "Cooperlake", "SapphireRapids", "a core type of the future"])
def test_a_core_type_with_avx512_is_fine(core_type):
    assert warnings([library(core_type)], ZEN_5) == []


@pytest.mark.parametrize("core_type", ["Zen", "Haswell", "Excavator"])
def test_a_core_type_with_avx2_is_fine_on_a_cpu_without_avx512(core_type):
    assert warnings([library(core_type)], ZEN_3) == []


def test_some_of_avx512_is_not_enough():
    assert warnings([library("Haswell")], ZEN_5.replace("avx512bw ", "")) == []


@pytest.mark.parametrize("libraries", [[], [OPENMP], [MKL], [library("Haswell", "blis")], [OLD_THREADPOOLCTL]])
def test_nothing_is_claimed_of_other_libraries(libraries):
    assert warnings(libraries, ZEN_5) == []


def test_nothing_is_claimed_of_an_unknown_cpu():
    assert warnings([library("Haswell")], cpuinfo="") == []


# -- the lines ---------------------------------------------------------------------------------------------------------


def test_the_cpu_has_a_name_cores_and_instruction_sets():
    assert report.describe_cpu(ZEN_5, 2) == "AMD EPYC 9755, 2 cores for this process, AVX2, AVX-512"
    assert report.describe_cpu(ZEN_3, 1) == "AMD EPYC 7763, 1 core for this process, AVX2"


@pytest.mark.parametrize(("processor", "name"), [("arm", "arm"), ("", "arm64")])
def test_without_cpuinfo_the_cpu_is_what_python_calls_it(processor, name, monkeypatch):
    monkeypatch.setattr(report, "platform", SimpleNamespace(processor=lambda: processor, machine=lambda: "arm64"))
    assert report.describe_cpu("", 8) == f"{name}, 8 cores for this process"


def test_cpuinfo_may_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "Path", lambda name: tmp_path / "cpuinfo")
    assert report.read_cpuinfo() == ""


def test_blas_is_named_with_its_core_type():
    assert report.describe_blas([OPENMP, library("Zen")]) == "openblas 0.3.31, core type Zen, threads 2"
    assert report.describe_blas([OLD_THREADPOOLCTL]) == "openblas 0.3.31, core type unknown, threads 2"
    assert report.describe_blas([OPENMP]).startswith("not recognised by threadpoolctl")


def test_the_threads_say_who_set_them():
    assert report.describe_threads(2, {}) == "2"
    assert report.describe_threads(3, {"MINIDL_NUM_THREADS": "3"}) == "3 (MINIDL_NUM_THREADS=3)"


# -- CuPy --------------------------------------------------------------------------------------------------------------


def cupy_with(get_count):
    properties = {"name": b"NVIDIA H200", "major": 9, "minor": 0, "totalGlobalMem": 140 * 2**30}
    runtime = SimpleNamespace(
        getDeviceCount=get_count, getDeviceProperties=lambda i: properties, driverGetVersion=lambda: 13010
    )
    return SimpleNamespace(__version__="14.0.1", cuda=SimpleNamespace(runtime=runtime))


def no_driver():
    raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient\nand more lines")


@pytest.mark.parametrize(
    ("get_count", "expected"),
    [
        (lambda: 2, "14.0.1, driver for CUDA 13.1"),
        (lambda: 0, "14.0.1, driver for CUDA 13.1, no GPU"),
        (no_driver, "14.0.1, no GPU: RuntimeError: cudaErrorInsufficientDriver: CUDA driver version is insufficient"),
    ],
    ids=["two GPUs", "no GPU", "no driver"],
)
def test_cupy_is_named_with_its_driver(get_count, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_with(get_count))
    assert report.describe_cupy() == expected


def test_each_gpu_is_named_with_what_its_dtypes_use(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_with(lambda: 2))
    gpus = report.describe_gpus()
    assert list(gpus) == ["cuda:0", "cuda:1"]
    assert gpus["cuda:1"].startswith("NVIDIA H200, compute capability 9.0, 140 GiB; bfloat16 and float16 by tensor")
    turing = {"name": b"Tesla T4", "major": 7, "minor": 5, "totalGlobalMem": 15 * 2**30}
    assert report.describe_gpu(turing).endswith("no bfloat16, no minidl.tf32()")


@pytest.mark.parametrize("get_count", [lambda: 0, no_driver])
def test_without_a_gpu_none_is_described(get_count, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_with(get_count))
    assert report.describe_gpus() == {}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (None, 'none: pip install "minidl[cuda13]"'),
        (
            "raise OSError('libcuda.so.1: not found\\nand more lines')",
            "cannot be imported: OSError: libcuda.so.1: not found",
        ),
        ("import a_part_of_it", "cannot be imported: ModuleNotFoundError: No module named 'a_part_of_it'"),
    ],
    ids=["absent", "broken", "incomplete"],
)
def test_a_missing_or_broken_cupy_is_no_error(code, expected, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    # The standard library stays to be found, and the folder holds the only CuPy.
    monkeypatch.setattr(sys, "path", [str(tmp_path)] + [folder for folder in sys.path if "site-packages" not in folder])
    if code:
        (tmp_path / "cupy.py").write_text(code)
    assert report.describe_cupy() == expected
