"""The only code that knows NumPy from CuPy: how each operation is computed on each device.

`cpu` and `reference` export the same names with the same signatures. An array decides which one it goes to.
"""

from types import ModuleType

import numpy as np

from minidl.kernels import cpu


def kernels_for(array) -> ModuleType:
    """The kernels of the device that holds the array."""
    return cpu if device_of(array) == "cpu" else _cuda()


def device_of(array) -> str:
    """'cpu' for a NumPy array, 'cuda' for a CuPy array."""
    return "cpu" if isinstance(array, np.ndarray | np.generic) else "cuda"


def to_device(array, device: str):
    """The array on that device: itself if it is there already, else a copy."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"to: expected device 'cpu' or 'cuda', got {device!r}")
    if device_of(array) == device:
        return array
    return array.get() if device == "cpu" else _cuda().asarray(array)


def _cuda() -> ModuleType:
    raise NotImplementedError("device 'cuda': this version of minidl has no CUDA kernels yet; use device 'cpu'")
