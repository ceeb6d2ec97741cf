"""The GPU kernels, in CUDA through CuPy: see `collect`. Files whose name starts with an underscore are private."""

from minidl.kernels import collect

globals().update(collect.kernels_in(__name__, __path__))
