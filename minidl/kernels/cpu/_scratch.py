"""Moved to `_pieces`."""

from minidl.kernels.cpu._pieces import scratch  # noqa: F401
