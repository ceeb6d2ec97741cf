"""The command-line options that scripts share, each declared once."""

import argparse
import math

from minidl.system.gpu import is_device, select_gpu

DTYPES = "float32", "tf32", "bfloat16", "float16"

# Options that may differ with --resume: paths, and how the same training is computed.
MAY_CHANGE = {"out", "resume", "log", "data_dir", "device", "dtype", "recompute"}
MAY_CHANGE |= {"data", "names", "statistics", "init_from", "skip_broken", "threads", "micro_batch"}


def positive(text: str) -> int:
    """An argparse type: a whole number >= 1, such as a batch size."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text}")
    return number


def natural(text: str) -> int:
    """An argparse type: a whole number >= 0, such as a seed."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text}")
    return number


def rate(text: str) -> float:
    """An argparse type: a finite number >= 0, such as a learning rate or a weight decay."""
    number = float(text)
    if not 0 <= number < math.inf:  # also rejects NaN
        raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {text}")
    return number


def positive_number(text: str) -> float:
    """An argparse type: a finite number > 0, such as 9.9 epochs."""
    number = float(text)
    if not 0 < number < math.inf:  # also rejects NaN
        raise argparse.ArgumentTypeError(f"expected a finite number > 0, got {text}")
    return number


def device(text: str) -> str:
    """An argparse type: the name of a device."""
    if not is_device(text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text}")
    return text


OPTIONS = {
    # device and files
    "device": {"type": device, "default": "cpu", "metavar": "DEVICE", "help": "cpu (the default), cuda, or cuda:N"},
    "dtype": {"choices": DTYPES, "default": "float32", "help": "of activations; others need --device cuda"},
    "seed": {"type": natural, "default": 0, "metavar": "N", "help": "of initial weights, shuffling and augmentation"},
    "out": {"metavar": "DIR", "help": "folder for the checkpoint and the metrics; default: %(default)s"},
    "resume": {"action": "store_true", "help": "continue from the checkpoint in --out"},
    "log": {"choices": ("tensorboard",), "help": "write the metrics to --out/tensorboard, too"},
    # training
    "epochs": {"type": positive, "metavar": "N", "help": "default: the recipe's"},
    "iterations": {"type": positive, "metavar": "N", "help": "number of training steps, instead of --epochs"},
    "batch_size": {"type": positive, "metavar": "N", "help": "images per step; default: %(default)s"},
    "lr": {"type": rate, "help": "maximum learning rate; default: the recipe's"},
    "weight_decay": {"type": rate, "help": "default: the recipe's"},
    "recompute": {"action": "store_true", "help": "save memory, take a third longer; identical results"},
    # networks
    "depth": {"type": int, "default": 20, "help": "6n + 2: 20, 32, 44, 56, 110, 1202; default: %(default)s"},
    "shortcut": {"choices": ("A", "B", "C", "none"), "default": "A", "help": "none for a plain network; default: A"},
    # 32x32 images
    "dataset": {"choices": ("shapes", "cifar10", "cifar100"), "default": "shapes", "help": "default: %(default)s"},
    "data_dir": {"default": "data", "metavar": "DIR", "help": "folder of CIFAR; downloaded if absent; default: data"},
    "limit_train": {"type": positive, "metavar": "N", "help": "train on the first N images only"},
    "holdout": {"action": "store_true", "help": "hold out a tenth of the training images (45k/5k) and test on it"},
    # photographs
    "data": {"required": True, "metavar": "DIR", "help": "folder of the photographs, see above"},
    "names": {"metavar": "FILE", "help": "class names, one line 'n01440764 tench, Tinca tinca' per class"},
    "skip_broken": {"action": "store_true", "help": "skip files that cannot be decoded, with a warning"},
    "threads": {"type": int, "metavar": "N", "help": "for decoding; default: one per core"},
}
CIFAR = "dataset", "data_dir", "limit_train", "holdout"
PHOTOGRAPHS = "data", "names", "skip_broken", "threads"
TRAINING = "epochs", "iterations", "batch_size", "seed", "device"
FOLDER = "out", "resume", "log"


def add_options(parser: argparse.ArgumentParser, *names: str, **defaults) -> None:
    """Add the named options of OPTIONS to the parser. `defaults` overrides their default values."""
    length = parser.add_mutually_exclusive_group() if "iterations" in names else parser
    for name in names:
        settings = OPTIONS[name] | ({"default": defaults[name]} if name in defaults else {})
        group = length if name in ("epochs", "iterations") else parser
        group.add_argument("--" + name.replace("_", "-"), **settings)


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser that prints the description without reflowing it."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def check_device(args: argparse.Namespace) -> None:
    """Raise a ValueError if --device is not available or does not support --dtype."""
    dtype = getattr(args, "dtype", "float32")
    if getattr(args, "device", "cpu") == "cpu":
        if dtype != "float32":
            raise ValueError(f"--dtype {dtype} needs --device cuda; on the CPU use float32")
        return
    try:
        select_gpu(args.device)
    except RuntimeError as problem:
        raise ValueError(str(problem)) from None


def options_of_run(args: argparse.Namespace) -> dict:
    """The options that must be the same when a run is resumed."""
    return {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
