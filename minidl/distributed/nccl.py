"""The communicator for GPUs: arrays on them are exchanged by NCCL, all else by MPI."""

import numpy as np

from minidl.distributed.communicator import Communicator
from minidl.distributed.safety import on_every_rank
from minidl.kernels import device_of
from minidl.system.gpu import select_gpu
from minidl.system.nccl import ID_BYTES, Nccl, gpu_count, new_id, require_nccl


class NcclCommunicator(Communicator):
    """The ranks of an `MpiCommunicator`, each with its own GPU. CuPy arrays travel by NCCL, NumPy arrays by MPI.

    Raises:
        RuntimeError: on every rank, if one has no GPU of its own, or no nccl4py. NCCL would wait for ever.
    """

    def __init__(self, mpi):
        self.rank, self.size, self._mpi = mpi.rank, mpi.size, mpi
        number, ranks = mpi.rank_on_machine()
        with on_every_rank(mpi):
            require_nccl()
            if gpu_count() < ranks:
                raise RuntimeError(
                    f"device 'cuda': expected a GPU for each of the {ranks} ranks of this machine, got {gpu_count()}; "
                    "start fewer ranks, or show them more GPUs (CUDA_VISIBLE_DEVICES)"
                )
            select_gpu(f"cuda:{number}")
        self._nccl = self._connect()

    def _connect(self) -> Nccl:
        unique_id = np.zeros(ID_BYTES, np.uint8)
        if self.rank == 0:
            unique_id[:] = np.frombuffer(new_id(), np.uint8)
        self._mpi.broadcast(unique_id)
        with self._mpi.collective():
            return Nccl(self.rank, self.size, unique_id.tobytes())

    def all_reduce(self, array) -> None:
        """Replace the array by its sum over all ranks, in place."""
        if device_of(array) == "cpu":
            self._mpi.all_reduce(array)
        else:
            with self._mpi.collective():
                self._nccl.all_reduce(array)

    def broadcast(self, array, root: int = 0) -> None:
        """Replace the array by that of rank `root`, in place."""
        if device_of(array) == "cpu":
            self._mpi.broadcast(array, root)
        else:
            with self._mpi.collective():
                self._nccl.broadcast(array, root)

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        self._mpi.barrier()

    def abort(self, message: str) -> None:
        """Print the message with the name of this rank, and end the processes of all ranks."""
        self._mpi.abort(message)

    def duplicate(self) -> "NcclCommunicator":
        """Return a communicator of the same ranks, for use in another thread."""
        return NcclCommunicator(self._mpi.duplicate())
