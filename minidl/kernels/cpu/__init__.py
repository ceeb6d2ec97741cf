"""The CPU kernels, in NumPy: see `collect`. Files whose name starts with an underscore are private to this device."""

from minidl.kernels import collect

globals().update(collect.kernels_in(__name__, __path__))
