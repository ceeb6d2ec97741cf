"""What the C library does with freed memory: what is set where, and what is left to the user."""

import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from minidl.system import malloc


@pytest.fixture
def process(monkeypatch):
    """A fresh process on Linux, as the setting sees it; what is done to it can be read from it."""
    calls = []
    state = SimpleNamespace(environ={}, platform="linux", calls=calls)
    state.library = SimpleNamespace(mallopt=lambda *args: calls.append(args))
    monkeypatch.setattr(malloc, "os", state)
    monkeypatch.setattr(malloc, "sys", state)
    monkeypatch.setattr(malloc, "ctypes", SimpleNamespace(CDLL=lambda name: state.library))
    return state


def test_freed_memory_is_kept(process):
    """mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2 GiB), with the numbers of glibc's malloc.h."""
    assert malloc.keep_freed_memory()
    assert process.calls == [(-4, 0), (-1, 2**31 - 1)]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_MMAP_MAX_", "9"),
        ("MALLOC_MMAP_THRESHOLD_", "1000"),
        ("MALLOC_TRIM_THRESHOLD_", "1000"),
        ("MINIDL_MALLOPT", "0"),
    ],
)
def test_whoever_has_chosen_otherwise_is_left_alone(variable, value, process):
    process.environ[variable] = value
    assert not malloc.keep_freed_memory()
    assert process.calls == []


def test_a_c_library_without_mallopt_is_left_alone(process):
    process.library = SimpleNamespace()
    assert not malloc.keep_freed_memory()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(platform, process, monkeypatch):
    process.platform = platform
    monkeypatch.setattr(malloc, "ctypes", None)  # CDLL(None) is an error on Windows
    assert not malloc.keep_freed_memory()


PAGE_FAULTS = """
import minidl, numpy as np, resource
def step():
    return [np.ones(LENGTH) for _ in range(20)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("length", [2**20, 3 * 2**21])  # 8 and 48 MiB: above glibc's largest threshold
def test_a_second_step_pays_no_page_faults(length):
    program = PAGE_FAULTS.replace("LENGTH", str(length))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pages = 20 * 8 * length // resource.getpagesize()
    assert int(done.stdout) < 0.001 * pages
