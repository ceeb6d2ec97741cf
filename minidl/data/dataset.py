"""What a data set is: a length, and `(images, labels)` for an array of indices. This one holds two arrays."""

from typing import Protocol

import numpy as np

from minidl.kernels import to_device


class Dataset(Protocol):
    """All that a `DataLoader` asks of a data set; write these two methods and it will load yours."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images and the labels at these indices, in their order."""


class ArrayDataset:
    """Images (N, H, W, C) with their labels (N,), both in memory.

    `dataset[indices]` is `(images[indices], labels[indices])`: an index array copies, a slice does not.

    Args:
        images: any dtype, uint8 as a rule; `to("cuda")` has them on the GPU.
        labels: int64, the number of each image's class.
        classes: the names of the classes; labels must then lie below their number.

    Raises:
        ValueError: shapes, types or labels do not fit together.
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
        """The images and the labels at these indices."""
        return self.images[indices], self.labels[indices]

    def subset(self, indices: np.ndarray | slice) -> "ArrayDataset":
        """The data set of these images alone; `subset(slice(45_000))` shares memory with this one."""
        return ArrayDataset(*self[indices], self.classes)

    def to(self, device: str) -> "ArrayDataset":
        """The data set with its images on that device; the labels stay on the host, for the loader to hand out."""
        return ArrayDataset(to_device(self.images, device), self.labels, self.classes)


def _check_arrays(images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim != 4:
        raise ValueError(f"ArrayDataset: images must be (N, H, W, C), got shape {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"ArrayDataset: one label per image expected, got labels {labels.shape} for {len(images)} images"
        )
    if labels.dtype != np.int64:
        raise ValueError(f"ArrayDataset: labels must be int64, got {labels.dtype}: pass labels.astype(np.int64)")


def _check_label_range(labels: np.ndarray, class_count: int) -> None:
    outside = labels[(labels < 0) | (labels >= class_count)]
    if outside.size:
        raise ValueError(f"ArrayDataset: labels must lie in 0..{class_count - 1}, one per class, got {outside[0]}")
