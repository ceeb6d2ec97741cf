"""Learning rates as functions of the step: `optimizer.lr = schedule(step)`.

A schedule holds no state, so that a run which is resumed needs to know its step and nothing else. The one exception is
ReduceLROnPlateau, which reacts to what was measured. `step` counts from 0.

A schedule checks how its rates change; the optimiser checks the rates themselves, when they are set.
"""

import math
from collections.abc import Callable, Sequence

from minidl.checks import check_range

Schedule = Callable[[int], float]


class MultiStepLR:
    """lr gamma^(number of milestones reached): lr falls by the factor gamma at each milestone."""

    def __init__(self, lr: float, milestones: Sequence[int], gamma: float = 0.1):
        self.lr, self.milestones, self.gamma = lr, sorted(milestones), gamma

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)


class CosineAnnealingLR:
    """From lr at step 0 to min_lr at total_steps along half a cosine (Loshchilov, Hutter 2017, eq. 5)."""

    def __init__(self, lr: float, total_steps: int, min_lr: float = 0.0):
        check_range("CosineAnnealingLR", 1, math.inf, total_steps=total_steps)
        self.lr, self.total_steps, self.min_lr = lr, total_steps, min_lr

    def __call__(self, step: int) -> float:
        return _cosine(self.lr, self.min_lr, min(step / self.total_steps, 1.0))


class OneCycleLR:
    """Up from max_lr / div_factor to max_lr, and down to max_lr / div_factor / final_div_factor, along half cosines.

    The top is reached at step pct_start * total_steps - 1, the end at step total_steps - 1, as in PyTorch. Smith, Topin
    2018, "Super-convergence".
    """

    def __init__(
        self,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ):
        check_range("OneCycleLR", 0, 1, closed=True, pct_start=pct_start)
        at_least_1 = {"total_steps": total_steps, "div_factor": div_factor, "final_div_factor": final_div_factor}
        check_range("OneCycleLR", 1, math.inf, **at_least_1)
        self.max_lr, self.total_steps = max_lr, total_steps
        self.first_lr = max_lr / div_factor
        self.last_lr = self.first_lr / final_div_factor
        self.top = pct_start * total_steps - 1

    def __call__(self, step: int) -> float:
        last = self.total_steps - 1
        step = min(step, last)
        if step <= self.top:
            return _cosine(self.first_lr, self.max_lr, step / self.top if self.top else 1.0)
        return _cosine(self.max_lr, self.last_lr, (step - self.top) / (last - self.top))


class LinearWarmup:
    """start_factor to 1 times another schedule over the first warmup_steps steps, then that schedule itself.

    Goyal et al. 2017, section 2.2.
    """

    def __init__(self, schedule: Schedule, warmup_steps: int, start_factor: float = 0.1):
        check_range("LinearWarmup", 0, math.inf, warmup_steps=warmup_steps)
        self.schedule, self.warmup_steps, self.start_factor = schedule, warmup_steps, start_factor

    def __call__(self, step: int) -> float:
        done = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.schedule(step) * (self.start_factor + (1 - self.start_factor) * done)


class ReduceLROnPlateau:
    """lr falls by `factor` when a metric has not improved for more than `patience` reports.

    Smaller is better, and better by `threshold` of the best so far counts: PyTorch's rule, threshold_mode="rel".
    `optimizer.lr = plateau.report(error)` after each epoch; plateau(step) is the current rate, whatever the step.
    """

    def __init__(
        self, lr: float, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4, min_lr: float = 0.0
    ):
        check_range("ReduceLROnPlateau", 0, math.inf, patience=patience, threshold=threshold)
        check_range("ReduceLROnPlateau", 0, 1, factor=factor)
        check_range("ReduceLROnPlateau", 0, lr, closed=True, min_lr=min_lr)
        self.lr, self.factor, self.patience, self.threshold, self.min_lr = lr, factor, patience, threshold, min_lr
        self.best, self.bad_reports = math.inf, 0

    def __call__(self, step: int) -> float:
        return self.lr

    def report(self, metric: float) -> float:
        """Take note of the metric; the learning rate to go on with."""
        if metric < self.best * (1 - self.threshold):
            self.best, self.bad_reports = metric, 0
        else:
            self.bad_reports += 1
        if self.bad_reports > self.patience:
            self.lr, self.bad_reports = max(self.lr * self.factor, self.min_lr), 0
        return self.lr

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must keep."""
        return {"lr": self.lr, "best": self.best, "bad_reports": self.bad_reports}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from there."""
        self.lr, self.best, self.bad_reports = state["lr"], state["best"], int(state["bad_reports"])


def _cosine(start: float, end: float, done: float) -> float:
    """From start (done = 0) to end (done = 1) along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
