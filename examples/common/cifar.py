"""The data of the CIFAR scripts: CIFAR-10, CIFAR-100, or shapes drawn by the program itself."""

import argparse
from dataclasses import dataclass

import numpy as np
from models.config import NetworkConfig

from minidl.data import (
    ArrayDataset,
    AugmentedLoader,
    CropAndFlip,
    load_cifar10,
    load_cifar100,
    make_shapes,
    per_pixel_mean,
)

SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000
TEST_BATCH = 250  # divides CIFAR's 10,000 test images

# About one standard deviation of CIFAR's pixels (0.25 * 255). The paper does not divide; after the batch-norm that
# follows the first convolution it makes no difference to the network.
PIXEL_STD = 64.0


@dataclass
class CifarData:
    """Training and test images, on a device, and the loaders of their batches.

    `augment` is section 4.2: the per-pixel mean subtracted, a random crop after 4 pixels of padding, or its mirror
    image. `prepare` is the single view that is tested: nothing but the mean subtracted.
    """

    train: ArrayDataset
    test: ArrayDataset
    split: str = "test"  # or "validation", for a part of the training images
    device: str = "cpu"
    dtype: str = "float32"  # of the network's input, and so of what it computes

    def __post_init__(self):
        self.mean = per_pixel_mean(self.train.images)
        self.augment = CropAndFlip(self.mean, PIXEL_STD, padding=4)
        self.prepare = CropAndFlip(self.mean, PIXEL_STD, padding=0, flip_probability=0)
        self.train, self.test = self.train.to(self.device), self.test.to(self.device)  # uint8: CIFAR-10 has 184 MB

    def train_loader(self, batch_size: int, seed: int, drop_last: bool = False) -> AugmentedLoader:
        """Batches of training images, augmented, in a new order in each epoch."""
        return AugmentedLoader(self.train, batch_size, self.augment, True, seed, drop_last, self.dtype)

    def test_loader(self, batch_size: int = TEST_BATCH) -> AugmentedLoader:
        """Batches of test images."""
        return AugmentedLoader(self.test, batch_size, self.prepare, dtype=self.dtype)

    def config(self, name: str, builder: str, **arguments) -> NetworkConfig:
        """Of a network for these images."""
        names, size = self.train.classes, self.train.images.shape[1]
        arguments |= {"num_classes": len(names)}
        return NetworkConfig(name, builder, arguments, names, names, size, size, self.mean, PIXEL_STD)


def load_data(args: argparse.Namespace) -> CifarData:
    """The data set that the options ask for, on their device."""
    if args.dataset == "shapes":
        count = SHAPES_TRAIN if args.holdout else min(SHAPES_TRAIN, args.limit_train or SHAPES_TRAIN)
        train, test = make_shapes(count, train=True), make_shapes(SHAPES_TEST, train=False)
    else:
        load = {"cifar10": load_cifar10, "cifar100": load_cifar100}[args.dataset]
        train, test = load(args.data_dir, train=True), load(args.data_dir, train=False)
    if args.holdout:
        order = np.random.default_rng(args.seed).permutation(len(train))
        held_out = len(train) // 10
        train, test = train.subset(order[held_out:]), train.subset(order[:held_out])
    if args.limit_train is not None:
        train = train.subset(slice(args.limit_train))
    dtype = getattr(args, "dtype", "float32").replace("tf32", "float32")  # TF32 is a way to multiply float32
    return CifarData(train, test, "validation" if args.holdout else "test", args.device, dtype)
