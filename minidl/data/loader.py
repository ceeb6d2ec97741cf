"""From a data set to batches: shuffled, transformed, loaded ahead, and restartable at any batch.

Randomness is counted, never carried: each draw comes from a fresh generator seeded with (seed, purpose, epoch, batch).
So the position is two integers, and a loader that has run ahead has used up nothing.

`DataLoader` gives NumPy arrays. Two loaders give tensors on a device: `AugmentedLoader` for a data set that lies there
as a whole, `DeviceLoader` for one that comes batch by batch, while the GPU works on the batch before.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

import numpy as np

from minidl.data.augment import CropAndFlip
from minidl.data.dataset import ArrayDataset, Dataset
from minidl.kernels import device_of, to_device
from minidl.system.copies import CopyRing
from minidl.tensor import Tensor

Batch = tuple[np.ndarray, np.ndarray]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# Purposes: the second word of every seed.
SHUFFLE, TRANSFORM = 0, 1


class DataLoader:
    """Batches of a data set; `for images, labels in loader:` runs one epoch, or what is left of it.

    The position counts the batches handed out, so inside the loop it already includes the batch in hand, and with the
    last batch it moves to (epoch + 1, 0). A loop left by `break` is continued by the next `for`.

    Args:
        dataset: has a length, and gives `(images, labels)` for an array of indices.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        shuffle: a new order each epoch, otherwise the data set's own.
        seed: with the epoch and the batch number, it decides all randomness.
        transform: `transform(images, rng) -> images`, applied to each batch.
        drop_last: leave out a last batch that is not full.
        prefetch: batches a background thread loads ahead; 0 loads each when asked, in the caller's thread.

    Raises:
        ValueError: there is not one batch to give, or a number is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
        drop_last: bool = False,
        prefetch: int = 2,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.transform = transform
        self.drop_last = drop_last
        self.prefetch = prefetch
        self._check()
        self._epoch, self._batch = 0, 0

    def _check(self) -> None:
        limits = ("batch_size", self.batch_size, 1), ("seed", self.seed, 0), ("prefetch", self.prefetch, 0)
        for name, value, least in limits:
            if value < least:
                raise ValueError(f"{type(self).__name__}: {name} must be {least} or more, got {value}")
        if len(self.dataset) == 0:
            raise ValueError(f"{type(self).__name__}: the data set is empty")
        if len(self) == 0:
            raise ValueError(
                f"{type(self).__name__}: drop_last leaves no batch: {len(self.dataset)} images are fewer than "
                f"batch_size {self.batch_size}: lower it, or pass drop_last=False"
            )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the position to the end of its epoch.

        An exception in the data set or the transform is raised here, with its traceback, and leaves the position before
        the batch that failed.
        """
        epoch, order = self._epoch, self._order(self._epoch)
        numbers = range(self._batch, len(self))
        load = partial(self._load, order, epoch)
        batches = _map_ahead(load, numbers, self.prefetch) if self.prefetch else map(load, numbers)
        for number, batch in zip(numbers, batches, strict=True):
            last = number + 1 == len(self)
            self._epoch, self._batch = (epoch + 1, 0) if last else (epoch, number + 1)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position: `epoch`, and `batch`, how many batches of it have been handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; the next `for` gives what an uninterrupted run would have given.

        Raises:
            ValueError: the epoch has no such batch.
        """
        if state["epoch"] < 0 or not 0 <= state["batch"] < len(self):
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: no batch {state['batch']} of epoch {state['epoch']}: "
                f"an epoch has {len(self)} batches: was the position saved with another batch_size or data set?"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self.dataset)
        return self._generator(SHUFFLE, epoch).permutation(count) if self.shuffle else np.arange(count)

    def _load(self, order: np.ndarray, epoch: int, number: int) -> Batch:
        images, labels = self.dataset[self._rows(order, number)]
        if self.transform is not None:
            images = self.transform(images, self._generator(TRANSFORM, epoch, number))
        return images, labels

    def _rows(self, order: np.ndarray, number: int) -> np.ndarray:
        """The indices of the images in a batch."""
        start = number * self.batch_size
        return order[start : start + self.batch_size]

    def _generator(self, purpose: int, epoch: int, number: int = 0) -> np.random.Generator:
        # Always four words: NumPy pads shorter seeds with zeros, so [1] and [1, 0] would be the same seed.
        return np.random.default_rng([self.seed, purpose, epoch, number])


class AugmentedLoader(DataLoader):
    """Batches of an `ArrayDataset` as tensors on the device that holds its images, shifted and mirrored there.

    The images of CIFAR go to a GPU once, as bytes: `dataset.to("cuda")`. Then a batch sends only which images it takes
    and how they are varied, a few kilobytes, in one copy:

        for images, labels in AugmentedLoader(dataset.to("cuda"), 128, CropAndFlip(mean), shuffle=True):
            loss = cross_entropy(model(images), labels)

    The numbers are those of a `DataLoader` with the transform `augment`, on any device.

    Args:
        dataset: uint8 images; `dataset.to(device)` decides the device.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        augment: how images are varied and normalised.
        shuffle: a new order each epoch, otherwise the data set's own.
        seed: with the epoch and the batch number, it decides all randomness.
        drop_last: leave out a last batch that is not full.
        dtype: of the images: a network computes in the dtype of its images. 'bfloat16' needs a GPU.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        batch_size: int,
        augment: CropAndFlip,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        dtype: str = "float32",
    ) -> None:
        self.augment, self.dtype = augment, dtype
        # Nothing is loaded ahead: a batch takes less time than handing it over from another thread.
        super().__init__(dataset, batch_size, shuffle, seed, None, drop_last, prefetch=0)

    def _load(self, order: np.ndarray, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        chosen = self._rows(order, number)
        draws = self.augment.draw(self._generator(TRANSFORM, epoch, number), len(chosen))
        columns = np.vstack([chosen, self.dataset.labels[chosen], draws])  # int64 (5, N), for a single copy to a GPU
        chosen, labels, *draws = to_device(columns, device_of(self.dataset.images))
        images = self.augment.apply(self.dataset.images, chosen, *draws)
        return Tensor(images).to(self.dtype), Tensor(labels)


class DeviceLoader:
    """The batches of a loader as tensors on a device.

    A batch is copied when it is asked for: the step before it has been queued by then, and while the GPU works on that,
    the copy runs on a stream of its own, out of pinned memory. So nothing is taken from the loader before it is wanted,
    and the loader's position, where it has one, counts what was handed out. (Nothing overlaps where each step makes the
    host wait for it, as `loss.item()` does.)

    Arrays travel with their dtype: uint8 images as bytes. On a GPU their memory is used again: a batch lasts until the
    next one is asked for.

    Args:
        loader: gives tuples of arrays, as `DataLoader` does; its errors are raised here.
        device: 'cpu' or 'cuda'.
        dtype: that float arrays are converted to on the device; None leaves them as they are.
    """

    def __init__(self, loader: Iterable[Batch], device: str, dtype: str | None = None) -> None:
        if device not in ("cpu", "cuda"):
            raise ValueError(f"DeviceLoader: expected device 'cpu' or 'cuda', got {device!r}")
        self.loader, self.dtype = loader, dtype
        self._ring = CopyRing() if device == "cuda" else None

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The loader's batches, in its order."""
        for batch in self.loader:
            yield tuple(self._tensor(array) for array in (batch if self._ring is None else self._ring.copy(batch)))

    def _tensor(self, array) -> Tensor:
        convert = self.dtype is not None and array.dtype.kind == "f"
        return Tensor(array).to(self.dtype) if convert else Tensor(array)

    def state_dict(self) -> dict[str, int]:
        """The position of the loader."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the position of the loader."""
        self.loader.load_state_dict(state)


def _map_ahead(function: Callable[[int], Batch], numbers: range, ahead: int) -> Iterator[Batch]:
    """`map(function, numbers)`, computed by one background thread up to `ahead` results before they are asked for."""
    from concurrent.futures import ThreadPoolExecutor  # on first use, as it loads logging too

    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="DataLoader")
    try:
        waiting = iter(numbers)
        started = deque(thread.submit(function, number) for number in islice(waiting, ahead))
        while started:
            result = started.popleft().result()
            started.extend(thread.submit(function, number) for number in islice(waiting, 1))
            yield result
    finally:  # also where the loop is left early: the generator is closed as soon as nothing refers to it
        thread.shutdown(cancel_futures=True)
