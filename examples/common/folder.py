"""The output folder of a training run: a lock, the checkpoint, the metrics and the curves."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from models.config import NetworkConfig

from common.errors import log, warn_if_not_drawn
from common.tensorboard import TensorBoardLog
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
DRAWN = {"step", "train_error", "test_error", "split"}  # keys of a record that the curves need


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Create the folder and lock it against other processes, with a file lock on DIR/lock.

    The operating system releases the lock when the process ends, even by SIGKILL. Child processes do not inherit it.
    Windows (which has no fcntl) and file systems without locks are not protected.
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
            path.unlink()  # before unlocking: see _lock
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # the folder is not empty
                path.parent.rmdir()


def _lock(path: Path) -> int:
    """Lock the file and return its descriptor. A forked child would keep a lock of flock, but not one of lockf."""
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
                f"error: another run (pid {pid}) is writing to {path.parent}; wait for it or choose another --out"
            ) from None
        except OSError as problem:
            log(f"warning: cannot lock {path.parent} ({problem.strerror}); start no second run in it", sys.stderr)
        # A run that ends deletes the file. Retry if that happened after `open`: this lock is then on a deleted file.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)


def check_folder(path: str | Path, resume: bool) -> None:
    """Raise a ValueError if `resume` is set and there is no checkpoint, or the reverse."""
    checkpoint = Path(path, CHECKPOINT)
    if resume and not checkpoint.exists():
        raise ValueError(f"--resume: there is no {checkpoint}; omit --resume to start a new run")
    if not resume and checkpoint.exists():
        raise ValueError(f"{checkpoint} already exists; continue with --resume or choose another --out")


class RunFolder:
    """DIR/checkpoint.safetensors, DIR/metrics.jsonl (one line per epoch) and DIR/curves.png.

    A script must hold the lock of the folder (see `locked`) while it writes to it.

    Args:
        path: DIR.
        resume: True to continue from the checkpoint in DIR, False to start a new run.
        options: the options of the run. Resuming requires the same options.
        config: describes the network; saved in the checkpoint, so that other scripts need only that file.
        log_to: "tensorboard" to write the records to DIR/tensorboard, too.

    Attributes:
        records: the lines of metrics.jsonl, as dictionaries.

    Raises:
        ValueError: `resume` without a checkpoint, a checkpoint without `resume`, a damaged line in metrics.jsonl, or
            `log_to` without the package that it needs.
    """

    def __init__(
        self,
        path: str | Path,
        resume: bool,
        options: dict,
        config: NetworkConfig | None = None,
        log_to: str | None = None,
    ):
        self.path, self.resume, self.options, self.config = Path(path), resume, options, config
        self.checkpoint = self.path / CHECKPOINT
        self.metrics = self.path / "metrics.jsonl"
        self._tensorboard = TensorBoardLog(self.path / "tensorboard") if log_to == "tensorboard" else None
        check_folder(path, resume)
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.metrics.unlink(missing_ok=True)  # left by a run that saved no checkpoint
        self.records = read_metrics(self.metrics) if resume else []
        self._unwritten = False  # True if metrics.jsonl lacks some of the records

    @property
    def last_good(self) -> str:
        """A phrase for error messages: which checkpoint can be resumed."""
        return f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "no checkpoint exists"

    def save(self, model: Module, optimizer: Optimizer, counters: dict, record: dict | None = None) -> None:
        """Replace the checkpoint. At the end of an epoch, also append `record` to the metrics and redraw the curves.

        The metrics are written first: a kill in between leaves an extra line, which `drop_records_after` removes, and
        never a missing one. The curves are drawn last because resuming does not need them.
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
            raise SystemExit(f"error: could not write {self.checkpoint} ({reason}); {self.last_good}") from None
        if record is not None:
            draw_curves(self.records, self.path / "curves.png")
            if self._tensorboard is not None:
                with warn_if_not_drawn(self._tensorboard.path):
                    self._tensorboard.write(self.records)

    def close(self) -> None:
        """Close the file for TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    @contextlib.contextmanager
    def resuming(self) -> Iterator[None]:
        """Turn errors from a damaged or unsuitable checkpoint into a ValueError that names the file."""
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            if str(self.checkpoint) in str(problem):
                raise
            reason = f"{problem} is missing" if isinstance(problem, KeyError) else problem
            raise ValueError(
                f"--resume: {self.checkpoint} is not a checkpoint of this run ({reason}); choose another --out"
            ) from problem

    def load(self, model: Module, optimizer: Optimizer) -> dict:
        """Load the checkpoint into the model and optimizer; return its counters. Call this within `resuming`."""
        _, counters = read_checkpoint(self.checkpoint, "extra/")
        self._check_options(counters["options"])
        if self.config is not None and counters["network"]["classes"] != list(self.config.classes):
            raise ValueError("the classes of the data differ from those that the run was started with")
        counters = load_checkpoint(self.checkpoint, model, optimizer)
        if broken := not_finite(model, optimizer):
            raise ValueError(f"NaN or infinity in {len(broken)} of its arrays, such as {broken[0]}")
        return counters

    def _check_options(self, saved: dict) -> None:
        changed = [
            f"{name} was {saved.get(name)}, is {new}" for name, new in self.options.items() if saved.get(name) != new
        ]
        if changed:
            raise SystemExit(f"error: --resume: {'; '.join(changed)}; pass the same options or choose another --out")

    def drop_records_after(self, step: int) -> None:
        """Remove the records of later steps, which were written after the checkpoint of `step`."""
        self.records = [record for record in self.records if record["step"] <= step]
        self._unwritten = True
        self._write_metrics()

    def _write_metrics(self) -> None:
        """Write metrics.jsonl if it is out of date. If that fails, the next `save` tries again."""
        if not self._unwritten:
            return
        try:
            write_whole(self.metrics, "".join(json.dumps(record) + "\n" for record in self.records).encode())
            self._unwritten = False
        except OSError as problem:
            log(f"warning: could not write {self.metrics} ({problem.strerror or problem})", sys.stderr)


def not_finite(model: Module, optimizer: Optimizer) -> list[str]:
    """The names of the parameters, buffers and optimiser state arrays that contain NaN or infinity."""
    arrays = {name: tensor.data for name, tensor in model.named_tensors(Parameter | Buffer)}
    for name, parts in optimizer.state().items():
        arrays |= {f"optimizer/{name}.{i}": array for i, array in enumerate(parts)}
    return [name for name, array in arrays.items() if not np.isfinite(Tensor(array).numpy()).all()]


def read_metrics(path: Path) -> list[dict]:
    """Read metrics.jsonl, or return [] if it does not exist. A ValueError names a line that is not a record."""
    records: list[dict] = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int) or not record.keys() >= DRAWN:
                raise ValueError(f"expected an object with {', '.join(sorted(DRAWN))}")
        except (ValueError, RecursionError) as problem:
            raise ValueError(
                f"--resume: line {number} of {path} is not a record of a run ({problem}); "
                "delete the line or the whole file, which the checkpoint does not need"
            ) from None
        records.append(record)
    return records


def draw_curves(records: list[dict], path: Path) -> None:
    """Plot training error (dashed) and test error (solid) over the iterations, as in figure 6 of He et al. 2015."""
    with warn_if_not_drawn(path):
        from matplotlib.figure import Figure  # pyplot would keep a figure that could not be saved

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
