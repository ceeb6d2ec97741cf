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
from common.cifar import CifarData, load_data
from common.errors import drawing
from common.evaluate import error_rate
from common.fit import classification_step, fit
from common.folder import RunFolder
from common.options import CIFAR, add_options, make_parser
from common.recipes import CIFAR_RECIPES, PAPER_ERROR, WARMUP_DEPTH, WarmUp
from common.run import Run, running
from common.stop import Stopped
from models.resnet import CifarResNet, cifar_resnet

from minidl import Tensor, cuda_graph, no_grad, watch
from minidl.data import AugmentedLoader
from minidl.functional import cross_entropy
from minidl.optim import SGD
from minidl.system.files import write_whole
from minidl.training.checkpoint import load_checkpoint

RECIPE = CIFAR_RECIPES["paper"]
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


def probe_batch(data: CifarData) -> tuple[Tensor, Tensor]:
    """The same test images for all networks, and their labels."""
    return next(iter(data.test_loader(min(PROBES, len(data.test)))))


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


def train(shortcut: str, depth: int, data: CifarData, args: argparse.Namespace, iterations: int) -> None:
    """Train one network from where its folder says it is, with measurements on the way."""
    model = make_network(shortcut, depth, data, args)
    optimizer = SGD(model.parameters(), RECIPE.lr, momentum=0.9, weight_decay=RECIPE.weight_decay)
    schedule = WarmUp(RECIPE.schedule(RECIPE.lr, iterations), warming_up=depth >= WARMUP_DEPTH)
    run = Run(
        model,
        optimizer,
        data.train_loader(args.batch_size, args.seed),
        iterations,
        folder_to_train_in(shortcut, depth, args, iterations),
        also={"warm_up": schedule},
        name=folder_of(shortcut, depth, args).name,
        ends={round(iterations * (i + 1) / MEASUREMENTS) for i in range(MEASUREMENTS)},
        advice="the recipe's rate is too high for these batches; try a larger --batch-size",
        again="the same command",
    )

    def measure() -> None:
        gradients = gradient_norms(model, *probe_batch(data))
        schedule.report(run.train_error)
        run.end_epoch(error_rate(model, data.test_loader()), data.split, gradients=gradients)

    step = classification_step(model, optimizer)
    fit(run, cuda_graph(step) if args.device == "cuda" else step, schedule, measure)


def folder_to_train_in(shortcut: str, depth: int, args: argparse.Namespace, iterations: int) -> RunFolder:
    """The folder of a network; the run goes on if it has a checkpoint."""
    path = folder_of(shortcut, depth, args)
    matter = "dataset", "limit_train", "holdout", "batch_size", "seed"
    options = {"iterations": iterations} | {name: getattr(args, name) for name in matter}
    return RunFolder(path, (path / "checkpoint.safetensors").exists(), options)


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
    model = make_network(shortcut, depth, data, args)
    step = classification_step(model, SGD(model.parameters(), lr=0.0))
    step = cuda_graph(step) if args.device == "cuda" else step
    batches = without_end(data.train_loader(batch_size, args.seed, drop_last=True))

    def seconds_of(steps: int) -> float:
        start = time.perf_counter()
        for batch in islice(batches, steps):
            loss, _ = step(*batch)
        loss.item()  # a GPU is waited for
        return time.perf_counter() - start

    seconds_of(FIRST_STEPS)
    seconds = seconds_of(SPEED_STEPS) / SPEED_STEPS
    start = time.perf_counter()
    error_rate(model, data.test_loader())
    return seconds / depth, (time.perf_counter() - start) / depth


def without_end(loader: AugmentedLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch after the other."""
    while True:
        yield from loader


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
    folder = RunFolder(path, True, {}) if (path / "checkpoint.safetensors").exists() else None
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
    heads = "network", "parameters", "iterations", "training error", f"{data.split} error", "the paper's"
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
    iterations, stopped = count_iterations(data, args), None
    try:
        for depth in args.depths:
            for shortcut in args.shortcuts:
                train(shortcut, depth, data, args, iterations)
    except Stopped as stop:
        stopped = stop
    with drawing(picture_of(args)):
        draw(data, args, iterations)
    print(table(data, args))
    if stopped:
        raise stopped
    print(picture_of(args))


def main() -> None:
    """Train what is not trained yet, draw all, and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 44, 56, 110], metavar="DEPTH")
    parser.add_argument("--shortcuts", choices=KINDS, nargs="+", default=["none", "A"], help="default: none A")
    parser.add_argument("--budget", type=budget, default="1h", help="iterations of each network, or a time for all")
    add_options(parser, *CIFAR, "batch_size", "seed", "device", "out", out="runs/degradation", batch_size=128)
    args = parser.parse_args()
    with running(parser, args):
        for depth in args.depths:
            cifar_resnet(depth)
        train_all(load_data(args), args)


if __name__ == "__main__":
    main()
