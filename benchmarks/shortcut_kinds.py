"""Draw the errors and the gradients of ResNets that differ in what stands on their shortcuts.

    python benchmarks/shortcut_kinds.py --runs runs --data-dir data --out benchmarks/results/cifar10_shortcut_kinds

The kinds are those of table 1 of He et al. 2016 (arXiv 1603.05027). The errors are those that train_cifar_resnet.py has
written to runs/KIND/metrics.jsonl, or copies in runs/KIND.jsonl; a kind without a file has no line. The gradients are
those of untrained networks of 110 layers: the norm of dL/dx at the output x of each block, for a batch of CIFAR-10.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from command_line import run_main

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from models.resnet_variants import SHORTCUT_KINDS, cifar_shortcut_resnet

from minidl import Tensor
from minidl.data import load_cifar10, normalize, per_pixel_mean
from minidl.functional import cross_entropy

DEPTH, BATCH, PIXEL_STD = 110, 32, 64.0


def gradient_norms(kind: str, images: Tensor, labels: np.ndarray) -> list[float]:
    """The norm of dL/dx at the output x of each block of an untrained network, from the first to the last."""
    model, outputs = cifar_shortcut_resnet(DEPTH, kind), []

    def keep(_block, _inputs, output):
        output.retain_grad()
        outputs.append(output)

    with ExitStack() as stack:
        for stage in (model.layer1, model.layer2, model.layer3):
            for block in stage.modules:
                stack.enter_context(block.forward_hook(keep))
        cross_entropy(model(images), labels).backward()
    return [float(np.linalg.norm(output.grad.numpy())) for output in outputs]


def read_records(kind: str, runs: Path) -> list[dict]:
    """The measurements of the kind's run; [] if there is none."""
    for path in (runs / kind / "metrics.jsonl", runs / f"{kind}.jsonl"):
        if path.exists():
            return [json.loads(line) for line in path.read_text().splitlines()]
    return []


def main() -> None:
    """Draw shortcut_kinds.png and print the last errors and the gradients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--runs", "--data-dir", "--out"):
        parser.add_argument(option, type=Path, required=True)
    args = parser.parse_args()
    train = load_cifar10(args.data_dir, train=True)
    images = Tensor(normalize(train.images[:BATCH], per_pixel_mean(train.images), PIXEL_STD))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), dpi=100, layout="constrained")
    errors, gradients = figure.subplots(1, 2)
    for number, kind in enumerate(SHORTCUT_KINDS):
        color, label = f"C{number}", kind.replace("-", " ")
        records, norms = read_records(kind, args.runs), gradient_norms(kind, images, train.labels[:BATCH])
        steps = [record["step"] for record in records]
        errors.plot(steps, [100 * record["train_error"] for record in records], "--", color=color)
        errors.plot(steps, [100 * record["test_error"] for record in records], color=color)
        gradients.semilogy(range(1, len(norms) + 1), norms, color=color, label=label)
        for record in records[-1:]:
            print(f"{kind}: training {record['train_error']:.2%}, test {record['test_error']:.2%}")
        print(f"{kind}: gradient {norms[0]:.2e} at block 1, {norms[-1]:.2e} at block {len(norms)}")
    errors.set(xlabel="iterations", ylabel="error (%): test solid, training dashed", title="32 layers, in training")
    gradients.set(xlabel="block", ylabel="gradient norm at its output", title=f"{DEPTH} layers, untrained")
    gradients.legend(fontsize=8)
    for panel in (errors, gradients):
        panel.grid(alpha=0.3)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "shortcut_kinds.png")


if __name__ == "__main__":
    run_main(main)
