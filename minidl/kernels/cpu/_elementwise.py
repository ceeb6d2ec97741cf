"""Moved to `_pieces`."""

from minidl.kernels.cpu._pieces import elementwise  # noqa: F401
