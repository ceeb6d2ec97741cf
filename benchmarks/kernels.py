"""Where the time of a training step goes, kernel by kernel and shape by shape, on the CPU.

    python benchmarks/kernels.py --model resnet20 --batch 128 --against torch --json FILE --plot FILE.png

One training step of the network is recorded: every kernel that it calls, with its arguments. Then each kernel is called
again with the arguments of its first call of each shape, in turns with PyTorch's counterpart (torch_kernels.py), after
one call that is not timed; the median of the turns counts. The table is sorted by the time of all calls together. The
rate is a fraction of this machine's own peak in this run, a large sgemm or a large copy: an algorithm that needs fewer
multiplications than the definition, and an array that fits the cache, may exceed it.

batch_norm_apply stands for all of batch normalisation's forward pass, with the kernel that takes the statistics before
it, as PyTorch has one operation for both.

Other programs slow PyTorch down more than us, as its threads wait for each other actively: believe no ratio of a run
whose sgemm is far below what this machine can do.
"""

import argparse
import contextlib
import inspect
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from command_line import new_file, positive, run_main
from step_worker import MODELS, blas_in_use, make_our_step, make_ours
from threadpoolctl import threadpool_info, threadpool_limits
from train_step import MARKED, machine, versions

import minidl
from minidl.kernels import cpu
from minidl.system.report import cpu_flags, read_cpuinfo, warnings_about_blas

# A kernel, and the one that ends the operation it begins.
BEGINS = {"batch_statistics": "batch_norm_apply"}

# Which arguments are read and written, and so count twice in GB/s.
IN_PLACE = {"sgd_update": (0, 2)}

# Seconds, many times what the first call after the other side's loses.
LONG = 0.05

# Multiplications of the definition, from the result and the arguments: each number of grad, or y, needs one column.
MULTIPLICATIONS = {
    "conv2d_forward": lambda y, x, weight, *_: y.size * weight[..., 0].size,
    "conv2d_backward": lambda grads, grad, x, weight, *_: len(arrays_in(grads)) * grad.size * weight[..., 0].size,
    "linear_forward": lambda y, x, weight, *_: y.size * len(weight),
    "linear_backward_x": lambda grad_x, grad, weight: grad.size * len(weight),
    "linear_backward_weight": lambda grad_weight, grad, x: grad.size * len(grad_weight),
}


# ---- recording -------------------------------------------------------------------------------------------------------


@dataclass
class Operation:
    """Kernels that were called one after the other, with the arguments of their first call, and how often."""

    steps: list[tuple[Callable, tuple]]
    count: int = 0

    @property
    def name(self) -> str:
        """The last kernel's."""
        return self.steps[-1][0].__name__

    @property
    def arguments(self) -> tuple:
        """The last kernel's."""
        return self.steps[-1][1]

    def run(self) -> list:
        """Call the kernels; their results."""
        return [kernel(*arguments) for kernel, arguments in self.steps]


@contextlib.contextmanager
def recording(module) -> Iterator[list[Operation]]:
    """Note all calls of a module's functions. The list is filled when the context ends."""
    originals = {name: value for name, value in vars(module).items() if inspect.isfunction(value)}
    calls, operations = [], []

    def recorder(kernel):
        def call(*arguments):
            calls.append((kernel, arguments))
            return kernel(*arguments)

        return call

    for name, kernel in originals.items():
        setattr(module, name, recorder(kernel))
    try:
        yield operations
    finally:
        for name, kernel in originals.items():
            setattr(module, name, kernel)
    operations += counted(grouped(calls))


def grouped(calls: list[tuple[Callable, tuple]]) -> Iterator[Operation]:
    """The calls, those between a kernel of BEGINS and its end as one."""
    calls = iter(calls)
    for kernel, arguments in calls:
        steps = [(kernel, arguments)]
        end = BEGINS.get(kernel.__name__, kernel.__name__)
        while steps[-1][0].__name__ != end:
            steps.append(next(calls))
        yield Operation(steps)


def counted(operations: Iterator[Operation]) -> list[Operation]:
    """The different ones among them."""
    first = {}
    for operation in operations:
        key = tuple((kernel, outline(arguments)) for kernel, arguments in operation.steps)
        first.setdefault(key, operation).count += 1
    return list(first.values())


def outline(value: object) -> object:
    """What the time depends on: the shape and dtype of an array, the value of anything else."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype
    return tuple(map(outline, value)) if isinstance(value, list | tuple) else value


def apart(operation: Operation) -> list[Operation]:
    """A conv2d_backward of two gradients as two of one gradient each; any other operation as it is."""
    if operation.name != "conv2d_backward" or operation.arguments[-2:] != (True, True):
        return [operation]
    arguments = operation.arguments[:-2]
    steps = [(cpu.conv2d_backward, (*arguments, *needs)) for needs in ((True, False), (False, True))]
    return [Operation([step], operation.count) for step in steps]


# ---- what an operation is and does -----------------------------------------------------------------------------------


def label(operation: Operation) -> str:
    """Shapes and options, such as '128x32x32x16, 3x3x16x16, padding 1'."""
    kernel, arguments = operation.steps[-1]
    words = map(word, inspect.signature(kernel).parameters, arguments)
    return ", ".join(dict.fromkeys(filter(None, words)))  # each once


def word(name: str, value: object) -> str | None:
    """An argument in words; None for one that the time does not depend on, or that is as usual."""
    if isinstance(value, np.ndarray):
        return "x".join(map(str, value.shape)) if value.ndim > 1 else None
    if isinstance(value, list):
        return f"{len(value)} arrays, {sum(array.size for array in value):,} numbers" if value else None
    if name in ("kernel_size", "stride", "padding"):
        sizes = "x".join(map(str, dict.fromkeys(value)))
        return None if (name, sizes) in (("stride", "1"), ("padding", "0")) else f"{name.split('_')[0]} {sizes}"
    if isinstance(value, tuple):  # a shape
        return "x".join(map(str, value))
    return name if value is True else None


def arrays_in(value: object) -> list[np.ndarray]:
    """The arrays in lists, tuples, and by themselves."""
    if isinstance(value, np.ndarray):
        return [value]
    return [array for part in value for array in arrays_in(part)] if isinstance(value, list | tuple) else []


def flops(operation: Operation, results: list) -> int:
    """Multiplications and additions of the definition; 0 for what is not a product of matrices."""
    multiplications = MULTIPLICATIONS.get(operation.name)
    return 2 * multiplications(results[-1], *operation.arguments) if multiplications else 0


def moved_bytes(operation: Operation, results: list) -> int:
    """What the kernels read and write at least."""
    written = [arguments[i] for kernel, arguments in operation.steps for i in IN_PLACE.get(kernel.__name__, ())]
    read = [list(arguments) for _, arguments in operation.steps]
    return sum(array.nbytes for array in arrays_in([*read, results, written]))


# ---- measuring -------------------------------------------------------------------------------------------------------


def seconds_of(function: Callable) -> float:
    """Of the second of two calls: the first finds the other side's data in the cache, and its threads still awake.

    That lasts for a millisecond or so, and a long call needs no second.
    """
    for _ in range(2):
        started = time.perf_counter()
        function()
        seconds = time.perf_counter() - started
        if seconds > LONG:
            break
    return seconds


def peaks(threads: int) -> dict[str, float]:
    """GFLOP/s of a large sgemm and GB/s (read and written) of a large copy: the best of a few."""
    a, b = np.random.default_rng(0).standard_normal((2, 2048, 2048), np.float32)
    with threadpool_limits(threads, user_api="blas"):
        sgemm = min(seconds_of(lambda: a @ b) for _ in range(5))
    sources = np.array_split(np.ones(2**26, np.float32), threads)
    targets = [np.ones_like(source) for source in sources]
    with ThreadPoolExecutor(threads) as pool:
        copy = min(seconds_of(lambda: list(pool.map(np.copyto, targets, sources))) for _ in range(5))
    return {"sgemm_gflops": round(2 * 2048**3 / sgemm / 1e9, 1), "copy_gbs": round(2 * 4 * 2**26 / copy / 1e9, 1)}


def torch_sides(operation: Operation, result: object) -> dict[str, Callable]:
    """PyTorch's counterpart in both layouts, if it has one. Fails unless it computes the same result."""
    import torch_kernels

    sides = {}
    for layout in MARKED:
        function = torch_kernels.counterpart(operation.name, layout, operation.arguments)
        if function:
            torch_kernels.check_same(operation.name, result, function())
            sides[f"torch_{layout}"] = function
    return sides


def measure(operation: Operation, peak: dict[str, float], args: argparse.Namespace) -> dict:
    """The record of an operation: the median times of turns, and the rate."""
    results = operation.run()
    sides = {"ours": operation.run} | (torch_sides(operation, results[-1]) if args.against else {})
    turns = [{side: 1000 * seconds_of(run) for side, run in sides.items()} for _ in range(args.repeat)]
    ms = {side: round(statistics.median(turn[side] for turn in turns), 4) for side in sides}
    record = {"kernel": operation.name, "shape": label(operation), "count": operation.count}
    record |= {"kernels": [kernel.__name__ for kernel, _ in operation.steps]}
    record |= {f"{side}_ms": milliseconds for side, milliseconds in ms.items()}
    record |= {"total_ms": operation.count * ms["ours"]} | rate_of(operation, results, ms["ours"], peak)
    for layout in MARKED:
        if f"torch_{layout}" in ms:
            ratios = [turn["ours"] / turn[f"torch_{layout}"] for turn in turns]
            record[f"ratio_{layout}"] = round(statistics.median(ratios), 4)
    return record


def rate_of(operation: Operation, results: list, milliseconds: float, peak: dict[str, float]) -> dict:
    """GFLOP/s of a product of matrices, GB/s of anything else, and the part of the peak that they are."""
    work = flops(operation, results)
    kind = "sgemm_gflops" if work else "copy_gbs"
    rate = (work or moved_bytes(operation, results)) / milliseconds / 1e6
    unit = {"sgemm_gflops": "GFLOP/s", "copy_gbs": "GB/s"}[kind]
    return {"rate": round(rate, 1), "unit": unit, "of_peak": round(rate / peak[kind], 4)}


def profile(args: argparse.Namespace) -> dict:
    """The record of the whole run."""
    minidl.set_num_threads(args.threads)
    step = make_our_step(make_ours(args.model), args.model, args.batch)
    with recording(cpu) as operations:
        step()
    step_ms = 1000 * statistics.median(seconds_of(step) for _ in range(args.repeat))
    if args.apart:
        operations = [part for operation in operations for part in apart(operation)]
    if args.against:
        import torch

        torch.set_num_threads(args.threads)
    peak = peaks(args.threads)
    rows = [measure(operation, peak, args) for operation in operations]
    record = {"model": args.model, "batch": args.batch, "threads": args.threads, "repeat": args.repeat}
    record |= {"machine": machine(), "versions": versions(args), "blas": blas_in_use(), **peak}
    return record | {"step_ms": round(step_ms, 2), "kernels": sorted(rows, key=lambda row: -row["total_ms"])}


# ---- reporting -------------------------------------------------------------------------------------------------------


def report(record: dict, top: int) -> None:
    """Print the first rows, and the sums of each kernel."""
    rows = record["kernels"]
    everything = sum(row["total_ms"] for row in rows)
    print(f"{title(record)}, medians of {record['repeat']} turns")
    print(f"peaks: {record['sgemm_gflops']:.0f} GFLOP/s (sgemm), {record['copy_gbs']:.1f} GB/s (copy)")
    print(f"a step takes {record['step_ms']:.1f} ms, its kernels by themselves {everything:.1f} ms\n")
    width = max(len(row["shape"]) for row in rows[:top])
    compared = f"   ours / PyTorch's {' and '.join(MARKED)}" * any("ratio_default" in row for row in rows)
    print(f"{'':{26 + width}} calls        ms  total ms  share          rate  of peak{compared}")
    for row in rows[:top]:
        print(line(row, everything, width))
    print("\nthe same by kernel")
    for row in sums_by_kernel(rows):
        print(line(row, everything, width))


def title(record: dict) -> str:
    """What was measured."""
    return f"{record['model']}, batch {record['batch']}, {record['threads']} threads"


def line(row: dict, everything: float, width: int) -> str:
    """A row of the table; one of sums has neither a time of one call nor a rate."""
    text = f"{row['kernel']:25} {row['shape']:{width}} {row['count']:5} "
    text += f"{row['ours_ms']:9.3f} " if "ours_ms" in row else " " * 10
    text += f"{row['total_ms']:9.1f} {row['total_ms'] / everything:6.1%} "
    text += f"{row['rate']:5.0f} {row['unit']:7} {row['of_peak']:8.0%} " if "rate" in row else " " * 23
    return text + "".join(f"{row[f'ratio_{layout}']:9.2f}" for layout in MARKED if f"ratio_{layout}" in row)


def sums_by_kernel(rows: list[dict]) -> list[dict]:
    """A row for each kernel, and one for all together; PyTorch's ratio is that of the rows where it was measured."""
    names = dict.fromkeys(row["kernel"] for row in rows)
    sums = [summed([row for row in rows if row["kernel"] == name], name) for name in names]
    return [*sorted(sums, key=lambda row: -row["total_ms"]), summed(rows, "all")]


def summed(rows: list[dict], name: str) -> dict:
    """Rows added up."""
    row = {"kernel": name, "shape": "", "count": sum(row["count"] for row in rows)}
    row["total_ms"] = sum(row["total_ms"] for row in rows)
    for layout in MARKED:
        compared = [row for row in rows if f"torch_{layout}_ms" in row]
        if compared:
            theirs = sum(row["count"] * row[f"torch_{layout}_ms"] for row in compared)
            row[f"ratio_{layout}"] = sum(row["total_ms"] for row in compared) / theirs
    return row


def plot(record: dict, top: int, path: Path) -> None:
    """Bars of the milliseconds that all calls of an operation take in a step, ours and PyTorch's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = record["kernels"][:top]
    sides = ["ours", *(f"torch_{layout}" for layout in MARKED if any(f"torch_{layout}_ms" in row for row in rows))]
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.42 * len(rows)), dpi=120, layout="constrained")
    for number, side in enumerate(sides):
        places = [place + 0.8 * (number + 0.5) / len(sides) - 0.4 for place in range(len(rows))]
        totals = [row["count"] * row.get(f"{side}_ms", 0) for row in rows]
        name = side.replace("torch_", "PyTorch, ").replace("default", "default layout")
        axes.barh(places, totals, height=0.8 / len(sides), label=name, color=f"C{number}")
    axes.set_yticks(
        range(len(rows)), [f"{row['kernel']}: {row['count']} x ({row['shape']})" for row in rows], fontsize=8
    )
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("ms in a training step, all calls together")
    axes.set_title(f"{title(record)}, {record['machine']}", fontsize=10)
    axes.legend(loc="lower right")
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Measure, print, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--against", choices=["torch"])
    parser.add_argument("--apart", action="store_true", help="the two gradients of a convolution, each by itself")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--repeat", type=positive, default=7, help="turns of each side; default: 7")
    parser.add_argument("--top", type=positive, default=25, help="rows to print and to plot; default: 25")
    parser.add_argument("--json", type=new_file, help="where to write the record, with all rows")
    parser.add_argument("--plot", type=new_file, help="where to write a PNG")
    args = parser.parse_args()
    for warning in warnings_about_blas(threadpool_info(), cpu_flags(read_cpuinfo()), os.environ):
        print(f"warning: {warning}\n")
    record = profile(args)
    report(record, args.top)
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    if args.plot:
        plot(record, args.top, args.plot)


if __name__ == "__main__":
    run_main(main)
