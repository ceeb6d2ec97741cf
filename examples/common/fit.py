"""The loop of train_cifar_resnet.py, for scripts whose subject is something else."""

from collections.abc import Callable, Iterator

import numpy as np

from common.run import Run
from minidl import Tensor
from minidl.functional import cross_entropy
from minidl.nn import Module
from minidl.optim import Optimizer


def fit(
    run: Run, step: Callable, schedule: Callable[[int], float], end_epoch: Callable[[], None] | None = None
) -> None:
    """Train to the end: `step(*batch)` gives the loss and how many were wrong; `end_epoch` evaluates and saves."""
    with run:
        for batch in run.batches():
            run.optimizer.lr = schedule(run.step)
            run.count(*step(*batch))
            if run.epoch_ended:
                (end_epoch or run.count_anew)()


def classification_step(model: Module, optimizer: Optimizer, micro_batch: int | None = None) -> Callable:
    """step(images, labels) of gradient descent, in parts of at most `micro_batch` images, whose gradients add up.

    The loss of the batch is the mean over its images, so each part counts by its share of them. Batch-norm takes its
    statistics of each part, as in the papers, where each GPU had one.
    """

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, wrong, count = 0, 0, len(labels)
        for start in range(0, count, micro_batch or count):
            part = slice(start, start + (micro_batch or count))
            logits = model(images[part])
            loss = cross_entropy(logits, labels[part]) * (len(labels[part]) / count)
            loss.backward()
            total, wrong = total + loss.detach(), wrong + (logits.argmax(dim=1) != labels[part]).sum()
        optimizer.step()
        optimizer.zero_grad()
        return total, wrong

    return step


class RandomBatches:
    """Batches of `take(rows, rng)`, with the rows in a new order in each epoch: for small data on the host.

    Args:
        count: the number of rows.
        batch_size: rows in a batch, at most; the batches of an epoch differ in size by 1 at most.
        seed: decides the order, and what `take` draws.
        take: gives a batch, whose first part has a row for each of these rows.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, take: Callable[[np.ndarray, np.random.Generator], tuple]
    ):
        self.count, self.batch_size, self.take = count, batch_size, take
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple]:
        """The batches of an epoch."""
        for rows in np.array_split(self._rng.permutation(self.count), len(self)):
            yield self.take(rows, self._rng)
