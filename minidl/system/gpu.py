"""CuPy, the GPU library, imported on demand."""

from types import ModuleType


def require_cupy() -> ModuleType:
    """Import and return CuPy. Raise RuntimeError with the remedy if it is not installed or finds no GPU."""
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            f"device 'cuda' needs CuPy: pip install \"minidl[cuda13]\" (or minidl[cuda12]); its import failed: {error}"
        ) from error
    try:
        found = cupy.cuda.runtime.getDeviceCount()
        message = "no CUDA-capable device is detected"
    except cupy.cuda.runtime.CUDARuntimeError as error:  # no driver, an old driver, or no GPU
        found, message = 0, error
    if not found:
        raise RuntimeError(f"device 'cuda': CuPy finds no GPU ({message}); use device 'cpu'")
    return cupy
