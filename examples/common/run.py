"""A training run: everything around its steps that is not the training itself."""

import argparse
import contextlib
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

from common.errors import clock, fitting_memory, one_line_errors, precision, tell
from common.folder import RunFolder, check_folder, locked, not_finite
from common.options import check_device
from common.stop import Stopped, StopRequest
from minidl import Tensor
from minidl.nn import Module
from minidl.optim import Optimizer

LOOK_EVERY = {"cpu": 1, "cuda": 50}  # steps between two looks at the loss: to read it, the CPU waits for the GPU
SAVE_EVERY = 1000  # steps; besides, a checkpoint is written at the end of each epoch


@contextlib.contextmanager
def running(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[None]:
    """Around a script that trains: errors are one line, and no other process writes to --out."""
    with locked(args.out), one_line_errors(parser):
        check_device(args)
        if hasattr(args, "resume"):
            check_folder(args.out, args.resume)  # before data are loaded
        with precision(getattr(args, "dtype", "float32")):
            yield


@dataclass
class Totals:
    """Sums over the images seen so far in an epoch. They stay on the device until `read`."""

    images: int = 0
    loss_sum: float | Tensor = 0.0
    wrong: int | Tensor = 0

    def add(self, images: int, loss: Tensor, wrong: int | Tensor) -> None:
        """Count a batch: its images, its mean loss, how many were classified wrongly. A GPU is not waited for."""
        self.images += images
        self.loss_sum = self.loss_sum + loss.detach().to("float64") * images
        self.wrong = self.wrong + wrong

    def read(self) -> None:
        """Fetch the sums from the device; a GPU is waited for."""
        self.loss_sum, self.wrong = float(self.loss_sum), int(self.wrong)

    @property
    def loss(self) -> float:
        """The mean loss of an image."""
        return self.loss_sum / self.images

    @property
    def error(self) -> float:
        """The part of the images that were classified wrongly, 0 to 1."""
        return self.wrong / self.images


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # steps done
    images: int = 0  # of the epochs that are over
    seconds: float = 0.0
    training_seconds: float = 0.0  # without evaluation
    totals: Totals = field(default_factory=Totals)  # of the epoch in progress

    @property
    def images_per_second(self) -> float:
        """The speed so far, without evaluation."""
        return (self.images + self.totals.images) / self.training_seconds if self.training_seconds else 0.0


class Run:
    """The steps of a training, with a progress bar, Ctrl-C, totals on the device, checkpoints, curves and --resume.

        with Run(model, optimizer, loader, total_steps, folder) as run:
            for images, labels in run.batches():
                optimizer.lr = schedule(run.step)
                run.count(*step(images, labels))
                if run.epoch_ended:
                    run.end_epoch(test_error=error_rate(model, test_loader))

    Inside `with`, Ctrl-C, SIGTERM and SIGHUP save and stop after the step in progress; errors are one line; a loss of
    NaN or infinity ends the run, and the last good checkpoint stays.

    Args:
        model: what is trained.
        optimizer: whose state is saved with it.
        loader: gives batches, one epoch after the other; the first tensor of a batch has a row for each image.
        total_steps: the length of the run.
        folder: where the run is kept; it may say that the run goes on from there. Without one nothing is saved.
        also: what else has a state to save, such as ReduceLROnPlateau, by the name that it is saved under.
        name: stands before the bar.
        ends: the steps after which to evaluate, instead of the ends of the epochs.
        micro_batch: how many images are computed at a time; default: a batch.
        advice: what the user can do where the loss is NaN.
        again: what starts the run again where it stopped.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loader,
        total_steps: int,
        folder: RunFolder | None = None,
        *,
        also: dict | None = None,
        name: str = "",
        ends: Collection[int] | None = None,
        micro_batch: int | None = None,
        advice: str = "try a lower --lr (a tenth)",
        again: str = "the same command with --resume",
    ):
        self.model, self.optimizer, self.loader, self.total_steps = model, optimizer, loader, total_steps
        self.folder, self.also, self.name, self.ends = folder, also or {}, name, ends
        self.micro_batch, self.advice, self.again = micro_batch, advice, again
        self.progress = Progress()
        self._saved_at = 0  # the step of the last checkpoint
        self._images = 0  # of the batch in progress

    # -- the loop ------------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[tuple]:
        """The batches of the steps that are left. Each is counted, by `count`, before the next one is asked for."""
        while self.step < self.total_steps:
            self._began = time.perf_counter()
            for batch in self.loader:
                self._images = len(batch[0])
                yield batch
                self._save_or_stop()
                self._began = time.perf_counter()
                if self.step == self.total_steps:
                    break
        self._check_finite()

    def count(self, loss: Tensor, wrong: int | Tensor) -> None:
        """Count a step: the mean loss of its batch, how many of its images were classified wrongly."""
        self.progress.step += 1
        self.progress.totals.add(self._images, loss, wrong)
        looks = self.epoch_ended or self.step % LOOK_EVERY[loss.device] == 0
        if looks:
            self.progress.totals.read()
        self.progress.training_seconds += time.perf_counter() - self._began
        if looks:
            self._show()

    @property
    def step(self) -> int:
        """The number of steps that are done."""
        return self.progress.step

    @property
    def epoch_ended(self) -> bool:
        """Whether the step that was counted last is the last one of an epoch, or of the run."""
        if self.ends is not None:
            return self.step in self.ends
        return self.step % len(self.loader) == 0 or self.step == self.total_steps

    @property
    def train_error(self) -> float:
        """The error on the training images of the epoch, where it has ended: the part that was classified wrongly."""
        return self.progress.totals.error

    @property
    def test_error(self) -> float:
        """The test error after the last epoch; NaN if the folder has lost its metrics."""
        return self.folder.records[-1]["test_error"] if self.folder.records else math.nan

    def end_epoch(self, test_error: float, split: str = "test", **more) -> None:
        """Print and note what the epoch came to, with `more` that was measured; save; draw; count anew."""
        totals, epoch = self.progress.totals, -(-self.step // len(self.loader))
        record = {"epoch": epoch, "step": self.step, "lr": self.optimizer.lr, "train_loss": totals.loss}
        record |= {"train_error": totals.error, "test_error": test_error, **more, "split": split}
        errors = {"training error": totals.error, f"{split} error": test_error}
        errors |= {name.replace("_", " "): value for name, value in more.items() if isinstance(value, float)}
        when = f"epoch {epoch:3d}" if self.ends is None else f"{self.name}, step {self.step:,}"
        tell("   ".join([when, *(f"{name} {value:6.2%}" for name, value in errors.items())]))
        self.count_anew()
        self._save(record | {"seconds": self._seconds()})

    def count_anew(self) -> None:
        """Begin to count an epoch."""
        self.progress.images += self.progress.totals.images
        self.progress.totals = Totals()

    def summary(self) -> str:
        """How fast the run was, and how long it took."""
        return f"{self.progress.images_per_second:,.0f} images/s; {clock(self.progress.seconds)} to the final error"

    # -- around it -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            stack.enter_context(one_line_errors())
            if self.folder is not None:
                if self.folder.resume:
                    self._resume()
                self._stop = stack.enter_context(StopRequest())
            option = "--batch-size" if self.micro_batch is None else "--micro-batch"
            stack.enter_context(fitting_memory(self.micro_batch or self.loader.batch_size, option))
            self._bar = stack.enter_context(self._progress_bar())
            self._stack = stack.pop_all()
        self._started = time.perf_counter() - self.progress.seconds
        return self

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    def _progress_bar(self) -> tqdm:
        """A bar over the steps of the run, with the time left."""
        layout = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
        name = f"{self.name}: " if self.name else ""
        return tqdm(None, name, self.total_steps, initial=self.step, bar_format=layout, dynamic_ncols=True)

    def _show(self) -> None:
        """Show how the epoch goes; stop if the loss is NaN or infinite."""
        progress, first, last = self.progress, self._bar.n, self.step - 1
        totals = progress.totals
        if not math.isfinite(totals.loss):
            step = f"step {last}" if first >= last else f"one of the steps {first} to {last}"
            raise SystemExit(f"error: the loss is {totals.loss} at {step}; {self._remedy()}")
        self._bar.set_postfix_str(
            f"loss {totals.loss:.3f}, accuracy {1 - totals.error:.1%}, {progress.images_per_second:,.0f} images/s",
            refresh=False,
        )
        self._bar.update(self.step - first)

    def _save_or_stop(self) -> None:
        """Between two steps: save now and then; if the user has asked to stop, save and stop."""
        if self.folder is None:
            return
        stops = self._stop.asked and self.step < self.total_steps
        if self._saved_at != self.step and (stops or self.step % SAVE_EVERY == 0):
            self.progress.totals.read()
            self._show()
            self._save()
        if stops:
            tell(f"stopped after step {self.step:,}; nothing is lost: {self.again} goes on")
            raise Stopped(self._stop.status)

    def _save(self, record: dict | None = None) -> None:
        """Write the checkpoint and, at the end of an epoch, its record."""
        self._check_finite()
        self.progress.seconds = self._seconds()
        state = {name: part.state_dict() for name, part in self.also.items()}
        counters = {"progress": asdict(self.progress), "loader": self.loader.state_dict(), **state}
        self.folder.save(self.model, self.optimizer, counters, record)
        self._saved_at = self.step

    def _resume(self) -> None:
        """Load the checkpoint of the folder."""
        with self.folder.resuming():
            counters = _in_present_form(self.folder.load(self.model, self.optimizer))
            progress = counters["progress"]
            self.progress = Progress(**progress | {"totals": Totals(**progress["totals"])})
            self.loader.load_state_dict(counters["loader"])
            for name, part in self.also.items():
                part.load_state_dict(counters[name])
            self.folder.forget_after(self.step)

    def _check_finite(self) -> None:
        """Stop if the network or the optimiser's state holds NaN or infinity: a loss is of before its step's update."""
        if broken := not_finite(self.model, self.optimizer):
            arrays = f"{len(broken)} arrays of the network and the optimiser, such as {broken[0]}"
            raise SystemExit(f"error: NaN or infinity in {arrays}; {self._remedy()}")

    def _remedy(self) -> str:
        return self.advice if self.folder is None else f"{self.advice}; {self.folder.kept}"

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._started, 2)


def _in_present_form(counters: dict) -> dict:
    """Checkpoints written before December 2026 keep the warm-up elsewhere, and those of degradation.py the progress."""
    if "progress" not in counters and "step" in counters:
        counters = counters | {"progress": {name: counters[name] for name in ("step", "totals", "warming_up")}}
    if "warming_up" in counters["progress"]:
        progress = dict(counters["progress"])
        counters = counters | {"warm_up": {"warming_up": progress.pop("warming_up")}, "progress": progress}
    return counters
