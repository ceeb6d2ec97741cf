"""What `recompute` saves and costs: the peak memory and the time of a training step with and without it, on the CPU.

    python benchmarks/recompute.py --depth 1202 --batch 128

Each side is a process of its own; its memory is the largest resident size the system saw of it, Python included.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

from command_line import positive, run_main


def measure(depth: int, batch: int, steps: int, recompute: bool) -> tuple[float, float, float]:
    """(seconds of the fastest step, GiB at the peak, loss of the last step) of a CIFAR ResNet trained by SGD."""
    import numpy as np
    from models.resnet import cifar_resnet

    from minidl import Tensor
    from minidl.functional import cross_entropy
    from minidl.optim import SGD

    model = cifar_resnet(depth, recompute=recompute)
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9)
    rng = np.random.default_rng(0)
    images = Tensor(rng.standard_normal((batch, 32, 32, 3), np.float32))
    labels = rng.integers(0, 10, batch)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux; bytes on macOS
    return min(seconds), kibibytes / 2**20, loss.item()


def main() -> None:
    """Measure both sides, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=110, help="default: 110")
    parser.add_argument("--batch", type=positive, default=128, help="default: 128")
    parser.add_argument("--steps", type=positive, default=2, help="the fastest counts; default: 2")
    parser.add_argument("--only", choices=("with", "without"), help="one side, where the memory does not do for both")
    args = parser.parse_args()
    for side in (args.only,) if args.only else ("with", "without"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh_process:
            future = fresh_process.submit(measure, args.depth, args.batch, args.steps, side == "with")
            seconds, gibibytes, loss = future.result()
        print(f"ResNet-{args.depth} {side:>7} recompute: {seconds:7.2f} s, {gibibytes:6.2f} GiB, loss {loss!r}")


if __name__ == "__main__":
    run_main(main)
