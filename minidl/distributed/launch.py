"""From processes to ranks: `start` finds out how the program was launched, and connects its processes."""

import contextlib
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Iterator

from minidl.distributed.communicator import Communicator, SingleProcess
from minidl.distributed.guard import guard
from minidl.system.gpu import is_device

# Environment variables in which mpiexec tells each process how many there are, and which of them it is.
SIZES = "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"  # MPICH and Intel MPI, Open MPI
RANKS = "PMI_RANK", "OMPI_COMM_WORLD_RANK"

LONGEST_START = 300.0  # seconds from the first rank that is ready to the last one


@contextlib.contextmanager
def start(device: str = "cpu", processes: int | None = None, timeout: float = 600.0) -> Iterator[Communicator]:
    """Connect the processes that mpiexec started: `with start() as communicator:`.

    Call it first, as it forks: see `guard`.

    Without the mpiexec of MPICH, Intel MPI or Open MPI, the communicator is that of a `SingleProcess`. An error inside
    the block ends the processes of all ranks, with a message that names the rank. The same happens if a rank is killed,
    does not start within five minutes, or does not enter a collective call within `timeout` seconds.

    Args:
        device: 'cpu', or 'cuda': then each rank computes on a GPU of its own, and GPUs exchange arrays by NCCL.
        processes: how many there must be; None takes what there are. State it for launchers that may not be known here.
        timeout: in seconds; longer than what one rank may do alone while the others wait.

    Raises:
        RuntimeError: mpi4py is missing; mpiexec belongs to another MPI library than mpi4py uses; there are not as many
            processes as expected; or a rank has no GPU of its own.
    """
    if not is_device(device) or ":" in device:
        raise ValueError(f"minidl.distributed.start: expected device 'cpu' or 'cuda', got {device!r}")
    if not timeout > 0:
        raise ValueError(f"minidl.distributed.start: expected a timeout > 0 seconds, got {timeout!r}")
    launched = launched_processes()
    if processes is not None and launched != processes:
        raise RuntimeError(
            f"minidl.distributed.start: expected {processes} processes, got {launched}; "
            f"launch with: mpiexec -n {processes} python {sys.argv[0]}"
        )
    if launched == 1:
        yield SingleProcess()
        return
    communicator, watch = _connect(launched, timeout)
    try:
        communicator = communicator.on(device)
    except Exception as error:  # a RuntimeError names what is missing
        expected = isinstance(error, RuntimeError)
        communicator.abort(str(error) if expected else "".join(traceback.format_exception(error)))
    try:
        yield communicator
        watch.check_idle()
        communicator.barrier()  # nobody leaves while others may need it
    except BaseException as error:
        reason = "".join(traceback.format_exception(error))
        if isinstance(error, SystemExit) and not error.code:
            reason = "it left the block of minidl.distributed.start by sys.exit(), and the others would wait for it"
        communicator.abort(reason)
    watch.stop()


def launched_processes() -> int:
    """Return how many processes mpiexec started, from what it tells each of them; 1 without mpiexec.

    Slurm's `srun --mpi=pmi2` tells them the same as mpiexec. Raises RuntimeError if srun told them nothing.
    """
    started_by_srun = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if started_by_srun > 1 and not is_launched():
        raise RuntimeError(
            f"minidl.distributed: srun started {started_by_srun} processes, but did not tell them how to connect; pass "
            f"--mpi=pmi2 to srun, or launch inside of the allocation: mpiexec -n {started_by_srun} python {sys.argv[0]}"
        )
    return max([int(os.environ.get(name, 1)) for name in SIZES])


def is_launched() -> bool:
    """Return whether an mpiexec started this process, also if it is the only one."""
    return any(name in os.environ for name in SIZES)


def _connect(launched: int, timeout: float):
    """Return the communicator of all ranks and its watch, or raise RuntimeError with the remedy."""
    if importlib.util.find_spec("mpi4py") is None:
        raise RuntimeError('minidl.distributed.start: several processes need mpi4py: pip install "minidl[mpi]"')
    rank = max([int(os.environ.get(name, 0)) for name in RANKS])
    guard(f"rank {rank} of {launched}")
    with _alarm(min(timeout, LONGEST_START)):
        return _connect_by_mpi(launched, timeout)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Let the system end this process if the block takes longer. MPI waits for ever for a rank that does not start.

    The message is that of `guard`. Python could print none, as it does not run while MPI waits.
    """
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _connect_by_mpi(launched: int, timeout: float):
    """`_connect`, with mpi4py. Importing it starts MPI."""
    try:
        from minidl.distributed import mpi
    except (ImportError, RuntimeError) as error:  # mpi4py is there, but no MPI library
        raise RuntimeError(
            f"minidl.distributed.start: mpi4py found no MPI library: pip install mpich ({error})"
        ) from error
    if mpi.world_size() != launched:
        raise RuntimeError(
            f"minidl.distributed.start: mpiexec started {launched} processes, but each sees {mpi.world_size()}: it is "
            f"not the mpiexec of the library that mpi4py uses, {mpi.library()}; launch with that one"
        )
    return mpi.connect(timeout)
