"""A stand-in for CuPy: `pytest --device stand-in` runs the CUDA kernels' own source on the CPU, where no GPU is.

`install()` makes `import cupy` find the module `tests.stand_in.cupy`. It has the few names that minidl uses, on arrays
that refuse what CuPy's arrays refuse. Kernels are compiled by g++ (`compiler.py`) behind a header with what CUDA C++
has built in (`device.hpp`); the threads of a block take turns on one CPU thread (`runtime.cpp`), in ascending order or,
with STAND_IN_ORDER=descending in the environment, in descending order.
"""

import contextlib
import sys

from tests.stand_in import cupy, kernel


def install() -> None:
    """Let `import cupy` find the stand-in."""
    sys.modules["cupy"] = cupy


@contextlib.contextmanager
def order(name: str):
    """Within this context the blocks, and their threads, run in "ascending" or in "descending" order.

    A kernel that lacks a barrier gives different results.
    """
    before, kernel.ORDER = kernel.ORDER, kernel.ORDERS[name]
    try:
        yield
    finally:
        kernel.ORDER = before
