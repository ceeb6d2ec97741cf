"""Moved to `_pieces`."""

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, slices  # noqa: F401
