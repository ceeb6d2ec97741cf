"""Ends a job in which some rank does not come to a collective call that others wait in."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from minidl.distributed.communicator import name_ranks

MOST_COMMUNICATORS = 256  # each `AveragedGradients` has one
LAST = -1  # what a rank's last report consists of


class Watch:
    """A thread of each rank, which tells the other ranks how many collective calls this one has entered.

    So a rank that waits in a call for longer than `timeout` seconds knows who is missing there. It then calls
    abort(message), which names them. If all have entered the call, and it has not ended after twice that time, the
    message says so. Without this, MPI would wait for ever. A rank that was killed is not found here: mpiexec sees it at
    once, and ends the others.

    Args:
        comm: an MPI communicator that nothing else uses.
        timeout: in seconds; longer than what one rank may do alone while the others wait, such as saving a checkpoint.
        abort: ends the job.
    """

    def __init__(self, comm, timeout: float, abort: Callable[[str], None]):
        self._comm, self._timeout, self._abort = comm, timeout, abort
        self._entered = np.zeros(MOST_COMMUNICATORS, np.int64)  # calls on each communicator
        self._since: list[float | None] = []  # when the call that this rank waits in began
        self._reports = np.zeros((comm.Get_size(), MOST_COMMUNICATORS), np.int64)
        self._heard = [time.monotonic()] * comm.Get_size()
        self._others = [rank for rank in range(comm.Get_size()) if rank != comm.Get_rank()]
        self._sending: list[tuple] = []
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="minidl.distributed watch", daemon=True)
        self._thread.start()

    def add(self) -> int:
        """Return the number of a new communicator. All ranks make them in the same order, so the numbers agree."""
        if len(self._since) == MOST_COMMUNICATORS:
            raise RuntimeError(
                f"minidl.distributed: expected at most {MOST_COMMUNICATORS} communicators, got one more; "
                "each AveragedGradients takes one, so make one and use it again"
            )
        self._since.append(None)
        return len(self._since) - 1

    @contextlib.contextmanager
    def collective(self, number: int) -> Iterator[None]:
        """Around a collective call on communicator `number`."""
        self._entered[number] += 1
        self._since[number] = time.monotonic()
        try:
            yield
        finally:
            self._since[number] = None

    def check_idle(self) -> None:
        """Raise RuntimeError if a thread of this rank is in a collective call. The process could not end."""
        if any(since is not None for since in self._since):
            raise RuntimeError(
                "the block of minidl.distributed.start ended while gradients were on their way, after an error in a "
                "block of AveragedGradients.average; let that error end the job"
            )

    def stop(self) -> None:
        """End the thread, and receive what the other ranks still sent to it. All ranks call it."""
        self._left.set()
        self._thread.join()
        self._entered.fill(LAST)
        self._tell()
        for rank in self._others:
            while self._reports[rank, 0] != LAST:
                self._comm.Recv(self._reports[rank], rank)
        for request, _ in self._sending:
            request.Wait()

    def _run(self) -> None:
        while not self._left.wait(self._timeout / 10):
            self._tell()
            self._hear()
            self._judge()

    def _tell(self) -> None:
        report = self._entered.copy()
        self._sending = [(request, sent) for request, sent in self._sending if not request.Test()]
        for rank in self._others:
            self._sending.append((self._comm.Isend(report, rank), report))

    def _hear(self) -> None:
        for rank in self._others:
            while self._comm.Iprobe(rank):
                self._comm.Recv(self._reports[rank], rank)
                self._heard[rank] = time.monotonic()

    def _judge(self) -> None:
        now = time.monotonic()
        for number, since in enumerate(list(self._since)):
            waited = 0.0 if since is None else now - since
            if waited < self._timeout:
                continue
            absent = [rank for rank in self._others if self._reports[rank, number] < self._entered[number]]
            silent = [rank for rank in self._others if now - self._heard[rank] > self._timeout]
            if missing := sorted({*absent, *silent}):
                self._abort(
                    f"waited {waited:.0f} s in a collective call for {name_ranks(missing)}; see what they do "
                    "there, or pass a longer timeout to minidl.distributed.start"
                )
            elif waited > 2 * self._timeout:  # twice, as the last rank may just have come
                self._abort(
                    f"waited {waited:.0f} s in a collective call that all ranks have entered; the network may be "
                    "broken, or some rank made another call"
                )
