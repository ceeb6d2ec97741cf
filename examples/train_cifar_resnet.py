"""Train a ResNet for 32x32 images (He et al. 2015, section 4.2).

    python examples/train_cifar_resnet.py --epochs 4                             shapes: no download
    python examples/train_cifar_resnet.py --dataset cifar10                      ResNet-20, 10 epochs, one-cycle
    python examples/train_cifar_resnet.py --dataset cifar10 --recipe paper       64,000 iterations, as in the paper
    python examples/train_cifar_resnet.py --dataset cifar10 --device cuda --dtype bfloat16        all of it on a GPU
    python examples/train_cifar_resnet.py --dataset cifar10 --depth 56 --shortcut none        a plain network
    python examples/train_cifar_resnet.py --dataset cifar10 --depth 1202 --recompute          in 1 GiB instead of 11
    python examples/train_cifar_resnet.py --out runs/resnet20 --resume           go on after Ctrl-C

Expect (two CPU cores): 96 % of the shapes right after 4 epochs and two minutes; 87 % of CIFAR-10 after 10 epochs of the
one-cycle recipe and half an hour. DIR of --out gets metrics.jsonl, curves.png and a checkpoint after each epoch, and a
checkpoint when Ctrl-C, SIGTERM or SIGHUP stops the run. The status is 143 after SIGTERM and 129 after SIGHUP.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
from cifar_data import CifarData, add_data_options, load_data, positive, rate, whole
from tqdm import tqdm
from training import (
    Counter,
    RunFolder,
    StopRequest,
    Totals,
    check_dtype,
    check_loss,
    clock,
    computing,
    error_rate,
    locked,
    one_line_errors,
    tell,
)

from minidl import cuda_graph
from minidl.data import IndexLoader
from minidl.functional import cross_entropy
from minidl.nn import Module
from minidl.optim import SGD, MultiStepLR, OneCycleLR

# Table 6 of the paper: test error on CIFAR-10 after 64,000 iterations, in per cent.
PAPER_ERROR = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}


@dataclass(frozen=True)
class Recipe:
    """How to train, for a number of epochs or of iterations, unless the options say otherwise."""

    lr: float
    schedule: Callable[[float, int], Callable[[int], float]]  # (lr, total steps) -> the learning rate of each step
    weight_decay: float
    nesterov: bool
    epochs: int | None = None
    iterations: int | None = None


def divide_twice(lr: float, total_steps: int) -> MultiStepLR:
    """lr / 10 at 32k and 48k of 64k iterations, or at the same fractions of another number."""
    return MultiStepLR(lr, milestones=[total_steps // 2, total_steps * 3 // 4])


RECIPES = {
    "paper": Recipe(lr=0.1, schedule=divide_twice, weight_decay=1e-4, nesterov=False, iterations=64_000),
    "fast": Recipe(lr=0.2, schedule=OneCycleLR, weight_decay=5e-4, nesterov=True, epochs=10),
}

DTYPES = "float32", "tf32", "bfloat16"

# What --resume may change.
NO_MATTER = "out", "resume", "data_dir", "device", "dtype", "recompute"

# The loss is read every 50 steps on a GPU: reading it makes the CPU wait.
LOOK_EVERY = {"cpu": 1, "cuda": 50}

# Section 4.2: 110 layers do not start at 0.1; they begin with 0.01 until the training error is below 80 %.
WARMUP_DEPTH, WARMUP_LR, WARMUP_ERROR = 110, 0.01, 0.80


def add_training_options(parser: argparse.ArgumentParser, lr: float | None = None) -> None:
    """The options that do not depend on the network; `lr` is the default rate, the recipe's own if None."""
    add_data_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of activations and products; all but float32 need cuda"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="fast", help="default: fast")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive, metavar="N")
    length.add_argument("--iterations", type=positive, metavar="N")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="default: 128")
    parser.add_argument("--lr", type=rate, default=lr, help=f"default: {lr or 'that of the recipe'}")
    parser.add_argument("--weight-decay", type=rate, help="default: the recipe's")
    parser.add_argument("--seed", type=whole, default=0, help="of weights, order and augmentation; default: 0")
    parser.add_argument("--out", default="runs/latest", metavar="DIR", help="default: runs/latest")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")


@dataclass
class Progress:
    """How far a run has come: with the weights and the optimiser's state, all that a checkpoint needs."""

    step: int = 0
    images: int = 0  # of the epochs that are over
    seconds: float = 0.0
    training_seconds: float = 0.0  # without evaluation
    warming_up: bool = False
    totals: Totals = field(default_factory=Totals)  # of the epoch in progress

    @property
    def images_per_second(self) -> float:
        """The speed of the epochs that are over."""
        return self.images / self.training_seconds if self.images else 0.0


def train(
    model: Module, data: CifarData, folder: RunFolder, args: argparse.Namespace, needs_warmup: bool = False
) -> float | None:
    """Train, with a checkpoint and a line of metrics after each epoch; the final test error, or None if interrupted."""
    data.to(args.device, args.dtype)  # once: the loader hands out which images to take and how to vary them, no pixels
    loader = IndexLoader(data.train, args.batch_size, data.augment, shuffle=True, seed=args.seed)
    total_steps = count_steps(args, len(loader))
    schedule, optimizer = make_schedule(args, total_steps), make_optimizer(model, args)
    progress = resume(folder, model, optimizer, loader, args) if args.resume else Progress(warming_up=needs_warmup)
    counter = Counter(args.device)
    step = make_step(model, optimizer, data, counter, args.batch_size)

    started, test_error = time.perf_counter() - progress.seconds, None
    with StopRequest() as stop, progress_bar(progress.step, total_steps) as bar:
        while progress.step < total_steps and not stop.asked:
            counter.start_from(progress.totals)
            began = time.perf_counter()
            for batch in loader:
                optimizer.lr = WARMUP_LR if progress.warming_up else schedule(progress.step)
                step(batch)
                progress.step += 1
                epoch_ends = loader.state_dict()["batch"] == 0 or progress.step == total_steps
                last = epoch_ends or stop.asked
                if last or progress.step % LOOK_EVERY[args.device] == 0:
                    look(counter, progress, bar, folder, args.batch_size)
                if last:
                    break
            progress.training_seconds += time.perf_counter() - began
            test_error = error_rate(model, data) if epoch_ends else None
            progress.seconds, record = round(time.perf_counter() - started, 2), None
            if epoch_ends:
                epoch = -(-progress.step // len(loader))
                record = end_epoch(progress, epoch, optimizer.lr, data.test_split, test_error)
            save(folder, model, optimizer, loader, progress, args, record)
    if progress.step < total_steps:
        stop.end(f"stopped after step {progress.step:,}; nothing is lost: the same command with --resume goes on")
        return None
    print(f"{progress.images_per_second:,.0f} images/s; {clock(progress.seconds)} to the final error")
    return error_rate(model, data) if test_error is None else test_error


def make_step(
    model: Module, optimizer: SGD, data: CifarData, counter: Counter, batch_size: int
) -> Callable[[np.ndarray], None]:
    """The training step of a batch: all that the device does. A GPU gets it captured, as one launch."""
    step = partial(train_step, model, optimizer, data, counter)
    if data.device == "cpu":
        return step
    replay = cuda_graph(step)
    return lambda batch: (replay if batch.shape[1] == batch_size else step)(batch)  # the last batch may be smaller


def train_step(model: Module, optimizer: SGD, data: CifarData, counter: Counter, batch) -> None:
    """One step of gradient descent: arrays in, nothing out. On a GPU this only queues the work."""
    images, labels = data.take(batch, data.train, data.augment)
    logits = model(images)
    loss = cross_entropy(logits, labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    counter.add(len(labels), loss, (logits.argmax(dim=1).data != labels).sum())


def end_epoch(progress: Progress, epoch: int, lr: float, split: str, test_error: float) -> dict:
    """Print what the epoch came to, and begin to count anew; its line of the metrics."""
    train_error = progress.totals.error
    record = {"epoch": epoch, "step": progress.step, "lr": lr, "train_loss": progress.totals.loss}
    record |= {"train_error": train_error, "test_error": test_error, "split": split, "seconds": progress.seconds}
    tell(f"epoch {epoch:3d}   training error {train_error:6.2%}   {split} error {test_error:6.2%}")
    progress.warming_up = progress.warming_up and train_error >= WARMUP_ERROR
    progress.images += progress.totals.images
    progress.totals = Totals()
    return record


def save(
    folder: RunFolder,
    model: Module,
    optimizer: SGD,
    loader: IndexLoader,
    progress: Progress,
    args: argparse.Namespace,
    record: dict | None,
) -> None:
    """Write the checkpoint and, at the end of an epoch, its record."""
    counters = {"progress": asdict(progress), "loader": loader.state_dict(), "options": options_that_matter(args)}
    folder.save(model, optimizer, counters, record)


def resume(folder: RunFolder, model: Module, optimizer: SGD, loader: IndexLoader, args: argparse.Namespace) -> Progress:
    """Load the checkpoint; how far the run had come."""
    with folder.resuming():
        counters = folder.load(model, optimizer, options_that_matter(args))
        progress = Progress(**counters["progress"] | {"totals": Totals(**counters["progress"]["totals"])})
        loader.load_state_dict(counters["loader"])
        folder.forget_after(progress.step)
    return progress


def progress_bar(step: int, total_steps: int) -> tqdm:
    """A bar over the steps of the run, with the time left."""
    layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=total_steps, initial=step, bar_format=layout, dynamic_ncols=True)


def look(counter: Counter, progress: Progress, bar: tqdm, folder: RunFolder, batch_size: int) -> None:
    """Wait for the device, and show how the epoch goes; stop if the loss is NaN or infinite."""
    progress.totals = totals = counter.read()
    check_loss(totals.loss, bar.n, progress.step - 1, folder.remedy)
    images_per_second = (bar.format_dict["rate"] or 0) * batch_size
    bar.set_postfix_str(
        f"loss {totals.loss:.3f}, accuracy {1 - totals.error:.1%}, {images_per_second:,.0f} images/s", refresh=False
    )
    bar.update(progress.step - bar.n)


def options_that_matter(args: argparse.Namespace) -> dict:
    """The options that a run cannot change when it is resumed."""
    return {name: value for name, value in vars(args).items() if name not in NO_MATTER}


def make_schedule(args: argparse.Namespace, total_steps: int) -> Callable[[int], float]:
    """The learning rate of each step: the recipe's, from the rate of the options if they give one."""
    recipe = RECIPES[args.recipe]
    return recipe.schedule(recipe.lr if args.lr is None else args.lr, total_steps)


def make_optimizer(model: Module, args: argparse.Namespace) -> SGD:
    """The recipe's, with the weight decay of the options if they give one."""
    recipe = RECIPES[args.recipe]
    weight_decay = recipe.weight_decay if args.weight_decay is None else args.weight_decay
    return SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=weight_decay, nesterov=recipe.nesterov)


def count_steps(args: argparse.Namespace, steps_per_epoch: int) -> int:
    """The length of the run: what the options say, else what the recipe says."""
    recipe = RECIPES[args.recipe]
    if args.iterations is not None or args.epochs is not None:
        return args.iterations if args.iterations is not None else args.epochs * steps_per_epoch
    return recipe.iterations or recipe.epochs * steps_per_epoch


def main() -> None:
    """Read the options, build the network, train it, and compare with the paper."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20, help="6n + 2: 20, 32, 44, 56, 110, 1202; default: 20")
    parser.add_argument("--shortcut", choices=("A", "B", "C", "none"), default="A", help="none: a plain network")
    parser.add_argument("--recompute", action="store_true", help="less memory, a third more time, the same bits")
    add_training_options(parser)
    args = parser.parse_args()
    with locked(args.out):
        with one_line_errors(parser):
            check_dtype(args)
            data = load_data(args)
            name = f"{'plain' if args.shortcut == 'none' else 'resnet'}{args.depth}"
            config = data.config(name, "cifar_resnet", depth=args.depth, shortcut=args.shortcut)
            model = config.build(seed=args.seed, recompute=args.recompute).to(args.device)
            folder = RunFolder(args.out, args.resume, config)
        needs_warmup = args.recipe == "paper" and args.depth >= WARMUP_DEPTH
        with one_line_errors(), computing(args):
            error = train(model, data, folder, args, needs_warmup)
    if error is not None:
        print(f"{data.test_split} error of {args.depth} layers on {args.dataset}: {error:.2%}")
        if args.dataset == "cifar10" and args.shortcut == "A" and args.depth in PAPER_ERROR:
            print(f"the paper's, after 64,000 iterations: {PAPER_ERROR[args.depth]} %")


if __name__ == "__main__":
    main()
