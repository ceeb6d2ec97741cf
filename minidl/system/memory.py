"""GPU memory."""

import contextlib
import re
import sys
from collections.abc import Iterator
from types import ModuleType

from minidl.system.gpu import require_cupy, select_gpu


def set_per_process_memory_fraction(fraction: float) -> None:
    """Limit the GPU memory of this process to a fraction of the GPU's memory, as the function of PyTorch does.

    More is a MemoryError. The limit holds for all arrays, also for those of captured steps. The environment variable
    CUPY_GPU_MEMORY_LIMIT ("50%", or bytes) sets the same limit.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"set_per_process_memory_fraction: expected 0 < fraction <= 1, got {fraction}")
    select_gpu("cuda").get_default_memory_pool().set_limit(fraction=fraction)


@contextlib.contextmanager
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """If a step runs out of GPU memory, raise a MemoryError that names a batch size that would fit.

    The estimate takes the memory of a step as proportional to its batch size. Memory allocated before the step, such as
    that of the parameters, does not count.
    """
    cupy = _cupy_with_gpu()
    if cupy is None:
        yield
        return
    cupy.get_default_memory_pool().free_all_blocks()  # cached blocks are free memory, too
    free_before, total = cupy.cuda.Device().mem_info
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        free, _ = cupy.cuda.Device().mem_info
        digits = re.search(r"allocating ([\d,]+) bytes", str(error))
        asked = int(digits[1].replace(",", "")) if digits else 0
        needed = max(free_before - free + asked, 1)  # a lower bound: the step did not finish
        fitting = min(batch_size * free_before // needed, batch_size - 1)
        raise MemoryError(
            f"out of memory on the GPU: asked for {_gigabytes(asked)} more with {_gigabytes(free)} free of "
            f"{_gigabytes(total)}; {batch_size} images need {_gigabytes(needed)} or more, so "
            + (f"at most {fitting} fit" if fitting > 0 else "not one fits")
        ) from error


def _cupy_with_gpu() -> ModuleType | None:
    """CuPy, if something has imported it and it finds a GPU."""
    if "cupy" not in sys.modules:
        return None
    try:
        return require_cupy()
    except RuntimeError:
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
