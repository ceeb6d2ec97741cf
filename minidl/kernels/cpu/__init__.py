"""The kernels on the CPU, in NumPy: see `collect`. Files that begin with an underscore are private to this device."""

from minidl.kernels import collect

globals().update(collect.kernels_in(__name__, __path__))
