"""Error rates and class probabilities of a network."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from common.ranks import Ranks
from minidl import Tensor, no_grad
from minidl.functional import softmax
from minidl.nn import Module


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """A context in evaluation mode and without gradients. Afterwards the network is in its former mode."""
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        model.train(was_training)


def error_rate(
    model: Module, loader: Iterable[tuple[Tensor, Tensor]], mirror: bool | None = False, ranks: Ranks | None = None
) -> float:
    """The fraction of images that the model misclassifies in evaluation mode.

    With `mirror` the logits of an image and of its mirror image are added. With `ranks` each has the loader of its
    part of the images.
    """
    ranks = ranks or Ranks()
    count, wrong = 0, 0
    ranks.share_buffers(model)
    with evaluating(model):
        for images, labels in loader:
            if len(labels) == 0:  # this rank's part of a small batch
                continue
            logits = model(images)
            if mirror:
                logits = logits + model(images[:, :, ::-1])
            count, wrong = count + len(labels), wrong + (logits.argmax(dim=1) != labels).sum()
    wrong, count = ranks.sum(int(wrong), count)
    return wrong / count


def probabilities(model: Module, images: Tensor) -> np.ndarray:
    """The softmax of the logits: (N, H, W, 3) -> (N, classes)."""
    with no_grad():
        return softmax(model(images), dim=1).numpy()


def scores_of(compute: Callable[[Tensor], np.ndarray], batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Return (compute(images), labels), concatenated over all batches of a DeviceLoader, in host memory."""
    scores, labels = [], []
    for images, classes in batches:
        if len(classes) == 0:  # a rank's part of a small batch
            continue
        scores.append(compute(images))
        labels.append(classes.numpy().copy())  # the loader reuses this memory
    return np.concatenate(scores), np.concatenate(labels)


def top_errors(scores: np.ndarray, labels: np.ndarray, ranks: Ranks | None = None) -> tuple[float, float]:
    """The (top-1, top-5) error: the fraction of images whose class is not the top one, or not among the top five.

    A tie goes to the class with the lower index. Scores are (N, classes), labels (N,). With `ranks` they are those of
    this rank's part of the images.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]  # NaN is sorted last
    right = best == labels[:, None]
    count, top1, top5 = (ranks or Ranks()).sum(len(labels), int(right[:, 0].sum()), int(right.any(axis=1).sum()))
    return 1 - top1 / count, 1 - top5 / count
