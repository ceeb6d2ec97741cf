"""Data: where images come from, how they are varied, how they become batches. Arrays only: no tensors here."""

from minidl.data.augment import CropAndFlip, channel_mean_std, normalize, per_pixel_mean, random_crop, random_flip
from minidl.data.cifar import load_cifar10, load_cifar100
from minidl.data.dataset import ArrayDataset, Dataset
from minidl.data.loader import DataLoader, DeviceLoader, IndexLoader
from minidl.data.shapes import make_shapes

__all__ = [
    "ArrayDataset",
    "CropAndFlip",
    "DataLoader",
    "Dataset",
    "DeviceLoader",
    "IndexLoader",
    "channel_mean_std",
    "load_cifar10",
    "load_cifar100",
    "make_shapes",
    "normalize",
    "per_pixel_mean",
    "random_crop",
    "random_flip",
]
