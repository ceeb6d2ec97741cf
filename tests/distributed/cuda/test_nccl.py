"""The communicator for GPUs, with threads as ranks, and a stand-in for NCCL that has the calls which are used of it."""

import contextlib
import sys
import types
from typing import ClassVar

import numpy as np
import pytest

from minidl import Tensor, cuda_graph, nn
from minidl.distributed import AveragedGradients, SingleProcess, convert_sync_batch_norm
from minidl.distributed.nccl import NcclCommunicator
from minidl.functional import mse_loss
from tests.distributed.ranks import Thread, on_threads


class Mpi(Thread):
    """What `NcclCommunicator` uses of `MpiCommunicator`. All threads share one GPU."""

    def rank_on_machine(self):
        return 0, 1

    def collective(self):
        return contextlib.nullcontext()


class Group:
    """nccl.core.Communicator: it reads and writes arrays on the stream that it is given, in order with it."""

    threads: ClassVar = {}  # for each id, a thread's communicator, which stands for the connections of the group

    def __init__(self, size, rank, unique_id):
        shared = self.threads.setdefault(unique_id, Thread(0, size))
        self.thread = Thread(rank, size, shared._shared)

    @classmethod
    def init(cls, size, rank, unique_id):
        return cls(size, rank, unique_id)

    def allreduce(self, source, target, op, *, stream):
        assert op == "sum"
        self._exchange(self.thread.all_reduce, source, target, stream)

    def broadcast(self, source, target, root, *, stream):
        self._exchange(lambda array: self.thread.broadcast(array, root), source, target, stream)

    def _exchange(self, call, source, target, stream):
        import cupy

        handle = types.SimpleNamespace(__cuda_stream__=lambda: (0, stream))
        with cupy.cuda.Stream.from_external(handle) as queue:
            array = source.get()  # when the stream comes to it
            call(array)
            target.set(array)
            queue.synchronize()


@pytest.fixture
def fake_nccl(monkeypatch):
    """A module nccl.core."""
    numbers = iter(range(1, 100))
    core = types.ModuleType("nccl.core")
    core.SUM, core.Communicator = "sum", Group
    core.get_unique_id = lambda: types.SimpleNamespace(as_bytes=bytes([next(numbers)] * 128))
    core.UniqueId = types.SimpleNamespace(from_bytes=bytes)
    package = types.ModuleType("nccl")
    package.core = core
    monkeypatch.setitem(sys.modules, "nccl", package)
    monkeypatch.setitem(sys.modules, "nccl.core", core)
    monkeypatch.setattr(Group, "threads", {})


def on_gpus(size, function):
    """[function(communicator) for each rank]."""
    return on_threads(size, lambda thread: function(NcclCommunicator(Mpi(thread.rank, size, thread._shared))))


def test_arrays_of_both_devices_are_exchanged(fake_nccl, device, to_device, to_host):
    def exchange(communicator):
        on_gpu, on_host = to_device(np.full(5, communicator.rank + 1.0)), np.full(5, communicator.rank + 1)
        other = on_gpu * 10  # queued before the calls, on this thread's stream
        for array in (on_gpu, on_host):
            communicator.all_reduce(array)
        communicator.duplicate().broadcast(other, root=1)
        communicator.barrier()
        return [to_host(array).tolist() for array in (on_gpu, on_host, other)]

    assert on_gpus(2, exchange) == [[[3] * 5, [3] * 5, [20] * 5]] * 2


def network():
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    return model.to("float64")


def test_gradients_and_batch_norm_are_those_of_one_process(fake_nccl, device):
    rng = np.random.default_rng(1)
    x, target = rng.standard_normal((5, 2, 2, 2)), rng.standard_normal((5, 2))
    whole = network()
    mse_loss(whole(Tensor(x)), Tensor(target)).backward()

    def part(communicator):
        model = convert_sync_batch_norm(network().to(device), communicator)
        mine = slice(0, 2) if communicator.rank == 0 else slice(2, 5)
        with AveragedGradients(model, communicator, bucket_bytes=64).average(len(x[mine])):
            mse_loss(model(Tensor(x[mine], device=device)), Tensor(target[mine], device=device)).backward()
        return [parameter.grad.numpy() for parameter in model.parameters()]

    for grads in on_gpus(2, part):
        for grad, parameter in zip(grads, whole.parameters(), strict=True):
            np.testing.assert_allclose(grad, parameter.grad.numpy(), rtol=1e-11, atol=1e-12)


def test_a_captured_step_is_refused(fake_nccl, device):
    """The graph would repeat the sums of the first step."""
    if device == "cpu":
        return
    model = network().to(device)
    gradients = AveragedGradients(model, SingleProcess())
    x = Tensor(np.ones((2, 2, 2, 2)), device=device)

    def step(x):
        with gradients.average(len(x)):
            loss = model(x).sum()
            loss.backward()
        model.zero_grad()
        return loss

    captured = cuda_graph(step)
    with pytest.raises(RuntimeError, match="a CUDA graph cannot hold the exchange of gradients"):
        for _ in range(3):
            captured(x)


def test_every_rank_refuses_when_a_gpu_is_missing(fake_nccl, device, monkeypatch):
    monkeypatch.setattr(Mpi, "rank_on_machine", lambda mpi: (mpi.rank, 99))
    with pytest.raises(
        RuntimeError, match="rank 0: RuntimeError: device 'cuda': expected a GPU for each of the 99 ranks"
    ):
        on_gpus(2, lambda communicator: None)


def test_without_nccl4py_the_error_says_what_to_install(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "nccl", None)
    with pytest.raises(
        RuntimeError, match=r'rank 1: RuntimeError: several GPUs need NCCL: pip install "minidl\[nccl\]"'
    ):
        on_gpus(2, lambda communicator: None)
