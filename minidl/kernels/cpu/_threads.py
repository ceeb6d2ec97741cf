"""Threads that work on the pieces of an array.

NumPy and BLAS release the GIL, so Python threads share the cores well, if each piece is large enough to outweigh the
hand-over and small enough to stay in a core's cache. Where pieces begin and end depends on shapes alone, and results
are combined in the order of the pieces, so the number of threads never changes a bit of the result.
"""

import contextvars
import functools
import math
import os
import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from minidl.system.cpus import available_cpus


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


# OpenBLAS computes a product of at most this many multiplications on one thread (interface/gemm.c).
SMALL_FOR_BLAS = 2**18


def map_pieces(work: Callable, pieces: Sequence, multiplications: float = math.inf) -> list:
    """[work(piece) for piece in pieces], computed on the threads: each takes the next piece when it is free.

    If pieces fail, the error of the first of them is raised, and the pieces that no thread has begun are left out.
    BLAS has one thread meanwhile, so that it does not compete with these. A single piece whose largest matrix product
    is known to need few `multiplications` is just computed: BLAS uses one thread for it by itself.
    """
    if len(pieces) == 1 and multiplications <= SMALL_FOR_BLAS:
        return [work(pieces[0])]
    user = object()
    try:
        _limit_blas(user)
        if min(_num_threads, len(pieces)) <= 1:
            return list(map(work, pieces))
        return _share(work, pieces)
    finally:
        try:
            _restore_blas(user)
        except KeyboardInterrupt:  # it came before the end of _restore_blas
            _restore_blas(user)
            raise


def sum_pieces(work: Callable[..., np.ndarray], pieces: Sequence, multiplications: float = math.inf) -> np.ndarray:
    """The sum of work(piece), added in the order of the pieces; `work` returns a new array each time."""
    first, *others = map_pieces(work, pieces, multiplications)
    for other in others:
        first += other
    return first


# -- the threads -------------------------------------------------------------------------------------------------------


def _share(work: Callable, pieces: Sequence) -> list:
    """map_pieces on the caller's thread and the helpers."""
    job = _Job(work, pieces)
    for _ in range(min(_num_threads, len(pieces)) - 1):
        _helpers.invite(job)
    job.take_pieces()
    return job.wait()


class _Job:
    """The pieces that several threads share."""

    def __init__(self, work: Callable, pieces: Sequence):
        self.work, self.pieces = work, pieces
        self.results = [None] * len(pieces)
        self.waiting = iter(range(len(pieces)))
        self.unfinished = len(pieces)
        self.errors: dict[int, BaseException] = {}
        self.context = contextvars.copy_context()  # the caller's np.errstate is a context variable
        self.lock, self.finished = threading.Lock(), threading.Lock()
        self.finished.acquire()  # released by the thread that finishes the last piece

    def take_pieces(self) -> None:
        """Work until no piece is left to take."""
        while True:
            with self.lock:
                number = next(self.waiting, None)
            if number is None:
                return
            try:
                if not self.errors:  # after an error, the other pieces are for nothing
                    self.results[number] = self.work(self.pieces[number])
            except BaseException as error:
                self.errors[number] = error
            with self.lock:
                self.unfinished -= 1
                if self.unfinished == 0:
                    self.finished.release()

    def wait(self) -> list:
        """The results, when all pieces are finished. A helper that never took one is not waited for."""
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
    """The threads besides the caller's own, started when they are first needed.

    (measured) With a ThreadPoolExecutor a training step of ResNet-20 takes 4 % longer: its futures wake threads that
    then wait for the GIL.
    """

    def __init__(self):
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.threads = 0

    def invite(self, job: _Job) -> None:
        """Let one more thread take pieces of the job, as soon as one is free."""
        if self.threads < _num_threads - 1:
            threading.Thread(target=self._help, name=f"minidl_{self.threads + 1}", daemon=True).start()
            self.threads += 1  # after the start, which Ctrl-C may prevent
        self.jobs.put(job)

    def _help(self) -> None:
        while True:
            job = self.jobs.get()
            job.context.copy().run(job.take_pieces)


_helpers = _Helpers()


# -- BLAS --------------------------------------------------------------------------------------------------------------

_blas_lock = threading.Lock()
_blas_users: set[object] = set()
_blas_limits: list[tuple] = []  # (library, its number of threads) while BLAS is limited


@functools.cache
def _blas_libraries() -> list:
    """The BLAS libraries of this process."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


def _limit_blas(user: object) -> None:
    """Set BLAS to one thread until `user`, and every other user, calls `_restore_blas`.

    The setting belongs to the whole process. That is why its users are kept, and why the first one notes the numbers of
    threads before it changes any: Ctrl-C may interrupt this function between any two lines.
    """
    with _blas_lock:
        _blas_users.add(user)
        if not _blas_limits:
            _blas_limits[:] = [(library, library.num_threads) for library in _blas_libraries()]
        for library, _ in _blas_limits:
            library.set_num_threads(1)


def _restore_blas(user: object) -> None:
    """The end of what `_limit_blas` began. It may be called again, and must be if Ctrl-C interrupted it."""
    with _blas_lock:
        _blas_users.discard(user)
        if not _blas_users:
            for library, threads in _blas_limits:
                library.set_num_threads(threads)
            _blas_limits.clear()


def _after_fork() -> None:
    """A forked process has none of its parent's threads, and is inside no kernel.

    The numbers of threads that were noted stay: the end of its first kernel restores them.
    """
    global _helpers, _blas_lock
    _helpers, _blas_lock = _Helpers(), threading.Lock()
    _blas_users.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
