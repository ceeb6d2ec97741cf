"""Threads over chunks of the batch.

NumPy and BLAS release the GIL, so Python threads share the cores well, provided that each one works on a chunk that is
large enough to outweigh the hand-over and small enough to stay in its core's cache, and that BLAS starts no threads of
its own. Where the chunks begin and end depends on shapes alone and results are combined in the order of the chunks, so
the number of threads never changes a bit of the result.
"""

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def available_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(number: int) -> None:
    """Let the CPU kernels use that many threads. The default is MINIDL_NUM_THREADS, or the CPUs the process may use."""
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"set_num_threads: expected a whole number >= 1, got {number!r}")
    global _num_threads
    _num_threads = number
    _pool.cache_clear()


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


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The caller works too, so one thread fewer than the number; made when first needed."""
    return ThreadPoolExecutor(max(1, _num_threads - 1), thread_name_prefix="minidl")


def map_chunks(work: Callable[[int, int], object], total: int, chunk: int) -> list:
    """[work(0, chunk), work(chunk, 2 chunk), ...] up to `total`, in that order, computed on the threads."""
    starts = range(0, total, chunk)
    results = [None] * len(starts)
    todo = iter(range(len(starts)))
    lock = threading.Lock()

    def take_chunks() -> None:
        while True:
            with lock:
                number = next(todo, None)
            if number is None:
                return
            results[number] = work(starts[number], min(starts[number] + chunk, total))

    with single_threaded_blas():
        helpers = [_pool().submit(take_chunks) for _ in range(min(_num_threads, len(starts)) - 1)]
        try:
            take_chunks()
        finally:
            # A helper that has not begun is not waited for: there is nothing left for it to do.
            begun = [helper for helper in helpers if not helper.cancel()]
            for helper in begun:
                helper.result()
    return results


def sum_chunks(work: Callable[[int, int], np.ndarray], total: int, chunk: int) -> np.ndarray:
    """The sum of the chunks' results, added in the order of the chunks."""
    first, *others = map_chunks(work, total, chunk)
    for other in others:
        first += other
    return first


def chunk_length(elements_per_row: int, elements_per_chunk: int) -> int:
    """How many rows make a chunk of about that many elements: a function of shapes alone, never of dtype or threads."""
    return max(1, elements_per_chunk // max(1, elements_per_row))


_scratch = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """This thread's own buffer of that name, undefined contents; the next call with the name hands it out again."""
    buffers = _scratch.__dict__
    size = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.size < size:
        buffer = buffers[name, dtype] = np.empty(size, dtype)
    return buffer[:size].reshape(shape)


_blas_lock = threading.Lock()
_blas_users = 0
_blas_limit = None


@functools.cache
def _blas():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """BLAS with one thread while any kernel runs. The setting belongs to the process, so its users are counted."""
    global _blas_users, _blas_limit
    with _blas_lock:
        if _blas_users == 0:
            _blas_limit = _blas().limit(limits=1, user_api="blas")
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_limit.restore_original_limits()
