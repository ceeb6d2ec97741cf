"""What the training scripts share: errors in one line, the folder of a run, stopping without loss, measuring."""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from cifar_data import CifarData
from models.config import NetworkConfig
from tqdm import tqdm

from minidl import Tensor, explain_out_of_memory, no_grad, tf32, zeros
from minidl.data import IndexLoader
from minidl.nn import Module
from minidl.optim import Optimizer
from minidl.system.files import write_whole
from minidl.tensor import Buffer, Parameter
from minidl.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TEST_BATCH = 250  # divides CIFAR's 10,000 test images
DRAWN = {"step", "train_error", "test_error", "split"}  # of a record, as the curves need them


# -- errors ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_line_errors(parser: argparse.ArgumentParser | None = None) -> Iterator[None]:
    """An error that the user can put right is one line, without a traceback; Ctrl-C ends the script with status 130.

    With a `parser`, while a run is set up, the usage comes before the line, and the status is 2; else it is 1. During
    training a RuntimeError keeps its traceback: it is a bug, or the GPU's.
    """
    kinds = (ValueError, OSError) if parser is None else (ValueError, OSError, RuntimeError, ModuleNotFoundError)
    try:
        yield
    except kinds as problem:
        remedy = f": pip install {problem.name}" if isinstance(problem, ModuleNotFoundError) else ""
        if parser is not None:
            parser.error(f"{problem}{remedy}")
        raise SystemExit(f"error: {problem}") from None
    except KeyboardInterrupt:
        tell("stopped at once", sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def tell(line: str, file: TextIO | None = None) -> None:
    """Print a line above the progress bars. A terminal or a pipe that is gone is no reason to end a training."""
    with contextlib.suppress(OSError):
        tqdm.write(line, file)


@contextlib.contextmanager
def drawing(path: Path) -> Iterator[None]:
    """A picture that cannot be drawn is a warning, and none without matplotlib: no training is lost for a picture."""
    try:
        yield
    except ImportError:
        pass
    except Exception as problem:  # matplotlib and the disk raise many kinds
        tell(f"warning: {path} was not drawn ({problem})", sys.stderr)


# -- the folder of a run -----------------------------------------------------------------------------------------------


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


class RunFolder:
    """DIR/checkpoint.safetensors, DIR/metrics.jsonl (a line for each epoch) and DIR/curves.png.

    With a `config` the checkpoint says which network it is for, so that scripts need only the file. A script that
    writes to the folder holds its lock, see `locked`.

    Attributes:
        records: the lines of the metrics.
        advice: what to try when the numbers overflow.

    Raises:
        ValueError: with `resume`, DIR/metrics.jsonl has a line that is not a record.
    """

    def __init__(
        self,
        path: str | Path,
        resume: bool,
        config: NetworkConfig | None = None,
        advice: str = "try a lower --lr (a tenth)",
    ):
        self.path, self.config, self.advice = Path(path), config, advice
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        if resume and not self.checkpoint.exists():
            raise SystemExit(f"error: --resume: there is no {self.checkpoint}; leave --resume out to begin")
        if not resume and self.checkpoint.exists():
            raise SystemExit(f"error: {self.checkpoint} exists; go on with --resume, or choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.metrics.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        self.records = read_metrics(self.metrics) if resume else []
        self._unwritten = False  # whether the file lacks some of the records

    def remedy(self) -> str:
        """What to do when the numbers overflow, and what there is to go on from."""
        return f"{self.advice}; {self._kept}"

    @property
    def _kept(self) -> str:
        return f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "none was saved yet"

    def save(self, model: Module, optimizer: Optimizer, counters: dict, record: dict | None = None) -> None:
        """Replace the checkpoint; at the end of an epoch, add its `record` to the metrics and draw the curves anew.

        The line comes first, so a kill in between leaves one line too many, which `forget_after` drops, and never one
        too few. The curves come last: they are not needed to go on.
        """
        check_finite(model, optimizer, self.remedy)
        if record is not None:
            self.records.append(record)
            self._unwritten = True
        self._write_metrics()
        if self.config is not None:
            counters = counters | {"network": self.config.to_json()}
        extra = None if self.config is None else self.config.arrays()
        try:
            save_checkpoint(self.checkpoint, model, optimizer, counters, extra)
        except OSError as problem:
            reason = problem.strerror or problem
            raise SystemExit(f"error: {self.checkpoint} was not written ({reason}); {self._kept}") from None
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

    def load(self, model: Module, optimizer: Optimizer, options: dict) -> dict:
        """The counters of the checkpoint, which must have been made with the same options. Call it in `resuming`."""
        _, counters = read_checkpoint(self.checkpoint, "extra/")
        was = counters["options"]
        changed = [
            f"{name} was {was.get(name)}, is {value}" for name, value in options.items() if was.get(name) != value
        ]
        if changed:
            raise SystemExit(f"error: --resume: {'; '.join(changed)}; give the same options, or another --out")
        counters = load_checkpoint(self.checkpoint, model, optimizer)
        if broken := not_finite(model, optimizer):
            raise ValueError(f"NaN or infinity in {len(broken)} of its arrays, such as {broken[0]}")
        return counters

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


# -- stopping ----------------------------------------------------------------------------------------------------------


class StopRequest:
    """Inside `with`, Ctrl-C, SIGTERM and SIGHUP ask to stop after the step in progress.

    A second Ctrl-C or SIGTERM stops at once. A second SIGHUP does not: a terminal that closes often sends several. A
    SIGHUP or SIGTERM that is ignored, as under nohup, stays ignored.

    Attributes:
        asked: whether one has come.
        status: what the process should end with: 0 after Ctrl-C, as a person got what they asked for; else 128 + the
            number of the signal, from which a scheduler learns that the run is not finished.
    """

    def __enter__(self) -> "StopRequest":
        self.asked, self.status = False, 0
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        self._before = {
            number: signal.signal(number, self._ask)
            for number in numbers
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self, message: str) -> None:
        """Print the message; end the process if its status is not 0."""
        tell(message)
        if self.status:
            raise SystemExit(self.status)

    def _ask(self, number: int, *_) -> None:
        if not self.asked and number != signal.SIGINT:
            self.status = 128 + number
        self.asked = True
        if number in (signal.SIGINT, signal.SIGTERM):
            for other in {signal.SIGINT, signal.SIGTERM} & self._before.keys():
                signal.signal(other, self._before[other])


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass
class Totals:
    """Sums over the images seen so far in an epoch."""

    images: int = 0
    loss_sum: float = 0.0
    wrong: int = 0

    @property
    def loss(self) -> float:
        """The mean loss of an image."""
        return self.loss_sum / self.images

    @property
    def error(self) -> float:
        """The part of the images that were classified wrongly, 0 to 1."""
        return self.wrong / self.images


class Counter:
    """Adds up the totals on the device: `add` only queues work for a GPU; `read` waits for it."""

    def __init__(self, device: str):
        self.images, self.loss_sum, self.wrong = (zeros(dtype="float64", device=device).data for _ in range(3))

    def add(self, images: int, loss: Tensor, wrong) -> None:
        """Count a batch: its images, its mean loss, how many were classified wrongly."""
        self.images += images
        self.loss_sum += loss.data.astype("float64") * images
        self.wrong += wrong

    def read(self) -> Totals:
        """What has been counted."""
        return Totals(int(self.images), float(self.loss_sum), int(self.wrong))

    def start_from(self, totals: Totals) -> None:
        """Go on from there. The arrays stay the same: a captured step adds to these."""
        self.images[...], self.loss_sum[...], self.wrong[...] = totals.images, totals.loss_sum, totals.wrong


def check_loss(loss: float, first: int, last: int, remedy: Callable[[], str]) -> None:
    """Stop with the remedy if the mean loss over these steps is NaN or infinite."""
    if not math.isfinite(loss):
        step = f"step {last}" if first == last else f"one of the steps {first} to {last}"
        raise SystemExit(f"error: the loss is {loss} at {step}; {remedy()}")


def check_finite(model: Module, optimizer: Optimizer, remedy: Callable[[], str]) -> None:
    """Stop with the remedy if the network or the optimiser's state holds NaN or infinity.

    `check_loss` does not see what the last step did: its loss is of before the update.
    """
    if broken := not_finite(model, optimizer):
        arrays = f"{len(broken)} arrays of the network and the optimiser, such as {broken[0]}"
        raise SystemExit(f"error: NaN or infinity in {arrays}; {remedy()}")


def not_finite(model: Module, optimizer: Optimizer) -> list[str]:
    """The names of the parameters, buffers and arrays of the optimiser's state that hold NaN or infinity."""
    arrays = {name: tensor.data for name, tensor in model.named_tensors(Parameter | Buffer)}
    for name, parts in optimizer.state().items():
        arrays |= {f"optimizer/{name}.{i}": array for i, array in enumerate(parts)}
    return [name for name, array in arrays.items() if not np.isfinite(Tensor(array).numpy()).all()]


def error_rate(model: Module, data: CifarData) -> float:
    """The part of the test images that the model classifies wrongly, in evaluation mode."""
    model.eval()
    wrong = zeros(dtype="int64", device=data.device).data
    with no_grad():
        for batch in IndexLoader(data.test, TEST_BATCH, data.prepare):
            images, labels = data.take(batch, data.test, data.prepare)
            wrong += (model(images).argmax(dim=1).data != labels).sum()
    model.train()
    return int(wrong) / len(data.test)


def check_dtype(args: argparse.Namespace) -> None:
    """A ValueError where the device does not have the dtype."""
    if args.dtype != "float32" and args.device == "cpu":
        raise ValueError(f"--dtype {args.dtype} needs --device cuda; a CPU computes in float32")


@contextlib.contextmanager
def computing(args: argparse.Namespace, images: int | None = None, option: str = "--batch-size") -> Iterator[None]:
    """Multiply as --dtype says; if the memory is too small for the batch, say which batch would fit."""
    try:
        with (
            tf32() if args.dtype == "tf32" else contextlib.nullcontext(),
            explain_out_of_memory(args.batch_size if images is None else images),
        ):
            yield
    except MemoryError as problem:
        raise SystemExit(f"error: {problem}; give a smaller {option}") from None


def clock(seconds: float) -> str:
    """1:05 for 65 seconds, and 61:05 for an hour more."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"
