"""From a data set to batches: shuffled, transformed, prefetched, and resumable at any batch.

There is no random state: each draw comes from a fresh generator seeded with (seed, purpose, epoch, batch). So two
integers describe the position, and loading batches ahead does not change what is drawn later.

`DataLoader` yields NumPy arrays. Two loaders yield tensors on a device: `AugmentedLoader` if the whole data set is on
the device, `DeviceLoader` to copy each batch there while the GPU works on the one before.
"""

import copy
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

import numpy as np

from minidl.data.augment import CropAndFlip, Cutout
from minidl.data.dataset import ArrayDataset, Dataset
from minidl.kernels import device_of, to_device
from minidl.system.copies import CopyRing
from minidl.system.gpu import is_device
from minidl.tensor import Tensor

Batch = tuple[np.ndarray, np.ndarray]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# The purpose of a draw: the second word of its seed. The third is taken by mixup, in examples/common/mixup.py.
SHUFFLE, TRANSFORM, FLIP, VIEW = 0, 1, 2, 4


class DataLoader:
    """Batches of a data set. Each `for images, labels in loader:` runs one epoch; after a `break`, the next one begins.

    The position counts the batches yielded, including the current one; the last batch moves it to (epoch + 1, 0). After
    `load_state_dict`, the next `for` runs the rest of that epoch.

    Args:
        dataset: any object with a length that returns `(images, labels)` for an array of indices.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        shuffle: True for a new order each epoch, False for the order of the data set.
        seed: all randomness depends only on the seed, the epoch and the batch number.
        transform: `transform(images, rng) -> images`, applied to each batch.
        drop_last: drop the last batch if it is not full.
        prefetch: number of batches a background thread loads ahead; 0 loads each on request, in the caller's thread.

    Raises:
        ValueError: there would be no batch, or a number is out of range.
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
        self._position = 0, 0  # (epoch, batches yielded)
        self._start = 0, 0  # where the next loop begins
        self._rank, self._ranks = 0, 1
        self.first_row = 0  # of the batch yielded last, in the whole batch: see `shard`

    def _check(self) -> None:
        limits = ("batch_size", self.batch_size, 1), ("seed", self.seed, 0), ("prefetch", self.prefetch, 0)
        for name, value, least in limits:
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{type(self).__name__}: {name} must be a whole number >= {least}, got {value!r}")
        if len(self.dataset) == 0:
            raise ValueError(f"{type(self).__name__}: the data set is empty")
        if len(self) == 0:
            raise ValueError(
                f"{type(self).__name__}: drop_last leaves no batch: {len(self.dataset)} images are fewer than "
                f"batch_size {self.batch_size}: lower it, or pass drop_last=False"
            )

    def shard(self, rank: int, size: int) -> "DataLoader":
        """Return a loader of part `rank` of each batch, where `size` processes divide every batch among them.

        The parts of a batch follow each other, without gaps, and differ by at most one image. A part is empty where a
        batch has fewer than `size` images. Order and augmentation are those of the whole batch, as without shards.
        For dropout too, wrap the step in `minidl.random.rows_from(loader.first_row)`. The position starts as here.

        A transform with `draw` and `apply`, as `CropAndFlip` has them, is applied to the part only. Any other must see
        the whole batch, of which the part is then taken: each process loads and transforms all images.
        """
        if self._ranks != 1:
            raise ValueError(f"{type(self).__name__}.shard: expected the loader of whole batches, got a shard of it")
        if not (isinstance(rank, int) and isinstance(size, int) and 0 <= rank < size):
            got = f"rank {rank!r}, size {size!r}"
            raise ValueError(f"{type(self).__name__}.shard: expected whole numbers 0 <= rank < size, got {got}")
        shard = copy.copy(self)
        shard._rank, shard._ranks = rank, size
        return shard

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the next epoch, or of the rest of one after `load_state_dict`.

        An exception in the data set or the transform is raised here, with its traceback. The position then stays before
        the batch that failed.
        """
        epoch, first = self._start
        self._start = epoch + 1, 0  # two loops at a time, as in zip(loader, loader), have epochs of their own
        return self._batches(epoch, range(first, len(self)))

    def _batches(self, epoch: int, numbers: range) -> Iterator[Batch]:
        load = partial(self._load, self._order(epoch), epoch)
        batches = _map_ahead(load, numbers, self.prefetch) if self.prefetch else map(load, numbers)
        for number, batch in zip(numbers, batches, strict=True):
            self._position = (epoch + 1, 0) if number + 1 == len(self) else (epoch, number + 1)
            self.first_row = self._part(number).start
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position: `epoch`, and `batch`, the number of batches of this epoch yielded so far."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set a saved position. The next `for` yields the same batches as an uninterrupted run.

        Raises:
            ValueError: the epoch has no such batch.
        """
        if state["epoch"] < 0 or not 0 <= state["batch"] < len(self):
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: no batch {state['batch']} of epoch {state['epoch']}: "
                f"an epoch has {len(self)} batches: was the position saved with another batch_size or data set?"
            )
        self._position = self._start = state["epoch"], state["batch"]

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self.dataset)
        return self._generator(SHUFFLE, epoch).permutation(count) if self.shuffle else np.arange(count)

    def _load(self, order: np.ndarray, epoch: int, number: int) -> Batch:
        if self.transform is None:
            return self.dataset[self._rows(order, number)]
        rng, part = self._generator(TRANSFORM, epoch, number), self._part(number)
        if self._ranks > 1 and hasattr(self.transform, "draw"):  # draw for the whole batch, load and augment the part
            images, labels = self.dataset[self._rows(order, number)]
            draws = self.transform.draw(rng, self._batch_length(number))[:, part]
            return self.transform.apply(images, np.arange(len(images)), *draws), labels
        images, labels = self.dataset[self._whole_batch(order, number)]
        return self.transform(images, rng)[part], labels[part]

    def _rows(self, order: np.ndarray, number: int) -> np.ndarray:
        """The indices of this process's images in batch `number`."""
        return self._whole_batch(order, number)[self._part(number)]

    def _whole_batch(self, order: np.ndarray, number: int) -> np.ndarray:
        """The indices of all images in batch `number`."""
        start = number * self.batch_size
        return order[start : start + self.batch_size]

    def _batch_length(self, number: int) -> int:
        return min(self.batch_size, len(self.dataset) - number * self.batch_size)

    def _part(self, number: int) -> slice:
        """Where this process's images are in batch `number`."""
        return part_of(self._batch_length(number), self._rank, self._ranks)

    def _generator(self, purpose: int, epoch: int, number: int = 0) -> np.random.Generator:
        # Always four words: NumPy pads shorter seeds with zeros, so [1] and [1, 0] would be the same seed.
        return np.random.default_rng([self.seed, purpose, epoch, number])


def part_of(count: int, rank: int, size: int) -> slice:
    """Return part `rank` of `count` rows: parts follow each other and differ by at most one row. The first is longest.

    So rank 0, which saves the running statistics of batch-norm, has images in every batch.
    """
    return slice(-(-count * rank // size), -(-count * (rank + 1) // size))


class AugmentedLoader(DataLoader):
    """Batches of an `ArrayDataset` as tensors, augmented on the device that holds the images.

    `dataset.to("cuda")` copies CIFAR's images to the GPU once, as bytes. After that each batch sends only indices,
    labels and random draws, a few kilobytes in one copy:

        for images, labels in AugmentedLoader(dataset.to("cuda"), 128, CropAndFlip(mean), shuffle=True):
            loss = cross_entropy(model(images), labels)

    On any device the batches equal those of a `DataLoader` with `transform=augment`, except with `alternating_flip`.

    Args:
        dataset: uint8 images; `dataset.to(device)` sets the device.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        augment: normalises, crops and flips the images.
        shuffle: True for a new order each epoch, False for the order of the data set.
        seed: all randomness depends only on the seed, the epoch and the batch number.
        drop_last: drop the last batch if it is not full.
        dtype: of the images, and so of the network's computation. 'bfloat16' needs a GPU.
        alternating_flip: flip each image in every second epoch, whatever the flip_probability of `augment`. Which
            images are flipped in the first epoch is random. In two epochs the network sees each image both ways
            (Jordan 2024).
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        batch_size: int,
        augment: CropAndFlip | Cutout,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        dtype: str = "float32",
        alternating_flip: bool = False,
    ) -> None:
        self.augment, self.dtype, self.alternating_flip = augment, dtype, alternating_flip
        # No prefetching: making a batch takes less time than passing it from another thread.
        super().__init__(dataset, batch_size, shuffle, seed, None, drop_last, prefetch=0)
        self._flipped_first = self._generator(FLIP, 0).random(len(dataset)) < 0.5

    def _load(self, order: np.ndarray, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        chosen = self._rows(order, number)
        draws = self.augment.draw(self._generator(TRANSFORM, epoch, number), self._batch_length(number))
        draws = draws[:, self._part(number)]
        if self.alternating_flip:
            draws[2] = self._flipped_first[chosen] ^ (epoch % 2)
        columns = np.vstack([chosen, self.dataset.labels[chosen], draws])  # int64 (5, N), for a single copy to a GPU
        chosen, labels, *draws = to_device(columns, device_of(self.dataset.images))
        images = self.augment.apply(self.dataset.images, chosen, *draws)
        return Tensor(images).to(self.dtype), Tensor(labels)


class DeviceLoader:
    """The batches of another loader as tensors on a device.

    A batch is copied when it is requested. By then the previous step is queued, so the GPU works on that step while the
    copy runs on its own stream, from pinned memory. No batch is taken from the loader in advance, so its position (if
    it has one) counts the batches yielded here. Copy and computation do not overlap if every step synchronises, as
    `loss.item()` does.

    Arrays keep their dtype while they are copied: uint8 images go as bytes. On a GPU the memory is reused, so a batch
    is valid until the next one is requested.

    Args:
        loader: yields tuples of arrays, as `DataLoader` does; its errors are raised here.
        device: 'cpu', 'cuda' or 'cuda:N'.
        dtype: float arrays are converted to this dtype on the device; None leaves them unchanged.
    """

    def __init__(self, loader: Iterable[Batch], device: str, dtype: str | None = None) -> None:
        if not is_device(device):
            raise ValueError(f"DeviceLoader: expected device 'cpu', 'cuda' or 'cuda:N', got {device!r}")
        self.loader, self.dtype = loader, dtype
        self._ring = None if device == "cpu" else CopyRing(device)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the loader's batches, in order."""
        for batch in self.loader:
            yield tuple(self._tensor(array) for array in (batch if self._ring is None else self._ring.copy(batch)))

    def _tensor(self, array) -> Tensor:
        convert = self.dtype is not None and array.dtype.kind == "f"
        return Tensor(array).to(self.dtype) if convert else Tensor(array)

    @property
    def first_row(self) -> int:
        """The number of the first row of the batch yielded last, in the whole batch: see `DataLoader.shard`."""
        return self.loader.first_row

    def state_dict(self) -> dict[str, int]:
        """Return the position of the loader."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the position of the loader."""
        self.loader.load_state_dict(state)


def _map_ahead(function: Callable[[int], Batch], numbers: range, ahead: int) -> Iterator[Batch]:
    """Like `map(function, numbers)`, but a background thread computes up to `ahead` results in advance.

    When the loop ends, for any reason, the thread ends after the batch that it is loading. Nobody waits for that: a
    batch can take long, and Ctrl-C should not.
    """
    requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[Batch | None, BaseException | None]] = queue.SimpleQueue()
    waiting, process, left = iter(numbers), os.getpid(), threading.Event()
    threading.Thread(target=_answer, args=(function, requests, results, left), name="DataLoader", daemon=True).start()
    try:
        for number in islice(waiting, ahead):
            requests.put(number)
        for _ in numbers:
            if os.getpid() != process:
                raise RuntimeError(
                    "DataLoader: this loop began before the process was forked, and its background thread is in the "
                    "other process; begin a new loop here, or pass prefetch=0"
                )
            result, error = results.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback refers to this frame: a cycle
            for number in islice(waiting, 1):
                requests.put(number)
            yield result
            del result  # so that one batch less is in memory
    finally:  # runs after a `break` too: a generator is closed as soon as nothing refers to it
        left.set()
        requests.put(None)


def _answer(function: Callable, requests: queue.SimpleQueue, results: queue.SimpleQueue, left: threading.Event) -> None:
    """Put (function(number), None) or (None, error) into `results` for each requested number, until None comes."""
    for number in iter(requests.get, None):
        if left.is_set():
            return
        try:
            results.put((function(number), None))
        except BaseException as error:
            results.put((None, error))
            return
