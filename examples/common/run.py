"""A training run: progress bar, metrics, checkpoints, resuming and stopping. The training step is not here."""

import argparse
import contextlib
import logging
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, astuple, dataclass, field

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common.errors import Nowhere, drop_closed_output, format_time, log, one_line_errors, precision, suggest_batch_size
from common.folder import RunFolder, check_folder, locked, not_finite
from common.options import check_device
from common.ranks import Ranks, joined
from common.stop import Stopped, StopRequest
from common.tensorboard import tensorboardx
from minidl import AnomalyError, Tensor
from minidl.distributed import at_least_one
from minidl.nn import Module
from minidl.optim import Optimizer

READ_LOSS_EVERY = {"cpu": 1, "cuda": 50}  # steps; reading it makes the CPU wait for the GPU
SAVE_EVERY = 1000  # steps; a checkpoint is also saved after each epoch


@contextlib.contextmanager
def running(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[Ranks]:
    """A context for a training script: errors are one line, messages stand above the bars, --out is locked.

    It gives the ranks of the job: see common/ranks.py.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(joined(args))
        stack.enter_context(one_line_errors(parser if ranks.is_alone else None))
        if ranks.is_first:
            stack.enter_context(locked(args.out))
        ranks.check_folder(args.out)
        check_device(args)
        if getattr(args, "log", None) == "tensorboard":
            tensorboardx()
        if hasattr(args, "resume"):
            check_folder(args.out, args.resume)  # fail before loading the data
        try:
            with precision(getattr(args, "dtype", "float32")), logging_redirect_tqdm([logging.getLogger("minidl")]):
                yield ranks
        finally:
            drop_closed_output()


@dataclass
class Totals:
    """Sums over the images seen so far in the epoch. They stay on the device until `read`."""

    images: int = 0
    loss_sum: float | Tensor = 0.0
    wrong: float | Tensor = 0  # of an image with masks, the fraction of its pixels

    def add(self, images: int, loss: Tensor, wrong: float | Tensor) -> None:
        """Add a batch: its size, its mean loss and its number of misclassified images. Does not synchronise a GPU."""
        self.images += images
        self.loss_sum = self.loss_sum + loss.detach().to("float64") * images
        self.wrong = self.wrong + wrong

    def read(self) -> None:
        """Copy the sums from the device, which synchronises a GPU."""
        self.loss_sum = float(self.loss_sum)
        self.wrong = self.wrong.item() if isinstance(self.wrong, Tensor) else self.wrong

    @property
    def loss(self) -> float:
        """The mean loss over the images."""
        return self.loss_sum / self.images

    @property
    def error(self) -> float:
        """The fraction of images that were misclassified."""
        return self.wrong / self.images


@dataclass
class Progress:
    """The position of a run, as saved in checkpoints."""

    step: int = 0  # completed steps
    images: int = 0  # of completed epochs
    seconds: float = 0.0
    training_seconds: float = 0.0  # without evaluation
    totals: Totals = field(default_factory=Totals)  # of the current epoch

    @property
    def images_per_second(self) -> float:
        """The average training speed so far, without evaluation."""
        return (self.images + self.totals.images) / self.training_seconds if self.training_seconds else 0.0


class Run:
    """Everything around the training steps: progress bar, metrics, checkpoints, curves, --resume and Ctrl-C.

        with Run(model, optimizer, loader, total_steps, folder) as run:
            for images, labels in run.batches():
                optimizer.lr = schedule(run.step)
                run.log(*step(images, labels))
                if run.epoch_ended:
                    run.end_epoch(test_error=error_rate(model, test_loader))

    Inside `with`, Ctrl-C, SIGTERM and SIGHUP save a checkpoint and stop after the current step. Errors are printed in
    one line. A NaN or infinite loss ends the run; the last good checkpoint is kept.

    Args:
        model: the network to train.
        optimizer: its state is saved together with the model.
        loader: iterates over the batches of an epoch. The first tensor of a batch has one row per image.
        total_steps: number of steps in the run.
        folder: where to save the run, and whether to resume it from there. Without a folder nothing is saved.
        stateful: other objects with a state to save, such as {"plateau": ReduceLROnPlateau(...)}.
        name: label of the progress bar.
        evaluate_at: the steps after which to evaluate; default: the last step of each epoch.
        micro_batch: number of images computed at a time; default: the batch size.
        ranks: the processes that train together. Then the loader is that of the part of this rank, and a step computes
            its gradients inside `with run.average_gradients()`.
        nan_hint: advice in the error message for a NaN loss.
        resume_hint: how to continue, in the message after a stop.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loader,
        total_steps: int,
        folder: RunFolder | None = None,
        *,
        stateful: dict | None = None,
        name: str = "",
        evaluate_at: Collection[int] | None = None,
        micro_batch: int | None = None,
        ranks: Ranks | None = None,
        nan_hint: str = "try a lower --lr (a tenth)",
        resume_hint: str = "the same command with --resume",
    ):
        self.model, self.optimizer, self.loader, self.total_steps = model, optimizer, loader, total_steps
        self.folder, self.stateful, self.name, self.evaluate_at = folder, stateful or {}, name, evaluate_at
        self.micro_batch, self.nan_hint, self.resume_hint = micro_batch, nan_hint, resume_hint
        self.ranks = ranks or Ranks()
        self.progress = Progress()
        self._unread = Totals()  # of this rank's steps that are not in progress.totals yet
        self._saved_at = 0  # the step of the last checkpoint
        self._images = 0  # of this rank in the current batch

    # -- the loop ------------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[tuple]:
        """Iterate over the batches of the remaining steps. Call `log` once for each batch."""
        while self.step < self.total_steps:
            self._step_start = time.perf_counter()
            for batch in self.loader:
                self._images = len(batch[0])
                yield batch if self._images else at_least_one(*batch)
                self._save_or_stop()
                self._step_start = time.perf_counter()
                if self.step == self.total_steps:
                    break
        self._check_finite()

    def average_gradients(self, backwards: int = 1) -> contextlib.AbstractContextManager:
        """A context for forward and backward of a step. After it, the gradients are those of the batch of all ranks.

        The loss is the mean over the images here. `backwards` is the number of backward passes, if they are several.
        """
        return self.ranks.average(self._images, self.loader, backwards)

    def log(self, loss: Tensor, wrong: float | Tensor) -> None:
        """Log a finished step: the mean loss of its batch here and its number of misclassified images."""
        self.progress.step += 1
        if self._images:  # else the batch was a blank image
            self._unread.add(self._images, loss, wrong)
        reads_loss = self.epoch_ended or self.step % READ_LOSS_EVERY[loss.device] == 0
        if reads_loss:
            self._read_totals()
        self.progress.training_seconds += time.perf_counter() - self._step_start
        if reads_loss:
            self._update_bar()

    @property
    def step(self) -> int:
        """The number of completed steps."""
        return self.progress.step

    @property
    def epoch_ended(self) -> bool:
        """True if it is time to evaluate: after the last step of an epoch or of the run, or at `evaluate_at`."""
        if self.evaluate_at is not None:
            return self.step in self.evaluate_at
        return self.step % len(self.loader) == 0 or self.step == self.total_steps

    @property
    def train_error(self) -> float:
        """The fraction of training images misclassified so far in the epoch."""
        return self.progress.totals.error

    @property
    def test_error(self) -> float:
        """The test error after the last epoch. NaN if metrics.jsonl is gone."""
        return self.folder.records[-1]["test_error"] if self.folder.records else math.nan

    def end_epoch(self, test_error: float, split: str = "test", **more) -> None:
        """Print and record the metrics of the epoch (`more` adds some), save, draw the curves, reset the totals."""
        totals, epoch = self.progress.totals, -(-self.step // len(self.loader))
        record = {"epoch": epoch, "step": self.step, "lr": self.optimizer.lr, "train_loss": totals.loss}
        record |= {"train_error": totals.error, "test_error": test_error, **more, "split": split}
        errors = {"training error": totals.error, f"{split} error": test_error}
        errors |= {name.replace("_", " "): value for name, value in more.items() if isinstance(value, float)}
        when = f"epoch {epoch:3d}" if self.evaluate_at is None else f"{self.name}, step {self.step:,}"
        log("   ".join([when, *(f"{name} {value:6.2%}" for name, value in errors.items())]))
        self.reset_totals()
        self._save(record | {"seconds": self._seconds()})

    def _read_totals(self) -> None:
        """Add the steps since the last call, on all ranks, to the totals. This synchronises a GPU."""
        self._unread.read()
        new = self.ranks.sum(*astuple(self._unread))
        self.progress.totals = Totals(*map(sum, zip(astuple(self.progress.totals), new, strict=True)))
        self._unread = Totals()

    def reset_totals(self) -> None:
        """Start the totals of the next epoch."""
        self.progress.images += self.progress.totals.images
        self.progress.totals = Totals()

    def summary(self) -> str:
        """The speed and the total time of the run."""
        return f"{self.progress.images_per_second:,.0f} images/s; {format_time(self.progress.seconds)} in total"

    # -- set-up, checkpoints and errors --------------------------------------------------------------------------------

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            stack.enter_context(one_line_errors())
            self.ranks.attach(self.model)
            if self.folder is not None:
                stack.callback(self.folder.close)
                self.ranks.check_same("data", self.folder.data)
                if self.folder.resume:
                    self._resume()
                self.ranks.check_model(self.model)
                self._stop = stack.enter_context(StopRequest(second_ends=self.ranks.is_alone))
            option = "--batch-size" if self.micro_batch is None else "--micro-batch"
            stack.enter_context(suggest_batch_size(self.micro_batch or self.loader.batch_size, option))
            stack.enter_context(self._explained_anomaly())
            self._bar = stack.enter_context(self._progress_bar())
            self._stack = stack.pop_all()
        self._run_start = time.perf_counter() - self.progress.seconds
        return self

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    def _progress_bar(self) -> tqdm:
        """The progress bar over the steps of the run, with the remaining time."""
        layout = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
        name = f"{self.name}: " if self.name else ""
        file = None if self.ranks.is_first else Nowhere()
        return tqdm(None, name, self.total_steps, initial=self.step, file=file, bar_format=layout, dynamic_ncols=True)

    def _update_bar(self) -> None:
        """Show the loss, accuracy and speed; end the run if the loss is NaN or infinite."""
        progress, first, last = self.progress, self._bar.n, self.step - 1
        totals = progress.totals
        if not math.isfinite(totals.loss):
            step = f"step {last}" if first >= last else f"one of steps {first} to {last}"
            raise SystemExit(f"error: the loss is {totals.loss} at {step}; {self._remedy()}")
        self._bar.set_postfix_str(
            f"loss {totals.loss:.3f}, accuracy {1 - totals.error:.1%}, {progress.images_per_second:,.0f} images/s",
            refresh=False,
        )
        self._bar.update(self.step - first)

    def _save_or_stop(self) -> None:
        """After a step: save every SAVE_EVERY steps; if a stop was requested, save and stop."""
        if self.folder is None:
            return
        stops = self._asked_to_stop()[0] and self.step < self.total_steps
        if self._saved_at != self.step and (stops or self.step % SAVE_EVERY == 0):
            self._read_totals()
            self._update_bar()
            self._save()
        if stops:
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Stop if Ctrl-C or a signal asked for it; the checkpoint must be saved.

        A signal in the last step of a run lets it finish. A script that trains several networks calls this after each
        but the last.
        """
        asked, status = self._asked_to_stop()
        if asked:
            log(f"stopped after step {self.step:,}; checkpoint saved. To continue: {self.resume_hint}")
            raise Stopped(status)

    def _asked_to_stop(self) -> tuple[int, int]:
        """(1 if a signal has reached some rank, the exit status): the same on all ranks, which stop after one step."""
        return self.ranks.largest(self._stop.asked, self._stop.status)

    def _save(self, record: dict | None = None) -> None:
        """Save the checkpoint and, at the end of an epoch, its record."""
        self._check_finite()
        self.progress.seconds = self._seconds()
        state = {name: part.state_dict() for name, part in self.stateful.items()}
        counters = {"progress": asdict(self.progress), "loader": self.loader.state_dict(), **state}
        self.folder.save(self.model, self.optimizer, counters, record)
        self._saved_at = self.step

    def _resume(self) -> None:
        """Restore the run from the checkpoint in the folder."""
        with self.folder.resuming():
            counters = self.folder.load(self.model, self.optimizer)
            progress = counters["progress"]
            self.progress = Progress(**progress | {"totals": Totals(**progress["totals"])})
            self.loader.load_state_dict(counters["loader"])
            for name, part in self.stateful.items():
                if name in counters:  # else the run was started with other options
                    part.load_state_dict(counters[name])
            self.folder.drop_records_after(self.step)
            self.folder.keep_checkpoints(self.step)  # a kill may have come between a checkpoint and its other names

    def _check_finite(self) -> None:
        """End the run if the network or optimiser contains NaN or infinity, as the update after a finite loss may."""
        if broken := not_finite(self.model, self.optimizer):
            arrays = f"{len(broken)} arrays of the network and the optimiser, such as {broken[0]}"
            raise SystemExit(f"error: NaN or infinity in {arrays}; {self._remedy()}")

    @contextlib.contextmanager
    def _explained_anomaly(self) -> Iterator[None]:
        """Say at which step --detect-anomaly found something, and which checkpoint is from before it."""
        try:
            yield
        except AnomalyError as problem:
            raise SystemExit(f"error: step {self.step}: {problem}; {self._remedy()}") from None

    def _remedy(self) -> str:
        return self.nan_hint if self.folder is None else f"{self.nan_hint}; {self.folder.last_good}"

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._run_start, 2)
