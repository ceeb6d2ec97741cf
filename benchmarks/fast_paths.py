"""Does speed change what is learned? ResNet-20 on CIFAR-10 with the fast kernels and without them.

    python benchmarks/fast_paths.py losses   --data-dir data --steps 20
    python benchmarks/fast_paths.py accuracy --data-dir data --epochs 5 --seeds 0 1 2

`losses` makes the first steps of the one-cycle recipe three times: with all fast paths, with im2col alone (no Winograd,
each gradient by itself, no products in blocks), and with the plain loops of minidl/kernels/reference.py, which take ten
seconds a step. It prints by how much the losses differ. PyTorch makes the same steps in its two layouts: by so much two
right runs differ too, as rounding grows from step to step.

`accuracy` trains each seed with all fast paths and with im2col alone, for hours, and prints the accuracies.
"""

# ruff: noqa: E402 - the examples are imported from beside this folder

import argparse
import inspect
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "benchmarks")]

from command_line import natural, new_file, positive, rate, run_main
from common.cifar import load_data
from common.evaluate import error_rate
from common.fit import classification_step
from common.options import CIFAR, add_options
from common.recipes import CIFAR_RECIPES
from models.resnet import cifar_resnet

import minidl
from minidl.kernels import cpu, reference
from minidl.kernels.cpu import conv
from minidl.optim import SGD

BATCH = 128
SIDES = ("fast", "im2col", "loops", "torch_default", "torch_channels_last")


class Run:
    """A network, its optimiser and its batches: the one-cycle recipe over so many epochs."""

    def __init__(self, args: argparse.Namespace, seed: int, epochs: int):
        self.data, recipe = load_data(args), CIFAR_RECIPES["fast"]
        self.model = cifar_resnet(20, "A", len(self.data.train.classes), seed)
        self.optimizer = SGD(self.model.parameters(), 0.0, 0.9, recipe.weight_decay, nesterov=recipe.nesterov)
        self.loader = self.data.train_loader(BATCH, seed)
        self.schedule = recipe.schedule(recipe.lr, epochs * len(self.loader))
        self.recipe = recipe

    def step(self, images, labels) -> float:
        """The loss of a training step."""
        return classification_step(self.model, self.optimizer)(images, labels)[0].item()


def im2col_alone() -> None:
    """Every convolution by one im2col and one product for each result."""

    backward = cpu.conv2d_backward

    def separate_gradients(*arguments):
        *arguments, needs_x, needs_weight = arguments
        return backward(*arguments, needs_x, False)[0], backward(*arguments, False, needs_weight)[1]

    minidl.set_convolution("im2col")
    cpu.conv2d_backward = separate_gradients
    conv.SMALL_PRODUCT = 0


def plain_loops() -> None:
    """Every kernel is that of reference.py."""
    for name, kernel in list(vars(cpu).items()):
        if inspect.isfunction(kernel):
            setattr(cpu, name, getattr(reference, name))


def torch_step(run: Run, layout: str) -> Callable:
    """The training step by PyTorch, from the same weights."""
    import torch
    import torch_twins

    memory = torch.contiguous_format if layout == "torch_default" else torch.channels_last
    model = torch_twins.twin_of(run.model, torch_twins.cifar_resnet, 20).to(memory_format=memory)
    optimizer = torch.optim.SGD(model.parameters(), 1.0, 0.9, weight_decay=run.recipe.weight_decay, nesterov=True)

    def step(images, labels) -> float:
        optimizer.param_groups[0]["lr"] = run.optimizer.lr
        images = torch.from_numpy(images.numpy()).permute(0, 3, 1, 2).contiguous(memory_format=memory)
        loss = torch.nn.functional.cross_entropy(model(images), torch.from_numpy(labels.numpy()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def losses(args: argparse.Namespace) -> dict:
    """The losses of the first steps of a side."""
    run = Run(args, args.seeds[0], epochs=10)
    step = torch_step(run, args.side) if args.side.startswith("torch") else run.step
    found = []
    for number, batch in zip(range(args.steps), run.loader, strict=False):
        run.optimizer.lr = run.schedule(number) if args.lr is None else args.lr
        found.append(step(*batch))
    return {"losses": found}


def accuracy(args: argparse.Namespace) -> dict:
    """The accuracy on the test images after training with each seed."""
    found = []
    for seed in args.seeds:
        run = Run(args, seed, args.epochs)
        for epoch in range(args.epochs):
            for number, batch in enumerate(run.loader):
                run.optimizer.lr = run.schedule(epoch * len(run.loader) + number)
                run.step(*batch)
        found.append(1 - error_rate(run.model, run.data.test_loader()))
        print(f"{args.side}, seed {seed}: {found[-1]:.2%}", file=sys.stderr, flush=True)
    return {"accuracies": found}


def compare_losses(results: dict) -> None:
    """By how much the losses of the sides differ from the first side's, and PyTorch's from its own."""
    first, *others = results
    for one, other in [*((first, side) for side in others), SIDES[-2:]]:
        pairs = zip(results[one]["losses"], results[other]["losses"], strict=True)
        differences = [abs(a - b) / abs(a) for a, b in pairs]
        print(f"{one} and {other}: largest relative difference {max(differences):.1e}")


def compare_accuracies(results: dict) -> None:
    """The means of the sides."""
    for side, result in results.items():
        each = ", ".join(f"{value:.2%}" for value in result["accuracies"])
        print(f"{side}: mean {statistics.mean(result['accuracies']):.2%} ({each})")


def main() -> None:
    """Run each side in a process of its own, as the switches last as long as the process, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("losses", "accuracy"))
    parser.add_argument("--steps", type=positive, default=20)
    parser.add_argument("--lr", type=rate, help="of `losses`; default: the recipe's, 0.008 and rising")
    parser.add_argument("--epochs", type=positive, default=5)
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=new_file, help="where to keep the results")
    parser.add_argument("--side", choices=SIDES, help="run this side alone and print its result as JSON")
    add_options(parser, *CIFAR, "device")
    parser.set_defaults(dataset="cifar10")
    args = parser.parse_args()
    if args.side:
        {"im2col": im2col_alone, "loops": plain_loops}.get(args.side, lambda: None)()
        print(json.dumps({"losses": losses, "accuracy": accuracy}[args.what](args)))
        return
    results = {}
    for side in SIDES if args.what == "losses" else SIDES[:2]:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        results[side] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    {"losses": compare_losses, "accuracy": compare_accuracies}[args.what](results)
    if args.json:
        record = {name: getattr(args, name) for name in ("what", "dataset", "steps", "lr", "epochs", "seeds")}
        args.json.write_text(json.dumps(record | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
