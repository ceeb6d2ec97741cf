"""The command-line options that scripts share, each declared once."""

import argparse
import contextlib
import math
from collections.abc import Callable

from minidl.system.gpu import is_device, select_gpu

DTYPES = "float32", "tf32", "bfloat16", "float16"

# Options that may differ with --resume: paths, and how the same training is computed.
MAY_CHANGE = {"out", "resume", "keep", "log", "data_dir", "device", "dtype", "recompute", "detect_anomaly"}
MAY_CHANGE |= {"distributed", "data", "names", "statistics", "skip_broken", "threads", "micro_batch"}


def _number(text: str, kind: type, is_right: Callable, expected: str) -> float:
    """The number in the text, if it is right."""
    with contextlib.suppress(ValueError):
        if is_right(number := kind(text)):
            return number
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text or 'nothing'}")


def positive(text: str) -> int:
    """An argparse type: a whole number >= 1, such as a batch size."""
    return _number(text, int, lambda number: number >= 1, "a whole number >= 1")


def natural(text: str) -> int:
    """An argparse type: a whole number >= 0, such as a seed."""
    return _number(text, int, lambda number: number >= 0, "a whole number >= 0")


def rate(text: str) -> float:
    """An argparse type: a finite number >= 0, such as a learning rate or a weight decay."""
    return _number(text, float, lambda number: 0 <= number < math.inf, "a finite number >= 0")  # NaN is neither


def positive_number(text: str) -> float:
    """An argparse type: a finite number > 0, such as 9.9 epochs."""
    return _number(text, float, lambda number: 0 < number < math.inf, "a finite number > 0")


def decay(text: str) -> float:
    """An argparse type: a number in [0, 1), such as the decay of a moving average."""
    return _number(text, float, lambda number: 0 <= number < 1, "a number in [0, 1)")


def device(text: str) -> str:
    """An argparse type: the name of a device."""
    if not is_device(text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text or 'nothing'}")
    return text


def nonempty(text: str) -> str:
    """An argparse type: a path. An empty one, as from an unset variable, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty string; the current folder is .")
    return text


OPTIONS = {
    # device and files
    "device": {"type": device, "default": "cpu", "metavar": "DEVICE", "help": "cpu (the default), cuda, or cuda:N"},
    "dtype": {"choices": DTYPES, "default": "float32", "help": "of activations; others need --device cuda"},
    "seed": {"type": natural, "default": 0, "metavar": "N", "help": "of initial weights, shuffling and augmentation"},
    "out": {
        "type": nonempty,
        "metavar": "DIR",
        "help": "folder for the checkpoint and the metrics; default: %(default)s",
    },
    "resume": {"action": "store_true", "help": "continue from the checkpoint in --out"},
    "keep": {
        "type": positive,
        "default": 2,
        "metavar": "K",
        "help": "keep the last K checkpoints and the best; default: 2",
    },
    "log": {"choices": ("tensorboard",), "help": "write the metrics to --out/tensorboard, too"},
    # training
    "epochs": {"type": positive, "metavar": "N", "help": "default: the recipe's"},
    "iterations": {"type": positive, "metavar": "N", "help": "number of training steps, instead of --epochs"},
    "batch_size": {"type": positive, "metavar": "N", "help": "images per step; default: %(default)s"},
    "lr": {"type": rate, "help": "maximum learning rate; default: the recipe's"},
    "weight_decay": {"type": rate, "help": "default: the recipe's"},
    "recompute": {"action": "store_true", "help": "save memory, take a third longer; identical results"},
    "detect_anomaly": {
        "action": "store_true",
        "help": "stop at the first NaN or infinity, and name its operation and layer; steps take up to twice as long",
    },
    # several processes; None where absent, too
    "distributed": {"action": "store_true", "default": None, "help": "train on the processes that mpiexec started"},
    "sync_batch_norm": {
        "action": "store_true",
        "default": None,
        "help": "batch-norm over the whole batch, not over the part of each process",
    },
    # regularisation, and what is tested; None where absent, as in checkpoints from before these options
    "mixup": {"type": positive_number, "metavar": "ALPHA", "help": "mix pairs of images with shares from Beta(A, A)"},
    "cutout": {"type": positive, "metavar": "SIZE", "help": "set a random square of SIZE x SIZE pixels to the mean"},
    "ema": {"type": decay, "metavar": "DECAY", "help": "test and save a moving average of the network too"},
    "mirror_test": {"action": "store_true", "default": None, "help": "test on each image and its mirror image"},
    # networks
    "model": {"metavar": "NAME", "help": "instead of --depth and --shortcut: preact-110, wrn-28-10, ...; see above"},
    "depth": {"type": int, "default": 20, "help": "6n + 2: 20, 32, 44, 56, 110, 1202; default: %(default)s"},
    "shortcut": {"choices": ("A", "B", "C", "none"), "default": "A", "help": "none for a plain network; default: A"},
    # 32x32 images
    "dataset": {"choices": ("shapes", "cifar10", "cifar100"), "default": "shapes", "help": "default: %(default)s"},
    "data_dir": {
        "type": nonempty,
        "default": "data",
        "metavar": "DIR",
        "help": "folder of CIFAR; downloaded if absent; default: data",
    },
    "limit_train": {"type": positive, "metavar": "N", "help": "train on the first N images only"},
    "limit_test": {"type": positive, "metavar": "N", "help": "test on the first N images only"},
    "holdout": {"action": "store_true", "help": "hold out a tenth of the training images (45k/5k) and test on it"},
    # photographs
    "data": {"type": nonempty, "required": True, "metavar": "DIR", "help": "folder of the photographs, see above"},
    "names": {
        "type": nonempty,
        "metavar": "FILE",
        "help": "class names, one line 'n01440764 tench, Tinca tinca' per class",
    },
    "skip_broken": {"action": "store_true", "help": "skip files that cannot be decoded, with a warning"},
    "threads": {"type": positive, "metavar": "N", "help": "for decoding; default: one per core"},
}
CIFAR = "dataset", "data_dir", "limit_train", "limit_test", "holdout"
PHOTOGRAPHS = "data", "names", "skip_broken", "threads"
TRAINING = "epochs", "iterations", "batch_size", "seed", "device", "detect_anomaly"
FOLDER = "out", "resume", "keep", "log"
RANKS = "distributed", "sync_batch_norm"
REGULARISATION = "mixup", "cutout", "ema", "mirror_test"


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
