"""The communicator over MPI, by mpi4py. Importing this file starts MPI."""

import os
import sys
import time

import numpy as np
from mpi4py import MPI

from minidl.distributed.communicator import Communicator
from minidl.distributed.nccl import NcclCommunicator
from minidl.distributed.watch import Watch


class MpiCommunicator(Communicator):
    """The ranks of an MPI communicator. It reduces NumPy arrays on the CPU.

    All calls are blocking. MPI's non-blocking calls move large arrays only while the process is inside some MPI call,
    so they would not overlap with the computation. A blocking call in a thread does: mpi4py releases Python's lock.
    """

    def __init__(self, comm: MPI.Comm, watch: Watch):
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._comm, self._watch, self._number = comm, watch, watch.add()

    def all_reduce(self, array: np.ndarray) -> None:
        """Replace the array by its sum over all ranks, in place."""
        with self.collective():
            self._comm.Allreduce(MPI.IN_PLACE, array)

    def broadcast(self, array: np.ndarray, root: int = 0) -> None:
        """Replace the array by that of rank `root`, in place."""
        with self.collective():
            self._comm.Bcast(array, root)

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        with self.collective():
            self._comm.Barrier()

    def collective(self):
        """Return the block to put around a collective call, so that a rank that does not come to it is named."""
        return self._watch.collective(self._number)

    def abort(self, message: str) -> None:
        """Print the message with the name of this rank, and end the processes of all ranks."""
        abort(self._comm, message)

    def duplicate(self) -> "MpiCommunicator":
        """Return a communicator of the same ranks, for use in another thread."""
        with self.collective():
            comm = self._comm.Dup()
        return MpiCommunicator(comm, self._watch)

    def on(self, device: str) -> Communicator:
        """Return this communicator for device 'cpu', and one that exchanges arrays on GPUs too for 'cuda'."""
        if device == "cpu":
            return self
        return NcclCommunicator(self)

    def rank_on_machine(self) -> tuple[int, int]:
        """Return the number of this rank among the ranks of its machine, and how many there are."""
        with self.collective():
            machine = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        return machine.Get_rank(), machine.Get_size()


def connect(timeout: float) -> tuple[MpiCommunicator, Watch]:
    """Return the communicator of all ranks that mpiexec started, and the thread that watches over it."""
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise RuntimeError(
            "minidl.distributed: expected an MPI library for several threads (MPI_THREAD_MULTIPLE), got "
            f"{MPI.get_vendor()[0]} without; install one that has them: pip install mpich"
        )
    comm = MPI.COMM_WORLD.Dup()
    watch = Watch(comm.Dup(), timeout, lambda message: abort(comm, message))
    return MpiCommunicator(comm, watch), watch


def library() -> str:
    """Return the name and version of the MPI library."""
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def world_size() -> int:
    """Return how many processes this MPI library was started with."""
    return MPI.COMM_WORLD.Get_size()


def abort(comm: MPI.Comm, message: str) -> None:
    """Print the message with the name of this rank, and end the processes of all ranks."""
    sys.stdout.flush()
    # One write, so that the lines of several ranks do not mix.
    sys.stderr.write(f"minidl.distributed: rank {comm.Get_rank()} of {comm.Get_size()} ends the job: {message}\n")
    sys.stderr.flush()
    time.sleep(0.5)  # mpiexec ends at once, and loses what it has not read yet: 1 of 6 messages when all ranks abort
    MPI.COMM_WORLD.Abort(1)
    os._exit(1)  # in MPICH, Abort returns before mpiexec has ended this process
