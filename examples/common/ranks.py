"""The processes of a run: a single one, or with --distributed the ranks that mpiexec started.

    mpiexec -n 4 python examples/train_cifar_resnet.py --distributed --sync-batch-norm

--batch-size and --lr are those of all ranks together. The ranks divide each batch of the seeded order among them. So
augmentation and dropout do not depend on their number (dropout does with --micro-batch); nor do the parameters with
--sync-batch-norm, but for rounding.
Without it each rank normalises its own part of the batch, as in the papers.

Each rank tests a part of the test images. On rank 0 alone the test would take as long as the training of several ranks,
and the others would wait.

If a rank fails or is killed, all end. --resume goes on from the last checkpoint, also with another number of ranks, or
with one process and without --distributed. Ctrl-C and SIGTERM save a checkpoint and stop, as in a single process;
SIGHUP ends mpiexec and the job. With --device cuda each rank takes a GPU of its own. Its steps are not captured as CUDA
graphs, which cannot hold the exchange of gradients.

Slurm: call mpiexec inside of an allocation, as in a script for sbatch. `srun --mpi=pmi2` passes on the same variables
as mpiexec, but has not been tried. Other ways of srun are refused.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import Nowhere
from common.stop import Stopped
from minidl.data.loader import part_of
from minidl.distributed import (
    AveragedGradients,
    Communicator,
    SingleProcess,
    check_code,
    check_same,
    check_shared_folder,
    convert_sync_batch_norm,
    is_launched,
    launched_processes,
    start,
)
from minidl.distributed.communicator import gather
from minidl.nn import Module
from minidl.random import rows_from

TIMEOUT = 3600.0  # seconds; rank 0 may describe the files of a million photographs while the others wait


class Ranks:
    """The processes that train a network together, each on a part of every batch. Here alone, this class does nothing.

    Each method but `divide` and `part` is collective: all ranks call it, in the same order.

    Args:
        communicator: connects the ranks; without one there is a single process.
        sync_batch_norm: let batch-norm take its statistics over the whole batch, not over the part of each rank.
    """

    def __init__(self, communicator: Communicator | None = None, sync_batch_norm: bool = False):
        self.communicator, self.sync_batch_norm = communicator or SingleProcess(), sync_batch_norm
        self.rank, self.size = self.communicator.rank, self.communicator.size
        self.is_first = self.rank == 0  # it prints, plots and saves
        self.is_alone = self.size == 1
        self._gradients: AveragedGradients | None = None

    # -- parts of a batch ----------------------------------------------------------------------------------------------

    def divide(self, loader):
        """The loader of this rank's part of each batch."""
        if self.is_alone:
            return loader
        images = min(loader.batch_size, len(loader.dataset))
        if images < self.size:
            raise ValueError(
                f"--distributed: expected batches of at least {self.size} images, one for each rank, got {images}; "
                "start fewer ranks, or use more images and a larger --batch-size"
            )
        return loader.shard(self.rank, self.size)

    def part(self, rows: np.ndarray) -> np.ndarray:
        """This rank's part of some rows."""
        return rows[part_of(len(rows), self.rank, self.size)]

    # -- a step --------------------------------------------------------------------------------------------------------

    def attach(self, model: Module) -> None:
        """Before the first step: give all ranks the parameters and buffers of rank 0, and prepare `average`."""
        if not self.is_alone:
            if self.sync_batch_norm:
                convert_sync_batch_norm(model, self.communicator)
            with one_line():
                self._gradients = AveragedGradients(model, self.communicator)

    @contextlib.contextmanager
    def average(self, images: int, loader, backwards: int) -> Iterator[None]:
        """A context for forward and backward on a batch of the loader, of which `images` are here.

        Then the gradients are those of the whole batch: see `AveragedGradients.average`.
        """
        if self.is_alone:
            yield
            return
        with rows_from(loader.first_row), self._gradients.average(images, backwards):
            yield

    # -- numbers of all ranks ------------------------------------------------------------------------------------------

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over the ranks."""
        return numbers if self.is_alone else tuple(self._table(numbers).sum(axis=0).tolist())

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number on any rank."""
        return numbers if self.is_alone else tuple(self._table(numbers).max(axis=0).astype(int).tolist())

    def _table(self, numbers: tuple[float, ...]) -> np.ndarray:
        return gather(self.communicator, np.array(numbers, np.float64))

    def share_buffers(self, model: Module) -> None:
        """Give all ranks the buffers of rank 0, which are those that it saves. Called before a test.

        These are the running statistics, which differ without --sync-batch-norm, and the counters of dropout.
        """
        for _, buffer in model.named_buffers():
            self.communicator.broadcast(buffer.data)

    # -- checks --------------------------------------------------------------------------------------------------------

    def check_same(self, name: str, value) -> None:
        """End the run with an error that names the ranks that differ, unless all have the same value."""
        if not self.is_alone:
            with one_line():
                check_same(self.communicator, name, value)

    def check_model(self, model: Module) -> None:
        """End the run unless all ranks have the same parameters and buffers, before the first step."""
        if not self.is_alone:
            self.check_same("parameters", model.state_dict())

    def check_folder(self, path: str) -> None:
        """End the run unless all ranks see the folder in which rank 0 saves."""
        if not self.is_alone:
            with one_line():
                check_shared_folder(self.communicator, path)


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[Ranks]:
    """The ranks of the job. An error of one ends all, with its name; all have the same code and options.

    Rank 0 alone prints, except for errors and warnings.
    """
    if not getattr(args, "distributed", None):
        with one_line():
            _refuse_mpiexec(args)
        yield Ranks()
        return
    stopped = None
    with contextlib.ExitStack() as stack:
        with one_line():
            communicator = stack.enter_context(_started(args))
        ranks = Ranks(communicator, bool(args.sync_batch_norm))
        if not ranks.is_first:
            stack.enter_context(contextlib.redirect_stdout(Nowhere()))
        try:
            _check_program(ranks, args)
            yield ranks
        except Stopped as stop:  # on all ranks, which leave together
            stopped = stop
        except SystemExit as end:
            communicator.abort(end.code if isinstance(end.code, str) else f"it exited with status {end.code or 0}")
    if stopped is not None:
        raise stopped


def _refuse_mpiexec(args: argparse.Namespace) -> None:
    if hasattr(args, "distributed") and is_launched() and (count := launched_processes()) > 1:
        raise RuntimeError(
            f"mpiexec started {count} processes, each of which would train alone; pass --distributed, so that they "
            "divide each batch among them"
        )


def _started(args: argparse.Namespace) -> contextlib.AbstractContextManager[Communicator]:
    """The context of `minidl.distributed.start`."""
    launched_processes()  # an error if srun started several, and told them nothing
    if not is_launched():
        raise RuntimeError(
            "--distributed: expected processes that mpiexec started, got a single one without it; launch with mpiexec "
            "-n 4 python SCRIPT --distributed (of MPICH, Intel MPI or Open MPI), or omit --distributed"
        )
    if ":" in args.device:
        raise RuntimeError(f"--distributed: each rank takes its own GPU; expected --device cuda, got {args.device}")
    return start(args.device, timeout=TIMEOUT)


def _check_program(ranks: Ranks, args: argparse.Namespace) -> None:
    """Raise SystemExit unless all ranks have the same minidl, the same scripts, and the same options."""
    if ranks.is_alone:
        return
    with one_line():
        check_code(ranks.communicator)
    examples = Path(__file__).parents[1]
    scripts = {path.relative_to(examples).as_posix(): path.read_bytes() for path in sorted(examples.rglob("*.py"))}
    ranks.check_same("code of the scripts", scripts)
    for name, value in vars(args).items():
        ranks.check_same(f"--{name.replace('_', '-')}", value)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Print a RuntimeError of `minidl.distributed` in one line, without a traceback, and exit."""
    try:
        yield
    except RuntimeError as problem:
        raise SystemExit(f"error: {problem}") from None
