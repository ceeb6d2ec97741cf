"""Every CUDA kernel compiles for the GPUs it is meant for, and keeps its numbers in registers: told without a GPU.

The compiler is NVRTC, that of CuPy, from its wheel (`pip install ".[nvrtc]"`); it holds ptxas, whose log is read here.
Each CPU compiles a part of the kernels, in a process of its own as NVRTC does one at a time. What is
right is remembered: the same source is compiled once.
"""

import concurrent.futures
import ctypes
import functools
import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from minidl.system.cpus import available_cpus

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / "nvrtc"
CUDA_13, CUDA_12 = "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"  # the wheels with NVRTC 13.0 and 12.9
CUPYS_OPTIONS = ("-ftz=true", "--std=c++17", "--device-as-default-execution-space")  # what CuPy 14.2 adds
ARCHITECTURES = (75, 80, 90)  # Turing, the oldest that CUDA 13 knows; Ampere; Hopper

# A process of its own, as in this one `import cupy` must go on finding what it finds now.
LIST_KERNELS = """
import importlib, json, pkgutil, sys
from unittest import mock
sys.modules["cupy"] = mock.MagicMock()  # the sources are complete without it
from minidl.kernels import cuda
for module in pkgutil.iter_modules(cuda.__path__):
    importlib.import_module(f"minidl.kernels.cuda.{module.name}")
print(json.dumps([
    [kernel.name, kernel.source_for(dtype, wide, tuple(constants.items())), kernel.needs(dtype), kernel.for_hopper]
    for kernel in importlib.import_module("minidl.kernels.cuda._launch").CudaKernel.every
    for dtype in kernel.dtypes
    for wide in (False, True)
    for constants in kernel.examples
    if not (wide and constants.get("TILE_COLUMNS", 0) > 64)  # tiles of products of large arrays are narrower
]))
"""


class Variant(NamedTuple):
    """A kernel with its types and constants filled in."""

    name: str
    source: str
    lowest_architecture: int = ARCHITECTURES[0]
    for_hopper: bool = False

    def options(self, architecture: int) -> list[str]:
        """Those that CuPy passes to NVRTC, in their order: first what minidl adds."""
        hopper = ["-arch=sm_90a"] if self.for_hopper and architecture == 90 else []
        return [*hopper, *CUPYS_OPTIONS, f"-arch=sm_{architecture}"]

    @property
    def definitions(self) -> tuple[str, ...]:
        """The lines above the source: `#define name value`."""
        lines = itertools.takewhile(lambda line: line.startswith("#define"), self.source.splitlines())
        return tuple(line.removeprefix("#define ") for line in lines)


class Nvrtc:
    """The compiler, through ctypes: its functions return 0 or the number of an error."""

    def __init__(self, distribution: importlib.metadata.Distribution):
        for name in ("libnvrtc-builtins.so", "libnvrtc.so"):  # the second looks for the first in the process
            (path,) = (file for file in distribution.files if file.name.startswith(name))
            self.library = ctypes.CDLL(str(path.locate()), mode=ctypes.RTLD_GLOBAL)
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def log(self, variant: Variant, architecture: int) -> str:
        """What compiler and assembler say about a kernel. ValueError, with that text, where they reject it."""
        return self.compile(variant, architecture)[0]

    def compile(self, variant: Variant, architecture: int) -> tuple[str, bytes]:
        """The log, and the machine code as a cubin."""
        program, source = ctypes.c_void_p(), variant.source.encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source, b"kernel.cu", 0, None, None)
        options = [*variant.options(architecture), "--ptxas-options=-v"]
        error = self.library.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
        )
        log = self._read("ProgramLog", program).decode().rstrip("\0")
        binary = b"" if error else self._read("CUBIN", program)
        self._call("nvrtcDestroyProgram", ctypes.byref(program))
        if not binary.startswith(b"\x7fELF"):
            raise ValueError(f"{variant.name} {variant.definitions} for sm_{architecture} does not compile:\n{log}")
        return log, binary

    def _read(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments) -> None:
        error = getattr(self.library, function)(*arguments)
        if error:
            raise RuntimeError(f"{function}: {self.library.nvrtcGetErrorString(error).decode()}")


def spilled_bytes(log: str) -> int:
    """How many bytes of registers went to memory, by the lines `... 8 bytes spill stores, 16 bytes spill loads`."""
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    assert spills, f"the assembler says nothing of spills:\n{log}"
    return sum(map(int, spills))


@functools.cache
def installed_nvrtc(wheel: str = CUDA_13) -> Nvrtc:
    """One for each process: the functions of two would have the same names."""
    return Nvrtc(importlib.metadata.distribution(wheel))


def compiled(variant: Variant, architecture: int, wheel: str) -> tuple[str, bytes]:
    """The log and the machine code of a kernel, in a process that uses only this compiler."""
    return installed_nvrtc(wheel).compile(variant, architecture)


def fault(variant: Variant, architecture: int, wheel: str = CUDA_13) -> str | None:
    """What is wrong with a kernel, if anything is."""
    try:
        log = installed_nvrtc(wheel).log(variant, architecture)
    except ValueError as error:
        return str(error)
    if not spilled_bytes(log):
        return None
    return f"{variant.name} {variant.definitions} for sm_{architecture} spills registers:\n{log}"


def place_of(variant: Variant, architecture: int, wheel: str) -> Path:
    """The empty file that says that this NVRTC has found nothing wrong with a kernel."""
    key = [importlib.metadata.version(wheel), *variant.options(architecture), variant.source]
    return CACHE / hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return installed_nvrtc()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('needs NVRTC: pip install ".[nvrtc]"')


@pytest.fixture(scope="module")
def processes(nvrtc):
    """They compile with CUDA 13."""
    with started_processes() as pool:
        yield pool


@pytest.fixture(scope="module")
def processes_of_cuda_12():
    """Others, that compile with CUDA 12."""
    try:
        importlib.metadata.distribution(CUDA_12)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('needs NVRTC 12: pip install ".[nvrtc]"')
    with started_processes() as pool:
        yield pool


def started_processes() -> concurrent.futures.ProcessPoolExecutor:
    """They are started with the first piece of work."""
    context = multiprocessing.get_context("spawn")  # as this process has threads
    return concurrent.futures.ProcessPoolExecutor(available_cpus(), context)


def listed_by(*arguments: str) -> list[Variant]:
    """The variants that a Python program prints."""
    command = [sys.executable, *arguments]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert not listed.returncode, listed.stderr
    return [Variant(*fields) for fields in json.loads(listed.stdout)]


@pytest.fixture(scope="module")
def variants():
    """Every kernel of kernels/cuda in each of its types."""
    return listed_by("-c", LIST_KERNELS)


@functools.cache
def products_of_networks(dtype: str) -> list[Variant]:
    """The products of ResNet-20, ResNet-50 and VGG-16 with batch-norm, in a training step."""
    return listed_by("-m", "tests.networks_products", dtype)


def test_there_are_kernels_to_compile(variants):
    assert {"relu_forward", "max_pool2d_forward_uint8", "cross_entropy_forward"} <= {kernel.name for kernel in variants}
    types = {variant.definitions[:3] for variant in variants}
    assert len(types) == 8  # float32, float64, bfloat16 and float16; int and long long


def assert_no_faults(variants: list[Variant], architecture: int, processes, wheel: str = CUDA_13) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    new = [variant for variant in variants if not place_of(variant, architecture, wheel).exists()]
    same = itertools.repeat(architecture, len(new)), itertools.repeat(wheel, len(new))
    faults = []
    for variant, found in zip(new, processes.map(fault, new, *same, chunksize=4), strict=True):
        if found:
            faults.append(found)
        else:
            place_of(variant, architecture, wheel).touch()
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spilling_registers(architecture, variants, processes):
    meant = [variant for variant in variants if variant.lowest_architecture <= architecture]
    assert meant
    assert_no_faults(meant, architecture, processes)


@pytest.mark.parametrize(("dtype", "architecture"), [("float16", 75), ("bfloat16", 80), ("bfloat16", 90)])
def test_the_products_that_networks_use_compile_without_spilling_registers(dtype, architecture, processes):
    products = products_of_networks(dtype)
    assert {product.name for product in products} == {"conv_forward", "conv_backward_x", "conv_backward_weight"}
    assert len(products) > 30
    assert_no_faults(products, architecture, processes)


@pytest.mark.parametrize(("dtype", "architecture"), [("float16", 75), ("bfloat16", 80), ("bfloat16", 90)])
def test_the_compiler_of_cuda_12_takes_them_too(dtype, architecture, processes_of_cuda_12):
    assert_no_faults(products_of_networks(dtype), architecture, processes_of_cuda_12, CUDA_12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_error_is_found(architecture, nvrtc):
    variant = Variant("wrong", 'extern "C" __global__ void wrong(float* x) { x[0] = y; }')
    assert 'identifier "y" is undefined' in fault(variant, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_spill_is_found(architecture, nvrtc):
    """Of 400 numbers that are all needed to the end; a thread has 255 registers."""
    source = """
    extern "C" __global__ void spill(float* x, int rounds) {
        float numbers[400];
        #pragma unroll
        for (int i = 0; i < 400; i++) numbers[i] = x[i];
        for (int round = 0; round < rounds; round++) {
            #pragma unroll
            for (int i = 0; i < 400; i++) numbers[i] = numbers[i] * numbers[(i + 150) % 400];
        }
        #pragma unroll
        for (int i = 0; i < 400; i++) x[i] = numbers[i];
    }
    """
    assert "spills registers" in fault(Variant("spill", source), architecture)


# -- machine code ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disassembler():
    try:
        files = importlib.metadata.distribution("nvidia-cuda-nvdisasm").files
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('needs nvdisasm: pip install ".[nvrtc]"')
    (program,) = (file.locate() for file in files if file.name == "nvdisasm")
    return program


def main_loop(text: str, product: str = "HMMA") -> list[str]:
    """The instructions of the loop with the most products by tensor cores, and of these the shortest."""
    instructions, labels, loops = [], {}, []
    for line in map(str.strip, text.splitlines()):
        if found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"/\*[0-9a-f]+\*/\s+(.*);", line):
            instructions.append(found[1])
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", found[1])
            if target and target[1] in labels:
                loops.append(instructions[labels[target[1]] :])
    return max(loops, key=lambda loop: (count(product, loop), -len(loop)))


def count(name: str, instructions: list[str]) -> int:
    return sum(name in instruction for instruction in instructions)


@pytest.fixture
def disassembled(processes, processes_of_cuda_12, disassembler, tmp_path):
    """disassembled(variant): what a compiler says of it for compute capability 9.0, and its machine code as text."""

    def disassemble(variant, wheel=CUDA_13):
        pool = processes if wheel == CUDA_13 else processes_of_cuda_12
        log, binary = pool.submit(compiled, variant, 90, wheel).result()
        (tmp_path / "kernel.cubin").write_bytes(binary)
        command = [disassembler, "-c", tmp_path / "kernel.cubin"]
        return log, subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return disassemble


# Rows and columns of a tile; for each 32 instructions of tensor cores, instructions of the inner loop at most.
FORWARD, BACKWARD_X, BACKWARD_WEIGHT = "conv_forward", "conv_backward_x", "conv_backward_weight"
INNER_LOOPS = [
    (FORWARD, 128, 128, 82),
    (BACKWARD_X, 128, 128, 100),
    (BACKWARD_WEIGHT, 128, 128, 96),
    (FORWARD, 128, 64, 130),
    (BACKWARD_X, 128, 64, 150),
    (BACKWARD_WEIGHT, 128, 64, 134),
]


def product_of_3x3(name: str, rows: int, columns: int) -> Variant:
    """In bfloat16, with that tile, of 3 x 3 taps and stride 1."""
    constants = "SH 1", f"TILE_ROWS {rows}", f"TILE_COLUMNS {columns}", "BYTES_A 16", "BYTES_B 16", "BYTES_Y 16"
    (variant,) = (v for v in products_of_networks("bfloat16") if v.name == name and set(constants) <= {*v.definitions})
    return variant


def assert_blocks_fit(blocks: int, log: str) -> None:
    """That many blocks of 128 threads find registers on a multiprocessor. 48 KB of shared memory need no asking."""
    assert blocks * 128 * int(re.search(r"Used (\d+) registers", log)[1]) <= 65536
    assert int(re.search(r"(\d+) bytes smem", log)[1]) <= 48 * 1024


@pytest.mark.parametrize("wheel", [CUDA_13, CUDA_12])
@pytest.mark.parametrize(("name", "rows", "columns", "most"), INNER_LOOPS)
def test_the_products_inner_loop_has_few_instructions_beside_its_tensor_core_ones(
    name, rows, columns, most, wheel, disassembled
):
    """All of it is in registers, and two blocks fit a multiprocessor. The code is that of GPUs without `wgmma`.

    The loop is unrolled over a few steps along the depth. In a step, each of 4 warps multiplies 64 rows by half of the
    columns, 16 x 8 x 16 numbers an instruction.
    """
    log, text = disassembled(product_of_3x3(name, rows, columns)._replace(for_hopper=False), wheel)
    loop = main_loop(text)
    steps, products = count("LDGDEPBAR", loop), count("HMMA", loop)  # LDGDEPBAR ends a group of copies
    assert products == steps * columns // 2
    assert count("LDSM", loop) == steps * (8 + columns // 16)
    assert len(loop) * 32 / products <= most
    assert not re.search(r"\b(LDL|STL)\b", text)
    assert_blocks_fit(2, log)


# Rows and columns of a tile; instructions of a warp for a step along the depth at most; blocks of a multiprocessor.
WARPGROUP_LOOPS = [
    (FORWARD, 128, 128, 112, 3),
    (BACKWARD_X, 128, 128, 122, 2),
    (BACKWARD_WEIGHT, 128, 128, 120, 3),
    (FORWARD, 128, 64, 93, 3),
    (BACKWARD_X, 128, 64, 115, 3),
    (BACKWARD_WEIGHT, 128, 64, 106, 3),
]


@pytest.mark.parametrize("wheel", [CUDA_13, CUDA_12])
@pytest.mark.parametrize(("name", "rows", "columns", "most", "blocks"), WARPGROUP_LOOPS)
def test_on_hopper_a_warpgroup_multiplies_while_the_next_tiles_are_copied(
    name, rows, columns, most, blocks, wheel, disassembled
):
    """A step has a `wgmma` for each 64 rows and 16 numbers along the depth. All copies are started before the wait."""
    log, text = disassembled(product_of_3x3(name, rows, columns), wheel)
    loop = main_loop(text, "HGMMA")
    steps = count("LDGDEPBAR", loop)
    assert count(f"HGMMA.64x{columns}x16.F32.BF16", loop) == steps * rows // 64 * 2
    assert count("LDSM", loop) == count("HMMA", loop) == 0
    assert len(loop) / steps <= most
    assert not re.search(r"\b(LDL|STL)\b", text)
    assert_blocks_fit(blocks, log)
    steps_of_loop = re.findall(r"ARRIVE(.*?)WARPGROUP.DEPBAR", " ".join(loop))
    assert [step.count("LDGSTS") for step in steps_of_loop] == [count("LDGSTS", loop) // steps] * steps
