"""CUDA graphs: GPU work that is captured once and then launched as a whole, again and again."""

import contextlib
import weakref
from collections.abc import Callable

import cupy
import numpy as np

from minidl.kernels.cuda._fusion import fusing


class Graph:
    """The GPU work of a function. A capture executes nothing: it records each launch with its arguments.

    The arguments include addresses, so every array of the function must stay at its address. Arrays that the function
    creates are therefore allocated in a memory pool of the graph's own, which lives as long as the graph.
    """

    def __init__(self):
        self.stream = cupy.cuda.Stream(non_blocking=True)  # another stream would be disturbed by the default stream
        self.pool = cupy.cuda.MemoryPool()
        # In CuPy 14.2 a pool without references does not free its memory.
        weakref.finalize(self, self.pool.free_all_blocks).atexit = False

    def run(self, function: Callable):
        """Run the function, on the graph's stream and pool: this compiles its kernels and allocates its memory."""
        device = cupy.cuda.Device()
        device.synchronize()  # this stream does not wait for other streams, nor they for it
        self.make_room()
        with self.stream, cupy.cuda.using_allocator(self.pool.malloc):
            results = function()
        device.synchronize()
        return results

    def make_room(self) -> None:
        """Free what the default pool keeps for later. What is left of its limit is the limit of the graph's pool."""
        default = cupy.get_default_memory_pool()
        default.free_all_blocks()
        if limit := default.get_limit():
            self.pool.set_limit(size=max(limit - default.total_bytes(), 1))

    def capture(self, function: Callable):
        """Capture the function's work without executing it. Its results are undefined until the graph is launched."""
        with self.stream, cupy.cuda.using_allocator(self.pool.malloc):
            self.stream.begin_capture()
            try:
                with fusing():
                    results = function()
            except BaseException:
                with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):  # it repeats the first error
                    self.stream.end_capture()
                raise
            self.graph = self.stream.end_capture()
        return results

    def launch(self) -> None:
        """Execute the captured work on the current stream."""
        self.graph.launch()


class InputBuffer:
    """An array at a fixed address, from which a graph reads the inputs that change from launch to launch."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        self.array = cupy.empty(shape, dtype)
        self.pinned = None
        self.copied = cupy.cuda.Event(disable_timing=True)

    def fill(self, values) -> None:
        """Copy an array, from the device or from the host, into the buffer, on the current stream."""
        if isinstance(values, cupy.ndarray):
            self.array[...] = values
            return
        if self.pinned is None:
            memory = cupy.cuda.alloc_pinned_memory(self.array.nbytes)
            self.pinned = np.ndarray(self.array.shape, self.array.dtype, buffer=memory)
        self.copied.synchronize()  # wait until the previous copy has read the pinned memory
        self.pinned[...] = values
        self.array.set(self.pinned)  # asynchronous, because the source is pinned memory
        self.copied.record(cupy.cuda.get_current_stream())
