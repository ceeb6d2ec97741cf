"""g++ behind a cache of files: each source is compiled once."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".pytest_cache" / "stand_in"
GPP = ("g++", "-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-w")
HIDDEN = ("-fvisibility=hidden",)


def kernel(source: str, name: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """A library that runs `extern "C" __global__ void name(...)` for one thread."""
    runtime()  # which the library is linked to when it is loaded
    # A define named like a function of libc's must not stand above its headers.
    defines = "\n".join("#define " + option.removeprefix("-D").replace("=", " ", 1) for option in options)
    whole = f'{defines}\n#line 1 "{name}.cu"\n{source}\nSTAND_IN_KERNEL({name})\n'
    return ctypes.CDLL(str(_compile(whole, *HIDDEN, "-include", str(_header()))))


@functools.cache
def runtime() -> ctypes.CDLL:
    """The library that lets threads take turns."""
    library = ctypes.CDLL(str(_compile((HERE / "runtime.cpp").read_text())), mode=ctypes.RTLD_GLOBAL)
    pointer = ctypes.c_void_p
    library.stand_in_run.argtypes = [pointer, pointer, pointer, pointer, ctypes.c_int, pointer, ctypes.c_longlong]
    library.stand_in_run.restype = ctypes.c_char_p
    return library


@functools.cache
def _header() -> Path:
    """device.hpp, and beside it, for g++ to find, what it makes of it: half of the time of a compilation."""
    source = (HERE / "device.hpp").read_text()
    header = CACHE / _name(source, *HIDDEN) / "device.hpp"
    parsed = header.with_suffix(".hpp.gch")
    if not parsed.exists():
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(source)
        _run(parsed, *HIDDEN, "-x", "c++-header", str(header))
    return header


def _compile(source: str, *options: str) -> Path:
    library = CACHE / (_name(source, *options) + ".so")
    if not library.exists():
        _run(library, *options, "-x", "c++", "-", source=source)
    return library


def _name(source: str, *options: str) -> str:
    return hashlib.sha256("\0".join([*GPP, *options, source]).encode()).hexdigest()[:32]


def _run(result: Path, *arguments: str, source: str = "") -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        new = Path(folder) / "new"
        command = [*GPP, *arguments, "-o", new]
        environment = {**os.environ, "LC_ALL": "C"}  # messages in plain English
        run = subprocess.run(command, input=source, capture_output=True, text=True, env=environment)
        if run.returncode:
            raise RuntimeError(f"g++ finds errors:\n{run.stderr}")
        new.replace(result)  # in one step, as other processes may be looking for it
