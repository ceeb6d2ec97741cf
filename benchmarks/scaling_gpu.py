"""When a GPU has completed the gradient of each parameter: ResNet-50 on an H200, modelled launch by launch.

    python benchmarks/scaling_gpu.py         # writes results/scaling/gpu_steps.json, in some minutes; needs ".[nvrtc]"

The launches of a step with `AveragedGradients` are recorded as in launches.py, and timed as in gpu_model.py (+-30 %).
Each launch is one by itself, not part of a CUDA graph, as the exchange runs beside the step. That Python keeps ahead
of the GPU is assumed. It does not for small batches, so their times are lower bounds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from command_line import positive, run_main

RESULTS = Path(__file__).resolve().parent / "results" / "scaling"
MODEL, GPU, DTYPE = "resnet50", "H200", "bfloat16"


def record(batch: int, capability: int) -> dict:
    """The launches of a step, in a process that has launches.py's `cupy`. Marks between them have a "mark"."""
    import launches

    sys.modules["cupy"] = launches.make_cupy(capability)
    from step_worker import LR, MODELS, MOMENTUM, WEIGHT_DECAY, make_batch, make_ours

    from minidl import Tensor
    from minidl.distributed import AveragedGradients, SingleProcess
    from minidl.functional import cross_entropy
    from minidl.optim import SGD

    model = make_ours(MODEL).to("cuda")
    images, labels = make_batch(batch, *MODELS[MODEL][2:])
    images, labels = Tensor(images, device="cuda").to(DTYPE), Tensor(labels, device="cuda").data
    optimizer = SGD(model.parameters(), LR, MOMENTUM, WEIGHT_DECAY)
    gradients = AveragedGradients(model, SingleProcess(), bucket_bytes=1)  # a bucket for each parameter

    def mark(name):
        launches.LAUNCHES.append({"kernel": "mark", "mark": name})

    def step(mark):
        with gradients.average(batch):
            loss = cross_entropy(model(images), labels)
            mark("forward")
            for number, bucket in enumerate(gradients.buckets):
                (parameter,) = bucket.parameters
                parameter._node.hooks.append(lambda number=number: mark(number))  # called after that which packs
            loss.backward()
            mark("backward")
        optimizer.step()
        optimizer.zero_grad()

    step(lambda name: None)  # makes the optimiser's state
    launches.LAUNCHES.clear()
    step(mark)
    sizes = [bucket.sums.nbytes for bucket in gradients.buckets]
    return {"sources": list(launches.SOURCES), "launches": launches.LAUNCHES, "sizes": sizes}


def in_a_process(batch: int, capability: int) -> dict:
    """The same, recorded in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launches.json"
        command = [sys.executable, __file__, "--record", batch, capability, path]
        subprocess.run(list(map(str, command)), check=True)
        return json.loads(path.read_text())


def profile(recorded: dict, workers: int | None) -> dict:
    """Seconds of forward, backward and what follows; bytes of each gradient, and when it is complete in backward."""
    from gpu_model import GAP, GPUS, SHARE_OF_COPY, compile_all, launches_of, times

    gpu = GPUS[GPU]
    codes = compile_all(recorded["sources"], gpu.capability, workers)
    clock, marks = 0.0, {}
    for launch in launches_of(recorded, codes):
        if isinstance(launch, dict) and "mark" in launch:
            marks[launch["mark"]] = clock
        elif isinstance(launch, dict):
            clock += launch["bytes"] / gpu.copy / SHARE_OF_COPY + GAP
        else:
            clock += max(times(launch, gpu).values()) + GAP
    forward, backward = marks["forward"], marks["backward"]
    ready = [marks[number] - forward for number in range(len(recorded["sizes"]))]
    parts = {"forward": forward, "backward": backward - forward, "after": clock - backward, "ready": ready}
    parts = {name: round_to_tenths_of_us(seconds) for name, seconds in parts.items()}
    return parts | {"sizes": recorded["sizes"]}


def round_to_tenths_of_us(seconds):
    """A number, or a list of them."""
    return [round(each, 7) for each in seconds] if isinstance(seconds, list) else round(seconds, 7)


def main() -> None:
    """Model the step for each batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=positive, nargs="+", default=[32, 256], help="images for each GPU")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_steps.json")
    parser.add_argument("--workers", type=positive, help="processes that compile; default: one per core")
    parser.add_argument("--record", nargs=3, metavar=("BATCH", "CAPABILITY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.record:
        batch, capability, path = args.record
        Path(path).write_text(json.dumps(record(int(batch), int(capability))))
        return
    steps = {batch: profile(in_a_process(batch, 90), args.workers) for batch in args.batches}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(steps) + "\n")


if __name__ == "__main__":
    run_main(main)
