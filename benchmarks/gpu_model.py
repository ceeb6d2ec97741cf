"""How long the kernels of a training step should take on a GPU: a model, from their machine code and their sizes.

    pip install -e ".[nvrtc]"                                            # no GPU is needed
    python benchmarks/gpu_model.py                                       # three networks on T4, A100 and H200
    python benchmarks/gpu_model.py --models resnet50 --gpus H200 --batch 64 --by-launch
    python benchmarks/gpu_model.py --measured gpu.json                   # beside what gpu.py has measured

Nothing of this is a measurement. Take it to +-30 %.

Method. The launches of a step are recorded without a GPU (launches.py). NVRTC compiles each kernel with the constants
of its launch, and nvdisasm shows its instructions and loops (sass.py). The time of a launch is the largest of six:

  issue    A multiprocessor (SM) has four schedulers; each issues at most one instruction of a warp per cycle. Of a
           block's instructions those in no loop count once, those of the main loop by the number of its turns. The rate
           depends on how many warps a scheduler chooses from: INSTRUCTIONS_PER_CYCLE, measured by Volkov 2016,
           "Understanding latency hiding on GPUs", for dependent arithmetic on several generations, and used for all.
  tensor   HMMA instructions at the tensor cores' rate. On Hopper mma.sync reaches 62 % of the peak that wgmma has (Luo
           et al. 2024, "Benchmarking and dissecting the NVIDIA Hopper GPU architecture via microbenchmarking"). That
           itself is taken as 90 %: a GPU that multiplies all the time lowers its clock.
  fp32     Instructions of the float32 pipe: one a cycle and scheduler on Hopper, one every second cycle on Turing and
           the A100, by the number of lanes (NVIDIA's white papers of the three).
  shared   What goes to and from shared memory, at 128 bytes a cycle and SM (CUDA C++ programming guide: 32 banks of 4
           bytes). Without bank conflicts, and as if no two threads read the same address.
  memory   The bytes of all arrays that the kernel is given, each moved once, at 80 % of what a copy reaches. That the
           cache serves whatever is read again, and nothing of the kernel before, is assumed.
  latency  Each wave of blocks waits for memory once before the main loop and once in each turn in which it loads to
           registers (600 cycles; Jia et al. 2018 and 2019 measured 440 to 620 on Volta and Turing). If the loop has
           barriers, as a product without asynchronous copies has, nothing else of the block goes on: these cycles, by
           the number of blocks on an SM, are added to those of issue. A block that waits for its wgmma has
           started the copies of a later step, but does nothing else: a step takes it at least its instructions, at the
           rate of four warps alone, or its tensor work, and then WGMMA_WAIT. Other blocks of the SM go on.

Turns of the main loop, by conservation of work: a product must do all multiply-adds of its tile (depth times tile), and
another kernel must move all its bytes; the machine code tells how many a turn does. The main loop is the one that does
most of it. A loop around a product's main loop is the one that copies the tiles. Where nothing is conserved (the
windows of pooling) TURNS has a formula. A loop with a barrier is a sum over the threads of a block: log2(threads)
turns. All other loops count once, or once in each turn of the loop that they are in. Both sides of a branch count.

Blocks that share an SM are limited by registers, shared memory and warps (the CUDA C++ programming guide's tables). A
last, smaller wave of blocks counts with the warps that it has. What CuPy launches (casts, fills) moves its bytes. In a
CUDA graph a launch costs GAP beside its time. Clocks are the boost clocks: a T4, limited to 70 W, does not keep its.
"""

import argparse
import concurrent.futures
import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from command_line import DTYPES, new_file, positive, run_main
from sass import Code, Loop, code_of
from step_worker import MODELS

from minidl.system.files import read_text

HERE = Path(__file__).resolve().parent
WORKLOADS = {"resnet50": 256, "vgg16_bn": 64, "resnet20": 128}

# Instructions per cycle of a scheduler that chooses from so many warps; in between it grows along a line.
INSTRUCTIONS_PER_CYCLE = {1: 0.23, 2: 0.41, 4: 0.63, 8: 0.79, 16: 0.9}
SHARE_OF_COPY = 0.8  # of the rate of a copy that a kernel with coalesced accesses reaches
WAIT = 600  # cycles for a number from memory
WGMMA_WAIT = 100  # cycles from the end of a wgmma to the next instruction, with a barrier; an assumption
STEP_BYTES = 64  # of the depth of a product's tile (_product.py); where it ends, zeros fill it
GAP = 1.2e-6  # seconds between two nodes of a CUDA graph


@dataclass(frozen=True)
class Gpu:
    """`tflops` are those of bfloat16 (float16 on Turing) by mma.sync; `fp32_cycles` those of a float32 instruction.

    `copy` is in bytes per second: what a copy of large arrays reaches. `shared` is of a multiprocessor, in bytes;
    `reserved` of each block's share of it. `wgmma_tflops` are those of bfloat16 by wgmma.
    """

    capability: int
    dtypes: tuple[str, ...]  # the first that minidl has there
    multiprocessors: int
    clock: float
    copy: float
    tflops: float
    peak_tflops: float
    fp32_cycles: int
    shared: int
    reserved: int
    warps: int
    blocks: int
    wgmma_tflops: float = 1  # where there is none


GPUS = {
    # Peaks: NVIDIA's data sheets. Copies: T4 220 GB/s (Jia et al. 2019), A100 80 GB 88 % of 2,039 GB/s, H200 4.3 TB/s.
    "T4": Gpu(75, ("float16", "float32"), 40, 1.59e9, 0.22e12, 65, 65, 2, 64 * 1024, 0, 32, 16),
    "A100": Gpu(80, ("bfloat16",), 108, 1.41e9, 1.8e12, 312, 312, 2, 164 * 1024, 1024, 64, 32),
    "H200": Gpu(90, ("bfloat16",), 132, 1.755e9, 4.3e12, 0.62 * 989, 989, 1, 228 * 1024, 1024, 64, 32, 0.9 * 989),
}

# -- what a launch has to do -------------------------------------------------------------------------------------------

# The depth of a product: multiply-adds for each element that a block computes, from the numbers of its launch. dL/dx of
# a strided convolution is SH * SW products (before TILE_ROWS was a constant it was one, most of it with zeros); of
# dL/dweight each block sums one slab (whose number was the second size of the grid).
DEPTHS: dict[str, Callable[[dict, tuple], float]] = {
    "conv_forward": lambda a, grid: a["KH"] * a["KW"] * a["C"],
    "conv_backward_x": lambda a, grid: a["KH"] * a["KW"] * a["O"] / (a["SH"] * a["SW"] if "TILE_ROWS" in a else 1),
    "conv_backward_weight": lambda a, grid: a["N"] * a["OH"] * a["OW"] / a.get("slab_count", grid[-1]),
}
# Rows and columns of its result, where TILE_ROWS has to be found by the number of blocks.
SHAPES: dict[str, Callable[[dict], tuple[int, int]]] = {
    "conv_forward": lambda a: (a["N"] * a["OH"] * a["OW"], a["O"]),
    "conv_backward_x": lambda a: (a["N"] * a["H"] * a["W"], a["C"]),
    "conv_backward_weight": lambda a: (a["KH"] * a["KW"] * a["C"], a["O"]),
}
# Turns of the innermost loop of kernels that read an element several times.
TURNS: dict[str, Callable[[dict], float]] = {
    "max_pool2d_forward": lambda a: a["KH"] * a["KW"],
    "max_pool2d_backward": lambda a: a["KH"] * a["KW"] / (a["SH"] * a["SW"]),
    "avg_pool2d_forward": lambda a: a["KH"] * a["KW"],
    "avg_pool2d_backward": lambda a: a["KH"] * a["KW"] / (a["SH"] * a["SW"]),
}
# Bytes that a thread moves where the arguments do not show it: the update reads p, grad and velocity and writes two of
# them, four numbers a thread, and gets them by a table of addresses.
BYTES_OF_THREAD = {"sgd_update": 4 * 5 * 4}

# Arrays of which a kernel reads next to nothing: one row, or only the address.
NOT_READ: dict[str, Callable[[str], bool]] = {
    "merge_moments": lambda name: name == "x",
    "write_entries": lambda name: name != "table",
}


@dataclass
class Launch:
    """A recorded launch: the kernel, its machine code, its numbers by name, and the bytes of its arrays."""

    kernel: str
    code: Code
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    numbers: dict[str, float]
    bytes: int
    itemsize: int

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def warps(self) -> int:
        """Of a block."""
        return -(-math.prod(self.block) // 32)

    @property
    def is_product(self) -> bool:
        return self.kernel in DEPTHS

    @property
    def macs(self) -> int:
        """Multiply-adds that are asked for; 0 if it is no product."""
        names = ("N", "OH", "OW", "O", "KH", "KW", "C")
        return math.prod(int(self.numbers[name]) for name in names) if self.is_product else 0

    def depth(self) -> float:
        """Of a product."""
        return DEPTHS[self.kernel](self.numbers, self.grid)

    def tile(self) -> tuple[int, int]:
        """Rows and columns that a block computes: constants, or the rows that fit the number of blocks."""
        across = int(self.numbers["TILE_COLUMNS"])
        if "TILE_ROWS" in self.numbers:
            return int(self.numbers["TILE_ROWS"]), across
        rows, columns = SHAPES[self.kernel](self.numbers)
        fits = (r for r in (128, 64, 256, 32) if -(-rows // r) * -(-columns // across) == self.grid[0])
        return next(fits, 128), across

    def main_loop(self) -> int | None:
        """The number of the loop that does the work."""
        loops = self.code.loops
        if not loops:
            return None
        if self.is_product:
            return max(range(len(loops)), key=lambda i: (macs_of(loops[i]), -loops[i].instructions))
        if family(self.kernel) in TURNS:
            return max(range(len(loops)), key=lambda i: (self.code.inside[i] >= 0, loops[i].global_bytes))
        best = max(range(len(loops)), key=lambda i: (loops[i].global_bytes, -loops[i].instructions))
        return best if loops[best].global_bytes else None

    def parents(self, number: int) -> list[int]:
        """The loops that a loop lies in, from the inside."""
        found = []
        while (number := self.code.inside[number]) >= 0:
            found.append(number)
        return found

    def turns(self) -> dict[int, float]:
        """How often each loop's own instructions are executed by a warp."""
        loops, main = self.code.loops, self.main_loop()
        turns: dict[int, float] = {}
        if main is not None:
            turns[main] = self.turns_of_main(main)
            for parent in self.parents(main):
                turns[parent] = self.steps(parent, turns[main]) if self.is_product else 1
        for i in sorted(range(len(loops)), key=lambda i: len(self.parents(i))):  # the outer ones first
            width = self.block[1] if len(self.block) > 1 else self.block[0]
            alone = max(math.log2(width), 1) if loops[i].barriers and not loops[i].global_bytes else 1
            parent = self.code.inside[i]
            turns.setdefault(i, turns[parent] if parent >= 0 else alone)
        return turns

    def turns_of_main(self, main: int) -> float:
        """By conservation of work."""
        loop = self.code.loops[main]
        if self.is_product:
            depth = macs_of(loop) * self.warps / math.prod(self.tile())  # of a turn
            step = min(STEP_BYTES / self.itemsize, depth)  # the compiler unrolls some steps, with a way out behind each
            return math.ceil(self.depth() / step) * step / depth
        if family(self.kernel) in TURNS:
            return TURNS[family(self.kernel)](self.numbers)
        moved = BYTES_OF_THREAD.get(self.kernel, self.bytes / self.blocks / math.prod(self.block))
        return max(moved - self.code.outside.global_bytes, 0) / loop.global_bytes

    def waits(self) -> tuple[float, float]:
        """How often a warp waits for memory; and how often of these a barrier makes the whole block wait with it."""
        main = self.main_loop()
        if main is None or not self.code.loops[main].loads:
            return 1, 0
        turns = self.turns()[main]
        return 1 + turns, turns if self.code.loops[main].barriers else 0

    def steps(self, parent: int, turns: float) -> float:
        """Turns of a loop around a product's main loop: it copies two tiles, of a depth that is a power of two."""
        copied = self.code.loops[parent].global_bytes * math.prod(self.block) / self.itemsize / sum(self.tile())
        if copied < 1:
            return 1
        return min(math.ceil(self.depth() / 2 ** math.floor(math.log2(copied))), turns)

    def count(self, of: Callable[[Loop], float]) -> float:
        """The sum of a count over the instructions that a warp executes."""
        loops, inside, turns = self.code.loops, self.code.inside, self.turns()
        own = [
            of(loop) - sum(of(loops[j]) for j in range(len(loops)) if inside[j] == i) for i, loop in enumerate(loops)
        ]
        return of(self.code.outside) + sum(own[i] * turns[i] for i in turns)


def macs_of(loop: Loop) -> int:
    """Multiply-adds of a warp in a turn."""
    return loop.tensor_macs or loop.fma_macs


def family(kernel: str) -> str:
    """The name without the dtype at its end: max_pool2d_forward for max_pool2d_forward_uint8."""
    return re.sub(r"_(uint8|int32|int64|uint16)$", "", kernel)


# -- time --------------------------------------------------------------------------------------------------------------


def instructions_per_cycle(warps: float) -> float:
    """Of a scheduler that chooses from that many warps."""
    known = sorted(INSTRUCTIONS_PER_CYCLE.items())
    if warps <= known[0][0]:
        return known[0][1] * warps / known[0][0]
    for (few, slow), (many, fast) in itertools.pairwise(known):
        if warps <= many:
            return slow + (fast - slow) * (warps - few) / (many - few)
    return known[-1][1]


def blocks_at_once(launch: Launch, gpu: Gpu) -> int:
    """Blocks that share a multiprocessor. Registers are given to a warp in units of 256."""
    of_warp = -(-launch.code.registers * 32 // 256) * 256
    limits = [gpu.blocks, gpu.warps // launch.warps, 65536 // (of_warp * launch.warps)]
    if shared := launch.code.shared + launch.shared:
        limits.append(gpu.shared // (shared + gpu.reserved))
    return max(min(limits), 1)


def peak_macs(launch: Launch, gpu: Gpu) -> float:
    """Multiply-adds per second that the GPU's data sheet promises for the instructions of a product."""
    tensor = launch.count(lambda loop: loop.tensor_macs)
    if not tensor:
        return gpu.multiprocessors * 128 / gpu.fp32_cycles * gpu.clock
    return gpu.peak_tflops * 1e12 / 2 * tensor / launch.count(lambda loop: loop.tensor_work + loop.wgmma_macs)


def times(launch: Launch, gpu: Gpu) -> dict[str, float]:
    """Seconds by each of the six limits."""
    at_once = blocks_at_once(launch, gpu)
    full, rest = divmod(launch.blocks, at_once * gpu.multiprocessors)
    waves = [(full, at_once)] + ([(1, -(-rest // gpu.multiprocessors))] if rest else [])
    names = ("instructions", "fp32", "tensor_work", "wgmma_macs", "wgmma_waits", "shared")
    counts = {name: launch.count(lambda loop, name=name: getattr(loop, name)) for name in names}
    waits, stalls = launch.waits()
    tensor = cycles_of_tensor_cores(counts, gpu)
    alone = block_alone(counts, launch.warps, tensor) if counts["wgmma_waits"] else 0
    cycles = dict.fromkeys(("issue", "tensor", "fp32", "shared", "latency"), 0.0)
    for count, blocks in waves:
        warps = blocks * launch.warps  # of a multiprocessor
        cycles["issue"] += count * counts["instructions"] * warps / 4 / instructions_per_cycle(warps / 4)
        cycles["issue"] += count * stalls * WAIT / blocks
        cycles["fp32"] += count * counts["fp32"] * warps / 4 * gpu.fp32_cycles
        cycles["tensor"] += count * tensor * warps
        cycles["shared"] += count * counts["shared"] * warps
        cycles["latency"] += count * (waits * WAIT + alone)
    seconds = {name: number / gpu.clock for name, number in cycles.items()}
    return seconds | {"memory": launch.bytes / (SHARE_OF_COPY * gpu.copy)}


def cycles_of_tensor_cores(counts: dict[str, float], gpu: Gpu) -> float:
    """What a warp's multiply-adds take of those of a multiprocessor."""
    tflops = {"tensor_work": gpu.tflops, "wgmma_macs": gpu.wgmma_tflops}
    return sum(counts[name] * 2 / (tflops[name] * 1e12) * gpu.multiprocessors * gpu.clock for name in tflops)


def block_alone(counts: dict[str, float], warps: int, tensor: float) -> float:
    """Cycles of a block that waits for each of its products, if its multiprocessor had no other block."""
    issue = counts["instructions"] * warps / 4 / instructions_per_cycle(warps / 4)
    return max(issue, tensor * warps) + counts["wgmma_waits"] * WGMMA_WAIT


# -- a step ------------------------------------------------------------------------------------------------------------


def record_step(model: str, batch: int, gpu: Gpu, dtypes: Iterable[str]) -> tuple[dict, str]:
    """The launches of a step in the first of these dtypes that can be recorded, and that dtype.

    They are recorded in a process of its own, as that one has another `cupy`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launches.json"
        for dtype in dtypes:
            words = [HERE / "launches.py", model, batch, dtype, gpu.capability, path]
            done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
            if not done.returncode:
                return json.loads(path.read_text()), dtype
    raise SystemExit(f"gpu_model.py: {model} cannot be recorded:\n{done.stderr}")


def compile_all(sources: list[list], capability: int, workers: int | None) -> list[Code]:
    """The machine code of each source. NVRTC compiles one at a time in a process."""
    arguments = [(source, tuple(options), capability) for source, _, options in sources]
    if workers == 1:
        return [code_of(*each) for each in arguments]
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        return list(pool.map(code_of, *zip(*arguments, strict=True)))


def parameters_of(source: str, name: str) -> list[str]:
    """The names of the parameters of a kernel's function, in order."""
    found = re.search(rf'extern "C" __global__ void[^;{{]*?\b{name}\s*\((.*?)\)\s*\{{', source, re.DOTALL)
    return [re.findall(r"\w+", parameter)[-1] for parameter in found[1].split(",")] if found else []


def constants_of(source: str, options: list[str]) -> dict[str, int]:
    """The numbers that are defined at the head of a source, or by options."""
    text = source + "\n" + "\n".join(option.replace("-D", "#define ").replace("=", " ") for option in options)
    return {name: int(value) for name, value in re.findall(r"^#define (\w+) (\d+)$", text, re.MULTILINE)}


def launches_of(recorded: dict, codes: list[Code]) -> list[Launch | dict]:
    """The launches of our kernels; those of CuPy's as they are recorded."""
    result: list[Launch | dict] = []
    for each in recorded["launches"]:
        if "source" not in each:
            result.append(each)
            continue
        source, name, options = recorded["sources"][each["source"]]
        arguments = each["arguments"]
        numbers = dict(zip(parameters_of(source, name), arguments, strict=False)) | constants_of(source, options)
        numbers = {key: value for key, value in numbers.items() if not isinstance(value, dict)}
        grid, block = tuple(each["grid"]), tuple(each["block"])
        named = zip(parameters_of(source, name), arguments, strict=False)
        moved = bytes_of(name, named, math.prod(grid) * math.prod(block))
        itemsize = next((a["itemsize"] for a in arguments if isinstance(a, dict)), 4)
        result.append(Launch(name, codes[each["source"]], grid, block, each["shared"], numbers, moved, itemsize))
    return result


def bytes_of(kernel: str, arguments: Iterable[tuple[str, object]], threads: int) -> int:
    """What a launch reads and writes: each of its arrays once."""
    if kernel in BYTES_OF_THREAD:
        return BYTES_OF_THREAD[kernel] * threads
    skipped = NOT_READ.get(kernel, lambda name: False)
    arrays = {a["address"]: a["bytes"] for name, a in arguments if isinstance(a, dict) and not skipped(name)}
    return sum(arrays.values())


def lines_of(launches: list[Launch | dict], gpu: Gpu, by_launch: bool = False) -> list[dict]:
    """A line for each kernel: launches, milliseconds, those at the GPU's peak, and those that each limit makes."""
    lines: dict[str, dict] = {}
    for launch in launches:
        if isinstance(launch, dict):
            name, peak = "cupy's own", launch["bytes"] / gpu.copy
            limits = {"memory": peak / SHARE_OF_COPY}
        else:
            name, limits = launch.kernel, times(launch, gpu)
            name += f" {launch.grid} {shape_text(launch)}" if by_launch else ""
            peak = launch.macs / peak_macs(launch, gpu) if launch.is_product else launch.bytes / gpu.copy
        bound = max(limits, key=limits.get)
        seconds = limits[bound] + GAP
        bound = "launch" if limits[bound] < GAP else bound
        line = lines.setdefault(name, {"kernel": name, "launches": 0, "ms": 0.0, "peak_ms": 0.0, "bounds": {}})
        line["launches"] += 1
        line["ms"] += 1000 * seconds
        line["peak_ms"] += 1000 * peak
        line["bounds"][bound] = line["bounds"].get(bound, 0) + 1000 * seconds
    return sorted(lines.values(), key=lambda line: -line["ms"])


def shape_text(launch: Launch) -> str:
    """The sizes of a convolution, or the rows and channels of others."""
    names = ("H", "W", "C", "OH", "O", "KH", "SH", "rows", "channels", "count")
    return " ".join(f"{name}={launch.numbers[name]}" for name in names if name in launch.numbers)


def model_step(args: argparse.Namespace, model: str, batch: int, gpu: Gpu) -> tuple[list[dict], str]:
    """The lines of a step, and the dtype of its activations."""
    recorded, dtype = record_step(model, batch, gpu, [args.dtype] if args.dtype else gpu.dtypes)
    codes = compile_all(recorded["sources"], gpu.capability, args.workers)
    return lines_of(launches_of(recorded, codes), gpu, args.by_launch), dtype


# -- output ------------------------------------------------------------------------------------------------------------


def show(title: str, batch: int, lines: list[dict], gpu: Gpu, measured: dict[str, float]) -> None:
    """The table of a step, with measured milliseconds where they are known."""
    total = sum(line["ms"] for line in lines)
    print(f"{title}: {total:.2f} ms a step as a graph, {1000 * batch / total:,.0f} images/s (modelled, +-30 %)")
    heading = f"  {'kernel':34} {'launches':>8} {'ms':>9}  {'bound by':9} {'of peak':>8}"
    print(heading + ("   measured   measured / modelled" if measured else ""))
    for line in lines:
        bound = max(line["bounds"], key=line["bounds"].get)
        share = line["peak_ms"] / line["ms"]
        text = f"  {line['kernel']:34} {line['launches']:8} {line['ms']:9.3f}  {bound:9} {share:8.0%}"
        if line["kernel"] in measured:
            found = measured[line["kernel"]]
            text += f"  {found:9.3f}   {found / line['ms']:.2f}"
        print(text)
    if "graph" in measured:
        print(f"  {'the step, measured as a graph':74}{measured['graph']:9.3f}   {measured['graph'] / total:.2f}")


def measured_ms(path: Path | None, model: str, batch: int) -> dict[str, float]:
    """The milliseconds of each kernel, and of the step ('graph'), in a record of gpu.py; {} if it has none."""
    if path is None or not path.exists():
        return {}
    found = json.loads(read_text(path))["measurements"].get(f"{model} b{batch}/kernels", {})
    graph = {"graph": found["graph_ms"]} if "graph_ms" in found else {}
    return {line["kernel"]: line["ms"] for line in found.get("lines", ())} | graph


def measured_gpu(path: Path | None) -> str | None:
    """The GPU of GPUS that a record was measured on."""
    if path is None:
        return None
    try:
        name = json.loads(read_text(path))["device"]["gpu"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"--measured: expected a record of gpu.py, got {path}") from None
    return next((known for known in GPUS if known in name.replace("H100", "H200")), None)


def main() -> None:
    """Model each network on each GPU, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(WORKLOADS))
    parser.add_argument(
        "--batch", type=positive, help="default: 256 for ResNet-50, 64 for VGG-16, 128 for ResNet-20, or 32"
    )
    parser.add_argument("--gpus", choices=GPUS, nargs="+", help="default: all; with --measured the one of the record")
    parser.add_argument("--dtype", choices=DTYPES, help="of activations; default: bfloat16, on a T4 float16")
    parser.add_argument("--by-launch", action="store_true", help="a line for each shape instead of each kernel")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="a record of gpu.py")
    parser.add_argument("--workers", type=positive, help="processes that compile; default: one per core")
    parser.add_argument("--json", type=new_file, help="where to write the lines")
    args = parser.parse_args()
    there = measured_gpu(args.measured)
    result = {}
    for name in args.gpus or ([there] if there else GPUS):
        gpu = GPUS[name]
        for model in args.models:
            batch = args.batch or WORKLOADS.get(model, 32)
            lines, dtype = model_step(args, model, batch, gpu)
            title = f"{model} b{batch} {dtype} on {name}"
            measured = measured_ms(args.measured, model, batch) if name == there and not args.by_launch else {}
            show(title, batch, lines, gpu, measured)
            result[title] = lines
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
