"""Mixup: training on weighted means of two images (Zhang, Cisse, Dauphin, Lopez-Paz 2017, arXiv 1710.09412)."""

from collections.abc import Iterator

import numpy as np

from minidl import Tensor
from minidl.data import AugmentedLoader
from minidl.data.loader import part_of
from minidl.functional import cross_entropy

MIXUP = 3  # purpose of the draw in the seed, beside those of minidl.data.loader
Mixed = tuple[Tensor, Tensor, Tensor, Tensor]


def mixup(images: Tensor, labels: Tensor, partners: Tensor, share: float) -> Mixed:
    """Mix image i with image partners[i]: share * x_i + (1 - share) * x_partner (section 2).

    images (N, H, W, C), labels (N,), partners (N,), a permutation. Returns what `mixup_loss` takes after the logits:
    (mixed images, labels, labels of the partners, share as a tensor).
    """
    share = Tensor(np.float32(share), device=images.device)
    weight = share.to(images.dtype)
    return weight * images + (1 - weight) * images[partners], labels, labels[partners], share


def mixup_loss(logits: Tensor, labels: Tensor, partner_labels: Tensor, share: Tensor) -> Tensor:
    """share * cross_entropy(labels) + (1 - share) * cross_entropy(partner_labels): () in float32.

    It equals the cross-entropy with the mixed one-hot targets of section 2, as cross-entropy is linear in the target.
    """
    return share * cross_entropy(logits, labels) + (1 - share) * cross_entropy(logits, partner_labels)


def random_mixup(images: Tensor, labels: Tensor, alpha: float, seed: int, step: int) -> Mixed:
    """Mix a batch with a random permutation of itself, and one share for all, drawn from Beta(alpha, alpha).

    The draw depends on (seed, step) alone, so a resumed run draws the same. The larger of share and 1 - share goes to
    `labels`: Beta is symmetric and the pairs are random, so training is the same, and `labels` are the main classes.
    """
    rng = np.random.default_rng([seed, MIXUP, step])
    share = rng.beta(alpha, alpha)
    partners = Tensor(rng.permutation(len(images)), device=images.device)
    return mixup(images, labels, partners, max(share, 1 - share))


class MixedBatches:
    """The batches of a loader, mixed by `random_mixup`: (mixed images, labels, labels of the partners, share).

    In a shard each process makes the whole batch, because the partner of an image can be in any part.
    """

    def __init__(self, loader: AugmentedLoader, alpha: float, seed: int, rank: int = 0, size: int = 1):
        self.loader, self.alpha, self.seed, self.rank, self.size = loader, alpha, seed, rank, size
        self.dataset, self.batch_size = loader.dataset, loader.batch_size
        self.first_row = 0  # as in a DataLoader

    def shard(self, rank: int, size: int) -> "MixedBatches":
        """The part `rank` of each mixed batch, as in a DataLoader."""
        return MixedBatches(self.loader, self.alpha, self.seed, rank, size)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Mixed]:
        """The mixed batches of an epoch."""
        for images, labels in self.loader:
            position = self.state_dict()
            step = position["epoch"] * len(self) + position["batch"] - 1
            mixed, *both_labels, share = random_mixup(images, labels, self.alpha, self.seed, step)
            part = part_of(len(labels), self.rank, self.size)
            self.first_row = part.start
            yield mixed[part], *(labels[part] for labels in both_labels), share

    def state_dict(self) -> dict[str, int]:
        """The position of the loader."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the position of the loader."""
        self.loader.load_state_dict(state)
