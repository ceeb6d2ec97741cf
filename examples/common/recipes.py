"""How the papers train, and how to reach much of it in minutes. What the options of a script say comes first."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

from minidl.optim import MultiStepLR, OneCycleLR, ReduceLROnPlateau


@dataclass(frozen=True)
class Recipe:
    """How to train, for a number of epochs or of iterations.

    Attributes:
        lr: the highest learning rate.
        schedule: schedule(lr, total_steps) gives the learning rate of each step.
        weight_decay: of the weights and, if `decays_all`, of biases and batch-norm too.
        nesterov: whether the momentum, 0.9, is Nesterov's.
        sides: photographs: the shorter side is drawn between these, in pixels, before the photograph is cropped.
        per_pixel_mean: photographs: what is subtracted is the mean of each pixel, or else of red, green and blue.
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

    def changed_by(self, args: argparse.Namespace) -> "Recipe":
        """With the --lr, --weight-decay, and --epochs or --iterations that were given."""
        names = "lr", "weight_decay", "epochs", "iterations"
        given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
        if given.keys() & {"epochs", "iterations"}:
            given = {"epochs": None, "iterations": None} | given
        return replace(self, **given)

    def steps(self, steps_per_epoch: int) -> int:
        """The length of a run."""
        return self.iterations or self.epochs * steps_per_epoch


def divide_twice(lr: float, total_steps: int) -> MultiStepLR:
    """lr / 10 at 32k and 48k of 64k iterations, or at the same fractions of another number."""
    return MultiStepLR(lr, milestones=[total_steps // 2, total_steps * 3 // 4])


def fall_on_plateau(lr: float, total_steps: int, patience: int = 5) -> ReduceLROnPlateau:
    """lr / 10 whenever the validation error stops falling."""
    return ReduceLROnPlateau(lr, patience=patience)


def fall_three_times(lr: float, total_steps: int, patience: int = 5) -> ReduceLROnPlateau:
    """lr / 10 when the validation error stops falling, three times."""
    return ReduceLROnPlateau(lr, patience=patience, min_lr=lr * 0.1**3)


# 32x32 images. "paper": He et al. 2015, section 4.2. "fast" (Smith, Topin 2018): in 10 epochs what takes the paper 100.
CIFAR_RECIPES = {
    "paper": Recipe(lr=0.1, schedule=divide_twice, weight_decay=1e-4, iterations=64_000),
    "fast": Recipe(lr=0.2, schedule=OneCycleLR, weight_decay=5e-4, epochs=10, nesterov=True),
}

# Photographs. 74 and 120 epochs are 370,000 and 600,000 iterations of 256 images, from 1.28 million.
IMAGENET_RECIPES = {
    "vgg": Recipe(  # Simonyan and Zisserman 2014, section 3.1
        lr=0.01,
        schedule=fall_three_times,
        weight_decay=5e-4,
        epochs=74,
        decays_all=False,
        sides=(256, 256),
        per_pixel_mean=False,
    ),
    "resnet": Recipe(  # He et al. 2015, section 3.4
        lr=0.1,
        schedule=fall_on_plateau,
        weight_decay=1e-4,
        epochs=120,
        sides=(256, 480),
    ),
}

# Table 6 of He et al. 2015: test error on CIFAR-10 after 64,000 iterations, in per cent.
PAPER_ERROR = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}

# Section 4.2: 110 layers do not start at 0.1. They begin with 0.01, until the training error is below 80 %.
WARMUP_DEPTH, WARMUP_LR, WARMUP_ERROR = 110, 0.01, 0.80


class WarmUp:
    """WARMUP_LR until the training error of an epoch is below WARMUP_ERROR, and from then on another schedule."""

    def __init__(self, schedule: Callable[[int], float], warming_up: bool = True):
        self.schedule, self.warming_up = schedule, warming_up

    def __call__(self, step: int) -> float:
        return WARMUP_LR if self.warming_up else self.schedule(step)

    def report(self, train_error: float) -> None:
        """Take note of the error of an epoch."""
        self.warming_up = self.warming_up and train_error >= WARMUP_ERROR

    def state_dict(self) -> dict[str, bool]:
        """What a checkpoint must keep."""
        return {"warming_up": self.warming_up}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Go on from there."""
        self.warming_up = state["warming_up"]
