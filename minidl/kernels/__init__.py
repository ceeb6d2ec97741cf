"""The kernels, that is the code that computes each operation on each device: NumPy on the CPU, CuPy on a GPU.

The public functions of `reference` are the contract: `cpu` and `cuda` define functions with the same names and
signatures, which `collect` finds in their files. The type of an array decides which kernels are called.
"""

import functools
import sys
from types import ModuleType

import numpy as np

from minidl.kernels import cpu
from minidl.system.gpu import is_device, require_cupy, select_gpu

THREADS_PAY = 2**18  # elements


def kernels_for(array) -> ModuleType:
    """The module of kernels for the device that the array is on."""
    if device_of(array) == "cuda":
        return _cuda()
    if array.dtype.char in "Ee":  # bfloat16, float16
        raise TypeError(f"{array.dtype} is supported on device 'cuda' only; convert it with .to('float32')")
    return cpu


def device_of(array) -> str:
    """'cuda' for a CuPy array, 'cpu' for any other."""
    cupy = sys.modules.get("cupy")  # until CuPy is imported there are no CuPy arrays
    return "cuda" if cupy is not None and isinstance(array, cupy.ndarray) else "cpu"


def to_device(array, device: str):
    """The array on the given device: the array itself if it is already there, otherwise a copy."""
    if not is_device(device):
        raise ValueError(f"to: expected device 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if device == "cpu":
        return array if device_of(array) == "cpu" else array.get()
    cupy = select_gpu(device)  # an error if the array is on another GPU
    return array if device_of(array) == "cuda" else cupy.asarray(array)


def add(a, b):
    """a + b. The kernel, which uses all threads, adds large floating-point arrays of the same shape."""
    if a.size < THREADS_PAY or a.shape != b.shape or a.dtype.kind in "biu":
        return a + b
    return kernels_for(a).add(a, b)


def is_capturing(array) -> bool:
    """True while a CUDA graph is being captured: operations on the array are then recorded, not executed."""
    return device_of(array) == "cuda" and require_cupy().cuda.get_current_stream().is_capturing()


@functools.cache
def _cuda() -> ModuleType:
    from minidl.kernels import cuda  # imported on first use, because it needs CuPy

    return cuda
