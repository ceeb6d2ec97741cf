"""The machine code (SASS) of a kernel, compiled by NVRTC and disassembled by nvdisasm, without a GPU.

Needs `pip install ".[nvrtc]"`. What is counted is kept in a cache, ~/.cache/minidl/sass.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minidl" / "sass"
CUPYS_OPTIONS = ("-ftz=true", "--std=c++17", "--device-as-default-execution-space")  # what CuPy 14.2 adds
VERSION = 3  # of what is counted: another number makes the cache useless

MACS_OF_WARP = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8}  # multiply-adds of an HMMA, by its shape
BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # of a memory instruction's type; else 4


@dataclass
class Loop:
    """A loop, or all that is in no loop: the counts of its instructions, each for one warp.

    `tensor_macs` and `fma_macs` are the multiply-adds of its HMMA and HGMMA (wgmma), and of its FFMA and DFMA
    instructions; `tensor_work` are those of HMMA, where TF32 counts twice, as it takes twice as long. `fp32` are all
    instructions of the float32 pipe. `shared` is what a warp reads and writes in shared memory, in units of 128 bytes.
    `global_bytes` is what one thread reads and writes in global memory; `loads` are the loads from it that a register
    waits for, `barriers` the BAR instructions, `wgmma_waits` the waits for HGMMA.
    """

    instructions: int = 0
    tensor_macs: int = 0
    tensor_work: int = 0
    hmma: int = 0
    wgmma_macs: int = 0
    wgmma_waits: int = 0
    shared: float = 0
    fma_macs: int = 0
    fp32: int = 0
    global_bytes: int = 0
    loads: int = 0
    barriers: int = 0


@dataclass
class Code:
    """A kernel's machine code: registers of a thread, static shared bytes of a block, and its loops.

    `outside` are the instructions that are in no loop. Each entry of `loops` counts its own instructions and those of
    the loops inside; `inside` is the number of the loop that it is in, or -1.
    """

    registers: int
    shared: int
    outside: Loop
    loops: list[Loop]
    inside: list[int]


# -- compiling ---------------------------------------------------------------------------------------------------------


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """NVIDIA's compiler, from its wheel."""
    distribution = importlib.metadata.distribution("nvidia-cuda-nvrtc")
    for name in ("libnvrtc-builtins.so", "libnvrtc.so"):  # the second looks for the first in the process
        (path,) = (file for file in distribution.files if file.name.startswith(name))
        library = ctypes.CDLL(str(path.locate()), mode=ctypes.RTLD_GLOBAL)
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def call(function: str, *arguments) -> None:
    """Call NVRTC. RuntimeError with its words."""
    if error := getattr(nvrtc(), function)(*arguments):
        raise RuntimeError(f"{function}: {nvrtc().nvrtcGetErrorString(error).decode()}")


def read(what: str, program: ctypes.c_void_p) -> bytes:
    """A result of NVRTC: the log or the machine code."""
    size = ctypes.c_size_t()
    call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    call(f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def compile_kernel(source: str, options: tuple[str, ...], architecture: int) -> tuple[str, bytes]:
    """The assembler's log and the cubin. ValueError with the log where the source is rejected."""
    program = ctypes.c_void_p()
    call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    words = [*options, *CUPYS_OPTIONS, f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v"]
    failed = nvrtc().nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*map(str.encode, words)))
    log = read("ProgramLog", program).decode(errors="replace").rstrip("\0")
    cubin = b"" if failed else read("CUBIN", program)
    call("nvrtcDestroyProgram", ctypes.byref(program))
    if failed:
        raise ValueError(f"sm_{architecture}: the compiler says\n{log}")
    return log, cubin


@functools.cache
def disassembler() -> str:
    """The path of nvdisasm: on PATH, or in its wheel."""
    if found := shutil.which("nvdisasm"):
        return found
    files = importlib.metadata.distribution("nvidia-cuda-nvdisasm").files
    (program,) = (file.locate() for file in files if file.name == "nvdisasm")
    return str(program)


def disassemble(cubin: bytes) -> str:
    """The machine code as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True, check=True).stdout


# -- counting ----------------------------------------------------------------------------------------------------------


def code_of(source: str, options: tuple[str, ...], architecture: int) -> Code:
    """What a kernel is made of, from the cache if it was there before."""
    versions = [importlib.metadata.version(f"nvidia-cuda-{name}") for name in ("nvrtc", "nvdisasm")]
    key = "\0".join([str(VERSION), *versions, str(architecture), *options, source])
    path = CACHE / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".json")
    if not path.exists():
        log, cubin = compile_kernel(source, options, architecture)
        code = analyse(log, disassemble(cubin))
        CACHE.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(code)))
        part.replace(path)
    found = json.loads(path.read_text())
    loops = [Loop(**loop) for loop in found.pop("loops")]
    return Code(**found | {"outside": Loop(**found["outside"]), "loops": loops})


def analyse(log: str, text: str) -> Code:
    """The counts, from the assembler's log and the disassembled text."""
    instructions, spans = parse(text)
    loops = [count(instructions[start:end]) for start, end in spans]
    inside = [parent_of(i, spans) for i in range(len(spans))]
    in_a_loop = {i for start, end in spans for i in range(start, end)}
    outside = count([instruction for i, instruction in enumerate(instructions) if i not in in_a_loop])
    registers, shared = re.search(r"Used (\d+) registers", log), re.search(r"(\d+) bytes smem", log)
    return Code(int(registers[1]), int(shared[1]) if shared else 0, outside, loops, inside)


def parse(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The instructions of the kernel, and (start, end) of its loops: what lies between a label and a jump back to it.

    Behind the kernel stand the functions that it calls for rare cases (a division of tiny numbers): left out.
    """
    instructions, labels, spans, called = [], {}, [], set()
    for line in map(str.strip, text.splitlines()):
        if found := re.match(r"(\.L_x_\d+|\$\S+):", line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"/\*[0-9a-f]+\*/\s+(?:\{ )?(.*?)\s*;", line):
            instructions.append(found[1])
            target = re.search(r"`\(([^)]+)\)", found[1])
            if target and "CALL" in found[1]:
                called.add(target[1])
            elif target and "BRA" in found[1] and target[1] in labels:
                spans.append((labels[target[1]], len(instructions)))
    end = min((labels[name] for name in called if name in labels), default=len(instructions))
    longest = {start: max(stop for first, stop in spans if first == start) for start, _ in spans}  # one for each label
    loops = [(start, stop) for start, stop in sorted(longest.items()) if stop <= end and stop - start > 1]
    return instructions[:end], loops


def parent_of(number: int, spans: list[tuple[int, int]]) -> int:
    """The smallest other loop that a loop lies in, or -1."""
    start, end = spans[number]
    around = [
        (stop - first, i)
        for i, (first, stop) in enumerate(spans)
        if i != number and first <= start and end <= stop and (first, stop) != (start, end)
    ]
    return min(around)[1] if around else -1


def count(instructions: list[str]) -> Loop:
    """Of some instructions. NOP and the endless jump behind the end are left out."""
    total = Loop()
    for instruction in instructions:
        name = re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]
        kind, *parts = name.split(".")
        if kind == "NOP":
            continue
        total.instructions += 1
        if kind == "HMMA":
            total.hmma += 1
            macs = next(macs for shape, macs in MACS_OF_WARP.items() if shape in parts)
            total.tensor_macs += macs
            total.tensor_work += macs * (2 if "TF32" in parts else 1)
        elif kind == "HGMMA":  # of four warps: it reads its matrices from shared memory
            rows, columns, depth = map(int, parts[0].split("x"))
            total.wgmma_macs += rows * columns * depth // 4
            total.tensor_macs += rows * columns * depth // 4
            total.shared += (rows + columns) * depth * 2 / 128 / 4
        elif kind in ("FFMA", "DFMA"):
            total.fma_macs += 32
        total.wgmma_waits += name.startswith("WARPGROUP.DEPBAR")
        total.fp32 += kind in ("FFMA", "FADD", "FMUL", "FSETP", "FMNMX", "FSEL")
        total.barriers += kind == "BAR"
        size = next((BYTES[part] for part in parts if part in BYTES), 4)
        if kind in ("LDG", "STG", "LDGSTS"):
            total.global_bytes += size
            total.loads += kind == "LDG"
        if kind in ("LDS", "STS", "LDGSTS"):
            total.shared += -(-size // 4)
        elif kind == "LDSM":
            total.shared += int(parts[-1]) if parts[-1].isdigit() else 1  # matrices of 8 x 16 bytes
    return total
