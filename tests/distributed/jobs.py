"""What the ranks of a test do: mpiexec -n 3 python -m tests.distributed.jobs train FOLDER float64."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import minidl
from minidl import Tensor, nn
from minidl.data import ArrayDataset, CropAndFlip, DataLoader
from minidl.distributed import (
    AveragedGradients,
    at_least_one,
    check_code,
    check_same,
    check_shared_folder,
    convert_sync_batch_norm,
    on_every_rank,
    start,
)
from minidl.distributed.launch import RANKS
from minidl.functional import cross_entropy
from minidl.random import rows_from


def network():
    """Batch-norm after convolutions, and dropout of 18 numbers per image, which no word of four divides."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(18, 3)),
    )


def data():
    """15 images: batches of 7, 7 and 1."""
    rng = np.random.default_rng(5)
    return ArrayDataset(rng.integers(0, 256, (15, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 15))


def train(folder, dtype):
    """Three epochs; each rank saves its network."""
    with start(timeout=300) as communicator:
        minidl.manual_seed(communicator.rank)  # each rank begins with other weights
        model = convert_sync_batch_norm(network().to(dtype), communicator)
        gradients = AveragedGradients(model, communicator, bucket_bytes=100)
        assert len(gradients.buckets) > 2
        optimizer = minidl.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
        loader = DataLoader(data(), 7, shuffle=True, transform=CropAndFlip(128.0, 64.0, padding=1))
        loader = loader.shard(communicator.rank, communicator.size)
        for _ in range(3):
            for images, labels in loader:
                with rows_from(loader.first_row), gradients.average(len(images)):
                    images, labels = at_least_one(images, labels)
                    cross_entropy(model(Tensor(images).to(dtype)), labels).backward()
                optimizer.step()
                model.zero_grad()
        np.savez(Path(folder) / f"{communicator.size}-{communicator.rank}.npz", **model.state_dict())


def killed():
    """Rank 1 is killed while the others wait for it."""
    with start(timeout=300) as communicator:
        communicator.barrier()
        if communicator.rank == 1:
            print(f"killed: process {os.getpid()}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        communicator.barrier()


def missing():
    """Rank 1 does not come to the second call."""
    with start(timeout=3) as communicator:
        communicator.barrier()
        if communicator.rank == 1:
            time.sleep(60)
        communicator.barrier()


def mismatch():
    """Rank 0 calls barrier() where the others call all_reduce()."""
    with start(timeout=2) as communicator:
        if communicator.rank == 0:
            communicator.barrier()
        else:
            communicator.all_reduce(np.ones(4))
        communicator.all_reduce(np.ones(10**6))


def unstarted():
    """Rank 1 fails before it calls start()."""
    if "1" in (os.environ.get(name) for name in RANKS):
        raise ValueError("no such option")
    with start(timeout=3):
        pass


def unconnected():
    """The exchange of NCCL cannot be set up on rank 1, where it raises an error of its own class."""

    def on(self, device):
        if self.rank == 1:
            raise ValueError("no NVLink")
        self.barrier()

    from minidl.distributed import mpi

    mpi.MpiCommunicator.on = on
    with start(timeout=300):
        pass


def skipped():
    """All ranks raise an error while gradients travel, catch it, and go on."""
    with start(timeout=300) as communicator:
        model = nn.Linear(2, 2)
        gradients = AveragedGradients(model, communicator)
        for turn in range(2):
            try:
                with gradients.average(1):
                    model(Tensor(np.ones((1, 2), np.float32))).sum().backward()
                    if turn == 0:
                        raise ValueError("skip this batch")
            except ValueError:
                model.zero_grad()


def left_on_the_way():
    """Rank 0 sends gradients, rank 1 has an error before; both catch it, and leave."""
    with start(timeout=300) as communicator:
        model = nn.Linear(2, 2)
        gradients = AveragedGradients(model, communicator)
        try:
            with gradients.average(1):
                loss = model(Tensor(np.ones((1, 2), np.float32))).sum()
                if communicator.rank == 0:
                    loss.backward()
                    time.sleep(0.5)
                raise ValueError("skip this batch")
        except ValueError:
            pass


def slow():
    """Rank 1 is late, but within the time, and nobody complains."""
    with start(timeout=300) as communicator:
        for _ in range(2):
            communicator.barrier()
            if communicator.rank == 1:
                time.sleep(1.5)
        print("done", flush=True)


def failing():
    """Rank 1 raises an error while the others wait."""
    with start(timeout=300) as communicator:
        if communicator.rank == 1:
            raise ValueError("the disk is full")
        communicator.barrier()


def leaving():
    """Rank 1 calls sys.exit() while the others wait."""
    with start(timeout=300) as communicator:
        if communicator.rank == 1:
            sys.exit()
        communicator.barrier()


def checks(folder):
    """Each check, on ranks that agree and on ranks that do not. What each rank catches is printed in one line."""
    with start(timeout=300) as communicator:
        rank, caught = communicator.rank, []

        def attempt(check, *arguments):
            try:
                check(communicator, *arguments)
            except RuntimeError as error:
                caught.append(str(error))

        def read(communicator):
            with on_every_rank(communicator):
                if rank == 1:
                    raise ValueError("no such data")

        own = Path(folder) / f"own-{rank}"
        own.mkdir()
        check_code(communicator, __file__)
        check_same(communicator, "arguments", {"rate": 0.1, "data": Path(folder), "weights": np.ones(3)})
        check_shared_folder(communicator, folder)
        communicator.barrier()
        assert not list(Path(folder).glob(".*"))
        attempt(check_same, "arguments", {"rate": 0.2 if rank == 2 else 0.1})
        attempt(check_same, "data", np.full(3, rank))
        attempt(check_shared_folder, own)
        attempt(read)
        print(f"rank {rank}: {' | '.join(caught)}\n", end="", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
