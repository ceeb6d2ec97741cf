"""Does training notice? A small residual network is trained with each known mistake in its backward pass.

    python -m minidl.study mistakes --train --out runs/mistakes   # an hour on two CPU cores; stop it and go on at will

Many wrong gradients still point downhill, and the network learns, only not as well as it could. That is why a layer
needs a gradient check: a falling loss proves nothing.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from minidl.autograd import no_grad
from minidl.data.dataset import ArrayDataset
from minidl.data.shapes import make_shapes
from minidl.functional import cross_entropy, relu
from minidl.nn import BatchNorm2d, Conv2d, GlobalAvgPool, Linear, Module
from minidl.optim import SGD
from minidl.random import manual_seed
from minidl.study.mistakes import Mistake, mistakes_of, planted
from minidl.system.files import read_text
from minidl.tensor import Tensor

# The backward kernels of the network.
TARGETS = (
    "relu_backward",
    "conv2d_backward",
    "batch_norm_backward",
    "global_avg_pool_backward",
    "linear_backward_x",
    "linear_backward_weight",
    "bias_backward",
    "cross_entropy_backward",
)
# Slips that any result may have are planted once, in the convolution: they say the same of every kernel.
OF_ANY_RESULT = (
    "of 0",
    "with the other sign",
    "ten times too large",
    "0.1 %",
    "first image alone, 0",
    "reversed order",
)

IMAGES, TEST_IMAGES, SIZE = 8000, 2000, 16  # shapes of 16 x 16 pixels
EPOCHS, BATCH, RATE, WARM_UP = 10, 64, 0.2, 0.2
SEEDS_WITHOUT_MISTAKE = 20  # how much the accuracy varies by itself
NOTHING = 0.2  # an accuracy below this: chance is 0.1
ROUNDING = 1e-4  # relative difference of right gradients, computed in another way in float32


class ResidualBlock(Module):
    """relu(F(x) + x), where F is two 3x3 convolutions. A projection replaces x where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        self.conv1 = Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2, self.bn2 = Conv2d(channels, channels, 3, padding=1, bias=False), BatchNorm2d(channels)
        self.projection = Conv2d(in_channels, channels, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H/stride, W/stride, channels)."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + (x if self.projection is None else self.projection(x)))


class ResNet8(Module):
    """A convolution, three residual blocks of 16, 32 and 64 channels, and a linear layer."""

    def __init__(self):
        self.conv, self.bn = Conv2d(3, 16, 3, padding=1, bias=False), BatchNorm2d(16)
        self.blocks = [ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2)]
        self.pool, self.fc = GlobalAvgPool(), Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 16, 16, 3) -> (N, 10)."""
        x = relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(self.pool(x))


def train(train_set: ArrayDataset, test_set: ArrayDataset, epochs: int = EPOCHS, seed: int = 0) -> dict[str, float]:
    """Train a ResNet8; return its accuracy on the test set, and the last loss.

    The same seed gives the same weights and batches. Training ends where the loss is NaN or infinite.
    """
    manual_seed(seed)
    model, rng = ResNet8(), np.random.default_rng(seed)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    images, batches = normalised(train_set.images), list(batches_of(len(train_set), epochs, rng))
    for step, batch in enumerate(batches):
        done = (step + 1) / len(batches)
        optimizer.lr = RATE * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))
        loss = cross_entropy(model(Tensor(images[batch])), Tensor(train_set.labels[batch]))
        if not math.isfinite(loss.item()):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"accuracy": accuracy(model, test_set), "loss": loss.item()}


def gradients_of(train_set: ArrayDataset) -> np.ndarray:
    """All gradients of one batch, one after the other.

    The parameters are random numbers: at the start of training the weights of batch-norm are 1, which hides mistakes.
    """
    manual_seed(0)
    model, rng = ResNet8(), np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * rng.standard_normal(parameter.shape, np.float32)
    loss = cross_entropy(model(Tensor(normalised(train_set.images[:BATCH]))), Tensor(train_set.labels[:BATCH]))
    loss.backward()
    return np.concatenate([parameter.grad.numpy().ravel() for parameter in model.parameters()])


def batches_of(count: int, epochs: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the indices of each batch."""
    for _ in range(epochs):
        order = rng.permutation(count)
        yield from (order[i : i + BATCH] for i in range(0, count - BATCH + 1, BATCH))


def normalised(images: np.ndarray) -> np.ndarray:
    """The images in float32, from -1 to 1."""
    return images.astype(np.float32) / 127.5 - 1


@no_grad()
def accuracy(model: Module, data: ArrayDataset) -> float:
    """The part of the images that the model classifies correctly."""
    model.eval()
    images = normalised(data.images)
    with np.errstate(all="ignore"):
        batches = (model(Tensor(images[i : i + 500])).numpy() for i in range(0, len(images), 500))
        return float((np.concatenate([y.argmax(axis=1) for y in batches]) == data.labels).mean())


# -- all of them -------------------------------------------------------------------------------------------------------


def chosen(targets: tuple[str, ...] = TARGETS) -> list[Mistake]:
    """The mistakes to plant."""
    return [
        mistake
        for target in targets
        for mistake in mistakes_of(target)
        if target == "conv2d_backward" or not any(words in mistake.name for words in OF_ANY_RESULT)
    ]


def jobs(targets: tuple[str, ...]) -> Iterator[tuple[Mistake | None, int]]:
    """Yield (mistake, seed), first those without a mistake."""
    yield from ((None, seed) for seed in range(SEEDS_WITHOUT_MISTAKE))
    yield from ((mistake, 0) for mistake in chosen(targets))


def train_all(out: Path, targets: tuple[str, ...] = TARGETS, epochs: int = EPOCHS, images: int = IMAGES) -> list[dict]:
    """Train with each mistake, and return a record of each. What `out` holds already is not trained again."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out)
    known = {(record["mistake"], record["seed"]) for record in records}
    data = make_shapes(images, size=SIZE), make_shapes(TEST_IMAGES, train=False, size=SIZE)
    for mistake, seed in jobs(targets):
        name = str(mistake) if mistake else ""
        if (name, seed) in known:
            continue
        record = {"mistake": name, "seed": seed} | outcome(mistake, data, epochs, seed)
        print(f"{record.get('accuracy', record.get('refused'))!s:>8.8}  {name or 'no mistake'}", flush=True)
        with (out / "mistakes.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        records.append(record)
    return records


def read_records(out: Path) -> list[dict]:
    """What was trained before. A ValueError names the file if it is damaged."""
    path = out / "mistakes.jsonl"
    try:
        return [json.loads(line) for line in read_text(path).splitlines()] if path.exists() else []
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected a record in each line ({error}); name another --out") from None


def outcome(mistake: Mistake | None, data: tuple, epochs: int, seed: int) -> dict:
    """{"accuracy": ..., "loss": ...}; {"refused": message} if a wrong shape is an error in the first step.

    With a mistake also "error": |g - h| / |g| for the gradients g of one batch and h, those with the mistake.
    """
    if mistake is None:
        return train(*data, epochs, seed)
    right = gradients_of(data[0])
    with planted(mistake), np.errstate(all="ignore"):
        try:
            error = np.linalg.norm(gradients_of(data[0]) - right) / np.linalg.norm(right)
            return train(*data, epochs, seed) | {"error": float(error)}
        except ValueError as error:
            return {"refused": str(error)}


# -- what came out -----------------------------------------------------------------------------------------------------


def verdict(record: dict, right: list[dict]) -> str:
    """One of KINDS, for what a mistake did, beside the records of training without a mistake."""
    if "refused" in record:
        return "refused"
    if record["error"] < ROUNDING:
        return "no difference here"
    if record["accuracy"] < NOTHING:
        return "learns nothing"
    return "hidden" if record["accuracy"] >= min(other["accuracy"] for other in right) else "learns less"


KINDS = {  # and the colours of their bars
    "refused": "0.8",
    "learns nothing": "tab:red",
    "learns less": "tab:orange",
    "hidden": "tab:blue",
    "no difference here": "0.5",
}


def with_verdicts(records: list[dict]) -> tuple[list[dict], list[tuple[str, dict]]]:
    """The records without a mistake, and (verdict, record) of the others."""
    right = [record for record in records if not record["mistake"]]
    return right, [(verdict(record, right), record) for record in records if record["mistake"]]


def summary(records: list[dict]) -> str:
    """How many mistakes training shows, in words."""
    right, wrong = with_verdicts(records)
    accuracies = [100 * record["accuracy"] for record in right]
    counts = {kind: sum(found == kind for found, _ in wrong) for kind in KINDS}
    return (
        f"Without a mistake: {np.mean(accuracies):.1f} % of the test images ({len(right)} seeds, {min(accuracies):.1f} "
        f"to {max(accuracies):.1f}).\nOf {len(wrong)} mistakes {counts['refused']} are refused for a wrong shape, with "
        f"{counts['learns nothing']} the network learns nothing, with {counts['learns less']} it learns less, and "
        f"{counts['hidden']} are hidden: the accuracy is one that another seed reaches without a mistake.\n"
        f"{counts['no difference here']} make no difference in this network: its gradients are right, up to rounding."
    )


def draw(records: list[dict], path: Path) -> None:
    """A bar for each mistake, the accuracy that training reaches with it, beside the accuracy without one."""
    from matplotlib.figure import Figure

    right, wrong = with_verdicts(records)
    wrong.sort(key=lambda pair: (pair[1].get("accuracy", -1), pair[1]["mistake"]))
    figure = Figure(figsize=(11, 2 + 0.17 * len(wrong)), layout="constrained")
    axes = figure.subplots()
    for kind, colour in KINDS.items():
        rows = [i for i, (found, _) in enumerate(wrong) if found == kind]
        widths = [100 * wrong[i][1].get("accuracy", 0) for i in rows]
        if rows:
            axes.barh(rows, widths, color=colour, label=f"{kind} ({len(rows)})")
    accuracies = [100 * record["accuracy"] for record in right]
    label = f"no mistake ({len(right)} seeds)"
    axes.axvspan(min(accuracies), max(accuracies), color="black", alpha=0.15, linewidth=0, label=label)
    axes.set_yticks(range(len(wrong)), [record["mistake"] for _, record in wrong], fontsize=6.5)
    axes.set(xlabel="test accuracy after training, %", xlim=(0, 100), ylim=(-1, len(wrong)))
    figure.suptitle("Which wrong gradients does training hide? ResNet-8 on shapes, one mistake at a time")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mistakes --train`."""
    parser.add_argument("--train", action="store_true", help="train a small network with each mistake; see --out")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/mistakes"),
        help="folder of the records and the figure (default: runs/mistakes)",
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of each training (default: {EPOCHS})")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"to train on (default: {IMAGES})")


def run(args: argparse.Namespace) -> int:
    """Train, draw, and print the summary. Ctrl-C keeps what is there. Returns the exit code."""
    others = [name for name in args.targets if name not in TARGETS]
    if others:
        return _misused(
            f"the network that is trained has no {others[0]} to plant a mistake in, but {', '.join(TARGETS)}"
        )
    if args.epochs < 1 or args.images < BATCH:
        return _misused(f"expected --epochs of at least 1 and --images of at least {BATCH}, a batch")
    if find_spec("matplotlib") is None:
        return _misused("the figure needs matplotlib: pip install matplotlib")
    try:
        read_records(args.out)
    except ValueError as problem:
        return _misused(f"--out: {problem}")
    try:
        records = train_all(args.out, tuple(args.targets) or TARGETS, args.epochs, args.images)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {args.out / 'mistakes.jsonl'}")
        return 130
    except OSError as error:
        return _misused(f"cannot write in {args.out} ({error.strerror or error}); choose another --out")
    draw(records, args.out / "mistakes.svg")
    print(summary(records))
    print(args.out / "mistakes.svg")
    return 0


def _misused(words: str) -> int:
    print(f"mistakes: --train: {words}", file=sys.stderr)
    return 2
