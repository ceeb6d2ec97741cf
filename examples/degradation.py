"""Plain networks degrade with depth, residual networks far less: figures 4, 6 and 7 of He et al. 2015 on one machine.

    python examples/degradation.py --depths 20 56 --budget 1h                 # synthetic shapes, no download
    python examples/degradation.py --dataset cifar10 --budget 64000           # as in the paper: days on a CPU
    python examples/degradation.py --dataset cifar10 --device cuda            # on a GPU
    python examples/degradation.py --depths 20 --shortcuts A B C              # the shortcut options of section 3.3
    python examples/degradation.py --depths 20 56 --shortcuts none A preact   # and pre-activation networks
    python examples/degradation.py --out runs/degradation                     # rerun after Ctrl-C to continue

Trains one network per depth and shortcut with the paper's recipe. The default shortcuts are `none` (the plain network)
and A (zero padding). Option B projects where the shape changes, C in every block. He et al. 2016 have `preact`, the
pre-activation network (figure 4(e)), and compare A and C with other shortcuts: constant-scaling, exclusive-gating,
shortcut-only-gating and dropout-shortcut (table 1).

Writes degradation.png and one folder per network to --out. Unfinished networks are drawn up to their last measurement.
The figure has one column per shortcut and one line per depth. With a single depth, all shortcuts share one column.

    error         training (dashed) and test error (solid) over the iterations (figures 4 and 6)
    responses     standard deviation of each 3x3 layer's output, after batch-norm, before ReLU and addition (figure 7);
                  of pre-activation networks, whose batch-norm comes before the layer, the output itself
    gradients     |dL/dweight| of each 3x3 layer, at initialisation (dotted) and at the last measurement (solid)
"""

import argparse
import copy
import json
import math
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from common.cifar import CifarData, load_data
from common.errors import warn_if_not_drawn
from common.evaluate import error_rate, evaluating
from common.figures import save_figure
from common.fit import classification_step, fit, prepare_step
from common.folder import RunFolder
from common.options import CIFAR, add_options, make_parser, positive
from common.recipes import CIFAR_RECIPES, PAPER_ERROR, WARMUP_DEPTH, WarmUp
from common.run import Run, running
from common.stop import Stopped
from models.resnet import cifar_resnet
from models.resnet_variants import PreActivationResNet, cifar_shortcut_resnet, preact_resnet

from minidl import Tensor, watch
from minidl.data import AugmentedLoader
from minidl.functional import cross_entropy
from minidl.nn import Module
from minidl.optim import SGD
from minidl.system.files import read_text, write_whole

RECIPE = CIFAR_RECIPES["paper"]
OTHER_KINDS = "constant-scaling", "exclusive-gating", "shortcut-only-gating", "dropout-shortcut"  # He et al. 2016
KINDS = {"none": "plain", "A": "option A", "B": "option B", "C": "option C", "preact": "pre-activation"}
KINDS |= {kind: kind.replace("-", " ") for kind in OTHER_KINDS}  # shortcut -> name of the network
FOLDERS = {"none": "plain", "A": "residual", "B": "residual-B", "C": "residual-C", "preact": "preact"}
FOLDERS |= {kind: kind for kind in OTHER_KINDS}
PROBES = 128  # test images for responses and gradients; the paper's batch size
WARMUP_STEPS, TIMED_STEPS = 3, 5  # steps to measure the speed, which converts a time budget to iterations
UNITS = {"s": 1, "min": 60, "h": 3600}


def make_network(shortcut: str, depth: int, data: CifarData, args: argparse.Namespace) -> Module:
    """The untrained network."""
    options = {"num_classes": len(data.train.classes), "seed": args.seed}
    if shortcut == "preact":
        model = preact_resnet(depth, bottleneck=False, **options)
    elif shortcut in OTHER_KINDS:
        model = cifar_shortcut_resnet(depth, shortcut, **options)
    else:
        model = cifar_resnet(depth, shortcut, **options)
    return model.to(args.device)


def folder_path(shortcut: str, depth: int, args: argparse.Namespace) -> Path:
    """DIR/plain-20, DIR/residual-20 for option A, DIR/residual-B-20 for option B."""
    return Path(args.out, f"{FOLDERS[shortcut]}-{depth}")


def figure_path(args: argparse.Namespace) -> Path:
    """DIR/degradation.png."""
    return Path(args.out, "degradation.png")


# -- measurements ------------------------------------------------------------------------------------------------------


def probe_batch(data: CifarData) -> tuple[Tensor, Tensor]:
    """A batch of test images and their labels, the same for all networks."""
    return next(iter(data.test_loader(min(PROBES, len(data.test)))))


def responses(model: Module, images: Tensor) -> tuple[list[float], Tensor]:
    """The standard deviation of each 3x3 layer's output, after batch-norm, before ReLU and addition; and the logits.

    A pre-activation network, which has no batch-norm right after the layer, is measured at the layer.
    """
    layers = ("conv1", "conv2") if isinstance(model, PreActivationResNet) else ("bn1", "bn2")
    names = [name for name, _ in model.named_modules() if name.endswith(layers)]
    with evaluating(model), watch(model, *names) as outputs:
        logits = model(images)
    return [float(outputs[name].numpy().std()) for name in names], logits


def gradient_norms(model: Module, images: Tensor, labels) -> list[float]:
    """|dL/dweight| of each 3x3 layer in training mode, of a copy: running statistics and dropout's counters stay.

    The 1x1 projections of options B and C are left out, so that all networks of a depth have the same layers.
    """
    model = copy.deepcopy(model)
    cross_entropy(model(images), labels).backward()
    weights = [parameter for _, parameter in model.named_parameters() if parameter.shape[:2] == (3, 3)]
    return [float(np.linalg.norm(weight.grad.numpy())) for weight in weights]


# -- training ----------------------------------------------------------------------------------------------------------


def train(shortcut: str, depth: int, data: CifarData, args: argparse.Namespace, iterations: int) -> Run:
    """Train one network, from its checkpoint if there is one, with --measurements evaluations; return the run."""
    model = make_network(shortcut, depth, data, args)
    optimizer = SGD(model.parameters(), RECIPE.lr, momentum=0.9, weight_decay=RECIPE.weight_decay)
    schedule = WarmUp(RECIPE.schedule(RECIPE.lr, iterations), warming_up=depth >= WARMUP_DEPTH)
    run = Run(
        model,
        optimizer,
        data.train_loader(args.batch_size, args.seed),
        iterations,
        open_folder(shortcut, depth, data, args, iterations),
        stateful={"warm_up": schedule},
        name=folder_path(shortcut, depth, args).name,
        evaluate_at={round(iterations * (i + 1) / args.measurements) for i in range(args.measurements)},
        nan_hint="the recipe's learning rate is too high for this batch size; try a larger --batch-size",
        resume_hint="the same command",
    )

    def evaluate() -> None:
        images, labels = probe_batch(data)
        measured = {"gradients": gradient_norms(model, images, labels), "responses": responses(model, images)[0]}
        schedule.report(run.train_error)
        run.end_epoch(error_rate(model, data.test_loader()), data.split, **measured)

    step = prepare_step(classification_step(model, optimizer), model, args)
    fit(run, step, schedule, evaluate)
    return run


def open_folder(shortcut: str, depth: int, data: CifarData, args: argparse.Namespace, iterations: int) -> RunFolder:
    """The folder of a network. The run is resumed if the folder has a checkpoint."""
    path = folder_path(shortcut, depth, args)
    relevant = "dataset", "limit_train", "limit_test", "holdout", "batch_size", "seed"
    options = {"iterations": iterations} | {name: getattr(args, name) for name in relevant}
    resume = (path / "checkpoint.safetensors").exists()
    return RunFolder(path, resume, options, data=data.fingerprint(), keep=args.keep, log_to=args.log)


# -- the budget --------------------------------------------------------------------------------------------------------


def budget(text: str) -> tuple[int, str]:
    """The argparse type of --budget: (number, '') for iterations per network, (number, unit) for the time of all."""
    found = re.fullmatch(r"(\d+)(s|min|h|)", text)
    if not found or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"expected iterations or a time, such as 64000, 600s, 30min or 2h, got {text}")
    return int(found[1]), found[2]


def count_iterations(data: CifarData, args: argparse.Namespace) -> int:
    """The iterations of each network. A time budget is converted once and saved, so that a resumed run has the same.

    The time of a step, and of an evaluation, is nearly proportional to the depth.
    """
    number, unit = args.budget
    if not unit:
        return number
    saved = Path(args.out, "budget.json")
    shared = {"budget": f"{number}{unit}", "depths": args.depths, "shortcuts": args.shortcuts}
    if not saved.exists():
        step, measurement = np.sum([seconds_per_layer(shortcut, data, args) for shortcut in args.shortcuts], axis=0)
        share = number * UNITS[unit] / sum(args.depths)
        iterations = max(int((share - args.measurements * measurement) / step), 1)
        saved.parent.mkdir(parents=True, exist_ok=True)
        write_whole(saved, json.dumps(shared | {"iterations": iterations}).encode())
    return read_budget(saved, shared)


def read_budget(saved: Path, shared: dict) -> int:
    """The iterations in budget.json, for which the same budget, depths and shortcuts must be given."""
    try:
        found = json.loads(read_text(saved, most_bytes=10_000))
        changed = [f"--{name} was {found[name]}, is {given}" for name, given in shared.items() if found[name] != given]
        iterations = int(found["iterations"])
    except (KeyError, RecursionError, TypeError, ValueError) as problem:
        what = f"{type(problem).__name__}: {problem}"
        raise ValueError(
            f"{saved}: expected iterations and their budget ({what}); delete it, or choose another --out"
        ) from None
    if changed:
        raise ValueError(f"{saved}: {'; '.join(changed)}; pass the same options, or choose another --out")
    return iterations


def seconds_per_layer(shortcut: str, data: CifarData, args: argparse.Namespace) -> tuple[float, float]:
    """The (training step, evaluation) time of a network, divided by its depth."""
    depth, batch_size = min(args.depths), min(args.batch_size, len(data.train))
    model = make_network(shortcut, depth, data, args)
    step = prepare_step(classification_step(model, SGD(model.parameters(), lr=0.0)), model, args)
    batches = endless(data.train_loader(batch_size, args.seed, drop_last=True))

    def seconds_of(steps: int) -> float:
        start = time.perf_counter()
        for batch in islice(batches, steps):
            loss, _ = step(*batch)
        loss.item()  # wait for the GPU
        return time.perf_counter() - start

    seconds_of(WARMUP_STEPS)
    seconds = seconds_of(TIMED_STEPS) / TIMED_STEPS
    start = time.perf_counter()
    error_rate(model, data.test_loader())
    return seconds / depth, (time.perf_counter() - start) / depth


def endless(loader: AugmentedLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Repeat the batches of the loader for ever, epoch after epoch."""
    while True:
        yield from loader


# -- the figure and the table ------------------------------------------------------------------------------------------


def columns_of(args: argparse.Namespace) -> dict[str, dict[str, tuple[str, int]]]:
    """The networks in each column of the figure, {title: {label: (shortcut, depth)}}."""
    if len(args.depths) == 1:
        depth = args.depths[0]
        return {f"{depth} layers": {KINDS[shortcut]: (shortcut, depth) for shortcut in args.shortcuts}}
    return {
        "plain networks" if shortcut == "none" else f"residual networks, {KINDS[shortcut]}": {
            f"{depth} layers": (shortcut, depth) for depth in args.depths
        }
        for shortcut in args.shortcuts
    }


def measured_folder(shortcut: str, depth: int, args: argparse.Namespace) -> RunFolder | None:
    """The network's folder, or None if there are no measurements yet."""
    path = folder_path(shortcut, depth, args)
    folder = RunFolder(path, True, {}) if (path / "checkpoint.safetensors").exists() else None
    return folder if folder and folder.records else None


def draw(data: CifarData, args: argparse.Namespace, iterations: int) -> None:
    """Draw DIR/degradation.png: rows for errors, responses and gradients."""
    from matplotlib.figure import Figure

    columns, probes = columns_of(args), probe_batch(data)
    figure = Figure(figsize=(max(8, 5.5 * len(columns)), 11), dpi=100, layout="constrained")
    axes = figure.subplots(3, len(columns), sharey="row", squeeze=False)
    label_panels(axes, columns)
    for column, networks in zip(axes.T, columns.values(), strict=True):
        for number, (label, network) in enumerate(networks.items()):
            column[0].plot([], [], color=f"C{number}", label=label)  # for the legend
            folder = measured_folder(*network, args)
            if folder:
                draw_network(column, make_network(*network, data, args), folder, probes, f"C{number}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    figure.supxlabel(caption(args, iterations), fontsize=9)
    save_figure(figure, figure_path(args))


def label_panels(axes, titles: Iterable[str]) -> None:
    """Label the rows at their left end and the columns at the top."""
    rows = (
        "error (%): test solid, training dashed",
        "standard deviation of the response",
        "gradient norm (dotted: untrained)",
    )
    for panel, label in zip(axes[:, 0], rows, strict=True):
        panel.set_ylabel(label)
    for column, title in zip(axes.T, titles, strict=True):
        column[0].set(title=title, xlabel="iterations")
        column[1].set(xlabel="3x3 layer")
        column[2].set(xlabel="3x3 layer", yscale="log")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)


def draw_network(column, model: Module, folder: RunFolder, probes: tuple, color: str) -> None:
    """Draw the lines of one network in the three panels of its column."""
    records = folder.records
    steps, layers = [record["step"] for record in records], range(1, len(records[-1]["gradients"]) + 1)
    column[0].plot(steps, [100 * record["train_error"] for record in records], "--", color=color)
    column[0].plot(steps, [100 * record["test_error"] for record in records], color=color)
    column[2].plot(layers, gradient_norms(model, *probes), ":", color=color)
    column[2].plot(layers, records[-1]["gradients"], color=color)
    column[1].plot(layers, records[-1]["responses"], color=color)


def caption(args: argparse.Namespace, iterations: int) -> str:
    """A line on what was trained, and one on the paper's training."""
    number, unit = args.budget
    limit = f" (a budget of {number} {unit} for all networks)" if unit else ""
    trained = f"{args.dataset}, {iterations:,} iterations of {args.batch_size} images per network{limit}"
    return f"{trained}\nthe paper: CIFAR-10, 64,000 iterations of 128 images"


def table(data: CifarData, args: argparse.Namespace) -> str:
    """The table of errors at the last measurement, beside the paper's after 64,000 iterations on CIFAR-10."""
    heads = "network", "parameters", "iterations", "training error", f"{data.split} error", "in the paper"
    rows = [heads, *(row(shortcut, depth, data, args) for depth in args.depths for shortcut in args.shortcuts)]
    return "\n".join(f"{cells[0]:20}" + "".join(f"{cell:>18}" for cell in cells[1:]) for cells in rows if cells)


def row(shortcut: str, depth: int, data: CifarData, args: argparse.Namespace) -> tuple[str, ...]:
    """The row of a network in the table; empty without measurements."""
    folder = measured_folder(shortcut, depth, args)
    if folder is None:
        return ()
    last, model = folder.records[-1], make_network(shortcut, depth, data, args)
    parameters = sum(math.prod(parameter.shape) for parameter in model.parameters())
    errors = f"{last['train_error']:.2%}", f"{last['test_error']:.2%}"
    known = args.dataset == "cifar10" and shortcut == "A" and depth in PAPER_ERROR
    paper = f"{PAPER_ERROR[depth]:.2f}%" if known else "-"
    return f"{depth} layers, {KINDS[shortcut]}", f"{parameters:,}", f"{last['step']:,}", *errors, paper


def train_all(data: CifarData, args: argparse.Namespace) -> None:
    """Train the unfinished networks until a stop is requested; draw the figure and print the table."""
    iterations, stopped = count_iterations(data, args), None
    try:
        networks = [(shortcut, depth) for depth in args.depths for shortcut in args.shortcuts]
        for number, (shortcut, depth) in enumerate(networks, start=1):
            run = train(shortcut, depth, data, args, iterations)
            if number < len(networks):
                run.stop_if_asked()
    except Stopped as stop:
        stopped = stop
    with warn_if_not_drawn(figure_path(args)):
        draw(data, args, iterations)
    print(table(data, args))
    if stopped:
        raise stopped
    print(figure_path(args))


def main() -> None:
    """Parse the options and train all networks."""
    parser = make_parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 44, 56, 110], metavar="DEPTH")
    parser.add_argument("--shortcuts", choices=KINDS, nargs="+", default=["none", "A"], help="default: none A")
    parser.add_argument(
        "--budget", type=budget, default="1h", help="iterations per network, or a total time; default: 1h"
    )
    parser.add_argument("--measurements", type=positive, default=10, metavar="N", help="per network; default: 10")
    add_options(parser, *CIFAR, "batch_size", "seed", "device", "detect_anomaly", batch_size=128)
    add_options(parser, "out", "keep", "log", out="runs/degradation")
    args = parser.parse_args()
    with running(parser, args):
        for depth in args.depths:
            cifar_resnet(depth)
        train_all(load_data(args), args)


if __name__ == "__main__":
    main()
