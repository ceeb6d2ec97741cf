"""Data sets: a length, and `(images, labels)` for an array of indices. `ArrayDataset` holds both in memory."""

from typing import Protocol

import numpy as np

from minidl.kernels import to_device


class Dataset(Protocol):
    """The interface that `DataLoader` needs. Implement these two methods to load your own data."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels at these indices, in the order of `indices`."""


class ArrayDataset:
    """Images (N, H, W, C) with their labels (N,), both in memory.

    `dataset[indices]` is `(images[indices], labels[indices])`. An index array copies; a slice is a view.

    Args:
        images: any dtype, usually uint8; `to("cuda")` moves them to the GPU.
        labels: int64, the class index of each image.
        classes: the class names. If given, labels must be in 0..len(classes) - 1.

    Raises:
        ValueError: the shapes or dtypes are wrong, or a label is out of range.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...] = ()) -> None:
        _check_arrays(images, labels)
        if classes:
            _check_label_range(labels, len(classes))
        self.images = images
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.labels)

    def __getitem__(self, indices: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels at these indices."""
        return self.images[indices], self.labels[indices]

    def subset(self, indices: np.ndarray | slice) -> "ArrayDataset":
        """A data set of these images only; `subset(slice(45_000))` shares memory with this one."""
        return ArrayDataset(*self[indices], self.classes)

    def to(self, device: str) -> "ArrayDataset":
        """The data set with its images on `device`; the labels stay on the host, where the loader needs them."""
        return ArrayDataset(to_device(self.images, device), self.labels, self.classes)


def _check_arrays(images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim != 4:
        raise ValueError(f"ArrayDataset: images must be (N, H, W, C), got shape {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"ArrayDataset: expected one label per image, got labels {labels.shape} for {len(images)} images"
        )
    if labels.dtype != np.int64:
        raise ValueError(f"ArrayDataset: labels must be int64, got {labels.dtype}: pass labels.astype(np.int64)")


def _check_label_range(labels: np.ndarray, class_count: int) -> None:
    outside = labels[(labels < 0) | (labels >= class_count)]
    if outside.size:
        raise ValueError(f"ArrayDataset: labels must be in 0..{class_count - 1}, one per class, got {outside[0]}")
