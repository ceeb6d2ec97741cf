"""The options of the scripts, each declared once."""

import argparse
import math

from minidl.system.gpu import require_cupy

DTYPES = "float32", "tf32", "bfloat16"

# --resume may change these: where things are, and how they are computed.
MAY_CHANGE = {"out", "resume", "data_dir", "device", "dtype", "recompute"}
MAY_CHANGE |= {"data", "names", "statistics", "init_from", "skip_broken", "threads", "micro_batch"}


def positive(text: str) -> int:
    """The type of an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text}")
    return number


def whole(text: str) -> int:
    """The type of an option that may also be 0, such as a seed."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text}")
    return number


def rate(text: str) -> float:
    """The type of a learning rate or a weight decay."""
    number = float(text)
    if not 0 <= number < math.inf:  # NaN neither
        raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {text}")
    return number


OPTIONS = {
    # where and how
    "device": {"choices": ("cpu", "cuda"), "default": "cpu"},
    "dtype": {"choices": DTYPES, "default": "float32", "help": "of activations; all but float32 need --device cuda"},
    "seed": {"type": whole, "default": 0, "metavar": "N", "help": "of weights, order and augmentation"},
    "out": {"metavar": "DIR", "help": "the folder of the run; default: %(default)s"},
    "resume": {"action": "store_true", "help": "go on from the checkpoint in --out"},
    # training
    "epochs": {"type": positive, "metavar": "N", "help": "default: the recipe's"},
    "iterations": {"type": positive, "metavar": "N", "help": "steps, instead of epochs"},
    "batch_size": {"type": positive, "metavar": "N", "help": "images in a step; default: %(default)s"},
    "lr": {"type": rate, "help": "the learning rate; default: the recipe's"},
    "weight_decay": {"type": rate, "help": "default: the recipe's"},
    "recompute": {"action": "store_true", "help": "less memory, a third more time, the same bits"},
    # networks
    "depth": {"type": int, "default": 20, "help": "6n + 2: 20, 32, 44, 56, 110, 1202; default: %(default)s"},
    "shortcut": {"choices": ("A", "B", "C", "none"), "default": "A", "help": "none: a plain network; default: A"},
    # 32x32 images
    "dataset": {"choices": ("shapes", "cifar10", "cifar100"), "default": "shapes", "help": "default: %(default)s"},
    "data_dir": {"default": "data", "metavar": "DIR", "help": "where CIFAR is, or is downloaded to"},
    "limit_train": {"type": positive, "metavar": "N", "help": "train on the first N images only"},
    "holdout": {"action": "store_true", "help": "test on a tenth of the training images (45k/5k)"},
    # photographs
    "data": {"required": True, "metavar": "DIR", "help": "the folder of the photographs, see above"},
    "names": {"metavar": "FILE", "help": "a line 'n01440764 tench, Tinca tinca' for each class"},
    "skip_broken": {"action": "store_true", "help": "go on without files that cannot be decoded"},
    "threads": {"type": int, "metavar": "N", "help": "that decode; default: as many as there are cores"},
}
CIFAR = "dataset", "data_dir", "limit_train", "holdout"
PHOTOGRAPHS = "data", "names", "skip_broken", "threads"
TRAINING = "epochs", "iterations", "batch_size", "seed", "device"
FOLDER = "out", "resume"


def add_options(parser: argparse.ArgumentParser, *names: str, **defaults) -> None:
    """Add the options of these names; `defaults` replaces what the table says, or says it for a script."""
    length = parser.add_mutually_exclusive_group() if "iterations" in names else parser
    for name in names:
        settings = OPTIONS[name] | ({"default": defaults[name]} if name in defaults else {})
        group = length if name in ("epochs", "iterations") else parser
        group.add_argument("--" + name.replace("_", "-"), **settings)


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows the description as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def check_device(args: argparse.Namespace) -> None:
    """A ValueError where the device is not there, or does not have the dtype."""
    dtype = getattr(args, "dtype", "float32")
    if getattr(args, "device", "cpu") == "cpu":
        if dtype != "float32":
            raise ValueError(f"--dtype {dtype} needs --device cuda; a CPU computes in float32")
        return
    try:
        require_cupy()
    except RuntimeError as problem:
        raise ValueError(str(problem)) from None


def options_of_run(args: argparse.Namespace) -> dict:
    """The options that a run cannot change when it is resumed."""
    return {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
