"""The launches of a training step, recorded without a GPU and without CuPy.

    python benchmarks/launches.py resnet50 256 bfloat16 90 launches.json    # network, batch, dtype, compute capability

This process has a module `cupy` of its own. Its arrays are NumPy's, of which nobody reads or writes a number: memory
that is never touched is never taken, so that a batch of 256 images of ResNet-50 fits anywhere. A kernel is not run; its
source, constants, grid and arguments are written down.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np

LAUNCHES: list[dict] = []
SOURCES: dict[tuple, int] = {}  # (source, name, options): its number

# -- arrays ------------------------------------------------------------------------------------------------------------


def note(what: str, *arrays) -> None:
    """CuPy would launch a kernel of its own, or copy."""
    numbers = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
    LAUNCHES.append({"kernel": f"cupy: {what}", "bytes": numbers})


class Array(np.ndarray):
    """In place of cupy.ndarray."""

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def get(self) -> np.ndarray:
        return np.asarray(self)

    def set(self, numbers, stream=None) -> None:
        note("copy from the host", self)

    def astype(self, dtype, copy=True, **_):
        if not copy and self.dtype == dtype:
            return self
        result = empty(self.shape, dtype)
        note("astype", self, result)
        return result

    def copy(self, order="C"):
        result = empty(self.shape, self.dtype)
        note("copy", self, result)
        return result

    def __setitem__(self, where, value) -> None:
        target = self[where]
        note("assignment", target, value)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        """The dtype is that of the result for single numbers; the numbers are not computed."""
        arrays = [np.asarray(value) if isinstance(value, np.ndarray) else value for value in inputs]
        if out is not None:
            note(ufunc.__name__, *inputs, *out)
            return out[0]
        if method == "__call__":
            with np.errstate(all="ignore"):
                dtype = np.asarray(ufunc(*(a.dtype.type(1) if isinstance(a, np.ndarray) else a for a in arrays))).dtype
            result = empty(np.broadcast_shapes(*map(np.shape, arrays)), dtype)
        else:
            with np.errstate(all="ignore"):
                result = np.asarray(getattr(ufunc, method)(*arrays, **options)).view(Array)
        note(ufunc.__name__, *inputs, result)
        return result

    def __array_function__(self, function, types, arguments, options):
        """What fills an array is noted; all other functions are NumPy's."""
        options.pop("like", None)
        if function in FILLS:
            shape, *dtype = arguments if arguments else (options.pop("shape"),)
            dtype = dtype[-1] if dtype else options.get("dtype")
            array = shape if isinstance(shape, np.ndarray) else None
            shape = array.shape if array is not None and options.get("shape") is None else options.get("shape", shape)
            return full(shape, 0, dtype or (float if array is None else array.dtype))
        return as_ours(super().__array_function__(function, types, arguments, options))


def as_ours(result):
    """NumPy's arrays as ours."""
    if isinstance(result, list | tuple):
        return type(result)(map(as_ours, result))
    return result.view(Array) if isinstance(result, np.ndarray) else result


FILLS = {np.zeros, np.ones, np.zeros_like, np.ones_like}


def empty(shape, dtype=float, order="C") -> Array:
    return np.empty(shape, dtype).view(Array)


def empty_like(array, dtype=None, order=None, subok=None, shape=None) -> Array:
    return empty(shape or array.shape, dtype or array.dtype)


def full(shape, value, dtype=float) -> Array:
    result = empty(shape, dtype)
    note("fill", result)
    return result


def zeros(shape, dtype=float) -> Array:
    return full(shape, 0, dtype)


def asarray(array, dtype=None) -> Array:
    if isinstance(array, Array):
        return array.astype(dtype or array.dtype, copy=False)
    result = np.asarray(array, dtype).view(Array)
    note("copy from the host", result)
    return result


def ascontiguousarray(array, dtype=None) -> Array:
    return array if array.flags.c_contiguous else array.copy()


# -- kernels -----------------------------------------------------------------------------------------------------------


class RawKernel:
    """In place of cupy.RawKernel: a call is written down."""

    max_dynamic_shared_size_bytes = 0
    kernel = None  # the property that compiles

    def __init__(self, code, name, options=(), **_):
        self.name = name
        self.number = SOURCES.setdefault((code, name, tuple(options)), len(SOURCES))

    def compile(self, *_) -> None:
        pass

    def __call__(self, grid, block, arguments, *, shared_mem=0, **_) -> None:
        arguments = [describe(argument) for argument in arguments]
        facts = {"source": self.number, "grid": grid, "block": block, "arguments": arguments, "shared": shared_mem}
        LAUNCHES.append({"kernel": self.name} | facts)


def describe(argument):
    """A number, or the address, bytes and bytes of an element of an array."""
    if isinstance(argument, np.ndarray):
        return {"address": argument.ctypes.data, "bytes": argument.nbytes, "itemsize": argument.itemsize}
    return argument.item() if isinstance(argument, np.generic) else argument


def make_cupy(capability: int) -> ModuleType:
    """The module. What is asked about the device, beside its compute capability, has any answer."""
    cupy = ModuleType("cupy")
    cupy.ndarray, cupy.RawKernel, cupy.cuda = Array, RawKernel, MagicMock()
    functions = empty, empty_like, full, zeros, asarray, ascontiguousarray
    vars(cupy).update({function.__name__: function for function in functions})
    cupy.array, cupy.asnumpy, cupy.__version__ = asarray, np.asarray, "recorder"
    cupy.zeros_like = lambda array, dtype=None, **_: zeros(array.shape, dtype or array.dtype)
    cupy.get_default_memory_pool = MagicMock()
    cupy.__getattr__ = lambda name: getattr(np, name)
    cuda = cupy.cuda
    cuda.Device.return_value.compute_capability = str(capability)
    cuda.runtime.getDeviceCount.return_value, cuda.runtime.getDevice.return_value = 1, 0
    cuda.get_current_stream.return_value.is_capturing.return_value = False
    cuda.runtime.CUDARuntimeError = cuda.memory.OutOfMemoryError = cuda.compiler.CompileException = OSError
    return cupy


def record(name: str, batch: int, dtype: str, capability: int) -> dict:
    """{"sources": [[source, name, options] ...], "launches": [...]} of a network's second step."""
    sys.modules["cupy"] = make_cupy(capability)
    from gpu_sides import make_our_step
    from step_worker import make_ours

    from minidl.kernels.cuda._fusion import fusing

    step = make_our_step(name, batch, make_ours(name).state_dict(), dtype)
    step()  # makes the optimiser's state
    LAUNCHES.clear()
    with fusing():  # as while a step is captured
        step()
    return {"sources": list(SOURCES), "launches": LAUNCHES}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("batch", type=int)
    parser.add_argument("dtype", choices=("float32", "tf32", "bfloat16", "float16"))
    parser.add_argument("capability", type=int)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    args.file.write_text(json.dumps(record(args.network, args.batch, args.dtype, args.capability)))
