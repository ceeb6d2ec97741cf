"""Arrays of other libraries, such as PyTorch and JAX, through DLPack, the protocol by which libraries share memory.

https://data-apis.org/array-api/latest/design_topics/data_interchange.html
"""

import numpy as np

from minidl.kernels import device_of
from minidl.system.gpu import select_gpu

# DLPack's device types: memory that the CPU can read (kDLCPU, kDLCUDAHost, kDLROCMHost), and that of a GPU (kDLCUDA).
ON_THE_CPU, ON_A_GPU = {1, 3, 11}, 2


def is_foreign(data) -> bool:
    """True for an array of another library than NumPy and CuPy that exports its memory through DLPack."""
    # The device first: an array that a captured step defers would be computed to answer for any other attribute.
    return not isinstance(data, np.ndarray) and device_of(data) == "cpu" and hasattr(data, "__dlpack__")


def from_dlpack(data):
    """Return the array of another library as a NumPy or CuPy array of the same memory.

    Memory that its owner does not want changed, as JAX does not, is a read-only array.
    """
    try:
        kind, number = data.__dlpack_device__()
    except ValueError as error:
        raise TypeError(f"Tensor: expected memory of the CPU or of a CUDA GPU ({error})") from error
    if kind != ON_A_GPU and kind not in ON_THE_CPU:
        raise TypeError(
            f"Tensor: expected memory of the CPU or of a CUDA GPU, got that of DLPack's device type {int(kind)}; "
            "move the array to the CPU first"
        )
    library = select_gpu(f"cuda:{number}") if kind == ON_A_GPU else np
    try:
        return library.from_dlpack(data)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = f"{type(data).__module__}.{type(data).__name__}"
        raise TypeError(
            f"Tensor: cannot read the memory of this {kind}: {error}; detach it or convert it to float32 in its library"
        ) from error
