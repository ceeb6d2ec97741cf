"""The output folder of a training run: a lock, the checkpoints, the metrics and the curves."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from models.config import NetworkConfig

from common.errors import log, warn_if_not_drawn
from common.figures import save_figure
from common.tensorboard import TensorBoardLog
from minidl import Tensor
from minidl.nn import Module
from minidl.optim import Optimizer
from minidl.system.files import link_whole, read_bounded, write_whole
from minidl.tensor import Buffer, Parameter
from minidl.training.checkpoint import BrokenCheckpointError, load_checkpoint, read_checkpoint, save_checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHECKPOINT, BEST, AVERAGE = "checkpoint.safetensors", "best.safetensors", "average.safetensors"
AVERAGED = "extra/average/"  # prefix of the moving average's arrays in a checkpoint
KEPT = re.compile(r"step-(\d+)\.safetensors")
# What the curves need of a record, with the types of the values.
DRAWN = {"step": {int}, "train_error": {int, float}, "test_error": {int, float}, "split": {str}}


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Create the folder and lock it against other processes, with a file lock on DIR/lock.

    The operating system releases the lock when the process ends, even by SIGKILL. Child processes do not inherit it.
    Windows (which has no fcntl) and file systems without locks are not protected.
    """
    path = Path(folder, "lock")
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        descriptor = _lock(path)
    except OSError as problem:
        _remove_empty(made)
        raise ValueError(f"--out: cannot write to {folder} ({problem.strerror}); choose another --out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before unlocking: see _lock
        os.close(descriptor)
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove these folders, of which each is in the next one, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _lock(path: Path) -> int:
    """Lock the file and return its descriptor. A forked child would keep a lock of flock, but not one of lockf."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            pid = os.read(descriptor, 20).decode(errors="replace") or "unknown"
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
    """Raise a ValueError if `resume` is set and there is no checkpoint, or the reverse.

    A new run must not replace the other files of an earlier one, whose checkpoint is gone.
    """
    checkpoint = Path(path, CHECKPOINT)
    if resume and not checkpoint.exists():
        raise ValueError(f"--resume: there is no {checkpoint}; omit --resume to start a new run")
    if resume:
        return
    if checkpoint.exists():
        raise ValueError(f"{checkpoint} already exists; continue with --resume or choose another --out")
    left = [*kept_in(path).values(), *(file for file in (Path(path, BEST), Path(path, AVERAGE)) if file.exists())]
    if left:
        raise ValueError(f"{left[0]} is of an earlier run, which has no {CHECKPOINT}; choose another --out")


def kept_in(path: str | Path) -> dict[int, Path]:
    """The checkpoints DIR/step-N.safetensors: {N: path}."""
    files = Path(path).iterdir() if Path(path).is_dir() else ()
    found = ((KEPT.fullmatch(file.name), file) for file in files)
    return {int(match[1]): file for match, file in found if match and file.is_file()}


class RunFolder:
    """DIR/checkpoint.safetensors, DIR/metrics.jsonl (one line per epoch) and DIR/curves.png.

    The last `keep` checkpoints also have the names DIR/step-N.safetensors, and the one with the lowest test error is
    DIR/best.safetensors. These are hard links: a checkpoint with two names is on the disk once. That lowest error is
    not an honest estimate, as it was chosen with the test images: choose with --holdout.

    A script must hold the lock of the folder (see `locked`) while it writes to it.

    Args:
        path: DIR.
        resume: True to continue from the checkpoint in DIR, False to start a new run.
        options: the options of the run. Resuming requires the same options.
        config: describes the network; saved in the checkpoint, so that other scripts need only that file.
        average: a moving average of the network, which is tested in its place. It goes into the checkpoint, from which
            the run is resumed, and alone into DIR/average.safetensors and DIR/best.safetensors, for other scripts.
        data: a description of the training and test images, {name: text}. Resuming requires the same.
        keep: number of checkpoints to keep, 1 or more, besides the best one.
        log_to: "tensorboard" to write the records to DIR/tensorboard, too.
        writes: False for ranks other than 0, which only read the checkpoint and keep the records in memory.

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
        *,
        average: Module | None = None,
        data: dict[str, str] | None = None,
        keep: int = 1,
        log_to: str | None = None,
        writes: bool = True,
    ):
        self.path, self.resume, self.options, self.config = Path(path), resume, options, config
        self.average, self.data, self.keep, self.writes = average, data, keep, writes
        self.checkpoint = self.path / CHECKPOINT
        self.metrics = self.path / "metrics.jsonl"
        self._tensorboard = TensorBoardLog(self.path / "tensorboard") if writes and log_to == "tensorboard" else None
        check_folder(path, resume)
        self.path.mkdir(parents=True, exist_ok=True)
        if writes and not resume:
            self.metrics.unlink(missing_ok=True)  # left by a run that saved no checkpoint
        self.records = read_metrics(self.metrics) if resume else []
        self._unwritten = False  # True if metrics.jsonl lacks some of the records
        self._best: tuple[float, int] | None = None  # (the lowest test error, its step)

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
            if self._best is None or record["test_error"] < self._best[0]:
                self._best = record["test_error"], record["step"]
        if not self.writes:
            return
        warning = self._write_metrics()
        counters = counters | {"options": self.options, "data": self.data, "best": self._best}
        if self.config is not None:
            counters |= {"network": self.config.to_json()}
        averages = {} if self.average is None else self.average.state_dict()
        averages = {f"average/{name}": array for name, array in averages.items()}
        try:
            save_checkpoint(self.checkpoint, model, optimizer, counters, self._extra() | averages)
            self._save_average(counters)
        except OSError as problem:
            reason = problem.strerror or problem
            raise SystemExit(f"error: could not write {self.checkpoint} ({reason}); {self.last_good}") from None
        if warning:  # after the checkpoint, as a full disk is one error
            log(warning, sys.stderr)
        self.keep_checkpoints(counters["progress"]["step"])
        if record is not None:
            draw_curves(self.records, self.path / "curves.png")
            if self._tensorboard is not None:
                with warn_if_not_drawn(self._tensorboard.path):
                    self._tensorboard.write(self.records)

    def _extra(self) -> dict[str, np.ndarray]:
        """The arrays that describe the network in a checkpoint."""
        return {} if self.config is None else self.config.arrays()

    def _save_average(self, counters: dict) -> None:
        """Write the moving average, if there is one, to a file of its own."""
        if self.average is not None:
            save_checkpoint(self.path / AVERAGE, self.average, None, counters, self._extra())

    def close(self) -> None:
        """Close the file for TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def keep_checkpoints(self, step: int) -> None:
        """Keep the newest checkpoint, which is that of `step`, also as one of the last `keep`, and maybe as the best.

        Removes the others, and those of later steps: the run has gone back to an earlier checkpoint.
        """
        if not self.writes:
            return
        try:
            kept, stay = kept_in(self.path), []
            if self.keep > 1:
                link_whole(self.checkpoint, self.path / f"step-{step}.safetensors")
                stay = [step, *sorted((number for number in kept if number < step), reverse=True)][: self.keep]
            for number in kept.keys() - stay:
                kept[number].unlink()
            if self._best is not None and self._best[1] == step:
                link_whole(self.checkpoint if self.average is None else self.path / AVERAGE, self.path / BEST)
        except OSError as problem:
            log(f"warning: could not keep {self.checkpoint} under another name ({problem})", sys.stderr)

    @contextlib.contextmanager
    def resuming(self) -> Iterator[None]:
        """Turn errors from a damaged or unsuitable checkpoint into a ValueError that names the file."""
        try:
            yield
        except BrokenCheckpointError as problem:
            raise BrokenCheckpointError(f"--resume: {problem}{self._earlier()}") from problem
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            if str(self.checkpoint) in str(problem):
                raise
            reason = f"{problem} is missing" if isinstance(problem, KeyError) else problem
            raise ValueError(
                f"--resume: {self.checkpoint} is not a checkpoint of this run ({reason}); choose another --out"
            ) from problem

    def _earlier(self) -> str:
        """How to go on from the checkpoint before a damaged one. (A name of the damaged one itself is no help.)"""
        for _, path in sorted(kept_in(self.path).items(), reverse=True):
            if not path.samefile(self.checkpoint):
                return f": mv {path} {self.checkpoint}"
        return f", or start anew with another --out (none was kept in {self.path}: see --keep)"

    def load(self, model: Module, optimizer: Optimizer) -> dict:
        """Load the checkpoint into the model and optimizer; return its counters. Call this within `resuming`."""
        _, counters = read_checkpoint(self.checkpoint, "extra/")
        self._check_options(counters["options"])
        if self.config is not None and counters["network"]["classes"] != list(self.config.classes):
            raise ValueError("the classes of the data differ from those that the run was started with")
        self._check_data(counters.get("data"))
        counters = load_checkpoint(self.checkpoint, model, optimizer)
        if broken := not_finite(model, optimizer):
            raise ValueError(f"NaN or infinity in {len(broken)} of its arrays, such as {broken[0]}")
        if self.average is not None:
            arrays, _ = read_checkpoint(self.checkpoint, AVERAGED)
            self.average.load_state_dict({name.removeprefix(AVERAGED): array for name, array in arrays.items()})
            if self.writes:
                self._save_average(counters)  # a kill may have come between the checkpoint and this file
        self._best = counters.get("best")
        return counters

    def _check_options(self, saved: dict) -> None:
        changed = [
            f"{name} was {saved.get(name)}, is {new}" for name, new in self.options.items() if saved.get(name) != new
        ]
        if changed:
            raise SystemExit(
                f"error: {self.checkpoint}: {'; '.join(changed)}; pass the same options or choose another --out"
            )

    def _check_data(self, saved: dict[str, str] | None) -> None:
        """Other images would train on without a word. Checkpoints of older versions have no description of theirs."""
        if saved and self.data:
            changed = [
                f"{name}: {saved.get(name)}, now {new}" for name, new in self.data.items() if saved.get(name) != new
            ]
            if changed:
                raise SystemExit(
                    f"error: {self.checkpoint}: the data are not those that the run was started with "
                    f"({'; '.join(changed)}); restore them or choose another --out"
                )

    def drop_records_after(self, step: int) -> None:
        """Remove the records of later steps, which were written after the checkpoint of `step`."""
        self.records = [record for record in self.records if record["step"] <= step]
        self._unwritten = True
        if warning := self._write_metrics():
            log(warning, sys.stderr)

    def _write_metrics(self) -> str:
        """Write metrics.jsonl if it is out of date. If that fails, return a warning; the next `save` tries again."""
        if self._unwritten and self.writes:
            try:
                write_whole(self.metrics, "".join(json.dumps(record) + "\n" for record in self.records).encode())
            except OSError as problem:
                return f"warning: could not write {self.metrics} ({problem.strerror or problem})"
            self._unwritten = False
        return ""


def not_finite(model: Module, optimizer: Optimizer) -> list[str]:
    """The names of the parameters, buffers and optimiser state arrays that contain NaN or infinity."""
    arrays = {name: tensor.data for name, tensor in model.named_tensors(Parameter | Buffer)}
    for name, parts in optimizer.state().items():
        arrays |= {f"optimizer/{name}.{i}": array for i, array in enumerate(parts)}
    return [name for name, array in arrays.items() if not np.isfinite(Tensor(array).numpy()).all()]


def read_metrics(path: Path) -> list[dict]:
    """Read metrics.jsonl, or return [] if it does not exist.

    A ValueError names a line that is not a record, or the file if it is longer than 64 MiB.
    """
    try:
        lines = read_bounded(path).splitlines() if path.exists() else []
    except ValueError as problem:
        raise ValueError(f"--resume: {problem}; delete the file, which the checkpoint does not need") from None
    records: list[dict] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not all(type(record.get(name)) in DRAWN[name] for name in DRAWN):
                raise ValueError("expected the numbers step, train_error, test_error and the text split")
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
        save_figure(figure, path)
