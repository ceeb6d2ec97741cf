"""The end of the course: the student's own im2col in use. It has to be fast, and a network has to learn with it."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from minidl import nn
from minidl.autograd import no_grad
from minidl.data.shapes import draw_shape
from minidl.functional import cross_entropy
from minidl.kernels import cpu, reference
from minidl.optim import Adam
from minidl.random import manual_seed
from minidl.study.workbench.course import LEAST_SPEEDUP
from minidl.tensor import Tensor

CLASSES = ("ring", "cross", "heart", "triangle")
SIZE, RADIUS = 16, (0.4, 0.45)  # of an image in pixels, and of a shape in image widths
TRAINED, TESTED, BATCH, EPOCHS, LR = 2000, 500, 64, 5, 0.01
REPETITIONS = 5  # the fastest counts


def practise(module: ModuleType) -> Iterator[tuple[str, float]]:
    """Yield ("speedup", over the loops); if it is enough, ("accuracy", of a network it trains)."""
    fast = speedup(module.conv2d_forward_by_im2col)
    yield "speedup", fast
    if fast >= LEAST_SPEEDUP:
        yield "accuracy", accuracy(module)


def speedup(forward: Callable) -> float:
    """How many times as fast a convolution is as that of the plain loops."""
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape, np.float32) for shape in ((8, 16, 16, 8), (3, 3, 8, 16), (16,)))
    arguments = x, weight, bias, (1, 1), (1, 1)
    return _seconds(reference.conv2d_forward, arguments) / _seconds(forward, arguments)


def _seconds(function: Callable, arguments: tuple) -> float:
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def accuracy(module: ModuleType) -> float:
    """The share of new images that a small network recognises after its training."""
    manual_seed(0)
    images, labels = _drawn(TRAINED, seed=0)
    channels = (3, 16, 32, 64, 64)
    layers = [
        layer
        for number, (before, after) in enumerate(itertools.pairwise(channels))
        for layer in (
            nn.Conv2d(before, after, 3, stride=2 if number in (1, 2) else 1, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )
    ]
    network = nn.Sequential(*layers, nn.GlobalAvgPool(), nn.Linear(channels[-1], len(CLASSES)))
    with _in_use(module):
        _train(network, images, labels)
        return _accuracy(network, *_drawn(TESTED, seed=1))


def _drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels), of equally many of each class."""
    labels = np.arange(count) % len(CLASSES)
    images = [
        draw_shape(CLASSES[label], SIZE, np.random.default_rng([seed, number]), RADIUS)[0]
        for number, label in enumerate(labels)
    ]
    return (np.stack(images).astype(np.float32) - 128) / 64, labels


@contextlib.contextmanager
def _in_use(module: ModuleType) -> Iterator[None]:
    """In the `with` block the student's functions are the convolution of minidl on the CPU."""

    def forward(x, weight, bias, stride, padding):
        return np.ascontiguousarray(module.conv2d_forward_by_im2col(x, weight, bias, stride, padding))

    def backward(grad, x, weight, stride, padding, needs_x, needs_weight):
        grads = module.conv2d_backward_by_im2col(grad, x, weight, stride, padding)
        needed = needs_x, needs_weight
        return tuple(np.ascontiguousarray(g) if need else None for g, need in zip(grads, needed, strict=True))

    right = cpu.conv2d_forward, cpu.conv2d_backward
    cpu.conv2d_forward, cpu.conv2d_backward = forward, backward
    try:
        yield
    finally:
        cpu.conv2d_forward, cpu.conv2d_backward = right


def _train(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
    optimizer, rng = Adam(network.parameters(), lr=LR), np.random.default_rng(0)
    for _ in range(EPOCHS):
        for batch in np.array_split(rng.permutation(len(images)), len(images) // BATCH):
            optimizer.zero_grad()
            cross_entropy(network(Tensor(images[batch])), labels[batch]).backward()
            optimizer.step()


def _accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    network.eval()
    with no_grad():
        return float((network(Tensor(images)).numpy().argmax(axis=1) == labels).mean())
