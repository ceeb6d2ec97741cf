"""Ranks for tests: threads of one process, or processes that mpiexec starts."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minidl.distributed import Communicator

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIEXEC is None, reason='needs mpi4py: pip install "minidl[mpi]"'
)


class Thread(Communicator):
    """One of several threads. It adds the arrays of all ranks in the order of the ranks."""

    def __init__(self, rank, size, shared=None):
        self.rank, self.size = rank, size
        self._shared = shared or {
            "barrier": threading.Barrier(size, timeout=300),
            "arrays": {},
            "lock": threading.Lock(),
        }
        self._copies = 0

    def _exchange(self, array, combine):
        self._shared["arrays"][self.rank] = array.copy()
        self.barrier()
        result = combine([self._shared["arrays"][rank] for rank in range(self.size)])
        self.barrier()
        array[...] = result

    def all_reduce(self, array):
        self._exchange(array, lambda arrays: sum(arrays[1:], arrays[0]))

    def broadcast(self, array, root=0):
        self._exchange(array, lambda arrays: arrays[root])

    def barrier(self):
        self._shared["barrier"].wait()

    def abort(self, message):
        with self._shared["lock"]:
            copies = [value["barrier"] for key, value in self._shared.items() if key.startswith("copy")]
        for barrier in (self._shared["barrier"], *copies):
            barrier.abort()

    def duplicate(self):
        with self._shared["lock"]:
            key, self._copies = f"copy {self._copies}", self._copies + 1
            fresh = Thread(self.rank, self.size)._shared
            return type(self)(self.rank, self.size, self._shared.setdefault(key, fresh))


def on_threads(size, function):
    """[function(communicator) for each rank], all at the same time, each in a thread of its own."""
    first = Thread(0, size)
    communicators = [Thread(rank, size, first._shared) for rank in range(size)]

    def call(communicator):
        try:
            return function(communicator)
        except BaseException:
            communicator.abort("")  # the others would wait
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(call, communicator) for communicator in communicators]
    errors = [future.exception() for future in futures if future.exception() is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the first that is no consequence of another
    return [future.result() for future in futures]


def mpiexec(size, *arguments, env=None, timeout=600):
    """Run a job of tests/distributed/jobs.py on `size` ranks. Its output, errors and exit status."""
    command = [MPIEXEC, "-n", str(size), sys.executable, "-m", "tests.distributed.jobs", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment() | (env or {}), capture_output=True, text=True, timeout=timeout
    )


def environment():
    """That of this process, for a process that has the CPU to itself."""
    return os.environ | {"PYTHONPATH": str(ROOT), "MINIDL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
