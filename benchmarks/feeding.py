"""Does ImageLoader keep a training step fed? How long a ResNet waits for its photographs.

    python benchmarks/feeding.py --data imagenet/train --model resnet18 --batch 16

The same steps are made with batches that the loader decodes while the network trains, and with one batch that lies in
memory, by turns. Where the CPU trains too, both want its cores: a loader that costs nothing makes the two sides equal,
and `waited` is what the training stood still for its next batch. On a GPU the step is shorter and the cores are free.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from command_line import positive, run_main
from models.config import IMAGENET_MODELS, standard_config

from minidl import Tensor
from minidl.data import RESNET_SIDES, DeviceLoader, ImageFolder, ImageLoader, TrainingView
from minidl.functional import cross_entropy
from minidl.nn import Module
from minidl.optim import SGD


def train(model: Module, optimizer: SGD, batches: Iterator, steps: int) -> tuple[float, float]:
    """(seconds of a step, of which it waited for its batch), the means of some steps."""
    start, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        before = time.perf_counter()
        images, labels = next(batches)
        waited += time.perf_counter() - before
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loss.item()  # a GPU is waited for
    return (time.perf_counter() - start) / steps, waited / steps


def endless(loader: DeviceLoader) -> Iterator:
    """Epoch after epoch."""
    return chain.from_iterable(repeat(loader))


def measure(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """(seconds of a step, of which it waited) of both sides, the medians over the turns."""
    folder = ImageFolder(args.data)
    config = standard_config(args.model, len(folder.classes))
    model = config.build().to(args.device)
    optimizer = SGD(model.parameters(), lr=1e-4, momentum=0.9)
    view = TrainingView(RESNET_SIDES, mean=config.mean, std=config.std)
    loader = ImageLoader(folder, args.batch, view, shuffle=True, drop_last=True, threads=args.threads)
    one_batch = tuple(
        Tensor(part.data.copy()) for part in next(endless(DeviceLoader(loader, args.device)))
    )  # its memory is reused
    sides = {
        "decoded by ImageLoader": lambda: endless(DeviceLoader(loader, args.device)),
        "one batch in memory": lambda: repeat(one_batch),
    }
    turns = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, begin in sides.items():
            turns[name].append(turn(model, optimizer, begin(), loader.prefetch, args.steps))
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in turns.items()}


def turn(model: Module, optimizer: SGD, batches: Iterator, unmeasured: int, steps: int) -> tuple[float, float]:
    """`train` after some steps that do not count: the loader begins with them, and the first of all is slower.

    The batches end with the turn, so that none is decoded while the other side is measured.
    """
    train(model, optimizer, batches, unmeasured)
    result = train(model, optimizer, batches, steps)
    del batches
    for thread in threading.enumerate():  # a loader's thread ends after the batch that it decodes
        if "Loader" in thread.name:
            thread.join()
    return result


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one folder of photographs per class")
    parser.add_argument("--model", choices=IMAGENET_MODELS, default="resnet18", metavar="NAME")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--steps", type=positive, default=4, help="of a turn")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--threads", type=positive, help="that decode; default: as many as there are cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    for name, (seconds, waited) in measure(args).items():
        print(f"{name:24} {1000 * seconds:8.1f} ms a step, of which it waited {1000 * waited:6.2f} ms")


if __name__ == "__main__":
    run_main(main)
