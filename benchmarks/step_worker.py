"""One side of train_step.py, in a process of its own: a network that makes steps when it is told to.

    python benchmarks/step_worker.py SIDE MODEL BATCH THREADS WEIGHTS [--forward]

It reads a number of steps from each line of standard input and answers with a line of JSON: the seconds of each step
and their losses. Both sides start from the file of weights and draw the same batch.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "benchmarks")]

# name: (network, its arguments, image size, classes)
MODELS = {
    "resnet20": ("cifar_resnet", (20, "A"), 32, 10),
    "resnet56": ("cifar_resnet", (56, "A"), 32, 10),
    "resnet110": ("cifar_resnet", (110, "A"), 32, 10),
    "resnet18": ("imagenet_resnet", (18, "B", "torchvision"), 224, 1000),
    "resnet34": ("imagenet_resnet", (34, "B", "torchvision"), 224, 1000),
    "resnet50": ("imagenet_resnet", (50, "B", "torchvision"), 224, 1000),
    "vgg11": ("vgg", ("A",), 224, 1000),
    "vgg16": ("vgg", ("D",), 224, 1000),
    "vgg16_bn": ("vgg", ("D", True), 224, 1000),
    "vgg19": ("vgg", ("E",), 224, 1000),
    "speedrun": ("speedrun", (), 32, 10),
}
# A small rate: with a larger one rounding grows from step to step, until PyTorch disagrees with its own other layout.
LR, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.9, 1e-4


def make_batch(batch: int, image_size: int, classes: int):
    """The images, in NHWC, and the labels that both sides see."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, image_size, image_size, 3), np.float32)
    return images, rng.integers(0, classes, batch)


def make_ours(name: str):
    """Our network, with nothing dropped: two libraries would drop different numbers."""
    from models.config import BUILDERS

    from minidl.nn import Dropout

    kind, arguments, _, classes = MODELS[name]
    model = BUILDERS[kind](*arguments, num_classes=classes)
    for _, module in model.named_modules():
        if isinstance(module, Dropout):
            module.probability = 0.0
    return model


def our_step(name: str, batch: int, threads: int, weights: str, forward: bool) -> Callable[[], float]:
    """A function that makes one step of the saved network and returns its loss."""
    import minidl

    minidl.set_num_threads(threads)
    model = make_ours(name)
    minidl.load_checkpoint(weights, model)
    return make_our_step(model, name, batch, forward)


def make_our_step(model, name: str, batch: int, forward: bool = False) -> Callable[[], float]:
    """The same for a network that is there already."""
    from minidl import Tensor, no_grad
    from minidl.functional import cross_entropy
    from minidl.optim import SGD

    images, labels = make_batch(batch, *MODELS[name][2:])
    images = Tensor(images)
    optimizer = SGD(model.parameters(), LR, MOMENTUM, WEIGHT_DECAY)

    def step() -> float:
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def evaluate() -> float:
        with no_grad():
            return cross_entropy(model(images), labels).item()

    if forward:
        model.eval()
        return evaluate
    return step


def torch_step(name: str, batch: int, threads: int, weights: str, forward: bool, side: str) -> Callable[[], float]:
    """The same in PyTorch: side 'default' (NCHW), 'channels_last', 'default_sgd' (not fused) or 'compile'."""
    import torch
    import torch_twins
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    model = torch_twins.make(*MODELS[name])
    model.load_state_dict(load_file(weights))
    images, labels = make_batch(batch, *MODELS[name][2:])
    images, labels = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    layout = torch.channels_last if side == "channels_last" else torch.contiguous_format
    images, model = images.contiguous(memory_format=layout), model.to(memory_format=layout)
    fused = side != "default_sgd"
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=fused)
    network = torch.compile(model) if side == "compile" else model

    def step() -> float:
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def evaluate() -> float:
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(network(images), labels).item()

    if forward:
        model.eval()
        return evaluate
    return step


def memory_mb(entry: str) -> float:
    """VmRSS, the memory in use, or VmHWM, its peak, in MB. Linux only; nan elsewhere."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(entry)), float("nan"))


def forget_peak() -> None:
    """Let VmHWM begin anew: what loading the weights took is no part of a step."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def blas_in_use() -> str:
    """The BLAS library that NumPy has loaded, and the CPU it was made for."""
    from threadpoolctl import threadpool_info

    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return ", ".join(f"{b['internal_api']} {b['version']} {b.get('architecture', '')}".strip() for b in libraries)


def main() -> None:
    """Answer until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C, which the script that started it gets too, ends it silently
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("batch", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("weights")
    parser.add_argument("--forward", action="store_true")
    args = parser.parse_args()
    arguments = args.model, args.batch, args.threads, args.weights, args.forward
    step = our_step(*arguments) if args.side == "ours" else torch_step(*arguments, args.side)
    forget_peak()
    before = memory_mb("VmRSS")
    print(json.dumps({"blas": blas_in_use()}), flush=True)
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            started = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - started)
        peak = memory_mb("VmHWM")
        print(json.dumps({"seconds": seconds, "losses": losses, "rss_mb": peak, "step_mb": peak - before}), flush=True)


if __name__ == "__main__":
    main()
