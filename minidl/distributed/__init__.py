"""Data-parallel training: each process, called a rank, computes the gradients of its share of every batch.

The ranks hold the same parameters. They add their gradients before each step, so all of them take the same step:

    with minidl.distributed.start() as communicator:  # mpiexec -n 4 python train.py
        gradients = AveragedGradients(model, communicator)
        loader = loader.shard(communicator.rank, communicator.size)
        for images, labels in loader:
            with gradients.average(len(images)):
                images, labels = at_least_one(images, labels)  # the last part may be empty
                cross_entropy(model(images), labels).backward()
            optimizer.step()
            model.zero_grad()

`convert_sync_batch_norm` makes batch-norm take its statistics over the whole batch. With it, and with dropout inside
`minidl.random.rows_from`, the number of ranks changes nothing but the rounding.

The ranks speak MPI (extra `mpi`). With device "cuda", gradients travel from GPU to GPU by NCCL (extra `nccl`).
"""

from minidl.distributed.batch_norm import SyncBatchNorm2d, convert_sync_batch_norm
from minidl.distributed.communicator import Communicator, SingleProcess
from minidl.distributed.gradients import AveragedGradients, at_least_one
from minidl.distributed.launch import is_launched, launched_processes, start
from minidl.distributed.safety import check_code, check_same, check_shared_folder, on_every_rank

__all__ = [
    "AveragedGradients",
    "Communicator",
    "SingleProcess",
    "SyncBatchNorm2d",
    "at_least_one",
    "check_code",
    "check_same",
    "check_shared_folder",
    "convert_sync_batch_norm",
    "is_launched",
    "launched_processes",
    "on_every_rank",
    "start",
]
