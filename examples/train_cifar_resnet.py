"""Train a ResNet on 32x32 images (He et al. 2015, section 4.2).

    python examples/train_cifar_resnet.py --epochs 4                                        shapes, no download
    python examples/train_cifar_resnet.py --dataset cifar10                                 ResNet-20, 10 epochs
    python examples/train_cifar_resnet.py --dataset cifar10 --recipe paper                  the paper's recipe
    python examples/train_cifar_resnet.py --dataset cifar10 --device cuda --dtype bfloat16  mixed precision on a GPU
    python examples/train_cifar_resnet.py --dataset cifar10 --depth 56 --shortcut none      a plain network
    python examples/train_cifar_resnet.py --dataset cifar10 --depth 1202 --recompute        1 GiB instead of 11
    python examples/train_cifar_resnet.py --out runs/resnet20 --resume                      continue after Ctrl-C

Test accuracy and time on two CPU cores: 96 % on the shapes (4 epochs, 2 minutes) and 87 % on CIFAR-10 (the one-cycle
recipe's 10 epochs, half an hour). Each epoch writes metrics.jsonl, curves.png and a checkpoint to the --out folder.
Ctrl-C, SIGTERM and SIGHUP save a checkpoint and stop, with exit status 0, 143 and 129.
"""

import argparse

from common.cifar import load_data
from common.evaluate import error_rate
from common.folder import RunFolder
from common.options import CIFAR, FOLDER, TRAINING, add_options, make_parser, options_of_run
from common.recipes import CIFAR_RECIPES, PAPER_ERROR, WARMUP_DEPTH, WarmUp
from common.run import Run, running

from minidl import GradScaler, cuda_graph
from minidl.functional import cross_entropy
from minidl.optim import SGD


def train(args: argparse.Namespace) -> None:
    """Train the network and compare its error with the paper's."""
    data, recipe = load_data(args), CIFAR_RECIPES[args.recipe].with_options(args)
    loader, test_loader = data.train_loader(args.batch_size, args.seed), data.test_loader()
    total_steps = recipe.steps(len(loader))

    name = f"{'plain' if args.shortcut == 'none' else 'resnet'}{args.depth}"
    config = data.config(name, "cifar_resnet", depth=args.depth, shortcut=args.shortcut)
    model = config.build(seed=args.seed, recompute=args.recompute).to(args.device)

    warming_up = args.recipe == "paper" and args.depth >= WARMUP_DEPTH
    schedule = WarmUp(recipe.schedule(recipe.lr, total_steps), warming_up)
    optimizer = SGD(model.parameters(), recipe.lr, 0.9, recipe.weight_decay, nesterov=recipe.nesterov)
    scaler = GradScaler(enabled=args.dtype == "float16")

    def step(images, labels):
        logits = model(images)
        loss = cross_entropy(logits, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        optimizer.zero_grad()
        return loss, (logits.argmax(dim=1) != labels).sum()

    if args.device != "cpu" and not scaler.enabled:  # which reads a number in each step
        step = cuda_graph(step)  # one launch for the whole step
    folder = RunFolder(args.out, args.resume, options_of_run(args), config, args.log)
    with Run(model, optimizer, loader, total_steps, folder, stateful={"warm_up": schedule, "scaler": scaler}) as run:
        for images, labels in run.batches():  # already augmented and on the device
            optimizer.lr = schedule(run.step)
            run.log(*step(images, labels))
            if run.epoch_ended:
                schedule.report(run.train_error)
                run.end_epoch(error_rate(model, test_loader), data.split)

    print(run.summary())
    print(f"{data.split} error of {name} on {args.dataset}: {run.test_error:.2%}")
    if args.dataset == "cifar10" and args.shortcut == "A" and args.depth in PAPER_ERROR:
        print(f"test error in the paper, after 64,000 iterations: {PAPER_ERROR[args.depth]} %")


def main() -> None:
    """Parse the options and train."""
    parser = make_parser(__doc__)
    add_options(parser, "depth", "shortcut", "recompute")
    parser.add_argument("--recipe", choices=CIFAR_RECIPES, default="fast", help="default: fast")
    add_options(parser, *CIFAR, *TRAINING, *FOLDER, "dtype", "lr", "weight_decay", out="runs/latest", batch_size=128)
    args = parser.parse_args()
    with running(parser, args):
        train(args)


if __name__ == "__main__":
    main()
