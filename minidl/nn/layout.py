"""How a parameter is laid out in files: always as PyTorch has it. The one place where the two layouts meet.

Results are C-contiguous copies: safetensors writes the memory of a transposed view as if it were not transposed, and
a copy does not change with the next step of training (`np.ascontiguousarray` makes none where an axis has length 1).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plain:
    """The same in both: vectors, and everything that is no weight of a linear map."""

    def shape_in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape itself."""
        return shape

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """A copy."""
        return array.copy()

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """A copy."""
        return array.copy()


@dataclass(frozen=True)
class ConvWeight:
    """(KH, KW, C, O) in memory, (O, C, KH, KW) in files."""

    def shape_in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(KH, KW, C, O) -> (O, C, KH, KW)."""
        kh, kw, c, o = shape
        return o, c, kh, kw

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """(KH, KW, C, O) -> (O, C, KH, KW)."""
        return array.transpose(3, 2, 0, 1).copy()

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """(O, C, KH, KW) -> (KH, KW, C, O)."""
        return array.transpose(2, 3, 1, 0).copy()


@dataclass(frozen=True)
class LinearWeight:
    """(in, out) in memory, (out, in) in files: the weight of a convolution that sees the whole of a (H, W, C) image.

    For a vector H and W are 1. After a flatten `in` runs over (H, W, C) here and over (C, H, W) in PyTorch:
    `flattened_from` is that (H, W, C).
    """

    flattened_from: tuple[int, int, int] | None = None

    def shape_in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(in, out) -> (out, in)."""
        return shape[::-1]

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """(in, out) = (H, W, C, out) -> (out, C, H, W) = (out, in)."""
        h, w, c = self.flattened_from or (1, 1, len(array))
        return ConvWeight().to_file(array.reshape(h, w, c, -1)).reshape(array.shape[::-1])

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """(out, in) = (out, C, H, W) -> (H, W, C, out) = (in, out)."""
        h, w, c = self.flattened_from or (1, 1, array.shape[1])
        return ConvWeight().from_file(array.reshape(-1, c, h, w)).reshape(array.shape[::-1])
