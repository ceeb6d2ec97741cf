"""How good a network is."""

from collections.abc import Callable, Iterable

import numpy as np

from minidl import Tensor, no_grad
from minidl.functional import softmax
from minidl.nn import Module


def error_rate(model: Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The part of the images that the model classifies wrongly, in evaluation mode."""
    count, wrong = 0, 0
    model.eval()
    with no_grad():
        for images, labels in loader:
            count, wrong = count + len(labels), wrong + (model(images).argmax(dim=1) != labels).sum()
    model.train()
    return int(wrong) / count


def probabilities(model: Module, images: Tensor) -> np.ndarray:
    """(N, H, W, 3) -> (N, classes)."""
    with no_grad():
        return softmax(model(images), dim=1).numpy()


def scores_of(compute: Callable[[Tensor], np.ndarray], batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """(compute(images), labels) of all the batches of a DeviceLoader, on the host."""
    scores, labels = [], []
    for images, classes in batches:
        scores.append(compute(images))
        labels.append(classes.numpy().copy())  # the loader uses the memory again
    return np.concatenate(scores), np.concatenate(labels)


def top_errors(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(top-1, top-5) error: the part of the images whose class is not the best by its score, not among the best five.

    Of equal scores the first class has the higher one. Scores are (N, classes), labels (N,).
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]  # NaN comes last
    right = best == labels[:, None]
    return float(1 - right[:, 0].mean()), float(1 - right.any(axis=1).mean())
