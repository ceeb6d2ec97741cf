"""CuPy, the GPU library, imported on demand, and the GPU that this process computes on."""

import functools
import re
from types import ModuleType

_selected: list[int] = []  # the number of the GPU, once it is known


def is_device(name) -> bool:
    """True for 'cpu', 'cuda' and 'cuda:N'."""
    return isinstance(name, str) and bool(re.fullmatch(r"cpu|cuda(:\d+)?", name))


def select_gpu(device: str) -> ModuleType:
    """Return CuPy, and make the GPU that `device` names the current one of this thread.

    A process computes on one GPU: on the one of the first 'cuda:N' that it uses. 'cuda' is that GPU, or number 0. Raise
    RuntimeError if there is no such GPU, or if the process already computes on another one.
    """
    cupy = require_cupy()
    ids = _selected or range(cupy.cuda.runtime.getDeviceCount())
    number = int(device[5:]) if device != "cuda" else (_selected or [cupy.cuda.runtime.getDevice()])[0]
    if number not in ids:
        why = f"this process uses 'cuda:{ids[0]}'; start another one" if _selected else f"CuPy finds {len(ids)} GPU(s)"
        raise RuntimeError(f"device {device!r}: {why}")
    _selected[:] = [number]
    cupy.cuda.Device(number).use()  # each thread starts on GPU 0
    return cupy


@functools.cache
def require_cupy() -> ModuleType:
    """Import and return CuPy. Raise RuntimeError with the remedy if it is not installed or finds no GPU."""
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            f"device 'cuda' needs CuPy: pip install \"minidl[cuda13]\" (or minidl[cuda12]); its import failed: {error}"
        ) from error
    try:
        message = "" if cupy.cuda.runtime.getDeviceCount() else "no CUDA-capable device is detected"
    except cupy.cuda.runtime.CUDARuntimeError as error:  # no driver, an old driver, or no GPU
        message = str(error)
    if message:
        raise RuntimeError(f"device 'cuda': CuPy finds no GPU ({message}); use device 'cpu'")
    return cupy
