"""The only code that knows NumPy from CuPy: how each operation is computed on each device.

The public functions of `reference` are the contract: `cpu` and `cuda` have functions of the same names and signatures,
which `collect` finds in their files. An array decides which device computes with it.
"""

import functools
import sys
from types import ModuleType

import numpy as np

from minidl.kernels import cpu
from minidl.system.gpu import require_cupy


def kernels_for(array) -> ModuleType:
    """The kernels of the device that holds the array."""
    if device_of(array) == "cuda":
        return _cuda()
    if array.dtype.kind == "V":  # NumPy's word for what is not its own
        raise TypeError("bfloat16 is computed with on device 'cuda' only; convert it with .to('float32')")
    return cpu


def device_of(array) -> str:
    """'cuda' for a CuPy array, 'cpu' for any other."""
    cupy = sys.modules.get("cupy")  # before it is imported there are no arrays of it
    return "cuda" if cupy is not None and isinstance(array, cupy.ndarray) else "cpu"


def to_device(array, device: str):
    """The array on that device: itself if it is there already, else a copy."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"to: expected device 'cpu' or 'cuda', got {device!r}")
    if device_of(array) == device:
        return array
    return array.get() if device == "cpu" else require_cupy().asarray(array)


def is_capturing(array) -> bool:
    """Whether what is done with the array now is captured in a CUDA graph, and not executed."""
    return device_of(array) == "cuda" and require_cupy().cuda.get_current_stream().is_capturing()


def cuda_graphs() -> ModuleType:
    """What captures work on device 'cuda' and launches it again."""
    require_cupy()  # says what is missing
    from minidl.kernels.cuda import graph  # on first use, as it needs CuPy

    return graph


@functools.cache
def _cuda() -> ModuleType:
    from minidl.kernels import cuda  # on first use, as it needs CuPy

    return cuda
