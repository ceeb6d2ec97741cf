"""The data of the ImageNet scripts: DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG, any number of classes."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from minidl import Tensor
from minidl.data import ImageFolder, ImageLoader


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--data, --names, --skip-broken, --threads."""
    parser.add_argument("--data", required=True, metavar="DIR", help="holds train/<wnid>/*.JPEG and val/<wnid>/*.JPEG")
    parser.add_argument("--names", metavar="FILE", help="a line 'n01440764 tench, Tinca tinca' for each class")
    parser.add_argument("--skip-broken", action="store_true", help="go on without files that cannot be decoded")
    parser.add_argument("--threads", type=int, metavar="N", help="that decode; default: as many as there are cores")


def image_folder(args: argparse.Namespace, split: str, classes: tuple[str, ...] | None = None) -> ImageFolder:
    """DIR/train or DIR/val, labelled as `classes` say."""
    return ImageFolder(Path(args.data, split), args.names, classes)


def to_input(images, args: argparse.Namespace) -> Tensor:
    """An array of images as the network's input, in the dtype that is to be computed in."""
    return Tensor(images).to("bfloat16" if args.dtype == "bfloat16" else "float32")


def scores_of(compute: Callable, batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """(compute(images), labels) of all the batches of a DeviceLoader, on the host."""
    scores, labels = [], []
    for images, classes in batches:
        scores.append(compute(images))
        labels.append(Tensor(classes).numpy().copy())  # the loader uses the memory again
    return np.concatenate(scores), np.concatenate(labels)


def count_broken(*loaders: ImageLoader) -> None:
    """Say how many photographs were left out; each was named when it was met."""
    count = sum(len(loader.broken) for loader in loaders)
    if count:
        print(
            f"left out, as they cannot be decoded: {count:,} photographs, each replaced by the next one of its folder"
        )


def top_errors(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(top-1, top-5) error: the part of the images whose class is not the best by its score, not among the best five.

    Of equal scores the first class has the higher one. Scores are (N, classes), labels (N,).
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]  # nan comes last
    right = best == labels[:, None]
    return float(1 - right[:, 0].mean()), float(1 - right.any(axis=1).mean())
