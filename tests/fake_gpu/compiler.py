"""g++ in place of NVRTC, behind a cache of files: each source is compiled once."""

import functools
import hashlib
import importlib.metadata
import os
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".pytest_cache" / "fake_gpu"
GPP = ("g++", "-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-w")
ARCHITECTURE = int(os.environ.get("FAKE_GPU_ARCH", 90))  # compute capability times ten
# With sections of their own, functions that nobody calls are left out: they take no shared memory, as on a GPU.
KERNEL = ("-fvisibility=hidden", "-ffunction-sections", "-fdata-sections")
CHECKED = (*KERNEL, "-fsanitize=alignment,bounds,null")  # kernels that are not CuPy's own

# The names of a source's kernels, and shared memory whose size the launch gives.
NAME = re.compile(r"__global__\s+(?:(?:void|__launch_bounds__\s*\([^)]*\))\s*)+(?!__launch_bounds__)\b(\w+)\s*\(")
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)|alignas\(\d+\))?\s*([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")

EMPTY = '""'
ASM = re.compile(r"\basm\s*(?:volatile)?\s*\(")
PIECE = re.compile(r'"(?:\\.|[^"\\])*"|[^"\[\](){}:,]+|.', re.DOTALL)  # of a statement: a string, a bracket, others


class CompileError(RuntimeError):
    """What g++ says."""


def compile_module(source, options=(), *, name_expressions=None, **_):
    """In place of cupy.cuda.compiler._compile_module_with_cache. A module's image is the path of a library."""
    import cupy

    includes = tuple(option for option in options if option.startswith("-I"))
    # A define named like something in the headers must not stand above them.
    defines = "\n".join("#define " + o.removeprefix("-D").replace("=", " ", 1) for o in options if o.startswith("-D"))
    if name_expressions:  # instances of templates
        kernels = {f"instance_{i}": expression for i, expression in enumerate(name_expressions)}
    else:
        kernels = {name: name for name in NAME.findall(source)}
    entries = "".join(f"FAKE_KERNEL({name}, {instance})\n" for name, instance in kernels.items())
    source = translate_instructions(source)
    source = DYNAMIC.sub(r"\1* const \2 = (\1*)fake_gpu_dynamic_shared;", source)
    whole = f'{defines}\n#line 1 "{next(iter(kernels), "none")}.cu"\n{source}\n{entries}'
    flags = *(KERNEL if "<cupy/" in source else CHECKED), *includes
    header = _header(flags)
    try:
        path = library(_architecture(options) + whole, *flags, "-include", str(header))
    except CompileError as error:
        raise cupy.cuda.compiler.CompileException(
            str(error), source, next(iter(kernels), ""), options, "g++"
        ) from error
    module = cupy.cuda.function.Module()
    module.load(str(path).encode())
    module._set_mapping({instance: name for name, instance in kernels.items()} if name_expressions else None)
    return module


def _architecture(options: tuple[str, ...]) -> str:
    """What NVRTC defines of the GPU, and FAKE_GPU_TARGET for the instructions. CompileError: of another GPU's code."""
    target, specific = 10 * ARCHITECTURE, "-arch=sm_90a" in options
    if specific and ARCHITECTURE != 90:
        raise CompileError(f"code for sm_90a does not load on a GPU of compute capability {ARCHITECTURE / 10}")
    feature = "#define __CUDA_ARCH_FEAT_SM90_ALL 1\n" if specific else ""
    return f"#define __CUDA_ARCH__ {target}\n#define FAKE_GPU_TARGET {target + specific}\n{feature}"


def translate_instructions(source: str) -> str:
    """Each `asm` becomes the call of a function that does what the PTX ISA says: see instructions.hpp."""
    done, position = [], 0
    while statement := ASM.search(source, position):
        fields, end = _fields(source, statement.end())
        fields += [""] * (4 - len(fields))
        if source[position : statement.start()].rpartition("\n")[2].lstrip().startswith("//"):
            done.append(source[position:end])  # a comment
        else:
            done += [source[position : statement.start()], _call(*fields)]
        position = end
    return "".join([*done, source[position:]])


def _fields(source: str, position: int, separator: str = ":") -> tuple[list[str], int]:
    """What stands between the colons of an `asm` statement (or other separators), and where its bracket closes."""
    fields, depth = [""], 0
    while piece := PIECE.match(source, position):
        position = piece.end()
        depth += (piece[0] in "([{") - (piece[0] in ")]}")
        if depth < 0:
            break
        if piece[0] == separator and depth == 0:
            fields.append("")
        else:
            fields[-1] += piece[0]
    return fields, position


def _call(*fields: str) -> str:
    newlines = "".join(re.findall(r"\\?\n", "".join(fields)))  # the lines keep their numbers
    text, results, others, clobbers = (re.sub(r"\\?\n", " ", field).strip() for field in fields)
    operands = [piece for field in (results, others) for piece in _fields(field, 0, ",")[0] if piece]
    letters = ",".join(operand.partition('"')[2].partition('"')[0] for operand in operands)
    values = "".join(", " + operand.partition("(")[2].rpartition(")")[0] for operand in operands)
    template = f'FAKE_GPU_TARGET, {text}, "{letters}", {clobbers or EMPTY}'
    return f"fake_gpu::instruction<{template}>(__LINE__{values}){newlines}"


def library(source: str, *options: str) -> Path:
    path = CACHE / (_hash(source, *options) + ".so")
    if not path.exists():
        _run(path, *options, "-shared", "-Wl,--gc-sections", "-x", "c++", "-", source=source)
    return path


@functools.cache
def _header(flags: tuple[str, ...]) -> Path:
    """device.hpp with CuPy's headers, and beside it, for g++ to find, what it makes of it: most of the time."""
    import cupy

    names = [HERE / "device.hpp", *cupy._core.core._cupy_header_list]
    text = "".join(f'#include "{name}"\n' for name in names)
    files = [HERE / "device.hpp", HERE / "instructions.hpp"]
    versions = cupy.__version__, importlib.metadata.version("nvidia-cuda-runtime")
    folder = CACHE / _hash(text, *versions, *(path.read_text() for path in files), *flags)
    header = folder / "all.hpp"
    parsed = header.with_suffix(".hpp.gch")
    if not parsed.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / str(os.getpid())
        new.write_text(text)
        new.replace(header)  # in one step, as in _run
        _run(parsed, *flags, "-x", "c++-header", str(header))
    return header


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join([*GPP, *parts]).encode()).hexdigest()[:32]


def _run(result: Path, *arguments: str, source: str = "") -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        new = Path(folder) / "new"
        environment = {**os.environ, "LC_ALL": "C"}  # messages in plain English
        command = [*GPP, *arguments, "-o", new]
        run = subprocess.run(command, input=source, capture_output=True, text=True, env=environment)
        if run.returncode:
            raise CompileError(run.stderr)
        new.replace(result)  # in one step, as other processes may be looking for it
