"""Data for the CIFAR scripts: CIFAR-10, CIFAR-100, or synthetic shapes."""

import argparse
import hashlib
from dataclasses import dataclass

import numpy as np
from models.config import NetworkConfig, cifar_model

from common.mixup import MixedBatches
from minidl.data import (
    ArrayDataset,
    AugmentedLoader,
    CropAndFlip,
    Cutout,
    load_cifar10,
    load_cifar100,
    make_shapes,
    per_pixel_mean,
)

SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000
TEST_BATCH = 250  # divides CIFAR's 10,000 test images

# About the standard deviation of CIFAR's pixels (0.25 * 255). The paper does not divide by it. The network computes the
# same either way, because batch-norm follows the first convolution.
PIXEL_STD = 64.0


@dataclass
class CifarData:
    """Training and test images on a device, and loaders for them.

    `augment` is the training transform of section 4.2: subtract the per-pixel mean, pad by 4 pixels, crop at random and
    flip with probability 1/2. `prepare` is the test transform: it only normalises.
    """

    train: ArrayDataset
    test: ArrayDataset
    split: str = "test"  # or "validation": held-out training images
    device: str = "cpu"
    dtype: str = "float32"  # of the input images, hence of the computation

    def __post_init__(self):
        self.mean, self.std = per_pixel_mean(self.train.images), PIXEL_STD
        self.augment = CropAndFlip(self.mean, self.std, padding=4)
        self.prepare = CropAndFlip(self.mean, self.std, padding=0, flip_probability=0)
        self.train, self.test = self.train.to(self.device), self.test.to(self.device)  # uint8: 184 MB for CIFAR-10

    def train_loader(
        self,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        cutout: int | None = None,
        mixup: float | None = None,
    ) -> AugmentedLoader | MixedBatches:
        """Augmented batches of the training images, shuffled anew for each epoch.

        With `cutout` a random square of that many pixels a side is set to the mean: see `minidl.data.random_cutout`.
        With `mixup`, the alpha of `random_mixup`, each batch is mixed.
        """
        augment = Cutout(self.augment, cutout, self.train.images.shape[1:3]) if cutout else self.augment
        loader = AugmentedLoader(self.train, batch_size, augment, True, seed, drop_last, self.dtype)
        return MixedBatches(loader, mixup, seed) if mixup else loader

    def test_loader(self, batch_size: int = TEST_BATCH) -> AugmentedLoader:
        """Batches of the test images, not augmented."""
        return AugmentedLoader(self.test, batch_size, self.prepare, dtype=self.dtype)

    def fingerprint(self) -> dict[str, str]:
        """A description of the training and test images, with a checksum of their pixels and labels, for RunFolder."""
        return {"training images": describe_arrays(self.train), f"{self.split} images": describe_arrays(self.test)}

    def config(self, name: str, builder: str, **arguments) -> NetworkConfig:
        """The config of a network for these images; `builder` and `arguments` define the network."""
        names, size = self.train.classes, self.train.images.shape[1]
        arguments |= {"num_classes": len(names)}
        return NetworkConfig(name, builder, arguments, names, names, size, size, self.mean, self.std)


def network_of(args: argparse.Namespace, data: CifarData) -> NetworkConfig:
    """The config of the network of --model, or of --depth and --shortcut."""
    if args.model is None:
        name = f"{'plain' if args.shortcut == 'none' else 'resnet'}{args.depth}"
        return data.config(name, "cifar_resnet", depth=args.depth, shortcut=args.shortcut)
    if (args.depth, args.shortcut) != (20, "A"):
        raise ValueError("--model names the depth and the shortcut too; omit --depth and --shortcut")
    builder, arguments = cifar_model(args.model)
    return data.config(args.model, builder, **arguments)


def describe_arrays(dataset: ArrayDataset) -> str:
    """Such as '50,000 with SHA-256 0123456789abcdef': the number, and a checksum of pixels and labels."""
    digest = hashlib.sha256(np.ascontiguousarray(dataset.to("cpu").images))
    digest.update(np.ascontiguousarray(dataset.labels))
    return f"{len(dataset):,} with SHA-256 {digest.hexdigest()[:16]}"


def load_data(args: argparse.Namespace, kind: type[CifarData] = CifarData) -> CifarData:
    """Load the data set of --dataset to the device of --device. A recipe of its own has a `kind` of its own."""
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
    if args.limit_test is not None:
        test = test.subset(slice(args.limit_test))
    dtype = getattr(args, "dtype", "float32").replace("tf32", "float32")  # TF32 arrays are float32
    return kind(train, test, "validation" if args.holdout else "test", args.device, dtype)
