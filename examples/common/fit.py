"""The training loop of train_cifar_resnet.py as a function, for the scripts that are about something else."""

import argparse
import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from common.run import Run
from minidl import GradScaler, Tensor, cuda_graph, detect_anomaly
from minidl.functional import cross_entropy
from minidl.nn import Module
from minidl.optim import Optimizer


def fit(
    run: Run, step: Callable, schedule: Callable[[int], float], end_epoch: Callable[[], None] | None = None
) -> None:
    """Train to the end. `step(*batch)` returns (loss, number misclassified); `end_epoch()` evaluates and saves."""
    with run:
        for batch in run.batches():
            run.optimizer.lr = schedule(run.step)
            run.log(*step(*batch))
            if run.epoch_ended:
                (end_epoch or run.reset_totals)()


def prepare_step(
    step: Callable, model: Module, args: argparse.Namespace, scaler: GradScaler | None = None, capture: bool = True
) -> Callable:
    """Return the step as the options ask for it: with --detect-anomaly checked, else on a GPU a single CUDA graph.

    A step is not captured if `capture` is False, or with a scaler, which reads a number in each step.
    """
    scaled = scaler is not None and scaler.enabled
    if args.detect_anomaly:
        if scaled:
            raise ValueError(
                "--detect-anomaly: float16 gradients overflow now and then, and such a step is skipped, so this is no "
                "anomaly; use --dtype bfloat16 or float32"
            )
        return _checked(step, model)
    return step if args.device == "cpu" or scaled or not capture else cuda_graph(step)


def _checked(step: Callable, model: Module) -> Callable:
    """The step inside `detect_anomaly`."""

    def checked_step(*batch):
        with detect_anomaly(model):
            return step(*batch)

    return checked_step


def classification_step(
    model: Module,
    optimizer: Optimizer,
    micro_batch: int | None = None,
    scaler: GradScaler | None = None,
    average_gradients: Callable = contextlib.nullcontext,
) -> Callable:
    """Return step(images, labels), a training step that accumulates gradients over parts of `micro_batch` images.

    The loss is the mean over the batch, so the loss of a part is weighted by its share of the images. Batch-norm uses
    the statistics of each part. The papers did the same: each of their GPUs had one part. `scaler` is for float16, and
    `average_gradients` is that of the run if several ranks train.
    """
    scaler = scaler or GradScaler(enabled=False)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, wrong, count = 0, 0, len(labels)
        starts = range(0, count, micro_batch or count)
        with average_gradients(len(starts)):
            for start in starts:
                part = slice(start, start + (micro_batch or count))
                logits = model(images[part])
                loss = cross_entropy(logits, labels[part]) * (len(labels[part]) / count)
                scaler.scale(loss).backward()
                total, wrong = total + loss.detach(), wrong + (logits.argmax(dim=1) != labels[part]).sum()
        scaler.step(optimizer)
        optimizer.zero_grad()
        return total, wrong

    return step


class RandomBatches:
    """Batches `make_batch(rows, rng)` of a small data set in host memory, shuffled anew for each epoch.

    Args:
        count: number of rows in the data set.
        batch_size: maximum number of rows in a batch. The batches of an epoch differ in size by at most 1.
        seed: seed of the shuffling and of the `rng` that `make_batch` receives.
        make_batch: returns the batch of these rows as a tuple whose first entry has one row for each.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, make_batch: Callable[[np.ndarray, np.random.Generator], tuple]
    ):
        self.count, self.batch_size, self.make_batch = count, batch_size, make_batch
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple]:
        """The batches of an epoch."""
        for rows in np.array_split(self._rng.permutation(self.count), len(self)):
            yield self.make_batch(rows, self._rng)
