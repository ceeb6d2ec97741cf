"""Threads over chunks of the batch.

NumPy and BLAS release the GIL, so Python threads share the cores well, provided that each one works on a chunk that is
large enough to outweigh the hand-over and small enough to stay in its core's cache, and that BLAS starts no threads of
its own. Where the chunks begin and end depends on shapes alone and results are combined in the order of the chunks, so
the number of threads never changes a bit of the result.
"""

import contextvars
import math
import os
import queue
import threading
from collections.abc import Callable

import numpy as np

from minidl.cpus import available_cpus
from minidl.kernels.cpu import _blas


def set_num_threads(number: int) -> None:
    """Let the CPU kernels use that many threads. The default is MINIDL_NUM_THREADS, or the CPUs the process may use."""
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"set_num_threads: expected a whole number >= 1, got {number!r}")
    global _num_threads
    _num_threads = number


def get_num_threads() -> int:
    """How many threads the CPU kernels may use."""
    return _num_threads


def _default_num_threads() -> int:
    wanted = os.environ.get("MINIDL_NUM_THREADS")
    if wanted is None:
        return available_cpus()
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"MINIDL_NUM_THREADS: expected a whole number >= 1, got {wanted!r}")
    return int(wanted)


_num_threads = _default_num_threads()


def map_chunks(work: Callable[[int, int], object], total: int, chunk: int) -> list:
    """[work(0, chunk), work(chunk, 2 chunk), ...] up to `total`, in that order, computed on the threads."""
    job = _Job(work, total, chunk)
    try:
        _blas.limit(job)
        for _ in range(min(_num_threads, len(job.starts)) - 1):
            _helpers.invite(job)
        job.take_chunks()
        return job.wait()
    finally:
        try:
            _blas.restore(job)
        except KeyboardInterrupt:  # it came before the end of restore
            _blas.restore(job)
            raise


class _Job:
    """The chunks of one call of map_chunks. Whichever thread is free takes the next."""

    def __init__(self, work: Callable[[int, int], object], total: int, chunk: int):
        self.work, self.total, self.chunk = work, total, chunk
        self.starts = range(0, total, chunk)
        self.results = [None] * len(self.starts)
        self.todo = iter(range(len(self.starts)))
        self.unfinished = len(self.starts)
        self.errors: dict[int, BaseException] = {}
        self.context = contextvars.copy_context()  # the caller's np.errstate, which is a context variable, among others
        self.lock, self.finished = threading.Lock(), threading.Lock()
        self.finished.acquire()  # released by the thread that finishes the last chunk

    def take_chunks(self) -> None:
        """Work until no chunk is left to take."""
        while True:
            with self.lock:
                number = next(self.todo, None)
            if number is None:
                return
            try:
                if not self.errors:  # after an error, the other chunks are for nothing
                    start = self.starts[number]
                    self.results[number] = self.work(start, min(start + self.chunk, self.total))
            except BaseException as error:
                self.errors[number] = error
            with self.lock:
                self.unfinished -= 1
                if self.unfinished == 0:
                    self.finished.release()

    def wait(self) -> list:
        """The results, when all chunks are finished. A helper that never took one is not waited for."""
        if self.starts:
            self.finished.acquire()
        results, errors = self.results, self.errors
        self.work = self.results = self.errors = None  # so that a helper which comes late keeps no array alive
        try:
            if errors:
                raise errors[min(errors)]
            return results
        finally:
            del results, errors  # an error's traceback holds this frame


class _Helpers:
    """The threads besides the caller's own, started when they are first needed."""

    def __init__(self):
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.threads = 0

    def invite(self, job: _Job) -> None:
        """Let one more thread take chunks of the job, as soon as one is free."""
        if self.threads < _num_threads - 1:
            threading.Thread(target=self._help, name=f"minidl_{self.threads + 1}", daemon=True).start()
            self.threads += 1  # after the start, which Ctrl-C may prevent
        self.jobs.put(job)

    def _help(self) -> None:
        while True:
            job = self.jobs.get()
            job.context.copy().run(job.take_chunks)


_helpers = _Helpers()


def _after_fork() -> None:
    """A forked process has none of its parent's threads."""
    global _helpers
    _helpers = _Helpers()
    _blas.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def sum_chunks(work: Callable[[int, int], np.ndarray], total: int, chunk: int) -> np.ndarray:
    """The sum of the chunks' results, added in the order of the chunks; `work` returns a new array each time."""
    first, *others = map_chunks(work, total, chunk)
    for other in others:
        first += other
    return first


def chunk_length(elements_per_row: int, elements_per_chunk: int) -> int:
    """How many rows make a chunk of about that many elements: a function of shapes alone, never of dtype or threads."""
    return max(1, elements_per_chunk // max(1, elements_per_row))


def even_chunk(total: int, longest: int) -> int:
    """The length of chunks that are at most `longest`, as few as possible, and equal but for the last."""
    return math.ceil(total / math.ceil(total / longest))


def even_slices(total: int, longest: int) -> list[slice]:
    """0:total in slices of that length."""
    length = even_chunk(total, longest)
    return [slice(start, min(start + length, total)) for start in range(0, total, length)]


_scratch = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """This thread's own buffer of that name, contents undefined; valid until the thread asks for the name again."""
    buffers = _scratch.__dict__
    size = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.size < size:
        buffer = buffers[name, dtype] = np.empty(size, dtype)
    return buffer[:size].reshape(shape)
