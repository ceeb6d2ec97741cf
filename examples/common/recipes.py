"""The papers' training recipes, and a fast one for CIFAR. Options of a script override the recipe."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.resnet_variants import SHORTCUT_KINDS

from minidl.optim import MultiStepLR, OneCycleLR, ReduceLROnPlateau


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training run, whose length is given in epochs or in iterations.

    Attributes:
        lr: the maximum learning rate.
        schedule: schedule(lr, total_steps) returns a function from step to learning rate.
        weight_decay: applied to the weights and, if `decays_all`, to biases and batch-norm parameters too.
        nesterov: use Nesterov momentum. The momentum is always 0.9.
        sides: photographs only: the shorter side is drawn from this range, in pixels, before the random crop.
        per_pixel_mean: photographs only: subtract the mean of each pixel instead of the mean of each colour.
    """

    lr: float
    schedule: Callable
    weight_decay: float
    epochs: int | None = None
    iterations: int | None = None
    nesterov: bool = False
    decays_all: bool = True
    sides: tuple[int, int] | None = None
    per_pixel_mean: bool = True

    def with_options(self, args: argparse.Namespace) -> "Recipe":
        """A copy in which --lr, --weight-decay, --epochs and --iterations, where given, replace the recipe's values."""
        names = "lr", "weight_decay", "epochs", "iterations"
        given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
        if given.keys() & {"epochs", "iterations"}:
            given = {"epochs": None, "iterations": None} | given
        return replace(self, **given)

    def steps(self, steps_per_epoch: int) -> int:
        """The number of steps in a run."""
        return self.iterations or self.epochs * steps_per_epoch


def step_decay(lr: float, total_steps: int) -> MultiStepLR:
    """Divide lr by 10 after 1/2 and 3/4 of the steps: at 32k and 48k of 64k iterations."""
    return MultiStepLR(lr, milestones=[total_steps // 2, total_steps * 3 // 4])


def reduce_on_plateau(lr: float, total_steps: int, patience: int = 5) -> ReduceLROnPlateau:
    """Divide lr by 10 whenever the validation error stops falling."""
    return ReduceLROnPlateau(lr, patience=patience)


def reduce_three_times(lr: float, total_steps: int, patience: int = 5) -> ReduceLROnPlateau:
    """Divide lr by 10 when the validation error stops falling, at most three times."""
    return ReduceLROnPlateau(lr, patience=patience, min_lr=lr * 0.1**3)


# 32x32 images. "paper": He et al. 2015, section 4.2. "fast": Smith and Topin 2018; 10 epochs do the work of 100.
CIFAR_RECIPES = {
    "paper": Recipe(lr=0.1, schedule=step_decay, weight_decay=1e-4, iterations=64_000),
    "fast": Recipe(lr=0.2, schedule=OneCycleLR, weight_decay=5e-4, epochs=10, nesterov=True),
}

# Photographs. 74 and 120 epochs of 1.28 million images are 370,000 and 600,000 iterations with batch 256.
IMAGENET_RECIPES = {
    "vgg": Recipe(  # Simonyan and Zisserman 2014, section 3.1
        lr=0.01,
        schedule=reduce_three_times,
        weight_decay=5e-4,
        epochs=74,
        decays_all=False,
        sides=(256, 256),
        per_pixel_mean=False,
    ),
    "resnet": Recipe(  # He et al. 2015, section 3.4
        lr=0.1,
        schedule=reduce_on_plateau,
        weight_decay=1e-4,
        epochs=120,
        sides=(256, 480),
    ),
}

# Table 6 of He et al. 2015: test error on CIFAR-10 after 64,000 iterations, in per cent.
PAPER_ERROR = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}

# Test error on CIFAR-10, in per cent, after the training of each network's own paper: see models/resnet_variants.py.
MODEL_ERROR = {
    **{f"resnet-{depth}": error for depth, error in PAPER_ERROR.items()},
    **{f"{kind}-110": error for kind, (_, error) in SHORTCUT_KINDS.items() if error is not None},
    "preact-110": 6.37,  # He et al. 2016, table 3
    "preact-164": 5.46,
    "preact-1001": 4.92,
    "wrn-40-4": 4.53,  # Zagoruyko and Komodakis 2016, table 5
    "wrn-16-8": 4.27,
    "wrn-28-10": 4.00,
    "se-preact-110": 5.21,  # Hu et al. 2017, table 4
    "se-preact-164": 4.39,
    "se-wrn-16-8": 3.88,
    "stochastic-1202": 4.91,  # Huang et al. 2016, abstract
}

# Section 4.2: lr = 0.1 is too high at first for 110 layers. They start at 0.01 until the training error is below 80 %.
WARMUP_DEPTH, WARMUP_LR, WARMUP_ERROR = 110, 0.01, 0.80


def published_error(args: argparse.Namespace) -> str:
    """A line with the paper's test error on CIFAR-10; empty for other data and for networks that it does not have."""
    name = args.model or (f"resnet-{args.depth}" if args.shortcut == "A" else "")
    if args.dataset != "cifar10" or name not in MODEL_ERROR:
        return ""
    length = "64,000 iterations" if name.startswith("resnet-") else "all of its training"
    return f"test error in the paper, after {length}: {MODEL_ERROR[name]} %\n"


class WarmUp:
    """WARMUP_LR until the training error of an epoch is below WARMUP_ERROR, then the wrapped schedule."""

    def __init__(self, schedule: Callable[[int], float], warming_up: bool = True):
        self.schedule, self.warming_up = schedule, warming_up

    def __call__(self, step: int) -> float:
        return WARMUP_LR if self.warming_up else self.schedule(step)

    def report(self, train_error: float) -> None:
        """End the warm-up if this training error of an epoch is low enough."""
        self.warming_up = self.warming_up and train_error >= WARMUP_ERROR

    def state_dict(self) -> dict[str, bool]:
        """The state that a checkpoint saves."""
        return {"warming_up": self.warming_up}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Restore the state that `state_dict` returned."""
        self.warming_up = state["warming_up"]
