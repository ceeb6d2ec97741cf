"""Work on the GPU that is captured once in a CUDA graph and launched again as a whole."""

import contextlib
import weakref
from collections.abc import Callable

import cupy
import numpy as np


class Graph:
    """What a function does on the GPU. A capture executes nothing: it writes down each launch with its arguments.

    Among these are addresses, so every array of the function must stay where it was: what is computed lies in a pool
    of memory that belongs to the graph alone, and lives as long as the graph.
    """

    def __init__(self):
        self.stream = cupy.cuda.Stream(non_blocking=True)  # any use of the default stream would disturb another one
        self.pool = cupy.cuda.MemoryPool()
        # A pool that is merely dropped keeps its memory for ever, in CuPy 14.2.
        weakref.finalize(self, self.pool.free_all_blocks).atexit = False

    def run(self, function: Callable):
        """Call the function for real where the capture will be: its kernels get compiled, its memory is taken."""
        device = cupy.cuda.Device()
        device.synchronize()  # the stream does not wait for the others, nor they for it
        with self.stream, cupy.cuda.using_allocator(self.pool.malloc):
            results = function()
        device.synchronize()
        return results

    def capture(self, function: Callable):
        """Call the function and capture what it would do; its results are garbage until the graph is launched."""
        with self.stream, cupy.cuda.using_allocator(self.pool.malloc):
            self.stream.begin_capture()
            try:
                results = function()
            except BaseException:
                with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):  # which says again what the error says
                    self.stream.end_capture()
                raise
            self.graph = self.stream.end_capture()
        return results

    def launch(self) -> None:
        """Do all of it, on the current stream."""
        self.graph.launch()


class InputBuffer:
    """An array at an address of its own, from which a graph reads what differs from launch to launch."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        self.array = cupy.empty(shape, dtype)
        self.pinned = None
        self.copied = cupy.cuda.Event(disable_timing=True)

    def fill(self, values) -> None:
        """Copy an array of the device or of the host, on the current stream."""
        if isinstance(values, cupy.ndarray):
            self.array[...] = values
            return
        if self.pinned is None:
            memory = cupy.cuda.alloc_pinned_memory(self.array.nbytes)
            self.pinned = np.ndarray(self.array.shape, self.array.dtype, buffer=memory)
        self.copied.synchronize()  # the copy before has read the pinned memory
        self.pinned[...] = values
        self.array.set(self.pinned)  # from pinned memory the host does not wait for it
        self.copied.record(cupy.cuda.get_current_stream())
