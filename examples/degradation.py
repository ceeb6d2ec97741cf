"""Plain networks get worse with depth, residual ones do not: figures 4, 6 and 7 of He et al. 2015, on one machine.

    python examples/degradation.py --depths 20 56 --budget 1h                   shapes: no download
    python examples/degradation.py --dataset cifar10 --budget 64000             as in the paper: days on a CPU
    python examples/degradation.py --out runs/degradation                       after Ctrl-C: the same command goes on

Each depth is trained twice, as a plain and as a residual network (option A), with the paper's recipe. DIR of --out gets
degradation.png and a folder for each network; networks that are not finished yet are drawn as far as they are.

    error         training dashed, test solid, over the iterations (figures 4 and 6)
    responses     the standard deviation of each 3x3 layer's output, after batch-norm, before ReLU and sum (figure 7)
    gradients     |dL/dweight| of each 3x3 layer, at initialisation (dotted) and at the last measurement (solid)
"""

import argparse
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
from cifar_data import CifarData, add_data_options, load_data, positive
from models.resnet import CifarResNet, cifar_resnet
from tqdm import tqdm
from train_cifar_resnet import WARMUP_DEPTH, WARMUP_ERROR, WARMUP_LR, divide_twice, train_step
from training import Counter, RunFolder, StopRequest, Totals, check_loss, error_rate

from minidl import Tensor, no_grad
from minidl.checkpoint import load_checkpoint
from minidl.data import IndexLoader
from minidl.files import write_whole
from minidl.functional import cross_entropy, relu
from minidl.optim import SGD

KINDS = {"plain": "none", "residual": "A"}  # the kind's shortcut
MEASUREMENTS = 10  # of a run: its points in the figure
PROBES = 128  # test images that responses and gradients are measured on, the paper's batch
SPEED_STEPS = 3  # that tell how many iterations a budget of seconds buys; the first one is slower and does not count
UNITS = {"s": 1, "min": 60, "h": 3600}


def probe_batch(data: CifarData) -> tuple[Tensor, np.ndarray]:
    """The same test images for all networks, and their labels."""
    batch = next(iter(IndexLoader(data.test, min(PROBES, len(data.test)), data.prepare)))
    chosen, labels, *draws = batch
    return Tensor(data.prepare.apply(data.test.images, chosen, *draws)), labels


def responses(model: CifarResNet, images: Tensor) -> tuple[list[float], Tensor]:
    """The standard deviation of each 3x3 layer's output, after batch-norm and before ReLU and sum; and the logits.

    The forward pass of the network, step by step, as a block fuses what is to be seen here.
    """
    deviations = []

    def note(y: Tensor) -> Tensor:
        deviations.append(float(y.numpy().std()))
        return y

    model.eval()
    with no_grad():
        x = relu(note(model.bn1(model.conv1(images))))
        for block in (*model.layer1.modules, *model.layer2.modules, *model.layer3.modules):
            y = relu(note(block.bn1(block.conv1(x))))
            y = note(block.bn2(block.conv2(y)))
            around = block.shortcut(x)
            x = relu(y if around is None else y + around)
        logits = model.fc(model.avgpool(x))
    model.train()
    return deviations, logits


def gradient_norms(model: CifarResNet, images: Tensor, labels: np.ndarray) -> list[float]:
    """|dL/dweight| of each 3x3 layer in training mode. The model stays as it was, running statistics included."""
    before = model.state_dict()
    cross_entropy(model(images), labels).backward()
    weights = [parameter for _, parameter in model.named_parameters() if parameter.ndim == 4]
    norms = [float(np.linalg.norm(weight.grad.numpy())) for weight in weights]
    model.zero_grad()
    model.load_state_dict(before)
    return norms


def make_network(kind: str, depth: int, data: CifarData, args: argparse.Namespace) -> CifarResNet:
    """As it is before training."""
    return cifar_resnet(depth, KINDS[kind], len(data.train.classes), args.seed)


def train(kind: str, depth: int, data: CifarData, args: argparse.Namespace, iterations: int, stop: StopRequest) -> None:
    """Train one network to the end or until it is asked to stop, from where its folder says it is."""
    path = Path(args.out, f"{kind}-{depth}")
    folder = RunFolder(path, resume=(path / "checkpoint.safetensors").exists())
    model = make_network(kind, depth, data, args)
    optimizer = SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    loader = IndexLoader(data.train, args.batch_size, data.augment, shuffle=True, seed=args.seed)
    options = {"iterations": iterations, **{name: getattr(args, name) for name in ("dataset", "batch_size", "seed")}}
    done = {"step": 0, "warming_up": depth >= WARMUP_DEPTH, "totals": vars(Totals()), "loader": loader.state_dict()}
    if folder.checkpoint.exists():
        done = folder.load(model, optimizer, options)
        loader.load_state_dict(done["loader"])
        folder.forget_after(done["step"])
    schedule, counter, probes = divide_twice(0.1, iterations), Counter("cpu"), probe_batch(data)
    counter.start_from(Totals(**done["totals"]))
    measured_at = {round(iterations * (i + 1) / MEASUREMENTS) for i in range(MEASUREMENTS)}
    step = partial(train_step, model, optimizer, data, counter)

    def save() -> None:
        counters = done | {"totals": vars(counter.read()), "loader": loader.state_dict(), "options": options}
        folder.save(model, optimizer, counters)

    with tqdm(desc=path.name, total=iterations, initial=done["step"], unit=" steps", dynamic_ncols=True) as bar:
        while done["step"] < iterations and not stop.asked:
            for batch in loader:
                optimizer.lr = WARMUP_LR if done["warming_up"] else schedule(done["step"])
                step(batch)
                done["step"] += 1
                bar.update()
                if done["step"] in measured_at:
                    measure(model, data, probes, counter, done, folder)
                    save()
                if stop.asked or done["step"] == iterations:
                    break
    save()


def measure(
    model: CifarResNet, data: CifarData, probes: tuple, counter: Counter, done: dict, folder: RunFolder
) -> None:
    """Add a line to the metrics, and count anew."""
    totals = counter.read()
    check_loss(totals.loss, done["step"], done["step"], folder)
    record = {"step": done["step"], "train_error": totals.error, "test_error": error_rate(model, data)}
    folder.append(record | {"split": data.test_split, "gradients": gradient_norms(model, *probes)})
    done["warming_up"] = done["warming_up"] and totals.error >= WARMUP_ERROR
    counter.start_from(Totals())


# -- the budget --------------------------------------------------------------------------------------------------------


def budget(text: str) -> tuple[int, str]:
    """The type of --budget: a number, and '' for iterations of each network or the unit of time for all of them."""
    found = re.fullmatch(r"(\d+)(s|min|h|)", text)
    if not found or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"expected iterations or a time, as 64000, 600s, 30min or 2h, got {text}")
    return int(found[1]), found[2]


def count_iterations(data: CifarData, args: argparse.Namespace) -> int:
    """Of each network. What a time bought is written down, so that a resumed run has the same."""
    number, unit = args.budget
    if not unit:
        return number
    note = Path(args.out, "iterations.txt")
    if not note.exists():
        step, measurement = seconds_of_a_layer(data, args)
        share = number * UNITS[unit] / (len(KINDS) * sum(args.depths))
        iterations = int((share - MEASUREMENTS * measurement) / step)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, str(max(iterations, 1)).encode())
    return int(note.read_text())


def seconds_of_a_layer(data: CifarData, args: argparse.Namespace) -> tuple[float, float]:
    """In a step of training, and in a measurement of the error. Both are nearly proportional to the depth."""
    depth = min(args.depths)
    model, seconds = make_network("plain", depth, data, args), []
    step = partial(train_step, model, SGD(model.parameters(), lr=0.0), data, Counter("cpu"))
    for batch, _ in zip(IndexLoader(data.train, args.batch_size, data.augment), range(SPEED_STEPS), strict=False):
        start = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    error_rate(model, data)
    return min(seconds) / depth, (time.perf_counter() - start) / depth


# -- the figure --------------------------------------------------------------------------------------------------------


def draw(data: CifarData, args: argparse.Namespace, iterations: int) -> None:
    """DIR/degradation.png: a column for each kind, a line for each depth that has been measured."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(3, len(KINDS), figsize=(11, 11), dpi=100, sharey="row")
    probes = probe_batch(data)
    for column, kind in zip(axes.T, KINDS, strict=True):
        column[0].set(title=f"{kind} networks", xlabel="iterations", ylabel="error (%)")
        column[1].set(xlabel="layer", ylabel="standard deviation of the response")
        column[2].set(xlabel="layer", ylabel="norm of the gradient", yscale="log")
        for number, depth in enumerate(args.depths):
            path = Path(args.out, f"{kind}-{depth}")
            if (path / "metrics.jsonl").exists():
                folder = RunFolder(path, resume=True)
                draw_network(column, make_network(kind, depth, data, args), folder, probes, f"C{number}", depth)
        for panel in column:
            panel.grid(alpha=0.3)
    if axes[0, 0].lines:
        axes[0, 0].legend()
    number, unit = args.budget
    budget = f"the budget: {number} {unit} for all" if unit else "the budget"
    caption = f"{args.dataset}, {iterations:,} iterations of {args.batch_size} images for each network ({budget}; "
    figure.text(0.5, 0.01, f"{caption}the paper: CIFAR-10, 64,000 of 128)", ha="center", fontsize=9)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(Path(args.out, "degradation.png"))
    pyplot.close(figure)


def draw_network(column, model: CifarResNet, folder: RunFolder, probes: tuple, color: str, depth: int) -> None:
    """One network's lines in the three panels of its kind."""
    records = folder.records()
    steps = [record["step"] for record in records]
    column[0].plot(steps, [100 * record["train_error"] for record in records], "--", color=color)
    column[0].plot(steps, [100 * record["test_error"] for record in records], color=color, label=f"{depth} layers")
    column[2].plot(gradient_norms(model, *probes), ":", color=color)
    column[2].plot(records[-1]["gradients"], color=color)
    load_checkpoint(folder.checkpoint, model)
    column[1].plot(responses(model, probes[0])[0], color=color)


def main() -> None:
    """Train what is not trained yet, and draw all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 44, 56, 110], metavar="DEPTH")
    parser.add_argument("--budget", type=budget, default="1h", help="iterations of each network, or a time for all")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="default: 128")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation; default: 0")
    parser.add_argument("--out", default="runs/degradation", metavar="DIR", help="default: runs/degradation")
    add_data_options(parser)
    args = parser.parse_args()
    try:
        for depth in args.depths:
            cifar_resnet(depth)
        data = load_data(args)
    except (ValueError, RuntimeError, OSError) as problem:
        parser.error(str(problem))
    iterations = count_iterations(data, args)
    with StopRequest() as stop:
        for depth in args.depths:
            for kind in KINDS:
                if not stop.asked:
                    train(kind, depth, data, args, iterations, stop)
    draw(data, args, iterations)
    print("stopped; nothing is lost: the same command goes on" if stop.asked else f"{args.out}/degradation.png")


if __name__ == "__main__":
    main()
