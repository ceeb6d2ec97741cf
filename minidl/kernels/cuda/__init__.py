"""The kernels on a GPU, in CUDA through CuPy: see `collect`. Files that begin with an underscore are private here."""

from minidl.kernels import collect

globals().update(collect.kernels_in(__name__, __path__))
