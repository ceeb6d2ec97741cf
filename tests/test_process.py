"""The two settings of the process: what is set where, and what is left to the user."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

from minidl import Tensor, _process, functional
from minidl.kernels.cpu import _parallel

import pytest

ZEN4 = "vendor_id : AuthenticAMD\nmodel name : AMD EPYC 9B14\nflags : fpu avx2 avx512f avx512dq avx512bw avx512vl\n"
ZEN3 = "vendor_id : AuthenticAMD\nmodel name : AMD EPYC 7763\nflags : fpu avx2\n"
SKYLAKE = "vendor_id : GenuineIntel\nflags : fpu avx2 avx512f avx512dq avx512bw avx512vl\n"
AVX512F_ALONE = "vendor_id : AuthenticAMD\nflags : fpu avx2 avx512f\n"


@pytest.fixture
def process(monkeypatch):
    """A fresh process on a Zen 4, as the settings see it; what they do to it can be read from it."""
    calls = []
    state = SimpleNamespace(environment={}, modules={}, platform="linux", cpu=ZEN4, mallopt_calls=calls)
    state.library = SimpleNamespace(mallopt=lambda *args: calls.append(args))
    monkeypatch.setattr(_process, "os", SimpleNamespace(environ=state.environment))
    monkeypatch.setattr(_process, "sys", state)
    monkeypatch.setattr(_process, "ctypes", SimpleNamespace(CDLL=lambda name: state.library))
    monkeypatch.setattr(_process, "cpu_info", lambda: state.cpu)
    return state


# -- which of its kernels OpenBLAS takes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [(ZEN4, True), (ZEN3, False), (SKYLAKE, False), (AVX512F_ALONE, False), ("", False)],
    ids=["Zen 4", "Zen 3", "Skylake", "AVX-512F alone", "unknown"],
)
def test_only_amd_with_the_whole_of_avx512_needs_a_hint(cpu, expected, process):
    process.cpu = cpu
    assert _process.needs_core_type(cpu) is expected
    _process.tune()
    assert process.environment == ({"OPENBLAS_CORETYPE": "SkylakeX"} if expected else {})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_linux_tells_of_its_cpu():
    assert "processor" in _process.cpu_info()


def test_the_users_choice_of_kernels_stays(process):
    process.environment["OPENBLAS_CORETYPE"] = "Zen"
    _process.tune()
    assert process.environment["OPENBLAS_CORETYPE"] == "Zen"


def test_once_numpy_is_loaded_nothing_is_set(process):
    """It would change nothing any more, but be inherited by child processes."""
    process.modules["numpy"] = None
    _process.tune()
    assert process.environment == {}


def test_importing_minidl_chooses_before_numpy_is_loaded():
    code = f"""
import os, pathlib, sys
class BeforeNumPy:
    def find_spec(self, name, *_):
        if name == "numpy":
            print(os.environ.get("OPENBLAS_CORETYPE"))
            sys.exit()
sys.meta_path.insert(0, BeforeNumPy())
pathlib.Path.exists = lambda path: True
pathlib.Path.read_text = lambda path: {ZEN4!r}
import minidl
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OPENBLAS_CORETYPE", "MINIDL_TUNE")
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "SkylakeX\n"


# -- the warning -------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch):
    """What threadpoolctl finds in the process; a list to write into."""
    libraries = [{"internal_api": "openblas", "architecture": "Haswell"}]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: libraries)
    return libraries


def test_slow_kernels_are_warned_of_with_the_remedy(process, loaded):
    with pytest.warns(RuntimeWarning, match="import minidl first, or set OPENBLAS_CORETYPE=SkylakeX"):
        _process.warn_of_slow_blas()


@pytest.mark.parametrize(
    ("cpu", "architecture", "environment"),
    [
        (ZEN4, "SkylakeX", {}),
        (ZEN3, "Zen", {}),
        (SKYLAKE, "Haswell", {}),
        (ZEN4, "Haswell", {"OPENBLAS_CORETYPE": "Haswell"}),
        (ZEN4, "Haswell", {"MINIDL_TUNE": "0"}),
    ],
    ids=["fast", "no AVX-512", "Intel", "chosen", "switched off"],
)
def test_fast_or_chosen_kernels_are_not_warned_of(cpu, architecture, environment, process, loaded):
    process.cpu = cpu
    process.environment.update(environment)
    loaded[0]["architecture"] = architecture
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _process.warn_of_slow_blas()


def test_the_first_kernel_looks_and_no_other(monkeypatch):
    calls = []
    monkeypatch.setattr(_parallel, "warn_of_slow_blas", lambda: calls.append(1))
    _parallel._blas.cache_clear()
    for _ in range(3):
        functional.relu(Tensor([1.0]))
    assert calls == [1]


# -- what the C library does with freed memory -------------------------------------------------------------------------


def test_freed_memory_is_kept(process):
    """mallopt(M_MMAP_THRESHOLD, 32 MiB) and mallopt(M_TRIM_THRESHOLD, 2 GiB), with the numbers of glibc's malloc.h."""
    _process.tune()
    assert process.mallopt_calls == [(-3, 32 * 2**20), (-1, 2**31 - 1)]


@pytest.mark.parametrize("variable", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_whoever_has_set_the_c_library_is_left_alone(variable, process):
    process.environment[variable] = "1000000"
    _process.tune()
    assert process.mallopt_calls == []


def test_a_c_library_without_mallopt_is_left_alone(process):
    process.library = SimpleNamespace()
    _process.tune()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(platform, process, monkeypatch):
    process.platform = platform
    monkeypatch.setattr(_process, "ctypes", None)  # CDLL(None) is an error on Windows
    _process.tune()
    assert process.mallopt_calls == []


def test_both_settings_can_be_switched_off(process):
    process.environment["MINIDL_TUNE"] = "0"
    _process.tune()
    assert process.environment == {"MINIDL_TUNE": "0"}
    assert process.mallopt_calls == []
