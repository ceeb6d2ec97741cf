"""How a parameter is laid out in files: always as PyTorch has it. The one place where the two layouts meet.

Results are C-contiguous copies: safetensors writes the memory of a transposed view as if it were not transposed.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plain:
    """The same in both: vectors, and everything that is no weight of a linear map."""

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """A copy."""
        return array.copy()

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """A copy."""
        return array.copy()


@dataclass(frozen=True)
class ConvWeight:
    """(KH, KW, C, O) in memory, (O, C, KH, KW) in files."""

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """(KH, KW, C, O) -> (O, C, KH, KW)."""
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """(O, C, KH, KW) -> (KH, KW, C, O)."""
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))


@dataclass(frozen=True)
class LinearWeight:
    """(in, out) in memory, (out, in) in files.

    After a flatten, `in` runs over (H, W, C) here and over (C, H, W) in PyTorch: `flattened_from` is that (H, W, C).
    """

    flattened_from: tuple[int, int, int] | None = None

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """(in, out) -> (out, in)."""
        if self.flattened_from:
            array = array.reshape(*self.flattened_from, -1).transpose(2, 0, 1, 3)  # (H, W, C, out) -> (C, H, W, out)
        return np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """(out, in) -> (in, out)."""
        array = array.T
        if self.flattened_from:
            h, w, c = self.flattened_from
            array = array.reshape(c, h, w, -1).transpose(1, 2, 0, 3)  # (C, H, W, out) -> (H, W, C, out)
        return np.ascontiguousarray(array.reshape(-1, array.shape[-1]))
