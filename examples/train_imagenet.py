"""Train VGG or ResNet on photographs, as in their papers (Simonyan and Zisserman 2014, He et al. 2015).

    python examples/train_imagenet.py --data imagenet --model resnet50                        He's recipe, batch 256
    python examples/train_imagenet.py --data imagenet --model resnet50 --micro-batch 32       the same in less memory
    python examples/train_imagenet.py --data imagenet --model vgg-A --out runs/A              Simonyan's recipe
    python examples/train_imagenet.py --data imagenet --model vgg-D --init-from runs/A/checkpoint.safetensors
    python examples/train_imagenet.py --data imagenet --model vgg-D --sides 384 --lr 1e-3 --init-from FILE_OF_SIDE_256
    python examples/train_imagenet.py ... --out runs/A --resume                               go on after Ctrl-C

`--data DIR` holds train/<wnid>/*.JPEG and val/<wnid>/*.JPEG. Any number of classes will do: a handful of photographs is
learnt by heart in minutes on a CPU; the 1.28 million of ILSVRC-2012 are for a GPU. DIR of --out gets metrics.jsonl,
curves.png and a checkpoint after each epoch, every 1,000 steps, and when Ctrl-C, SIGTERM or SIGHUP stops the run; the
status is 143 after SIGTERM and 129 after SIGHUP. `evaluate_imagenet.py` tests it as the papers do.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
from cifar_data import positive, rate, whole
from imagenet_data import (
    TRAINING_LAYOUT,
    add_data_options,
    count_broken,
    scores_of,
    to_input,
    top_errors,
    training_folders,
)
from models.config import IMAGENET_MODELS, NetworkConfig, check_variant
from models.vgg import start_from_a
from train_cifar_resnet import DTYPES, look, progress_bar
from training import (
    Counter,
    RunFolder,
    StopRequest,
    Totals,
    check_dtype,
    clock,
    computing,
    locked,
    one_line_errors,
    tell,
)

from minidl import fork_rng, no_grad
from minidl.data import (
    BrokenImageError,
    CentreView,
    DeviceLoader,
    ImageFolder,
    ImageLoader,
    ImageStatistics,
    TrainingView,
    measure_images,
)
from minidl.functional import cross_entropy
from minidl.nn import Module
from minidl.nn.init import normal, xavier_normal
from minidl.optim import SGD, ReduceLROnPlateau
from minidl.training.checkpoint import read_checkpoint


@dataclass(frozen=True)
class Recipe:
    """How a paper trained.

    Attributes:
        lr: to begin with; it is divided by 10 whenever the validation error stops falling.
        falls: how often at most, or None.
        weight_decay: of the weights, and, if `decays_all`, of biases and batch-norm too.
        epochs: 370,000 and 600,000 iterations of 256 images, from 1.28 million.
        sides: a photograph's shorter side is drawn between these, in pixels, before it is cropped.
        per_pixel_mean: what is subtracted: the mean of each pixel, or that of red, green and blue.
    """

    lr: float
    falls: int | None
    weight_decay: float
    decays_all: bool
    epochs: int
    sides: tuple[int, int]
    per_pixel_mean: bool


RECIPES = {
    "vgg": Recipe(  # section 3.1
        lr=0.01,
        falls=3,
        weight_decay=5e-4,
        decays_all=False,
        epochs=74,
        sides=(256, 256),
        per_pixel_mean=False,
    ),
    "resnet": Recipe(  # section 3.4
        lr=0.1,
        falls=None,
        weight_decay=1e-4,
        decays_all=True,
        epochs=120,
        sides=(256, 480),
        per_pixel_mean=True,
    ),
}

# The weights of a VGG before training. The paper says N(0, variance 10^-2): the loss of net A starts at 4e7, and is NaN
# after one step. The paper adds that with Glorot and Bengio's initialisation no deeper net needs net A.
INITIALISATIONS: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
    "glorot": xavier_normal,
    "paper": partial(normal, std=0.1),
}

# What --resume may change: where things are, and how they are computed.
NO_MATTER = {"data", "names", "statistics", "init_from", "out", "resume"}
NO_MATTER |= {"skip_broken", "threads", "micro_batch", "device", "dtype"}

LOOK_EVERY = {"cpu": 1, "cuda": 20}  # steps between the host's looks at the loss, for which a GPU waits
SAVE_EVERY = 1000  # steps


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0
    totals: Totals = field(default_factory=Totals)  # of the epoch in progress


@dataclass
class Run:
    """All that a checkpoint keeps of a run, and where it is kept."""

    model: Module
    optimizer: SGD
    plateau: ReduceLROnPlateau
    loader: ImageLoader
    counter: Counter
    folder: RunFolder
    options: dict
    progress: Progress

    def save(self, record: dict | None = None) -> None:
        """Write the checkpoint and, at the end of an epoch, its record."""
        counters = {"progress": asdict(self.progress), "loader": self.loader.state_dict()}
        counters |= {"plateau": self.plateau.state_dict(), "options": self.options}
        self.folder.save(self.model, self.optimizer, counters, record)

    def resume(self) -> None:
        """Go on from the checkpoint."""
        with self.folder.resuming():
            counters = self.folder.load(self.model, self.optimizer, self.options)
            classes = counters["network"]["classes"]
            self.loader.load_state_dict(counters["loader"])
            self.plateau.load_state_dict(counters["plateau"])
            progress = counters["progress"]
            self.progress = Progress(**progress | {"totals": Totals(**progress["totals"])})
            self.folder.forget_after(self.progress.step)
        if classes != list(self.folder.config.classes):
            raise ValueError(
                "--resume: --data has other classes than the run began with; give the same, or another --out"
            )


def train(run: Run, validation: ImageLoader, stop: StopRequest, args: argparse.Namespace) -> bool:
    """Train to the end, with a checkpoint and a line of metrics after each epoch; False if it was asked to stop."""
    progress, counter = run.progress, run.counter
    total_steps = args.iterations or args.epochs * len(run.loader)
    started = time.perf_counter() - progress.seconds
    with progress_bar(progress.step, total_steps) as bar:
        while progress.step < total_steps and not stop.asked:
            run.optimizer.lr = run.plateau.lr
            counter.start_from(progress.totals)
            for images, labels in DeviceLoader(run.loader, args.device):
                train_step(run.model, run.optimizer, images, labels, counter, args)
                progress.step += 1
                epoch_ends = run.loader.state_dict()["batch"] == 0 or progress.step == total_steps
                stops = epoch_ends or stop.asked  # asked once: Ctrl-C may also come between here and the break
                saves = stops or progress.step % SAVE_EVERY == 0
                if saves or progress.step % LOOK_EVERY[args.device] == 0:
                    look(counter, progress, bar, run.folder, args.batch_size)
                    progress.seconds = round(time.perf_counter() - started, 2)
                if saves and not epoch_ends:
                    run.save()
                if stops:
                    break
            if epoch_ends:
                end_epoch(run, validation, args)
    return progress.step == total_steps


def train_step(model: Module, optimizer: SGD, images, labels, counter: Counter, args: argparse.Namespace) -> None:
    """One step of gradient descent, in parts of at most --micro-batch images, whose gradients add up.

    The loss of the batch is the mean over its images, so each part counts by its share of them. Batch-norm takes its
    statistics of each part, as in the papers, where each GPU had one.
    """
    for start in range(0, len(labels), args.micro_batch):
        part = slice(start, start + args.micro_batch)
        logits = model(to_input(images[part], args))
        loss = cross_entropy(logits, labels[part])
        (loss * (len(labels[part]) / len(labels))).backward()
        counter.add(len(labels[part]), loss.detach(), (logits.argmax(dim=1).data != labels[part]).sum())
    optimizer.step()
    optimizer.zero_grad()


def end_epoch(run: Run, validation: ImageLoader, args: argparse.Namespace) -> None:
    """Validate, lower the learning rate when that error falls no more, note it all, and count anew."""
    top1, top5 = validate(run.model, validation, args)
    progress, lr = run.progress, run.plateau.lr
    epoch = -(-progress.step // len(run.loader))
    record = {"epoch": epoch, "step": progress.step, "lr": lr, "train_loss": progress.totals.loss}
    record |= {"train_error": progress.totals.error, "test_error": top1, "top5_error": top5}
    record |= {"split": "validation", "seconds": progress.seconds}
    tell(
        f"epoch {epoch:3d}   lr {lr:g}   training error {progress.totals.error:6.2%}   "
        f"validation error {top1:6.2%}, top-5 {top5:6.2%}"
    )
    run.plateau.report(top1)
    progress.totals = Totals()
    run.save(record)


def validate(model: Module, loader: ImageLoader, args: argparse.Namespace) -> tuple[float, float]:
    """(top-1, top-5) error on the centre crops."""

    def compute(images) -> np.ndarray:
        return model(to_input(images, args)).to("float32").numpy()

    model.eval()
    with no_grad():
        scores, labels = scores_of(compute, DeviceLoader(loader, args.device))
    model.train()
    return top_errors(scores, labels)


# -- what a run is made of ---------------------------------------------------------------------------------------------


def make_config(folder: ImageFolder, statistics: ImageStatistics, args: argparse.Namespace) -> NetworkConfig:
    """Of the network that the options ask for."""
    builder, arguments = IMAGENET_MODELS[args.model]
    arguments = arguments | {"num_classes": len(folder.classes)}
    if builder == "vgg":
        arguments["image_size"] = args.size
    else:
        arguments = {"shortcut": args.shortcut, "variant": args.variant} | arguments  # a plain net has its own
    mean = statistics.mean_image if RECIPES[args.recipe].per_pixel_mean else statistics.mean
    return NetworkConfig(
        args.model, builder, arguments, folder.names, folder.classes, args.validation_side, args.size, mean
    )


def make_network(config: NetworkConfig, args: argparse.Namespace) -> Module:
    """Before training: random, or with the weights of --init-from where these fit."""
    model = config.build(seed=args.seed)
    if config.builder == "vgg":
        initialise(model, INITIALISATIONS[args.init], args.seed)
    if args.init_from:
        check_variant(args.init_from, config)
        arrays, _ = read_checkpoint(args.init_from)
        weights = {name: array for name, array in arrays.items() if "/" not in name}
        if config.builder == "vgg" and model.state_dict().keys() - weights.keys():  # it is another VGG
            start_from_a(model, weights)
        else:
            model.load_state_dict(weights)
    return model.to(args.device)


def make_optimizer(model: Module, recipe: Recipe, args: argparse.Namespace) -> SGD:
    """Momentum 0.9, and the paper's weight decay."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": recipe.weight_decay * recipe.decays_all}]
    return SGD(groups, args.lr, momentum=0.9, weight_decay=recipe.weight_decay)


def initialise(model: Module, draw: Callable[[tuple[int, ...]], np.ndarray], seed: int) -> None:
    """Draw the weights of all convolutions and linear layers anew; biases are 0."""
    with fork_rng(seed):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data[...] = draw(parameter.shape)


def make_run(data: ImageFolder, args: argparse.Namespace) -> Run:
    """A run before its first step, or where --resume goes on."""
    recipe, folder = RECIPES[args.recipe], RunFolder(args.out, args.resume)
    statistics = measure_images(data, args.statistics, max(256, args.size), args.size, args.threads, args.skip_broken)
    folder.config = config = make_config(data, statistics, args)
    model = make_network(config, args)
    view = TrainingView(tuple(args.sides), args.size, config.mean, statistics.colours)
    loader = ImageLoader(
        data, args.batch_size, view, True, args.seed, threads=args.threads, skip_broken=args.skip_broken
    )
    min_lr = 0.0 if recipe.falls is None else args.lr * 0.1**recipe.falls
    plateau = ReduceLROnPlateau(args.lr, patience=args.patience, min_lr=min_lr)
    options = {name: value for name, value in vars(args).items() if name not in NO_MATTER}
    run = Run(
        model, make_optimizer(model, recipe, args), plateau, loader, Counter(args.device), folder, options, Progress()
    )
    if args.resume:
        run.resume()
    return run


def add_options(parser: argparse.ArgumentParser) -> None:
    """All options; what depends on the recipe is filled in by `fill_in`."""
    add_data_options(parser, TRAINING_LAYOUT)
    parser.add_argument(
        "--model", required=True, choices=IMAGENET_MODELS, metavar="NAME", help=", ".join(IMAGENET_MODELS)
    )
    parser.add_argument("--recipe", choices=RECIPES, help="default: the one of the model's paper")
    parser.add_argument("--shortcut", choices=("A", "B", "C"), default="B", help="of a ResNet; default: B")
    parser.add_argument("--variant", choices=("he2015", "torchvision"), default="he2015", help="see models/resnet.py")
    parser.add_argument("--init", choices=INITIALISATIONS, default="glorot", help="of a VGG; default: glorot")
    parser.add_argument("--init-from", metavar="FILE", help="weights to begin with: the same network's, or VGG-A's")
    parser.add_argument("--sides", type=positive, nargs="+", metavar="S", help="shorter side, or its least and largest")
    parser.add_argument(
        "--validation-side",
        type=positive,
        metavar="Q",
        help="the shorter side when validating; default: the middle of --sides for VGG, the least for ResNet",
    )
    parser.add_argument("--size", type=positive, default=224, metavar="N", help="of the crops; default: 224")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive, metavar="N", help="default: the recipe's")
    length.add_argument("--iterations", type=positive, metavar="N")
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N", help="default: 256")
    parser.add_argument("--micro-batch", type=positive, metavar="N", help="images at a time; default: all of the batch")
    parser.add_argument("--lr", type=rate, help="default: the recipe's")
    parser.add_argument(
        "--patience",
        type=int,
        default=5,
        metavar="N",
        help="epochs without a new best error before lr falls; default: 5",
    )
    parser.add_argument("--seed", type=whole, default=0, help="of weights, order and views; default: 0")
    parser.add_argument("--statistics", default="runs/imagenet.npz", metavar="FILE", help="keeps the mean and colours")
    parser.add_argument("--out", default="runs/imagenet", metavar="DIR", help="default: runs/imagenet")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="all but float32 need cuda")


def fill_in(args: argparse.Namespace) -> None:
    """What the options leave open is as in the paper."""
    args.recipe = args.recipe or ("vgg" if args.model.startswith("vgg") else "resnet")
    recipe = RECIPES[args.recipe]
    sides = args.sides or recipe.sides
    if len(sides) > 2:
        raise ValueError(f"--sides: expected one number or two, got {' '.join(map(str, sides))}")
    if args.patience < 0:
        raise ValueError(f"--patience: expected 0 or more, got {args.patience}")
    args.sides = [min(sides), max(sides)]
    if args.validation_side is None:  # VGG: the middle of the range that was trained on; ResNet: 256 of 256 to 480
        args.validation_side = sum(args.sides) // 2 if args.recipe == "vgg" else args.sides[0]
    args.lr = recipe.lr if args.lr is None else args.lr
    args.epochs = args.epochs or recipe.epochs
    args.micro_batch = args.micro_batch or args.batch_size


def main() -> None:
    """Read the options, build the network, train it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    args = parser.parse_args()
    with locked(args.out):
        with one_line_errors(parser):
            fill_in(args)
            check_dtype(args)
            data, validation_data = training_folders(args)
            run = make_run(data, args)
            view = CentreView(args.validation_side, args.size, run.folder.config.mean)
            validation = ImageLoader(validation_data, 64, view, threads=args.threads, skip_broken=args.skip_broken)
        with one_line_errors(), computing(args, args.micro_batch, "--micro-batch"), StopRequest() as stop:
            try:
                finished = train(run, validation, stop, args)
            except BrokenImageError as problem:
                raise ValueError(f"{problem}, which --skip-broken does") from None
    count_broken(run.loader, validation)
    if not finished:
        stop.end(f"stopped after step {run.progress.step:,}; nothing is lost: the same command with --resume goes on")
        return
    if run.folder.records:  # somebody may have removed the metrics of a run that was over
        last = run.folder.records[-1]
        errors = f"{last['test_error']:.2%}, top-5 {last['top5_error']:.2%}"
        print(f"validation error of {args.model}: {errors}, after {clock(last['seconds'])}")
    print(f"now: evaluate_imagenet.py --data {args.data} --weights {run.folder.checkpoint} --mode dense")


if __name__ == "__main__":
    main()
