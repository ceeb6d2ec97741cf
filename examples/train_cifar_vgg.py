"""Train a VGG network (Simonyan, Zisserman 2014) on 32x32 images, with the loop of train_cifar_resnet.py.

    python examples/train_cifar_vgg.py --config A --epochs 4                     shapes: no download
    python examples/train_cifar_vgg.py --dataset cifar10 --config D              VGG-16 with batch-norm, 10 epochs

The paper has no CIFAR results. Of its fully connected layers one is left, and batch-norm, which it did not know, is on
unless --no-batch-norm says otherwise: a VGG of 16 layers hardly starts to learn without it (try it).
"""

import argparse

from cifar_data import load_data
from models.vgg import CONFIGS
from train_cifar_resnet import add_training_options, train
from training import RunFolder, check_dtype, computing, locked, one_line_errors


def main() -> None:
    """Read the options, build the network, and train it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="D", help="a column of the paper's table 1; default: D")
    parser.add_argument("--batch-norm", action=argparse.BooleanOptionalAction, default=True)
    add_training_options(parser, lr=0.05)
    args = parser.parse_args()
    with locked(args.out):
        with one_line_errors(parser):
            check_dtype(args)
            data, options = load_data(args), {"config": args.config, "batch_norm": args.batch_norm}
            config = data.config(f"vgg-{args.config}", "vgg", **options, image_size=32)
            model = config.build(seed=args.seed).to(args.device)
            folder = RunFolder(args.out, args.resume, config)
        with one_line_errors(), computing(args):
            error = train(model, data, folder, args)
    if error is not None:
        print(f"{data.test_split} error of VGG-{args.config} on {args.dataset}: {error:.2%}")


if __name__ == "__main__":
    main()
