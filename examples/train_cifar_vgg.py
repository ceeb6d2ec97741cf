"""Train a VGG (Simonyan and Zisserman 2014) on 32x32 images. train_cifar_resnet.py spells out the training loop.

    python examples/train_cifar_vgg.py --config A --epochs 4                    # shapes, no download
    python examples/train_cifar_vgg.py --dataset cifar10 --config D             # VGG-16 with batch-norm, 10 epochs

The paper reports no CIFAR results. This version has one fully connected layer instead of three, and batch-norm, which
is newer than VGG. Without it (--no-batch-norm) a VGG of 16 layers barely starts to learn.
"""

import argparse

from common.cifar import load_data
from common.evaluate import error_rate
from common.fit import classification_step, fit, prepare_step
from common.folder import RunFolder
from common.options import CIFAR, FOLDER, TRAINING, add_options, make_parser, options_of_run
from common.recipes import CIFAR_RECIPES
from common.run import Run, running
from models.vgg import CONFIGS

from minidl import GradScaler
from minidl.optim import SGD


def train(args: argparse.Namespace) -> None:
    """Train the network and print its error."""
    data, recipe = load_data(args), CIFAR_RECIPES[args.recipe].with_options(args)
    loader, test_loader = data.train_loader(args.batch_size, args.seed), data.test_loader()
    total_steps = recipe.steps(len(loader))

    options = {"config": args.config, "batch_norm": args.batch_norm, "image_size": 32}
    config = data.config(f"vgg-{args.config}", "vgg", **options)
    model = config.build(seed=args.seed).to(args.device)
    optimizer = SGD(model.parameters(), recipe.lr, 0.9, recipe.weight_decay, nesterov=recipe.nesterov)
    scaler = GradScaler(enabled=args.dtype == "float16")
    step = classification_step(model, optimizer, scaler=scaler)

    folder = RunFolder(
        args.out, args.resume, options_of_run(args), config, data=data.fingerprint(), keep=args.keep, log_to=args.log
    )
    run = Run(model, optimizer, loader, total_steps, folder, stateful={"scaler": scaler})
    fit(
        run,
        prepare_step(step, model, args, scaler),
        recipe.schedule(recipe.lr, total_steps),
        lambda: run.end_epoch(error_rate(model, test_loader), data.split),
    )
    print(run.summary())
    print(f"{data.split} error of VGG-{args.config} on {args.dataset}: {run.test_error:.2%}")


def main() -> None:
    """Parse the options and train."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", choices=CONFIGS, default="D", help="column of table 1 in the paper; default: D")
    parser.add_argument("--batch-norm", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--recipe", choices=CIFAR_RECIPES, default="fast", help="default: fast")
    defaults = {"out": "runs/latest", "batch_size": 128, "lr": 0.05}
    add_options(parser, *CIFAR, *TRAINING, *FOLDER, "dtype", "lr", "weight_decay", **defaults)
    args = parser.parse_args()
    with running(parser, args):
        train(args)


if __name__ == "__main__":
    main()
