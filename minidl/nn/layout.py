"""The layout of parameters in files, which is PyTorch's. Only this file converts between it and minidl's.

All results are C-contiguous copies. safetensors ignores strides, so it would write a transposed view untransposed; and
a copy does not change in the next training step. `np.ascontiguousarray` copies only if the memory is not contiguous.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plain:
    """The same layout in memory and in files: for vectors, and all but the weights of linear and convolution layers."""

    def shape_in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape unchanged."""
        return shape

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Return a copy."""
        return array.copy()

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """Return a copy."""
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
    """(in, out) in memory, (out, in) in files: converted as a convolution whose kernel covers a whole (H, W, C) image.

    For a layer after a flatten, `flattened_from` is (H, W, C): `in` runs over (H, W, C) here, but over (C, H, W) in
    PyTorch. Without it, H = W = 1.
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
