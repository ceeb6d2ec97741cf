"""Plain networks get worse with depth, residual ones do not: figures 4, 6 and 7 of He et al. 2015, on one machine.

    python examples/degradation.py --depths 20 56 --budget 1h                   shapes: no download
    python examples/degradation.py --dataset cifar10 --budget 64000             as in the paper: days on a CPU
    python examples/degradation.py --dataset cifar10 --device cuda              on a GPU
    python examples/degradation.py --depths 20 --shortcuts A B C                the options of section 3.3 and table 3
    python examples/degradation.py --out runs/degradation                       after Ctrl-C: the same command goes on

Each depth is trained once with each of the --shortcuts: `none`, the plain network, and the residual one of option A,
unless they say otherwise. The recipe is the paper's. Option B projects where a shape changes, C in each block.

DIR of --out gets degradation.png and a folder for each network; networks that are not finished yet are drawn as far as
they are. The figure has a column for each shortcut, with a line for each depth; a single depth has one column.

    error         training dashed, test solid, over the iterations (figures 4 and 6)
    responses     the standard deviation of each 3x3 layer's output, after batch-norm, before ReLU and sum (figure 7)
    gradients     |dL/dweight| of each 3x3 layer, at initialisation (dotted) and at the last measurement (solid)
"""

import argparse
import math
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from cifar_data import CifarData, add_data_options, load_data, positive, whole
from models.resnet import CifarResNet, cifar_resnet
from tqdm import tqdm
from train_cifar_resnet import PAPER_ERROR, WARMUP_DEPTH, WARMUP_ERROR, WARMUP_LR, divide_twice, make_step
from training import (
    Counter,
    RunFolder,
    StopRequest,
    Totals,
    check_loss,
    drawing,
    error_rate,
    locked,
    one_line_errors,
)

from minidl import Tensor, no_grad, watch
from minidl.data import IndexLoader
from minidl.functional import cross_entropy
from minidl.optim import SGD
from minidl.system.files import write_whole
from minidl.training.checkpoint import load_checkpoint

KINDS = {"none": "plain", "A": "option A", "B": "option B", "C": "option C"}  # of networks, by their shortcut
FOLDERS = {"none": "plain", "A": "residual", "B": "residual-B", "C": "residual-C"}
MEASUREMENTS = 10  # of a run: its points in the figure
PROBES = 128  # test images that responses and gradients are measured on, the paper's batch
FIRST_STEPS, SPEED_STEPS = 3, 5  # the first are slower, and do not count; the others tell what a budget of time buys
UNITS = {"s": 1, "min": 60, "h": 3600}


def make_network(shortcut: str, depth: int, data: CifarData, args: argparse.Namespace) -> CifarResNet:
    """As it is before training."""
    return cifar_resnet(depth, shortcut, len(data.train.classes), args.seed).to(args.device)


def folder_of(shortcut: str, depth: int, args: argparse.Namespace) -> Path:
    """DIR/plain-20, and DIR/residual-20 for option A, DIR/residual-B-20 for option B."""
    return Path(args.out, f"{FOLDERS[shortcut]}-{depth}")


def picture_of(args: argparse.Namespace) -> Path:
    """DIR/degradation.png."""
    return Path(args.out, "degradation.png")


# -- what is measured --------------------------------------------------------------------------------------------------


def probe_batch(data: CifarData) -> tuple:
    """The same test images for all networks, and their labels."""
    loader = IndexLoader(data.test, min(PROBES, len(data.test)), data.prepare)
    return data.take(next(iter(loader)), data.test, data.prepare)


def responses(model: CifarResNet, images: Tensor) -> tuple[list[float], Tensor]:
    """The standard deviation of each 3x3 layer's output, after batch-norm and before ReLU and sum; and the logits."""
    names = [name for name, _ in model.named_modules() if name.endswith(("bn1", "bn2"))]
    model.eval()
    with no_grad(), watch(model, *names) as outputs:
        logits = model(images)
    model.train()
    return [float(outputs[name].numpy().std()) for name in names], logits


def gradient_norms(model: CifarResNet, images: Tensor, labels) -> list[float]:
    """|dL/dweight| of each 3x3 layer in training mode. The model stays as it was, running statistics included.

    The projections of options B and C, 1x1, are left out: all networks of a depth have the same 3x3 layers.
    """
    before = model.state_dict()
    cross_entropy(model(images), labels).backward()
    weights = [parameter for _, parameter in model.named_parameters() if parameter.shape[:2] == (3, 3)]
    norms = [float(np.linalg.norm(weight.grad.numpy())) for weight in weights]
    model.zero_grad()
    model.load_state_dict(before)
    return norms


# -- training ----------------------------------------------------------------------------------------------------------


class Run:
    """The training of one network, from where its folder says it is."""

    def __init__(self, shortcut: str, depth: int, data: CifarData, args: argparse.Namespace, iterations: int):
        path = folder_of(shortcut, depth, args)
        advice = "the recipe's rate is too high for these batches; try a larger --batch-size"
        self.folder = RunFolder(path, (path / "checkpoint.safetensors").exists(), advice=advice)
        matter = "dataset", "limit_train", "holdout", "batch_size", "seed"
        self.options = {"iterations": iterations} | {name: getattr(args, name) for name in matter}
        self.data, self.counter = data, Counter(args.device)
        self.model = make_network(shortcut, depth, data, args)
        self.optimizer = SGD(self.model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
        self.loader = IndexLoader(data.train, args.batch_size, data.augment, shuffle=True, seed=args.seed)
        self.step, self.warming_up = 0, depth >= WARMUP_DEPTH
        if self.folder.checkpoint.exists():
            self.resume()

    def resume(self) -> None:
        """Go to where the checkpoint was written."""
        with self.folder.resuming():
            done = self.folder.load(self.model, self.optimizer, self.options)
            self.step, self.warming_up = done["step"], done["warming_up"]
            self.counter.start_from(Totals(**done["totals"]))
            self.loader.load_state_dict(done["loader"])
            self.folder.forget_after(self.step)

    def save(self, record: dict | None = None) -> None:
        """Write the checkpoint and, after a measurement, its record."""
        done = {"step": self.step, "warming_up": self.warming_up, "totals": vars(self.counter.read())}
        done |= {"loader": self.loader.state_dict(), "options": self.options}
        self.folder.save(self.model, self.optimizer, done, record)

    def measure(self) -> None:
        """Add a line to the metrics, count anew, and write the checkpoint."""
        totals = self.counter.read()
        check_loss(totals.loss, self.step, self.step, self.folder.remedy)
        record = {"step": self.step, "train_error": totals.error, "test_error": error_rate(self.model, self.data)}
        record |= {"split": self.data.test_split, "gradients": gradient_norms(self.model, *probe_batch(self.data))}
        self.warming_up = self.warming_up and totals.error >= WARMUP_ERROR
        self.counter.start_from(Totals())
        self.save(record)


def train(run: Run, iterations: int, stop: StopRequest) -> None:
    """Train the network to the end, or until it is asked to stop."""
    schedule = divide_twice(0.1, iterations)
    measured_at = {round(iterations * (i + 1) / MEASUREMENTS) for i in range(MEASUREMENTS)}
    step = make_step(run.model, run.optimizer, run.data, run.counter, run.loader.batch_size)
    name = run.folder.path.name
    with tqdm(desc=name, total=iterations, initial=run.step, unit=" steps", dynamic_ncols=True) as bar:
        for batch in islice(without_end(run.loader), iterations - run.step):
            run.optimizer.lr = WARMUP_LR if run.warming_up else schedule(run.step)
            step(batch)
            run.step += 1
            bar.update()
            if run.step in measured_at:
                run.measure()
            if stop.asked:
                break
    run.save()


def without_end(loader: IndexLoader) -> Iterator[np.ndarray]:
    """The batches of one epoch after the other."""
    while True:
        yield from loader


# -- the budget --------------------------------------------------------------------------------------------------------


def budget(text: str) -> tuple[int, str]:
    """The type of --budget: a number, and '' for iterations of each network or the unit of time for all of them."""
    found = re.fullmatch(r"(\d+)(s|min|h|)", text)
    if not found or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"expected iterations or a time, as 64000, 600s, 30min or 2h, got {text}")
    return int(found[1]), found[2]


def count_iterations(data: CifarData, args: argparse.Namespace) -> int:
    """Of each network. What a time bought is written down, so that a resumed run has the same.

    Each shortcut's time of a step, and of a measurement, is nearly proportional to the depth.
    """
    number, unit = args.budget
    if not unit:
        return number
    note = Path(args.out, "iterations.txt")
    if not note.exists():
        step, measurement = np.sum([seconds_of_a_layer(shortcut, data, args) for shortcut in args.shortcuts], axis=0)
        share = number * UNITS[unit] / sum(args.depths)
        iterations = int((share - MEASUREMENTS * measurement) / step)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, str(max(iterations, 1)).encode())
    return int(note.read_text())


def seconds_of_a_layer(shortcut: str, data: CifarData, args: argparse.Namespace) -> tuple[float, float]:
    """In a step of training, and in a measurement of the error."""
    depth, batch_size = min(args.depths), min(args.batch_size, len(data.train))
    model, counter = make_network(shortcut, depth, data, args), Counter(args.device)
    step = make_step(model, SGD(model.parameters(), lr=0.0), data, counter, batch_size)
    batches = without_end(IndexLoader(data.train, batch_size, data.augment, drop_last=True))

    def seconds_of(steps: int) -> float:
        start = time.perf_counter()
        for batch in islice(batches, steps):
            step(batch)
        counter.read()  # a GPU is waited for
        return time.perf_counter() - start

    seconds_of(FIRST_STEPS)
    seconds = seconds_of(SPEED_STEPS) / SPEED_STEPS
    start = time.perf_counter()
    error_rate(model, data)
    return seconds / depth, (time.perf_counter() - start) / depth


# -- the figure and the table ------------------------------------------------------------------------------------------


def columns_of(args: argparse.Namespace) -> dict[str, dict[str, tuple[str, int]]]:
    """{title: {label: (shortcut, depth)}}: the networks that one column compares."""
    if len(args.depths) == 1:
        depth = args.depths[0]
        return {f"{depth} layers": {KINDS[shortcut]: (shortcut, depth) for shortcut in args.shortcuts}}
    return {
        "plain networks" if shortcut == "none" else f"residual networks, {KINDS[shortcut]}": {
            f"{depth} layers": (shortcut, depth) for depth in args.depths
        }
        for shortcut in args.shortcuts
    }


def measured(shortcut: str, depth: int, args: argparse.Namespace) -> RunFolder | None:
    """The network's folder, if it has been measured."""
    path = folder_of(shortcut, depth, args)
    folder = RunFolder(path, resume=True) if (path / "checkpoint.safetensors").exists() else None
    return folder if folder and folder.records else None


def draw(data: CifarData, args: argparse.Namespace, iterations: int) -> None:
    """DIR/degradation.png: the errors, the responses and the gradients, one below the other."""
    from matplotlib.figure import Figure

    columns, probes = columns_of(args), probe_batch(data)
    figure = Figure(figsize=(max(8, 5.5 * len(columns)), 11), dpi=100, layout="constrained")
    axes = figure.subplots(3, len(columns), sharey="row", squeeze=False)
    label_panels(axes, columns)
    for column, networks in zip(axes.T, columns.values(), strict=True):
        for number, (label, network) in enumerate(networks.items()):
            column[0].plot([], [], color=f"C{number}", label=label)  # for the legend
            folder = measured(*network, args)
            if folder:
                draw_network(column, make_network(*network, data, args), folder, probes, f"C{number}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    figure.supxlabel(caption(args, iterations), fontsize=9)
    figure.savefig(picture_of(args))


def label_panels(axes, titles: Iterable[str]) -> None:
    """What each row shows stands at its left end, what each column shows above it."""
    rows = (
        "error (%): test solid, training dashed",
        "standard deviation of the response",
        "gradient norm (dotted: untrained)",
    )
    for panel, what in zip(axes[:, 0], rows, strict=True):
        panel.set_ylabel(what)
    for column, title in zip(axes.T, titles, strict=True):
        column[0].set(title=title, xlabel="iterations")
        column[1].set(xlabel="3x3 layer")
        column[2].set(xlabel="3x3 layer", yscale="log")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)


def draw_network(column, model: CifarResNet, folder: RunFolder, probes: tuple, color: str) -> None:
    """One network's lines in the three panels of its column."""
    records = folder.records
    steps, layers = [record["step"] for record in records], range(1, len(records[-1]["gradients"]) + 1)
    column[0].plot(steps, [100 * record["train_error"] for record in records], "--", color=color)
    column[0].plot(steps, [100 * record["test_error"] for record in records], color=color)
    column[2].plot(layers, gradient_norms(model, *probes), ":", color=color)
    column[2].plot(layers, records[-1]["gradients"], color=color)
    load_checkpoint(folder.checkpoint, model)
    column[1].plot(layers, responses(model, probes[0])[0], color=color)


def caption(args: argparse.Namespace, iterations: int) -> str:
    """What was trained, and what the paper did."""
    number, unit = args.budget
    bought = f" (what {number} {unit} for all buy)" if unit else ""
    trained = f"{args.dataset}, {iterations:,} iterations of {args.batch_size} images for each network{bought}"
    return f"{trained}\nthe paper: CIFAR-10, 64,000 iterations of 128 images"


def table(data: CifarData, args: argparse.Namespace) -> str:
    """The errors at each network's last measurement, and the paper's, after 64,000 iterations on CIFAR-10."""
    heads = "network", "parameters", "iterations", "training error", f"{data.test_split} error", "the paper's"
    rows = [heads, *(row(shortcut, depth, data, args) for depth in args.depths for shortcut in args.shortcuts)]
    return "\n".join(f"{cells[0]:20}" + "".join(f"{cell:>18}" for cell in cells[1:]) for cells in rows if cells)


def row(shortcut: str, depth: int, data: CifarData, args: argparse.Namespace) -> tuple[str, ...]:
    """The table's row of a network, empty if nothing has been measured yet."""
    folder = measured(shortcut, depth, args)
    if folder is None:
        return ()
    last, model = folder.records[-1], make_network(shortcut, depth, data, args)
    parameters = sum(math.prod(parameter.shape) for parameter in model.parameters())
    errors = f"{last['train_error']:.2%}", f"{last['test_error']:.2%}"
    known = args.dataset == "cifar10" and shortcut == "A" and depth in PAPER_ERROR
    paper = f"{PAPER_ERROR[depth]:.2f}%" if known else "-"
    return f"{depth} layers, {KINDS[shortcut]}", f"{parameters:,}", f"{last['step']:,}", *errors, paper


def train_all(data: CifarData, args: argparse.Namespace) -> None:
    """Train what is not trained yet, until asked to stop; draw what there is, and print the table."""
    iterations = count_iterations(data, args)
    with StopRequest() as stop:
        for depth in args.depths:
            for shortcut in args.shortcuts:
                if not stop.asked:
                    train(Run(shortcut, depth, data, args, iterations), iterations, stop)
    with drawing(picture_of(args)):
        draw(data, args, iterations)
    print(table(data, args))
    stop.end("stopped; nothing is lost: the same command goes on" if stop.asked else str(picture_of(args)))


def main() -> None:
    """Train what is not trained yet, draw all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 44, 56, 110], metavar="DEPTH")
    parser.add_argument("--shortcuts", choices=KINDS, nargs="+", default=["none", "A"], help="default: none A")
    parser.add_argument("--budget", type=budget, default="1h", help="iterations of each network, or a time for all")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="default: 128")
    parser.add_argument("--seed", type=whole, default=0, help="of weights, order and augmentation; default: 0")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", default="runs/degradation", metavar="DIR", help="default: runs/degradation")
    add_data_options(parser)
    args = parser.parse_args()
    with locked(args.out):
        with one_line_errors(parser):
            for depth in args.depths:
                cifar_resnet(depth)
            data = load_data(args).to(args.device)
        with one_line_errors():
            train_all(data, args)


if __name__ == "__main__":
    main()
