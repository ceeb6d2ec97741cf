"""Train a ResNet on 32x32 images (He et al. 2015, section 4.2), or one of the networks that followed it.

    python examples/train_cifar_resnet.py --epochs 4                                        # shapes, no download
    python examples/train_cifar_resnet.py --dataset cifar10                                 # ResNet-20, 10 epochs
    python examples/train_cifar_resnet.py --dataset cifar10 --recipe paper                  # the paper's recipe
    python examples/train_cifar_resnet.py --dataset cifar10 --device cuda --dtype bfloat16  # mixed precision on a GPU
    python examples/train_cifar_resnet.py --dataset cifar10 --depth 56 --shortcut none      # a plain network
    python examples/train_cifar_resnet.py --dataset cifar10 --depth 1202 --recompute        # 1 GiB instead of 11
    python examples/train_cifar_resnet.py --out runs/resnet20 --resume                      # continue after Ctrl-C
    python examples/train_cifar_resnet.py --dataset cifar10 --model wrn-16-8 --cutout 16 --mixup 1 --ema 0.999

Test accuracy and time on two CPU cores: 96 % on the shapes (4 epochs, 2 minutes) and 87 % on CIFAR-10 (the one-cycle
recipe's 10 epochs, 24 minutes). Each epoch writes metrics.jsonl, curves.png and a checkpoint to the --out folder.
Ctrl-C, SIGTERM and SIGHUP save a checkpoint and stop, with exit status 0, 143 and 129.

--model NAME is a network of models/resnet_variants.py, such as preact-110 or wrn-28-10. With D the depth, W the width,
there are resnet-D, plain-D, preact-D, wrn-D-W, stochastic-D, se-resnet-D, se-preact-D, se-wrn-D-W, and the shortcuts of
He et al. 2016: original-D, constant-scaling-D, exclusive-gating-D, shortcut-only-gating-D, conv-shortcut-D,
dropout-shortcut-D.
mpiexec -n 4 python examples/train_cifar_resnet.py --distributed ... trains on four processes: see common/ranks.py.
--ema tests a moving average of the network. checkpoint.safetensors has both, for --resume, and average.safetensors the
average alone, for other scripts. best.safetensors is the tested network with the lowest error. It was chosen with the
test images, so that error is too low as an estimate; with --holdout it is chosen with other images.
With --mixup the training error is that of the mixed images.
"""

import argparse

from common.average import MovingAverage
from common.cifar import CifarData, load_data, network_of
from common.evaluate import error_rate
from common.fit import prepare_step
from common.folder import RunFolder
from common.mixup import mixup_loss
from common.options import CIFAR, FOLDER, RANKS, REGULARISATION, TRAINING, add_options, make_parser, options_of_run
from common.ranks import Ranks
from common.recipes import CIFAR_RECIPES, WARMUP_DEPTH, WarmUp, published_error
from common.run import Run, running
from models.config import NetworkConfig

from minidl import GradScaler
from minidl.functional import cross_entropy
from minidl.optim import SGD


def train(args: argparse.Namespace, ranks: Ranks) -> None:
    """Train the network and compare its error with the paper's."""
    data, recipe = load_data(args), CIFAR_RECIPES[args.recipe].with_options(args)
    loader = ranks.divide(data.train_loader(args.batch_size, args.seed, cutout=args.cutout, mixup=args.mixup))
    total_steps = recipe.steps(len(loader))

    config = network_of(args, data)
    model = config.build(seed=args.seed, recompute=args.recompute).to(args.device)
    average = MovingAverage(model, args.ema) if args.ema is not None else None
    tested = model if average is None else average.model

    warming_up = args.recipe == "paper" and config.arguments["depth"] >= WARMUP_DEPTH
    schedule = WarmUp(recipe.schedule(recipe.lr, total_steps), warming_up)
    optimizer = SGD(model.parameters(), recipe.lr, 0.9, recipe.weight_decay, nesterov=recipe.nesterov)
    scaler = GradScaler(enabled=args.dtype == "float16")

    def step(images, labels, *mixed):
        with run.average_gradients():
            logits = model(images)
            loss = mixup_loss(logits, labels, *mixed) if mixed else cross_entropy(logits, labels)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        optimizer.zero_grad()
        if average is not None:
            average.update()
        return loss, (logits.argmax(dim=1) != labels).sum()

    # On a GPU: one launch for the whole step. Stochastic depth draws a number in each, and ranks exchange gradients.
    step = prepare_step(step, model, args, scaler, ranks.is_alone and config.builder != "stochastic_resnet")
    folder, stateful = open_folder(args, data, config, average, ranks), {"warm_up": schedule, "scaler": scaler}
    with Run(model, optimizer, loader, total_steps, folder, stateful=stateful, ranks=ranks) as run:
        for batch in run.batches():
            optimizer.lr = schedule(run.step)
            run.log(*step(*batch))
            if run.epoch_ended:
                schedule.report(run.train_error)
                run.end_epoch(error_rate(tested, ranks.divide(data.test_loader()), args.mirror_test, ranks), data.split)
    print(run.summary())
    print(f"{data.split} error of {config.name} on {args.dataset}: {run.test_error:.2%}")
    print(published_error(args), end="")


def open_folder(
    args: argparse.Namespace, data: CifarData, config: NetworkConfig, average: MovingAverage | None, ranks: Ranks
) -> RunFolder:
    """The folder of the run, with what its checkpoints hold besides the network."""
    kept = {"average": average and average.model, "data": data.fingerprint(), "keep": args.keep, "log_to": args.log}
    return RunFolder(args.out, args.resume, options_of_run(args), config, **kept, writes=ranks.is_first)


def main() -> None:
    """Parse the options and train."""
    parser = make_parser(__doc__)
    add_options(parser, "model", "depth", "shortcut", "recompute", *REGULARISATION)
    parser.add_argument("--recipe", choices=CIFAR_RECIPES, default="fast", help="default: fast")
    add_options(parser, *CIFAR, *TRAINING, *FOLDER, "dtype", "lr", "weight_decay", out="runs/latest", batch_size=128)
    add_options(parser, *RANKS)
    args = parser.parse_args()
    with running(parser, args) as ranks:
        train(args, ranks)


if __name__ == "__main__":
    main()
