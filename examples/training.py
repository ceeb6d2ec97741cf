"""What the training scripts share: the folder of a run, stopping without losing anything, and measuring the error."""

import argparse
import contextlib
import json
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cifar_data import CifarData
from models.config import NetworkConfig

from minidl import Tensor, explain_out_of_memory, no_grad, tf32, zeros
from minidl.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from minidl.data import IndexLoader
from minidl.files import write_whole
from minidl.nn import Module
from minidl.optim import Optimizer

TEST_BATCH = 250  # divides CIFAR's 10,000 test images


class RunFolder:
    """DIR/checkpoint.safetensors, DIR/metrics.jsonl (a line for each epoch) and DIR/curves.png.

    With a `config` the checkpoint says of which network it is, which is all that scripts need to use it.
    """

    def __init__(self, path: str | Path, resume: bool, config: NetworkConfig | None = None):
        self.path, self.config = Path(path), config
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        if resume and not self.checkpoint.exists():
            raise SystemExit(f"error: --resume: there is no {self.checkpoint}; leave --resume out to begin")
        if not resume and self.checkpoint.exists():
            raise SystemExit(f"error: {self.checkpoint} exists; go on with --resume, or choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.metrics.unlink(missing_ok=True)  # of a run that ended before its first checkpoint

    def save(self, model: Module, optimizer: Optimizer, counters: dict) -> None:
        """Replace the checkpoint."""
        if self.config is None:
            save_checkpoint(self.checkpoint, model, optimizer, counters)
        else:
            counters = counters | {"network": self.config.to_json()}
            save_checkpoint(self.checkpoint, model, optimizer, counters, self.config.arrays())

    def load(self, model: Module, optimizer: Optimizer, options: dict) -> dict:
        """The counters of the checkpoint, which must have been made with the same options."""
        _, counters = read_checkpoint(self.checkpoint, "extra/")
        was = counters["options"]
        changed = [
            f"{name} was {was.get(name)}, is {value}" for name, value in options.items() if was.get(name) != value
        ]
        if changed:
            raise SystemExit(f"error: --resume: {'; '.join(changed)}; give the same options, or another --out")
        return load_checkpoint(self.checkpoint, model, optimizer)

    def forget_after(self, step: int) -> None:
        """Drop the lines of the metrics that were written after the checkpoint of that step."""
        self._write([record for record in self.records() if record["step"] <= step])

    def append(self, record: dict) -> None:
        """Add a line to the metrics, and draw the curves anew."""
        self._write([*self.records(), record])
        draw_curves(self.records(), self.path / "curves.png")

    def records(self) -> list[dict]:
        """The lines of the metrics."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()] if self.metrics.exists() else []

    def _write(self, records: list[dict]) -> None:
        write_whole(self.metrics, "".join(json.dumps(record) + "\n" for record in records).encode())


def draw_curves(records: list[dict], path: Path) -> None:
    """Training error dashed and test error solid over the iterations, as in figure 6 of He et al. 2015."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(6, 4), dpi=120)
    steps = [record["step"] for record in records]
    axes.plot(steps, [100 * record["train_error"] for record in records], "--", color="tab:blue", label="training")
    axes.plot(
        steps, [100 * record["test_error"] for record in records], "-", color="tab:red", label=records[-1]["split"]
    )
    axes.set(xlabel="iterations", ylabel="error (%)", ylim=(0, None), xlim=(0, None))
    axes.set_title(f"{records[-1]['split']} error {100 * records[-1]['test_error']:.2f} %", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


class StopRequest:
    """Inside `with`, Ctrl-C asks to stop after the step in progress; a second Ctrl-C stops at once."""

    def __enter__(self) -> "StopRequest":
        self.asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)


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
    """Adds up the totals on the device: `add` only queues work for a GPU, and whoever wants to `read` waits for it."""

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


def check_loss(loss: float, first: int, last: int, folder: RunFolder) -> None:
    """Stop if the mean loss is no number since one of these steps; the last checkpoint, from before, is kept."""
    if not math.isfinite(loss):
        step = f"step {last}" if first == last else f"one of the steps {first} to {last}"
        kept = (
            f"the last good checkpoint is {folder.checkpoint}" if folder.checkpoint.exists() else "none was saved yet"
        )
        raise SystemExit(f"error: the loss is {loss} at {step}; try a lower --lr (a tenth); {kept}")


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
    """Multiply as --dtype says; and where the memory does not do for so many images, say which number would."""
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
