"""A training step on a GPU, and PyTorch's, in one process, turn by turn; and our kernels, one by one.

    python benchmarks/gpu.py --against torch --json benchmarks/results/gpu.json

A step is: forward, cross-entropy, backward for all parameters, SGD with momentum and weight decay, gradients cleared;
the batch lies on the device already. Our sides: float32, tf32 and bfloat16, launch by launch, and graph, which is
bfloat16 through minidl.cuda_graph. PyTorch's: torch_float32 (eager, without TF32), torch_amp (eager, bfloat16 autocast,
channels_last), torch_compile (the same through torch.compile, reduce-overhead) and torch_graph (torch_amp's step as one
CUDA graph). A turn is a number of steps between two waits for the device, so that what the host does while the device
works costs nothing; sides take turns, A B C A B C ..., and the median of the turns counts. Speed is theirs / ours:
higher is better. Each side starts from the same weights and batch, and the first three losses of the two float32 sides
must agree to 1e-3.

Then each kernel of the bfloat16 step is timed by itself (ten launches as a graph, so that the host costs nothing):
milliseconds in a step, bytes of its arrays per second, and for convolutions the multiplications and additions. Last, a
3x3 convolution of 256 channels in every way it can be computed.

It has not run on a GPU yet.
"""

import argparse
import contextlib
import functools
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
from step_worker import LR, MODELS, MOMENTUM, WEIGHT_DECAY, make_batch, make_ours

from minidl import Tensor, cuda_graph, tf32
from minidl.functional import cross_entropy
from minidl.optim import SGD

WORKLOADS = {"resnet20": 128, "resnet50": 256, "vgg16_bn": 64}
OUR_SIDES = ("float32", "tf32", "bfloat16", "graph")
TORCH_SIDES = ("torch_float32", "torch_amp", "torch_compile", "torch_graph")
REPEATS = 10  # of a launch that is timed
CONVOLUTION = (32, 56, 56, 256)  # images, to as many channels by a 3x3 kernel


@dataclass
class Side:
    """One network on the device: `step` returns the loss, on the device; `wait` waits until all steps are done.

    `peak_mb` is the memory that it has taken so far.
    """

    step: Callable[[], object]
    wait: Callable[[], None]
    peak_mb: Callable[[], float]
    seconds: list[float] = field(default_factory=list)  # of a step, for each turn

    def turn(self, steps: int) -> None:
        """Time some steps."""
        self.wait()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        self.seconds.append((time.perf_counter() - started) / steps)

    def milliseconds(self) -> float:
        """The median of the turns."""
        return 1000 * statistics.median(self.seconds)


def make_our_side(kind: str, name: str, batch: int, weights: dict) -> Side:
    """minidl's, of one of OUR_SIDES."""
    import cupy

    model = make_ours(name)
    model.load_state_dict(weights)
    model.to("cuda")
    images, labels = make_batch(batch, *MODELS[name][2:])
    images = Tensor(images, device="cuda").to("bfloat16" if kind in ("bfloat16", "graph") else "float32")
    labels = Tensor(labels, device="cuda").data
    optimizer = SGD(model.parameters(), LR, MOMENTUM, WEIGHT_DECAY)

    def step():
        with tf32() if kind == "tf32" else contextlib.nullcontext():
            loss = cross_entropy(model(images), labels)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    device, pool = cupy.cuda.Device(), cupy.get_default_memory_pool()
    pool.free_all_blocks()
    free = device.mem_info[0]
    return Side(cuda_graph(step) if kind == "graph" else step, device.synchronize, lambda: used_since(free))


def used_since(free: int) -> float:
    """Megabytes of the device's memory that have been taken since so many bytes were free."""
    import cupy

    return (free - cupy.cuda.Device().mem_info[0]) / 2**20


def make_torch_side(kind: str, name: str, batch: int, weights: dict) -> Side:
    """PyTorch's, of one of TORCH_SIDES."""
    import torch
    import torch_twins

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    memory = torch.contiguous_format if kind == "torch_float32" else torch.channels_last
    model = torch_twins.make(*MODELS[name])
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
    model = model.cuda().to(memory_format=memory)
    images, labels = make_batch(batch, *MODELS[name][2:])
    images = torch.from_numpy(images).permute(0, 3, 1, 2).cuda().contiguous(memory_format=memory)
    labels = torch.from_numpy(labels).cuda()
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    network = torch.compile(model, mode="reduce-overhead") if kind == "torch_compile" else model

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=kind != "torch_float32"):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=kind != "torch_graph")  # a graph finds its gradients where they were
        return loss

    if kind == "torch_graph":
        step = captured(step)
    return Side(step, torch.cuda.synchronize, lambda: (torch.cuda.max_memory_allocated() - before) / 2**20)


def captured(step: Callable) -> Callable:
    """PyTorch's step as one CUDA graph, after three steps on a stream of their own, as its documentation wants it."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay():
        graph.replay()
        return loss

    return replay


def first_losses(side: Side) -> list[float]:
    """Of three steps."""
    return [float(side.step().item()) for _ in range(3)]


def measure(name: str, batch: int, args: argparse.Namespace) -> dict:
    """The record of a workload."""
    weights = make_ours(name).state_dict()
    sides, losses, peaks = {}, {}, {}
    for kind in (*OUR_SIDES, *(args.sides if args.against else ())):
        make = make_our_side if kind in OUR_SIDES else make_torch_side
        sides[kind] = make(kind, name, batch, weights)
        losses[kind] = first_losses(sides[kind])
        peaks[kind] = sides[kind].peak_mb()  # before the next one takes memory too
    if "torch_float32" in losses:
        np.testing.assert_allclose(losses["float32"], losses["torch_float32"], rtol=1e-3)
    for side in sides.values():
        side.turn(args.warmup)
        side.seconds.clear()
    for _ in range(args.rounds):
        for side in sides.values():
            side.turn(args.steps)
    record = {"model": name, "batch": batch, "losses": losses}
    record["ms"] = {kind: side.milliseconds() for kind, side in sides.items()}
    record["peak_mb"] = peaks
    record["speed"] = {ours: {kind: speed(sides[ours], sides[kind]) for kind in sides} for ours in OUR_SIDES}
    return record | {"kernels": measure_kernels(sides["bfloat16"].step)}


def speed(ours: Side, theirs: Side) -> float:
    """The median over the turns of their time / ours."""
    return statistics.median(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True))


def measure_kernels(step: Callable) -> list[dict]:
    """A line for each kernel of a step, those that take longest first. What CuPy launches by itself is not counted."""
    from minidl.kernels.cuda._launch import CudaKernel

    launches, launch = [], CudaKernel.launch

    def note(kernel, *arguments):
        launches.append((kernel, arguments))
        launch(kernel, *arguments)

    with mock.patch.object(CudaKernel, "launch", note):
        step()
    totals = defaultdict(lambda: {"launches": 0, "ms": 0.0, "bytes": 0, "flops": 0})
    for kernel, arguments in launches:
        total = totals[kernel.name]
        total["launches"] += 1
        total["ms"] += seconds_of(functools.partial(launch, kernel, *arguments)) * 1000
        total["bytes"] += bytes_of(arguments[2])
        total["flops"] += flops_of(kernel.name, arguments[2])
    lines = [{"kernel": name, **total} for name, total in totals.items()]
    for line in lines:
        line["gb_per_s"] = line.pop("bytes") / line["ms"] / 1e6
        line["tflop_per_s"] = line.pop("flops") / line["ms"] / 1e9
    return sorted(lines, key=lambda line: -line["ms"])


def seconds_of(work: Callable) -> float:
    """Of what it queues, on the device."""
    from minidl.kernels.cuda.graph import Graph

    graph = Graph()
    graph.run(work)  # compiled, and its memory taken
    graph.capture(lambda: [work() for _ in range(REPEATS)])
    return seconds_between_events(graph.launch) / REPEATS


def seconds_between_events(work: Callable) -> float:
    """That the device takes for what it queues, the second time."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    work()
    start.record()
    work()
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1000


def bytes_of(arguments: tuple) -> int:
    """Of all arrays that a kernel is given, each read or written once."""
    arrays = {
        argument.data.ptr: argument.nbytes for argument in arguments if hasattr(argument, "nbytes") and argument.ndim
    }
    return sum(arrays.values())


def flops_of(name: str, arguments: tuple) -> int:
    """Multiplications and additions of a convolution, by the geometry at the end of its arguments; else 0."""
    if not name.startswith("conv_"):
        return 0
    n, _, _, c, oh, ow, o, kh, kw = arguments[-11:-2]
    return 2 * n * oh * ow * o * kh * kw * c


def measure_convolution(shape: tuple[int, ...]) -> list[dict]:
    """TFLOP/s of a 3x3 convolution that keeps its shape, in each dtype; and of cuBLAS, given the columns of im2col."""
    import cupy

    from minidl.kernels.cuda.conv import backward_weight, backward_x, conv2d_forward

    channels, geometry = shape[3], ((1, 1), (1, 1))
    flops = 2 * math.prod(shape) * 9 * channels
    numbers = [np.random.default_rng(0).standard_normal(size) for size in (shape, (3, 3, channels, channels))]
    lines = []
    for way, dtype in (("bfloat16", "bfloat16"), ("tf32", "float32"), ("float32", "float32")):
        x, weight = (Tensor(array, "float32", "cuda").to(dtype).data for array in numbers)
        passes = {
            "forward": functools.partial(conv2d_forward, x, weight, None, *geometry),
            "backward_x": functools.partial(backward_x, x, weight, x.shape, *geometry),
            "backward_weight": functools.partial(backward_weight, x, x, weight.shape, *geometry),
        }
        with tf32() if way == "tf32" else contextlib.nullcontext():
            seconds = {name: seconds_of(work) for name, work in passes.items()}
        lines.append({"way": way} | {name: flops / time / 1e12 for name, time in seconds.items()})
    columns = cupy.ones((math.prod(shape[:3]), 9 * channels), "float32")
    matrix = weight.reshape(9 * channels, channels)
    seconds = seconds_between_events(lambda: [columns @ matrix for _ in range(REPEATS)]) / REPEATS
    lines.append({"way": "float32, cuBLAS, columns given", "forward": flops / seconds / 1e12})
    cupy.get_default_memory_pool().free_all_blocks()
    return lines


def device() -> dict[str, str]:
    """The GPU, its driver and the versions of what ran."""
    from importlib.metadata import PackageNotFoundError, version

    import cupy

    def version_of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    runtime = cupy.cuda.runtime
    facts = {"gpu": runtime.getDeviceProperties(0)["name"].decode(), "driver": str(runtime.driverGetVersion())}
    return facts | {name: version_of(name) for name in ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch")}


def show(record: dict) -> None:
    """A line for each side, and one for each kernel."""
    print(f"{record['model']}, batch {record['batch']}")
    for kind, milliseconds in record["ms"].items():
        ours = ", ".join(f"{name} {speeds[kind]:.2f}" for name, speeds in record["speed"].items())
        against = f"of its speed: {ours}" if kind in TORCH_SIDES else ""
        print(f"  {kind:13} {milliseconds:9.2f} ms  {record['peak_mb'][kind]:8,.0f} MB  {against}", flush=True)
    print(f"  kernels of a bfloat16 step, {sum(line['launches'] for line in record['kernels'])} launches")
    for line in record["kernels"]:
        print(
            f"    {line['kernel']:30} {line['launches']:4d} x  {line['ms']:8.3f} ms  {line['gb_per_s']:7,.0f} GB/s  "
            f"{line['tflop_per_s']:6.1f} TFLOP/s"
        )


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(WORKLOADS))
    parser.add_argument("--batch", type=int, help="default: that of the model's workload")
    parser.add_argument("--against", choices=["torch"])
    parser.add_argument("--sides", choices=TORCH_SIDES, nargs="+", default=list(TORCH_SIDES))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; default: 5")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn; default: 10")
    parser.add_argument("--warmup", type=int, default=5, help="steps before, not counted; default: 5")
    parser.add_argument(
        "--convolution", type=int, nargs=4, default=CONVOLUTION, metavar="N", help="N H W C of its images"
    )
    parser.add_argument("--json", type=Path, help="where to write the record")
    args = parser.parse_args()
    try:
        Tensor(0.0, device="cuda")
    except RuntimeError as problem:
        parser.error(str(problem))
    result = {"device": device(), "records": []}
    for name in args.models:
        result["records"].append(measure(name, args.batch or WORKLOADS.get(name, 32), args))
        show(result["records"][-1])
    result["convolution"] = measure_convolution(tuple(args.convolution))
    print(f"3x3 convolution of {' x '.join(map(str, args.convolution))}, TFLOP/s")
    for line in result["convolution"]:
        print(f"  {line['way']:28}", *(f"{name} {line[name]:7.1f} " for name in list(line)[1:]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
