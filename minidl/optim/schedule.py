"""Learning rates as functions of the step, which counts from 0: `optimizer.lr = schedule(step)`.

A schedule has no state, so a resumed run needs only its step. The one exception is ReduceLROnPlateau, which reacts to
a measured metric.

A schedule checks the arguments that shape it. The optimiser checks each learning rate when it is set.
"""

import math
from collections.abc import Callable, Sequence

from minidl.checks import check_range

Schedule = Callable[[int], float]


class MultiStepLR:
    """lr gamma^n, where n is the number of milestones reached (step >= milestone): a factor of gamma at each."""

    def __init__(self, lr: float, milestones: Sequence[int], gamma: float = 0.1):
        self.lr, self.milestones, self.gamma = lr, sorted(milestones), gamma

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)


class CosineAnnealingLR:
    """min_lr + (lr - min_lr) (1 + cos(pi step / total_steps)) / 2, then min_lr (Loshchilov, Hutter 2017, eq. 5)."""

    def __init__(self, lr: float, total_steps: int, min_lr: float = 0.0):
        check_range("CosineAnnealingLR", 1, math.inf, total_steps=total_steps)
        self.lr, self.total_steps, self.min_lr = lr, total_steps, min_lr

    def __call__(self, step: int) -> float:
        return _cosine(self.lr, self.min_lr, min(step / self.total_steps, 1.0))


class OneCycleLR:
    """From max_lr / div_factor up to max_lr, then down to max_lr / div_factor / final_div_factor, along half cosines.

    The maximum is at step pct_start * total_steps - 1 and the end at step total_steps - 1, as in PyTorch. Smith, Topin
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
        check_range("OneCycleLR", 1, math.inf, total_steps=total_steps)
        check_range("OneCycleLR", 1, math.inf, div_factor=div_factor, final_div_factor=final_div_factor)
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
    """Another schedule times a factor that rises linearly from start_factor to 1 over the first warmup_steps steps.

    Goyal et al. 2017, section 2.2.
    """

    def __init__(self, schedule: Schedule, warmup_steps: int, start_factor: float = 0.1):
        check_range("LinearWarmup", 0, math.inf, warmup_steps=warmup_steps)
        self.schedule, self.warmup_steps, self.start_factor = schedule, warmup_steps, start_factor

    def __call__(self, step: int) -> float:
        done = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.schedule(step) * (self.start_factor + (1 - self.start_factor) * done)


class ReduceLROnPlateau:
    """Multiplies lr by `factor`, down to min_lr, when a metric has not improved for more than `patience` reports.

    An improvement is metric < best * (1 - threshold), PyTorch's threshold_mode="rel". After each epoch, set
    `optimizer.lr = plateau.report(error)`. plateau(step) returns the current rate, whatever the step.
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
        """Record the metric, and return the learning rate to continue with."""
        if metric < self.best * (1 - self.threshold):
            self.best, self.bad_reports = metric, 0
        else:
            self.bad_reports += 1
        if self.bad_reports > self.patience:
            self.lr, self.bad_reports = max(self.lr * self.factor, self.min_lr), 0
        return self.lr

    def state_dict(self) -> dict[str, float]:
        """Return the state that a checkpoint must keep."""
        return {"lr": self.lr, "best": self.best, "bad_reports": self.bad_reports}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state that `state_dict` returned."""
        self.lr, self.best, self.bad_reports = state["lr"], state["best"], int(state["bad_reports"])


def _cosine(start: float, end: float, done: float) -> float:
    """Return the value on half a cosine from start (done = 0) to end (done = 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
