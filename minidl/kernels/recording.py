"""What a step queues on a GPU, recorded once as a CUDA graph and replayed from then on."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from minidl.kernels import _cupy


class Recording:
    """A step's launches with their arguments, the addresses of arrays among them.

    So the arrays that the step makes must stay where they were when it was recorded: they lie in a pool of memory of
    the recording's own, which no other work gets blocks of, and which lives as long as the recording.
    """

    def __init__(self) -> None:
        cupy = _cupy()
        self._wait, self._using_allocator = cupy.cuda.Device().synchronize, cupy.cuda.using_allocator
        self._stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be recorded
        self._pool = cupy.cuda.MemoryPool()
        self._graph = None

    @contextlib.contextmanager
    def _own_stream_and_memory(self) -> Iterator[None]:
        with self._stream, self._using_allocator(self._pool.malloc):
            yield

    def rehearse(self, step: Callable[[], object]) -> object:
        """Do the step itself, which compiles its kernels and fills the pool: what a recording cannot do."""
        self._wait()
        with self._own_stream_and_memory():
            result = step()
        self._wait()
        return result

    def record(self, step: Callable[[], object]) -> object:
        """Note what the step queues, without doing it; its result is computed by each replay anew."""
        with self._own_stream_and_memory():
            self._stream.begin_capture()
            try:
                result = step()
            except BaseException:
                with contextlib.suppress(Exception):  # the driver refuses to end what the error has spoilt
                    self._stream.end_capture()
                raise
            self._graph = self._stream.end_capture()
        return result

    def replay(self) -> None:
        """Queue all of it on the current stream."""
        self._graph.launch()


def is_recording() -> bool:
    """Whether what is queued now is recorded."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and cupy.cuda.get_current_stream().is_capturing()
