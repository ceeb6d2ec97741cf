"""A training step on a GPU, and PyTorch's, in one process, turn by turn; and our kernels, one by one.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json                        # ours alone
    python benchmarks/gpu.py --against torch --json benchmarks/results/gpu.json        # and PyTorch's
    python benchmarks/gpu.py --models resnet50 --what steps --sides torch_amp --json benchmarks/results/gpu.json

What is measured: a step of each side (gpu_sides.py), a table of the kernels of a step (gpu_kernels.py), and a 3x3
convolution of 256 channels in every way it can be computed.

A turn is a number of steps between two waits for the device, so that what the host does while the device works costs
nothing. At most two sides are in memory: each one takes turns with the side "graph" (A B A B ...), and is then freed.
`relative` is the median over the turns of its time / the graph's; a table divides two of them. Speed is theirs / ours:
higher is better.

The record is written after each measurement. A measurement that is in the record already is not made again, so the same
command can be run until all is done: after --minutes it begins no second one, and its exit status is then 3. What fails
(an error, losses that disagree) is recorded, and the others go on; the exit status is then 1. --retry measures again
what has failed.

It has not run on a GPU yet.
"""

import argparse
import functools
import gc
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import gpu_kernels
from command_line import natural, new_file, positive, positive_number
from gpu_facts import device_facts, half_dtype
from gpu_sides import (
    OUR_SIDES,
    REFERENCE,
    TORCH_SIDES,
    Side,
    estimated_mb,
    free_memory,
    loss_failures,
    make_our_step,
    make_side,
    measure_alone,
    measure_in_turns,
    possible_sides,
    torch_has_gpu,
)
from step_worker import MODELS, make_ours

from minidl import Tensor
from minidl.system.files import write_whole

WORKLOADS = {"resnet20": 128, "resnet50": 256, "vgg16_bn": 64}
CONVOLUTION = (32, 56, 56, 256)  # images, to as many channels by a 3x3 kernel
WHAT = ("steps", "kernels", "convolution")
FAILED, UNFINISHED = 1, 3  # exit statuses


# -- the record --------------------------------------------------------------------------------------------------------


class Record:
    """The measurements so far, by name, in memory and in a file.

    A measurement is a dictionary; if it failed it has "failures", a list of messages. ValueError if the file holds
    measurements of another GPU.
    """

    def __init__(self, path: Path | None, device: dict[str, str]):
        self.path, self.content = path, {"device": device, "measurements": {}}
        if path is not None and path.exists():
            self.content = json.loads(path.read_text())
            if "measurements" not in self.content or self.content["device"]["gpu"] != device["gpu"]:
                raise ValueError(f"{path} is no record of this GPU, {device['gpu']}; choose another --json")
        self.measurements: dict[str, dict] = self.content["measurements"]

    def put(self, name: str, measurement: dict) -> None:
        """Add a measurement, or replace it, and write the file."""
        self.measurements[name] = measurement
        self._write()

    def remove(self, name: str) -> None:
        """Forget a measurement, and write the file."""
        del self.measurements[name]
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            write_whole(self.path, (json.dumps(self.content, indent=1) + "\n").encode())

    def failures(self) -> dict[str, list[str]]:
        """What failed: the messages for each name."""
        return {name: found["failures"] for name, found in self.measurements.items() if found.get("failures")}

    def losses(self, workload: str) -> dict[str, list[float]]:
        """The first losses of each side of a workload."""
        sides = (name for name in self.measurements if name.startswith(f"{workload}/"))
        return {name.rpartition("/")[2]: self.measurements[name].get("losses") for name in sides}


# -- the measurements --------------------------------------------------------------------------------------------------


class Workload:
    """A network and a batch; its reference side is made once, when the first measurement asks for it."""

    def __init__(self, model: str, batch: int, args: argparse.Namespace, record: Record):
        self.model, self.batch, self.args, self.record = model, batch, args, record
        self.name = f"{model} b{batch}"
        self.weights = make_ours(model).state_dict()
        self._reference: Side | None = None

    def reference(self) -> Side:
        if self._reference is None:
            self._reference = make_side(REFERENCE, self.model, self.batch, self.weights)
        return self._reference

    def measure_side(self, kind: str) -> dict:
        """Its first losses, its time (with the reference's), its memory, and what is wrong with it."""
        if kind == REFERENCE:
            self.free()  # to see its first losses and its memory
            estimate = estimated_mb(self.model, self.batch, self.weights)
            print(f"{self.name}: about {estimate:,.0f} MB for each side in {half_dtype()}, two at a time", flush=True)
            side = self.reference()
            found = {"losses": side.first_losses(), "estimated_mb": estimate} | measure_alone(side, self.args)
        else:
            reference = self.reference()
            side = make_side(kind, self.model, self.batch, self.weights)
            found = {"losses": side.first_losses()} | measure_in_turns(side, reference, self.args)
        found |= {"peak_mb": side.peak_mb(), "dtype": "float32" if "32" in kind else half_dtype()}
        losses = {
            kind: numbers
            for kind, numbers in (self.record.losses(self.name) | {kind: found["losses"]}).items()
            if numbers
        }
        return found | {"failures": loss_failures(kind, losses)}

    def measure_kernels(self) -> dict:
        """The table of the kernels of an eager step."""
        self.free()
        free_memory()
        return gpu_kernels.measure_kernels(make_our_step(self.model, self.batch, self.weights, half_dtype()))

    def free(self) -> None:
        """Free the reference side."""
        self._reference = None


def plan(args: argparse.Namespace, record: Record) -> list[tuple[str, Callable[[], dict], Callable[[], None]]]:
    """All measurements: a name, the function that makes it, and one that frees what it has left for the next.

    Ours come first, then PyTorch's, and last what has to be compiled, which takes longest.
    """
    works = [Workload(model, args.batch or WORKLOADS.get(model, 32), args, record) for model in args.models]
    kinds = possible_sides(args.sides or [*OUR_SIDES, *(TORCH_SIDES if args.against else ())])
    *eager, compiled = TORCH_SIDES
    todo = []
    for group in ([*OUR_SIDES, "kernels"], eager, [compiled]):
        for work in works:
            if "steps" in args.what:
                wanted = [kind for kind in group if kind in kinds]
                todo += [
                    (f"{work.name}/{kind}", lambda w=work, k=kind: w.measure_side(k), work.free) for kind in wanted
                ]
            if "kernels" in args.what and "kernels" in group:
                todo.append((f"{work.name}/kernels", work.measure_kernels, work.free))
    if "convolution" in args.what:
        name = f"convolution {'x'.join(map(str, args.convolution))}"
        todo.append((name, functools.partial(measure_convolution, tuple(args.convolution)), lambda: None))
    return todo


def measure_convolution(shape: tuple[int, ...]) -> dict:
    """The table of one convolution."""
    return {"lines": gpu_kernels.measure_convolution(shape)}


def attempt(record: Record, name: str, measure: Callable[[], dict]) -> dict:
    """What it measures, or the error that it raises. While it is measured, the record has a failure for it.

    So a measurement that ends the process, or never ends, is not tried again. Ctrl-C and SIGTERM remove it.
    """
    record.put(name, {"failures": ["it did not end: the process crashed, or was killed"]})
    try:
        return measure()
    except (KeyboardInterrupt, SystemExit):
        record.remove(name)
        raise
    except Exception as error:  # whatever it is: the others are worth measuring all the same
        traceback.print_exc()
        return {"failures": [f"{type(error).__name__}: {error}"[:2000]]}


def device_is_well() -> bool:
    """False if an earlier error, such as a wrong address, has made all later calls of this process fail."""
    import cupy

    try:
        cupy.cuda.runtime.deviceSynchronize()
        cupy.zeros(1).get()
    except Exception:
        return False
    return True


def measure_all(todo: list[tuple], args: argparse.Namespace, record: Record) -> list[str]:
    """Measure what is planned and not in the record yet, until the time is over; the names of what is left."""
    started = time.monotonic()
    done = record.measurements.keys() - (record.failures().keys() if args.retry else ())
    todo = [entry for entry in todo if entry[0] not in done]
    for i, (name, measure, free) in enumerate(todo):
        if i and time.monotonic() - started > 60 * args.minutes:
            return [name for name, *_ in todo[i:]]
        began = time.monotonic()
        found = attempt(record, name, measure)
        record.put(name, found | {"seconds": round(time.monotonic() - began, 1)})
        show(name, found)
        workload = name.partition("/")[0]
        if found.get("failures") or not any(later.startswith(f"{workload}/") for later, *_ in todo[i + 1 : i + 2]):
            free()
        gc.collect()
        if found.get("failures") and not device_is_well():
            return [name for name, *_ in todo[i + 1 :]]  # in a new process
    return []


# -- output ------------------------------------------------------------------------------------------------------------


def show(name: str, found: dict) -> None:
    """A measurement as text."""
    print(name, *(f"\n  failed: {failure}" for failure in found.get("failures", ())), flush=True)
    if "ms" in found:
        relative = f", {found['relative']:.3f} of the graph's time" if "relative" in found else ""
        print(f"  {found['ms']:.2f} ms, {found['peak_mb']:,.0f} MB{relative}", flush=True)
    for line in found.get("lines", ()):
        print("  " + (show_way(line) if "way" in line else show_kernel(line)))
    if "graph_ms" in found:
        print(f"  all lines together {found['sum_ms']:.3f} ms; the step as a graph {found['graph_ms']:.3f} ms")


def show_kernel(line: dict) -> str:
    """A line of the table of kernels."""
    if line["launches"] is None:
        return f"{line['kernel']:37} {line['ms']:8.3f} ms"
    text = f"{line['kernel']:30} {line['launches']:4d} x {line['ms']:8.3f} ms"
    return f"{text}  {line['gb_per_s']:7,.0f} GB/s  {line['tflop_per_s']:6.1f} TFLOP/s"


def show_way(line: dict) -> str:
    """A line of the table of one convolution, in TFLOP/s."""
    return f"{line['way']:32}" + "  ".join(f"{name} {line[name]:7.1f}" for name in list(line)[1:]) + "  TFLOP/s"


def speeds(record: Record) -> dict[str, dict[str, dict[str, float]]]:
    """For each workload and each of our sides: its speed relative to each of PyTorch's, theirs / ours."""
    table: dict = {}
    for name, found in record.measurements.items():
        workload, _, kind = name.partition("/")
        if kind == REFERENCE and "ms" in found:
            table.setdefault(workload, {})[kind] = 1.0
        elif "relative" in found:
            table.setdefault(workload, {})[kind] = found["relative"]
    return {
        workload: {
            ours: {theirs: times[theirs] / times[ours] for theirs in TORCH_SIDES if theirs in times}
            for ours in OUR_SIDES
            if ours in times
        }
        for workload, times in table.items()
    }


def show_speeds(record: Record) -> None:
    """A line for each of our sides that has a PyTorch's to compare with."""
    for workload, sides in speeds(record).items():
        for ours, theirs in sides.items():
            if theirs:
                text = ", ".join(f"{value:.2f} x {kind}" for kind, value in theirs.items())
                print(f"{workload}: {ours} has {text}'s speed")


def parse(arguments: list[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(WORKLOADS))
    parser.add_argument("--batch", type=positive, help="default: that of the model's workload")
    parser.add_argument("--what", choices=WHAT, nargs="+", default=list(WHAT), help="default: all of it")
    parser.add_argument("--against", choices=["torch"])
    parser.add_argument(
        "--sides", choices=[*OUR_SIDES, *TORCH_SIDES], nargs="+", help="default: ours, with --against all"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each side; default: 5")
    parser.add_argument("--steps", type=positive, default=10, help="steps in a turn; default: 10")
    parser.add_argument("--warmup", type=natural, default=5, help="steps before, not counted; default: 5")
    parser.add_argument(
        "--convolution", type=positive, nargs=4, default=CONVOLUTION, metavar="N", help="N H W C of its images"
    )
    parser.add_argument("--json", type=new_file, help="the record: continued if it is there")
    parser.add_argument("--retry", action="store_true", help="measure again what has failed")
    parser.add_argument("--minutes", type=positive_number, default=8, help="begin nothing new after that; default: 8")
    return parser, parser.parse_args(arguments)


def torch_is_wanted(args: argparse.Namespace) -> bool:
    """Whether a side of PyTorch's is to be measured."""
    kinds = args.sides or (TORCH_SIDES if args.against else ())
    return "steps" in args.what and any(kind in TORCH_SIDES for kind in kinds)


def main() -> None:
    """Measure, print, and write the record."""
    parser, args = parse()
    try:
        Tensor(0.0, device="cuda")
        record = Record(args.json, device_facts())
    except (RuntimeError, ValueError) as problem:
        parser.error(str(problem))
    if torch_is_wanted(args) and not torch_has_gpu():
        parser.error("PyTorch's sides need PyTorch for CUDA, and there is none")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    todo = plan(args, record)
    left = measure_all(todo, args, record)
    show_speeds(record)
    if left:
        print(f"left: {', '.join(left)}; run the same command again")
        sys.exit(UNFINISHED)
    if record.failures().keys() & {name for name, *_ in todo}:
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
