"""The folder of a run: a lock, the checkpoint, the metrics, the curves."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from models.config import NetworkConfig

from common.errors import drawing, tell
from minidl import Tensor
from minidl.nn import Module
from minidl.optim import Optimizer
from minidl.system.files import write_whole
from minidl.tensor import Buffer, Parameter
from minidl.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHECKPOINT = "checkpoint.safetensors"
DRAWN = {"step", "train_error", "test_error", "split"}  # of a record, as the curves need them


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it by a lock on DIR/lock.

    The system releases the lock when the process ends, also after SIGKILL, and child processes do not inherit it. There
    is no lock on Windows, which has no fcntl, nor on a file system without locks.
    """
    path, made = Path(folder, "lock"), not Path(folder).exists()
    try:
        descriptor = _lock(path)
    except OSError as problem:
        raise SystemExit(f"error: --out: cannot write to {folder} ({problem.strerror}); choose another --out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is locked: see _lock
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # something was written
                path.parent.rmdir()


def _lock(path: Path) -> int:
    """The descriptor of the file, locked. POSIX locks (lockf) rather than flock's, which a forked child would keep."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            pid = os.read(descriptor, 20).decode() or "unknown"
            os.close(descriptor)
            raise SystemExit(
                f"error: another run (pid {pid}) writes to {path.parent}; wait for it, or choose another --out"
            ) from None
        except OSError as problem:
            tell(f"warning: {path.parent} is not locked ({problem.strerror}); start no second run in it", sys.stderr)
        # A run that ends removes the file: then another process may have made, and locked, a new one.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)


def check_folder(path: str | Path, resume: bool) -> None:
    """A ValueError if there is a checkpoint without `resume`, or none with it."""
    checkpoint = Path(path, CHECKPOINT)
    if resume and not checkpoint.exists():
        raise ValueError(f"--resume: there is no {checkpoint}; leave --resume out to begin")
    if not resume and checkpoint.exists():
        raise ValueError(f"{checkpoint} exists; go on with --resume, or choose another --out")


class RunFolder:
    """DIR/checkpoint.safetensors, DIR/metrics.jsonl (a line for each epoch) and DIR/curves.png.

    A script that writes to the folder holds its lock, see `locked`.

    Args:
        path: DIR.
        resume: whether the run goes on from the checkpoint in it, or begins.
        options: of the run; to resume it they must be the same.
        config: the network that the checkpoint is for, so that scripts which use it need only the file.

    Attributes:
        records: the lines of the metrics.

    Raises:
        ValueError: there is a checkpoint without `resume`, or none with it; or a line of DIR/metrics.jsonl is damaged.
    """

    def __init__(self, path: str | Path, resume: bool, options: dict, config: NetworkConfig | None = None):
        self.path, self.resume, self.options, self.config = Path(path), resume, options, config
        self.checkpoint = self.path / CHECKPOINT
        self.metrics = self.path / "metrics.jsonl"
        check_folder(path, resume)
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.metrics.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        self.records = read_metrics(self.metrics) if resume else []
        self._unwritten = False  # whether the file lacks some of the records

    @property
    def kept(self) -> str:
        """What there is to go on from."""
        return f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "none was saved yet"

    def save(self, model: Module, optimizer: Optimizer, counters: dict, record: dict | None = None) -> None:
        """Replace the checkpoint; at the end of an epoch, add its `record` to the metrics and draw the curves anew.

        The line comes first, so a kill in between leaves one line too many, which `forget_after` drops, and never one
        too few. The curves come last: they are not needed to go on.
        """
        if record is not None:
            self.records.append(record)
            self._unwritten = True
        self._write_metrics()
        counters = counters | {"options": self.options}
        if self.config is not None:
            counters |= {"network": self.config.to_json()}
        extra = None if self.config is None else self.config.arrays()
        try:
            save_checkpoint(self.checkpoint, model, optimizer, counters, extra)
        except OSError as problem:
            reason = problem.strerror or problem
            raise SystemExit(f"error: {self.checkpoint} was not written ({reason}); {self.kept}") from None
        if record is not None:
            draw_curves(self.records, self.path / "curves.png")

    @contextlib.contextmanager
    def resuming(self) -> Iterator[None]:
        """A ValueError names the checkpoint, where that is damaged or does not fit."""
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            if str(self.checkpoint) in str(problem):
                raise
            reason = f"it has no {problem}" if isinstance(problem, KeyError) else problem
            raise ValueError(
                f"--resume: {self.checkpoint} is no checkpoint of this run ({reason}); choose another --out"
            ) from problem

    def load(self, model: Module, optimizer: Optimizer) -> dict:
        """The counters of the checkpoint. Call it in `resuming`."""
        _, counters = read_checkpoint(self.checkpoint, "extra/")
        self._check_options(counters["options"])
        if self.config is not None and counters["network"]["classes"] != list(self.config.classes):
            raise ValueError("the data have other classes than those that the run began with")
        counters = load_checkpoint(self.checkpoint, model, optimizer)
        if broken := not_finite(model, optimizer):
            raise ValueError(f"NaN or infinity in {len(broken)} of its arrays, such as {broken[0]}")
        return counters

    def _check_options(self, was: dict) -> None:
        changed = [
            f"{name} was {was.get(name)}, is {value}" for name, value in self.options.items() if was.get(name) != value
        ]
        if changed:
            raise SystemExit(f"error: --resume: {'; '.join(changed)}; give the same options, or another --out")

    def forget_after(self, step: int) -> None:
        """Drop the lines of the metrics that were written after the checkpoint of that step."""
        self.records = [record for record in self.records if record["step"] <= step]
        self._unwritten = True
        self._write_metrics()

    def _write_metrics(self) -> None:
        """Write the records, unless the file has them. Where that fails, the next `save` tries again."""
        if not self._unwritten:
            return
        try:
            write_whole(self.metrics, "".join(json.dumps(record) + "\n" for record in self.records).encode())
            self._unwritten = False
        except OSError as problem:
            tell(f"warning: {self.metrics} was not written ({problem.strerror or problem})", sys.stderr)


def not_finite(model: Module, optimizer: Optimizer) -> list[str]:
    """The names of the parameters, buffers and arrays of the optimiser's state that hold NaN or infinity."""
    arrays = {name: tensor.data for name, tensor in model.named_tensors(Parameter | Buffer)}
    for name, parts in optimizer.state().items():
        arrays |= {f"optimizer/{name}.{i}": array for i, array in enumerate(parts)}
    return [name for name, array in arrays.items() if not np.isfinite(Tensor(array).numpy()).all()]


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl, none where there is no such file; a ValueError names a line that is not one."""
    records: list[dict] = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int) or not record.keys() >= DRAWN:
                raise ValueError(f"expected an object with {', '.join(sorted(DRAWN))}")
        except (ValueError, RecursionError) as problem:
            raise ValueError(
                f"--resume: line {number} of {path} is not a record of a run ({problem}); "
                "remove it, or the whole file: the checkpoint does not need it"
            ) from None
        records.append(record)
    return records


def draw_curves(records: list[dict], path: Path) -> None:
    """Training error dashed and test error solid over the iterations, as in figure 6 of He et al. 2015."""
    with drawing(path):
        from matplotlib.figure import Figure  # without pyplot, which would keep a figure whose saving failed

        figure = Figure(figsize=(6, 4), dpi=120)
        axes, last = figure.subplots(), records[-1]
        steps = [record["step"] for record in records]
        axes.plot(steps, [100 * record["train_error"] for record in records], "--", color="tab:blue", label="training")
        axes.plot(steps, [100 * record["test_error"] for record in records], color="tab:red", label=last["split"])
        axes.set(xlabel="iterations", ylabel="error (%)", ylim=(0, None), xlim=(0, None))
        axes.set_title(f"{last['split']} error {100 * last['test_error']:.2f} %", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(path)
