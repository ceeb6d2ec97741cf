"""Train a VGG or ResNet on photographs with its paper's recipe (Simonyan and Zisserman 2014, He et al. 2015).

    python examples/train_imagenet.py --data imagenet --model resnet50                      # ResNet recipe, batch 256
    python examples/train_imagenet.py --data imagenet --model resnet50 --micro-batch 32     # the same with less memory
    python examples/train_imagenet.py --data imagenet --model vgg-A --out runs/A            # VGG recipe
    python examples/train_imagenet.py --data imagenet --model vgg-D --init-from runs/A/checkpoint.safetensors
    python examples/train_imagenet.py --data imagenet --model vgg-D --sides 384 --lr 1e-3 --init-from FILE_OF_SIDE_256
    python examples/train_imagenet.py --data flowers --model resnet50 --variant torchvision --lr 1e-2 \\
        --init-from hf:timm/resnet50.tv_in1k                       # your own classes: only the last layer is new
    python examples/train_imagenet.py ... --out runs/A --resume                             # continue after Ctrl-C

--init-from takes the names of models/weights.py: a file, the folder of a run, hf:OWNER/NAME. Images are then normalised
as for these weights. With other numbers of classes, the last layer keeps its random weights.

--data is a folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, with any number of classes. A CPU overfits a handful
of photographs in minutes; the 1.28 million of ILSVRC-2012 need a GPU. Each epoch writes metrics.jsonl, curves.png and a
checkpoint to the --out folder. A checkpoint is also saved every 1,000 steps, and when Ctrl-C, SIGTERM or SIGHUP stops
the run (exit status 0, 143 and 129). evaluate_imagenet.py measures the error with the papers' test protocols.

mpiexec -n 4 python examples/train_imagenet.py --distributed ... trains on four processes: see common/ranks.py.
--micro-batch is for each of them. Batch-norm takes its statistics over each part, so --sync-batch-norm excludes it.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from common.errors import log
from common.evaluate import evaluating, scores_of, top_errors
from common.fit import classification_step, fit, prepare_step
from common.folder import CHECKPOINT, RunFolder
from common.imagenet import describe_files, report_broken, training_folders
from common.options import (
    FOLDER,
    PHOTOGRAPHS,
    RANKS,
    TRAINING,
    add_options,
    make_parser,
    natural,
    nonempty,
    options_of_run,
    positive,
)
from common.ranks import Ranks
from common.recipes import IMAGENET_RECIPES, Recipe
from common.run import Run, running
from models.config import IMAGENET_MODELS, TORCHVISION_MEAN, TORCHVISION_STD, NetworkConfig, check_variant
from models.vgg import start_from_a
from models.weights import find_described, read_arrays

from minidl import GradScaler, fork_rng
from minidl.data import (
    CentreView,
    DeviceLoader,
    ImageFolder,
    ImageLoader,
    ImageStatistics,
    TrainingView,
    measure_images,
)
from minidl.nn import Linear, Module
from minidl.nn.init import normal, xavier_normal
from minidl.optim import SGD, weight_decay_groups

# Initial weights of a VGG. With the paper's N(0, variance 0.01) the loss of net A starts at 4e7 and is NaN after one
# step. The paper adds that with Glorot and Bengio's initialisation the deeper nets need not start from net A.
INITIALISATIONS: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
    "glorot": xavier_normal,
    "paper": partial(normal, std=0.1),
}


def train(args: argparse.Namespace, ranks: Ranks) -> None:
    """Train the network and validate it after each epoch."""
    data, validation_data = training_folders(args)
    recipe = IMAGENET_RECIPES[args.recipe].with_options(args)
    config = make_config(data, args)
    model = make_network(config, args)
    optimizer = make_optimizer(model, recipe)
    sizes = max(256, args.size), args.size
    statistics = measure_images(data, args.statistics, *sizes, args.threads, args.skip_broken, ranks.communicator)
    config = normalised(config, statistics, args)

    view = TrainingView(tuple(args.sides), args.size, config.mean, statistics.colours, config.std)
    centre = CentreView(args.validation_side, args.size, config.mean, config.std)
    settings = {"threads": args.threads, "skip_broken": args.skip_broken}
    photographs = ImageLoader(data, args.batch_size, view, shuffle=True, seed=args.seed, **settings)
    validation_photographs = ImageLoader(validation_data, 64 * ranks.size, centre, **settings)
    loader, validation_loader = (on_device(part, args, ranks) for part in (photographs, validation_photographs))

    total_steps = recipe.steps(len(loader))
    plateau = recipe.schedule(recipe.lr, total_steps, args.patience)
    folder = open_folder(args, config, data, validation_data, ranks)
    micro_batch, scaler = args.micro_batch or args.batch_size, GradScaler(enabled=args.dtype == "float16")
    stateful = {"plateau": plateau, "scaler": scaler}
    run = Run(model, optimizer, loader, total_steps, folder, stateful=stateful, micro_batch=micro_batch, ranks=ranks)
    step = classification_step(model, optimizer, micro_batch, scaler, run.average_gradients)
    step = prepare_step(step, model, args, scaler, capture=False)

    def end_epoch() -> None:
        top1, top5 = validate(model, validation_loader, ranks)
        lr, plateau_lr = plateau.lr, plateau.report(top1)
        run.end_epoch(top1, "validation", top5_error=top5)
        if plateau_lr < lr:
            log(f"learning rate reduced from {lr:g} to {plateau_lr:g}")

    try:
        fit(run, step, plateau, end_epoch)
    finally:
        report_broken(photographs, validation_photographs, whose="" if ranks.is_alone else " of rank 0")
    print(run.summary())
    print(f"validation error of {args.model}: {run.test_error:.2%}")
    print(f"next: evaluate_imagenet.py --data {args.data} --weights {folder.checkpoint} --mode dense")


def open_folder(
    args: argparse.Namespace, config: NetworkConfig, data: ImageFolder, validation_data: ImageFolder, ranks: Ranks
) -> RunFolder:
    """The folder of the run, with what its checkpoints hold besides the network."""
    files = {"training photographs": describe_files(data), "validation photographs": describe_files(validation_data)}
    kept = {"data": files, "keep": args.keep, "log_to": args.log}
    return RunFolder(args.out, args.resume, options_of_run(args), config, **kept, writes=ranks.is_first)


def on_device(photographs: ImageLoader, args: argparse.Namespace, ranks: Ranks) -> DeviceLoader:
    """The loader of this rank's part of each batch, on its device."""
    dtype = args.dtype.replace("tf32", "float32")  # TF32 arrays are float32
    return DeviceLoader(ranks.divide(photographs), args.device, dtype)


def validate(model: Module, loader: DeviceLoader, ranks: Ranks) -> tuple[float, float]:
    """The (top-1, top-5) error on the centre crops, of which each rank tests a part."""
    ranks.share_buffers(model)
    with evaluating(model):
        scores, labels = scores_of(lambda images: model(images).to("float32").numpy(), loader)
    return top_errors(scores, labels, ranks)


# -- the network and the optimiser -------------------------------------------------------------------------------------


def make_config(folder: ImageFolder, args: argparse.Namespace) -> NetworkConfig:
    """The config of the network that the options select, without the mean of the images, which is measured later."""
    builder, arguments = IMAGENET_MODELS[args.model]
    arguments = arguments | {"num_classes": len(folder.classes)}
    if builder == "vgg":
        arguments["image_size"] = args.size
    else:
        arguments = {"shortcut": args.shortcut, "variant": args.variant} | arguments  # a plain net overrides it
    mean = np.zeros(3, np.float32)
    return NetworkConfig(
        args.model, builder, arguments, folder.names, folder.classes, args.validation_side, args.size, mean
    )


def normalised(config: NetworkConfig, statistics: ImageStatistics, args: argparse.Namespace) -> NetworkConfig:
    """The config with the mean of the images as in the paper, or with that of --init-from.

    A resumed run does not need the file of --init-from: its checkpoint has the mean.
    """
    if args.init_from is None:
        per_pixel = IMAGENET_RECIPES[args.recipe].per_pixel_mean
        return replace(config, mean=statistics.mean_image if per_pixel else statistics.mean)
    return normalised_for(Path(args.out, CHECKPOINT) if args.resume else args.init_from, config)


def normalised_for(weights: str | Path, config: NetworkConfig) -> NetworkConfig:
    """The config with the mean and std of the images that these weights expect."""
    _, theirs = find_described(weights)
    if theirs is None:  # a file without a description is assumed to come from torchvision
        return replace(config, mean=TORCHVISION_MEAN, std=TORCHVISION_STD)
    if theirs.mean.ndim == 3 and theirs.size != config.size:  # a mean for each pixel of images of another size
        return replace(config, std=theirs.std)
    return replace(config, mean=theirs.mean, std=theirs.std)


def make_network(config: NetworkConfig, args: argparse.Namespace) -> Module:
    """The network with random weights, or with those of --init-from."""
    model = config.build(seed=args.seed)
    if config.builder == "vgg":
        initialise(model, INITIALISATIONS[args.init], args.seed)
    if args.init_from is not None and not args.resume:
        start_from(model, config, args.init_from)
    return model.to(args.device)


def start_from(model: Module, config: NetworkConfig, init_from: str) -> None:
    """Load the weights of the same network or of VGG-A. With other numbers of classes the last layer stays random."""
    file, _ = find_described(init_from)
    check_variant(file, config)
    weights = read_arrays(file)
    own = model.state_dict()
    last = [name for name, layer in model.named_modules() if isinstance(layer, Linear)][-1]
    mine, theirs = own[f"{last}.weight"].shape, weights.get(f"{last}.weight", own[f"{last}.weight"]).shape
    if mine[1:] == theirs[1:] and mine[0] != theirs[0]:
        weights |= {name: own[name] for name in (f"{last}.weight", f"{last}.bias")}
        log(f"{init_from} has {theirs[0]} classes, the photographs {mine[0]}: the last layer, {last}, is new")
    try:
        if config.builder == "vgg" and own.keys() - weights.keys():  # weights of another VGG
            start_from_a(model, weights)
        else:
            model.load_state_dict(weights)
    except ValueError as error:
        raise ValueError(f"--init-from: {init_from} does not fit {config.name}: {error}") from None


def initialise(model: Module, draw: Callable[[tuple[int, ...]], np.ndarray], seed: int) -> None:
    """Draw new weights for all convolutions and linear layers; their biases stay 0."""
    with fork_rng(seed):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data[...] = draw(parameter.shape)


def make_optimizer(model: Module, recipe: Recipe) -> SGD:
    """SGD with momentum 0.9 and the weight decay of the recipe."""
    groups = weight_decay_groups(model, recipe.weight_decay)
    if recipe.decays_all:
        groups[1]["weight_decay"] = recipe.weight_decay
    return SGD(groups, recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)


# -- options -----------------------------------------------------------------------------------------------------------


def fill_in(args: argparse.Namespace) -> None:
    """Fill in the options that were not given with the values of the model's paper."""
    fill_in_network(args)
    args.recipe = args.recipe or ("vgg" if args.model.startswith("vgg") else "resnet")
    recipe = IMAGENET_RECIPES[args.recipe]
    sides = args.sides or recipe.sides
    if len(sides) > 2:
        raise ValueError(f"--sides: expected one number or two, got {' '.join(map(str, sides))}")
    if args.sync_batch_norm and args.micro_batch:
        raise ValueError("--sync-batch-norm takes statistics over the whole batch; omit it, or --micro-batch")
    args.statistics = args.statistics or f"runs/{Path(args.data).resolve().name}-{args.size}.npz"
    args.sides = [min(sides), max(sides)]
    if args.validation_side is None:  # VGG: the middle of the training range; ResNet: its minimum, 256 of 256 to 480
        args.validation_side = sum(args.sides) // 2 if args.recipe == "vgg" else args.sides[0]
    for option, side in (("--sides", args.sides[0]), ("--validation-side", args.validation_side)):
        if side < args.size:
            raise ValueError(f"{option}: expected at least {args.size}, the side of the crops (--size), got {side}")
    args.lr = recipe.lr if args.lr is None else args.lr
    args.epochs = args.epochs or recipe.epochs


def fill_in_network(args: argparse.Namespace) -> None:
    """Fill in the options of the network. Raise a ValueError for one that has no effect on it."""
    builder, arguments = IMAGENET_MODELS[args.model]
    defaults = {"init": "glorot"} if builder == "vgg" else {"shortcut": "B", "variant": "he2015"}
    for name in ("init", "shortcut", "variant"):
        given, default = getattr(args, name), None if name in arguments else defaults.get(name)
        if given and default is None:
            raise ValueError(f"--{name}: has no effect on {args.model}; omit it")
        setattr(args, name, given or default)


def main() -> None:
    """Parse the options and train."""
    parser = make_parser(__doc__)
    add_options(parser, *PHOTOGRAPHS)
    names = ", ".join(IMAGENET_MODELS)
    parser.add_argument("--model", required=True, choices=IMAGENET_MODELS, metavar="NAME", help=names)
    parser.add_argument("--recipe", choices=IMAGENET_RECIPES, help="default: the recipe of the model's paper")
    parser.add_argument("--shortcut", choices=("A", "B", "C"), help="ResNet only; default: B")
    parser.add_argument("--variant", choices=("he2015", "torchvision"), help="ResNet only: see models/resnet.py")
    parser.add_argument("--init", choices=INITIALISATIONS, help="VGG only; default: glorot")
    parser.add_argument(
        "--init-from", type=nonempty, metavar="WEIGHTS", help="initial weights: a file or a name, see above"
    )
    parser.add_argument("--sides", type=positive, nargs="+", metavar="S", help="shorter side: one number or a range")
    where = "shorter side for validation; default: the middle of --sides for VGG, the minimum for ResNet"
    parser.add_argument("--validation-side", type=positive, metavar="Q", help=where)
    parser.add_argument("--size", type=positive, default=224, metavar="N", help="side of the crops; default: 224")
    parser.add_argument("--micro-batch", type=positive, metavar="N", help="split each batch into parts of N images")
    when = "epochs without a new best error before the learning rate is divided by 10; default: 5"
    parser.add_argument("--patience", type=natural, default=5, metavar="N", help=when)
    where = "cache of mean and colours; default: runs/NAME-SIZE.npz, with the name of the folder --data"
    parser.add_argument("--statistics", type=nonempty, metavar="FILE", help=where)
    add_options(parser, *TRAINING, *FOLDER, *RANKS, "dtype", "lr", out="runs/imagenet", batch_size=256)
    args = parser.parse_args()
    with running(parser, args) as ranks:
        fill_in(args)
        train(args, ranks)


if __name__ == "__main__":
    main()
