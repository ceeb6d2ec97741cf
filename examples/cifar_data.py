"""The data of the CIFAR scripts: CIFAR-10, CIFAR-100, or shapes drawn by the program itself."""

import argparse
import math
from dataclasses import dataclass

import numpy as np
from models.config import NetworkConfig

from minidl import Tensor
from minidl.data import ArrayDataset, CropAndFlip, load_cifar10, load_cifar100, make_shapes, per_pixel_mean

SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000

# About one standard deviation of CIFAR's pixels (0.25 * 255). The paper does not divide; after the batch-norm that
# follows the first convolution it makes no difference to the network.
PIXEL_STD = 64.0


@dataclass
class CifarData:
    """Training and test images, and how a batch of either becomes the network's input.

    `augment` is section 4.2: the per-pixel mean subtracted, a random crop after 4 pixels of padding, or its mirror
    image. `prepare` is the single view that is tested: nothing but the mean subtracted.
    """

    train: ArrayDataset
    test: ArrayDataset
    test_split: str  # "test", or "validation" for a part of the training images
    device: str = "cpu"
    dtype: str = "float32"  # of the network's input, and so of what it computes

    def __post_init__(self):
        self.mean = per_pixel_mean(self.train.images)
        self.augment = CropAndFlip(self.mean, PIXEL_STD, padding=4)
        self.prepare = CropAndFlip(self.mean, PIXEL_STD, padding=0, flip_probability=0)

    def to(self, device: str, dtype: str = "float32") -> "CifarData":
        """Move the images, uint8 as they are (CIFAR-10 has 184 MB of them); itself."""
        self.train, self.test, self.device = self.train.to(device), self.test.to(device), device
        self.dtype = "float32" if dtype == "tf32" else dtype  # TF32 is a way to multiply float32
        return self

    def take(self, batch: np.ndarray, dataset: ArrayDataset, view: CropAndFlip) -> tuple:
        """A batch of an IndexLoader -> the network's input (N, 32, 32, 3), a Tensor, and the labels (N,)."""
        chosen, labels, *draws = Tensor(batch, device=self.device).data
        return Tensor(view.apply(dataset.images, chosen, *draws)).to(self.dtype), labels

    def config(self, name: str, builder: str, **arguments) -> NetworkConfig:
        """Of a network for these images."""
        names, size = self.train.classes, self.train.images.shape[1]
        arguments |= {"num_classes": len(names)}
        return NetworkConfig(name, builder, arguments, names, names, size, size, self.mean, PIXEL_STD)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--dataset, --data-dir, --limit-train, --holdout."""
    parser.add_argument(
        "--dataset", choices=("shapes", "cifar10", "cifar100"), default="shapes", help="default: shapes"
    )
    parser.add_argument("--data-dir", default="data", help="where CIFAR is, or is downloaded to")
    parser.add_argument("--limit-train", type=positive, metavar="N", help="train on the first N images only")
    parser.add_argument("--holdout", action="store_true", help="test on a tenth of the training images (45k/5k)")


def positive(text: str) -> int:
    """The type of an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text}")
    return number


def whole(text: str) -> int:
    """The type of an option that may also be 0, such as a seed."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text}")
    return number


def rate(text: str) -> float:
    """The type of a learning rate or a weight decay."""
    number = float(text)
    if not 0 <= number < math.inf:  # NaN neither
        raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {text}")
    return number


def load_data(args: argparse.Namespace) -> CifarData:
    """The data set that the options ask for."""
    if args.dataset == "shapes":
        train, test = make_shapes(SHAPES_TRAIN, train=True), make_shapes(SHAPES_TEST, train=False)
    else:
        load = {"cifar10": load_cifar10, "cifar100": load_cifar100}[args.dataset]
        train, test = load(args.data_dir, train=True), load(args.data_dir, train=False)
    if args.holdout:
        order = np.random.default_rng(args.seed).permutation(len(train))
        held_out = len(train) // 10
        train, test = train.subset(order[held_out:]), train.subset(order[:held_out])
    if args.limit_train is not None:
        train = train.subset(slice(args.limit_train))
    return CifarData(train, test, "validation" if args.holdout else "test")
