"""One process of scaling.py: it makes training steps when it is told to, and says when each part of them ended.

    python benchmarks/scaling_rank.py SOCKET MODEL BATCH THREADS [--averaged]

It connects to the socket, sends {"rank", "parameters"}, and answers each line of JSON with one: {"steps": n} with the
times of n steps, {"all_reduce": [bytes ...]} with the seconds of an all-reduce of each length. Waiting for a line takes
no time of the CPU.

With --averaged the gradients go through `AveragedGradients`: with the other ranks under mpiexec, else with nobody.
"""

import argparse
import contextlib
import json
import socket
import statistics
import time

import numpy as np
from command_line import positive
from step_worker import LR, MODELS, MOMENTUM, WEIGHT_DECAY, make_batch, make_ours

import minidl
from minidl import Tensor
from minidl.distributed import AveragedGradients, Communicator, start
from minidl.functional import cross_entropy
from minidl.optim import SGD

REPEATS = 15  # all-reduces of one length, of which the median counts
POOL = 2**26  # bytes that they take turns in, so that no array is in the cache


class Timed(Communicator):
    """Notes begin, end and bytes of each all-reduce of another communicator. Its copies share the notes."""

    def __init__(self, communicator: Communicator, notes: list | None = None):
        self.rank, self.size, self.broadcast = communicator.rank, communicator.size, communicator.broadcast
        self._communicator, self.notes = communicator, [] if notes is None else notes

    def all_reduce(self, array) -> None:
        """The other's, and a note."""
        begin = time.perf_counter()
        self._communicator.all_reduce(array)
        self.notes.append((begin, time.perf_counter(), array.nbytes))

    def duplicate(self) -> "Timed":
        """For another thread."""
        return Timed(self._communicator.duplicate(), self.notes)


class Trainer:
    """A network and its steps. `times` are seconds since the machine started, the same clock for all its processes."""

    def __init__(self, args: argparse.Namespace, communicator: Communicator):
        minidl.manual_seed(0)
        self.model = make_ours(args.model)
        self.optimizer = SGD(self.model.parameters(), LR, MOMENTUM, WEIGHT_DECAY)
        images, self.labels = make_batch(args.batch, *MODELS[args.model][2:])
        self.images = Tensor(images)
        self.communicator = Timed(communicator)
        self.gradients = AveragedGradients(self.model, self.communicator) if args.averaged else None

    def step(self) -> dict:
        """One step: its times, and begin, end and bytes of its all-reduces."""
        self.communicator.notes.clear()
        times, cpu = [time.perf_counter()], time.process_time()
        if self.gradients is None:
            self._forward_and_backward(times)
        else:
            with self.gradients.average(len(self.images)):
                self._forward_and_backward(times)
        self.optimizer.step()
        self.optimizer.zero_grad()
        names = "begin", "forward", "backward"
        parts = dict(zip(names, times, strict=True)) | {"end": time.perf_counter(), "cpu": time.process_time() - cpu}
        return parts | {"exchanges": list(self.communicator.notes)}

    def _forward_and_backward(self, times: list[float]) -> None:
        loss = cross_entropy(self.model(self.images), self.labels)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())


def time_all_reduce(communicator: Communicator, size: int) -> float:
    """The median seconds of an all-reduce of so many bytes, all ranks beginning together."""
    arrays = np.zeros((max(1, POOL // size), size // 4), np.float32)
    seconds = []
    for turn in range(REPEATS):
        array = arrays[turn % len(arrays)]
        communicator.barrier()
        begin = time.perf_counter()
        communicator.all_reduce(array)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def answer(request: dict, trainer: Trainer, communicator: Communicator) -> dict:
    """What is asked for."""
    if "steps" in request:
        communicator.barrier()
        return {"steps": [trainer.step() for _ in range(request["steps"])]}
    return {"all_reduce": [[size, time_all_reduce(communicator, size)] for size in request["all_reduce"]]}


def main() -> None:
    """Answer until the socket is closed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("batch", type=positive)
    parser.add_argument("threads", type=positive)
    parser.add_argument("--averaged", action="store_true")
    args = parser.parse_args()
    with start() as communicator, socket.socket(socket.AF_UNIX) as connection:
        minidl.set_num_threads(args.threads)
        trainer = Trainer(args, communicator)
        connection.connect(args.socket)
        lines = connection.makefile("rw")
        hello = {"rank": communicator.rank, "parameters": parameter_bytes(trainer)}
        with contextlib.suppress(ConnectionError):  # scaling.py has ended
            print(json.dumps(hello), file=lines, flush=True)
            for line in lines:
                print(json.dumps(answer(json.loads(line), trainer, communicator)), file=lines, flush=True)


def parameter_bytes(trainer: Trainer) -> int:
    """The bytes of the network's parameters."""
    return sum(parameter.data.nbytes for parameter in trainer.model.parameters())


if __name__ == "__main__":
    main()
