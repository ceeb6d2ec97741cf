"""A training step on a GPU, and PyTorch's, in one process, turn by turn.

    python benchmarks/gpu.py --against torch --json benchmarks/results/gpu.json

A step is: forward, cross-entropy, backward for all parameters, SGD with momentum and weight decay, gradients cleared;
the batch lies on the device already. Ours is float32 and eager. PyTorch's sides: float32 (eager, without TF32), amp
(eager, bfloat16 autocast, channels_last), compile (the same through torch.compile, reduce-overhead) and graph (amp's
step captured as one CUDA graph). A turn is a number of steps between two waits for the device, so that what the host
does while the device works costs nothing; sides take turns, A B C A B C ..., and the median of the turns counts. Speed
is theirs / ours: higher is better. Each side starts from the same weights and batch, and the first three losses of
the float32 sides must agree to 1e-3.

It has not run on a GPU yet.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from step_worker import LR, MODELS, MOMENTUM, WEIGHT_DECAY, make_batch, make_ours

from minidl import Tensor
from minidl.functional import cross_entropy
from minidl.optim import SGD

WORKLOADS = {"resnet20": 128, "resnet50": 256, "vgg16_bn": 64}
TORCH_SIDES = ("float32", "amp", "compile", "graph")


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


def make_our_side(name: str, batch: int, weights: dict) -> Side:
    """minidl's."""
    import cupy

    model = make_ours(name)
    model.load_state_dict(weights)
    model.to("cuda")
    images, labels = make_batch(batch, *MODELS[name][2:])
    images, labels = Tensor(images, device="cuda"), Tensor(labels, device="cuda").data
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    optimizer = SGD(model.parameters(), LR, MOMENTUM, WEIGHT_DECAY)

    def step():
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return Side(step, cupy.cuda.Device().synchronize, lambda: (pool.total_bytes() - before) / 2**20)


def make_torch_side(kind: str, name: str, batch: int, weights: dict) -> Side:
    """PyTorch's, of one of TORCH_SIDES."""
    import torch
    import torch_twins

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    memory = torch.contiguous_format if kind == "float32" else torch.channels_last
    model = torch_twins.make(*MODELS[name])
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
    model = model.cuda().to(memory_format=memory)
    images, labels = make_batch(batch, *MODELS[name][2:])
    images = torch.from_numpy(images).permute(0, 3, 1, 2).cuda().contiguous(memory_format=memory)
    labels = torch.from_numpy(labels).cuda()
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    network = torch.compile(model, mode="reduce-overhead") if kind == "compile" else model

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=kind != "float32"):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=kind != "graph")  # a graph finds its gradients where they were
        return loss

    if kind == "graph":
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
    for kind in ("ours", *(args.sides if args.against else ())):
        make = make_our_side if kind == "ours" else functools.partial(make_torch_side, kind)
        sides[kind] = make(name, batch, weights)
        losses[kind] = first_losses(sides[kind])
        peaks[kind] = sides[kind].peak_mb()  # before the next one takes memory too
    if "float32" in losses:
        np.testing.assert_allclose(losses["ours"], losses["float32"], rtol=1e-3)
    for side in sides.values():
        side.turn(args.warmup)
        side.seconds.clear()
    for _ in range(args.rounds):
        for side in sides.values():
            side.turn(args.steps)
    record = {"model": name, "batch": batch, "losses": losses}
    record |= {f"{kind}_ms": side.milliseconds() for kind, side in sides.items()}
    record |= {f"{kind}_peak_mb": peak for kind, peak in peaks.items()}
    for kind in list(sides)[1:]:
        pairs = zip(sides[kind].seconds, sides["ours"].seconds, strict=True)
        record[f"speed_{kind}"] = statistics.median(theirs / ours for theirs, ours in pairs)
    return record


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
    """A line for each side."""
    print(f"{record['model']}, batch {record['batch']}")
    for kind in ("ours", *TORCH_SIDES):
        if f"{kind}_ms" in record:
            speed = f"ours has {record[f'speed_{kind}']:.2f} of its speed" if kind != "ours" else ""
            milliseconds, megabytes = record[f"{kind}_ms"], record[f"{kind}_peak_mb"]
            print(f"  {kind:8} {milliseconds:9.2f} ms  {megabytes:8,.0f} MB  {speed}", flush=True)


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(WORKLOADS))
    parser.add_argument("--batch", type=int, help="default: that of the model's workload")
    parser.add_argument("--against", choices=["torch"])
    parser.add_argument("--sides", choices=TORCH_SIDES, nargs="+", default=list(TORCH_SIDES))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side; default: 7")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn; default: 10")
    parser.add_argument("--warmup", type=int, default=5, help="steps before, not counted; default: 5")
    parser.add_argument("--json", type=Path, help="where to write the record")
    args = parser.parse_args()
    records = []
    for name in args.models:
        records.append(measure(name, args.batch or WORKLOADS.get(name, 32), args))
        show(records[-1])
    if args.json:
        args.json.write_text(json.dumps({"device": device(), "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
