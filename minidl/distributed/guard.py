"""Names the rank whose process is killed, such as by the system when memory runs out."""

import contextlib
import ctypes
import os
import signal
import sys

KILL_ME_WITH_MY_PARENT = 1  # Linux: PR_SET_PDEATHSIG of prctl


def guard(name: str) -> None:
    """Return in a child process, the rank. This process waits for it, says so if it is killed, and ends as it ended.

    A killed process cannot say anything itself, and the others do not get to: mpiexec ends them at once. MPICH's
    mpiexec names one killed process, but in 10 of 30 trials it was one of those that mpiexec had ended itself.

    To be called before there are threads, which do not survive a fork. MPI and CUDA do not either: if one was imported
    already, or without `fork`, this does nothing.
    """
    if not hasattr(os, "fork") or {"mpi4py.MPI", "cupy"} & sys.modules.keys():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _end_with(parent)
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: _send(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:  # minus the number of the signal
        what = signal.Signals(-code).name
        text = (
            f"minidl.distributed: {name}, process {child}, was killed ({what}); the job ends. Was there enough memory?"
        )
        os.write(2, f"{text}\n".encode())
    os._exit(code if code >= 0 else 128 - code)


def _end_with(parent: int) -> None:
    """Have this process killed when its parent is, as mpiexec knows the parent only."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(KILL_ME_WITH_MY_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
