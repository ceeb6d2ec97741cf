"""94 % on CIFAR-10, on a CPU: the recipe of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU".

    python examples/speedrun_cifar10.py                                       # one run, some 24 minutes on two cores
    python examples/speedrun_cifar10.py --seeds 3                             # three, and the mean of their accuracies
    python examples/speedrun_cifar10.py --device cuda --dtype float16         # on a GPU, as in the paper
    python examples/speedrun_cifar10.py --dataset shapes --epochs 2           # no download; shows that it runs

Beside the network (models/speedrun.py) the recipe has

    augmentation    alternating flips; shifts by up to 2 pixels, with reflected borders
    optimiser       SGD with Nesterov momentum; learning rate, momentum and weight decay can be changed one by one;
                    biases of batch-norm learn 64 times as fast; the learning rate rises and falls linearly
    averaging       every 5 steps the network is pulled back to its moving average ("lookahead")
    testing         the weighted mean of six views: the centre (1/2) and two shifts (1/4 each), as they are and mirrored

mpiexec -n 4 python examples/speedrun_cifar10.py --distributed ... trains on four processes: see common/ranks.py.
Each seed has a folder in --out, with metrics.jsonl, curves.png and a checkpoint. After Ctrl-C the same command goes on.
The paper is arXiv 2404.00498. The constants are those of its airbench94.py: legacy/airbench94.py in
github.com/KellerJordan/cifar10-airbench, commit f1c599c.
"""

import argparse
import math
import statistics
from pathlib import Path

import numpy as np
from common.cifar import CifarData, load_data
from common.evaluate import error_rate, evaluating
from common.fit import fit, prepare_step
from common.folder import RunFolder
from common.options import CIFAR, RANKS, add_options, make_parser, options_of_run, positive, positive_number
from common.ranks import Ranks
from common.run import Run, running
from models.speedrun import SpeedrunNet

from minidl import Tensor
from minidl.data import AugmentedLoader, CropAndFlip, channel_mean_std, normalize
from minidl.functional import cross_entropy
from minidl.optim import SGD

EPOCHS = 12  # the paper has 9.9, with which three seeds here had a mean of 93.95 %
BATCH_SIZE = 1024
LR, WEIGHT_DECAY = 11.5, 0.0153  # for 1,024 images and without momentum: see make_optimizer
MOMENTUM = 0.85
BIAS_SCALE = 64.0  # the biases of batch-norm learn so many times as fast
LABEL_SMOOTHING = 0.2
WHITENING_BIAS_EPOCHS = 3  # then the bias of the first layer is frozen, which saves its backward pass
WHITENING_IMAGES = 5000  # the first of the training images, to whiten with
TRIANGLE = (0.0, 0.2), (0.23, 1.0), (1.0, 0.07)  # (share of the steps, factor of the learning rate)
AVERAGE_EVERY, LAST_DECAY = 5, 0.95**5  # steps; of the moving average, whose decay grows with the cube of the step
TRANSLATE = 2  # pixels

# (top, left) of the crop in an image with a border of one pixel, and its weight: the middle, and two opposite corners.
VIEWS = ((1, 1), 1 / 2), ((0, 0), 1 / 4), ((2, 2), 1 / 4)
TEST_BATCH = 500


class SpeedrunData(CifarData):
    """Images normalised by the mean and deviation of each colour, shifted and flipped as above."""

    def __post_init__(self):
        self.mean, self.std = channel_mean_std(self.train.images)
        self.augment = CropAndFlip(self.mean, self.std, TRANSLATE, padding_mode="reflect")
        self.prepare = CropAndFlip(self.mean, self.std, padding=0, flip_probability=0)
        self.shift = CropAndFlip(self.mean, self.std, padding=1, padding_mode="reflect")
        self.first_images = self.train.images[:WHITENING_IMAGES]
        self.train, self.test = self.train.to(self.device), self.test.to(self.device)

    def train_loader(self, batch_size: int, seed: int, drop_last: bool = True) -> AugmentedLoader:
        """Batches of the training images, in a new order in each epoch; each image is mirrored in every second one."""
        options = {"seed": seed, "drop_last": drop_last, "dtype": self.dtype, "alternating_flip": True}
        return AugmentedLoader(self.train, batch_size, self.augment, shuffle=True, **options)

    def view(self, rows: np.ndarray, corner: tuple[int, int], flip: bool) -> Tensor:
        """The test images of these rows, cropped at `corner` of the image with a border of one pixel, and mirrored."""
        draws = (np.full(len(rows), number) for number in (*corner, flip))
        return Tensor(self.shift.apply(self.test.images, rows, *draws)).to(self.dtype)


class LookaheadSGD(SGD):
    """Nesterov SGD whose parameters, and the network's running statistics, are pulled back to their moving average.

        slow = decay slow + (1 - decay) fast,   then   fast = slow

    at each call of `average`; between them the fast ones are trained (Zhang et al. 2019, "Lookahead optimizer"). The
    slow ones are part of the state, so that a run can be resumed.
    """

    def __init__(self, model: SpeedrunNet, groups: list[dict], lr: float):
        super().__init__(groups, lr, MOMENTUM, nesterov=True)
        self.fast = [tensor.data for tensor in (*self.parameters, *(buffer for _, buffer in model.named_buffers()))]
        self.slow = [array.copy() for array in self.fast]

    def average(self, decay: float) -> None:
        """Update the moving average, and continue from it."""
        for slow, fast in zip(self.slow, self.fast, strict=True):
            slow += (1 - decay) * (fast - slow)
            fast[...] = slow

    def update(self, parameters: list, grads: list, lr, weight_decay: float, velocities: list, slow: list) -> None:
        """Update the parameters as SGD does, and not the moving average."""
        super().update(parameters, grads, lr, weight_decay, velocities)

    def state(self) -> dict[str, list]:
        """The velocities and the moving average."""
        return super().state() | {"slow": self.slow}


def make_optimizer(model: SpeedrunNet, batch_size: int) -> LookaheadSGD:
    """The optimiser with the paper's decoupled hyperparameters.

    With a constant gradient g, Nesterov momentum m moves a parameter by lr g (1 + 1 / (1 - m)) in a step. The learning
    rate is divided by this factor, and the weight decay by the learning rate, so that each can be chosen by itself.
    """
    per_image = 1 / (1024 * (1 + 1 / (1 - MOMENTUM)))
    lr, decay = LR * per_image, WEIGHT_DECAY * batch_size * per_image
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    biases = [parameter for name, parameter in learned if ".norm" in name]
    others = [parameter for name, parameter in learned if ".norm" not in name]
    groups = [
        {"params": biases, "lr_scale": BIAS_SCALE, "weight_decay": decay / (BIAS_SCALE * lr)},
        {"params": others, "weight_decay": decay / lr},
    ]
    return LookaheadSGD(model, groups, lr)


def triangle(step: int, total_steps: int) -> float:
    """The factor of the learning rate at a step, which counts from 0. The top is at a whole step, as in the source."""
    (_, first), (share, top), (_, last) = TRIANGLE
    peak = int(total_steps * share)
    if step < peak:
        return first + (top - first) * step / peak
    return top + (last - top) * (step - peak) / (total_steps - peak)


def error_of_views(model: SpeedrunNet, data: SpeedrunData, ranks: Ranks) -> float:
    """The test error of the weighted mean of the logits of six views: VIEWS, each as it is and mirrored."""
    labels, wrong = data.test.labels, 0
    mine = ranks.part(np.arange(len(labels)))
    ranks.share_buffers(model)
    with evaluating(model):
        for rows in np.array_split(mine, -(-len(mine) // TEST_BATCH)):
            logits = 0
            for corner, weight in VIEWS:
                for flip in (False, True):
                    logits = logits + weight / 2 * model(data.view(rows, corner, flip)).to("float32")
            wrong += int((logits.argmax(dim=1).numpy() != labels[rows]).sum())
    return ranks.sum(wrong)[0] / len(labels)


def make_step(run: Run, model: SpeedrunNet, optimizer: LookaheadSGD, batch_size: int):
    """step(images, labels) -> (mean loss, number misclassified). The gradient is that of the sum over the batch."""

    def step(images, labels):
        with run.average_gradients():
            logits = model(images)
            loss = cross_entropy(logits, labels, LABEL_SMOOTHING)
            (loss * batch_size).backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss, (logits.argmax(dim=1) != labels).sum()

    return step


def train(args: argparse.Namespace, data: SpeedrunData, seed: int, ranks: Ranks) -> float:
    """Train a network, from its checkpoint if there is one; return its test error over six views."""
    config = data.config("speedrun", "speedrun")
    model = config.build(seed=seed)
    model.whiten(normalize(data.first_images, data.mean, data.std))
    optimizer = make_optimizer(model.to(args.device), args.batch_size)
    loader, test_loader = ranks.divide(data.train_loader(args.batch_size, seed)), ranks.divide(data.test_loader())
    top_lr = optimizer.lr
    total_steps = math.ceil(len(loader) * args.epochs)
    path = Path(args.out, f"seed{seed}")
    options = options_of_run(args) | {"seed": seed, "seeds": None}
    resume = (path / "checkpoint.safetensors").exists()
    kept = {"data": data.fingerprint(), "keep": args.keep, "log_to": args.log, "writes": ranks.is_first}
    folder = RunFolder(path, resume, options, config, **kept)
    hints = {"nan_hint": "try a smaller --batch-size", "resume_hint": "the same command"}
    run = Run(model, optimizer, loader, total_steps, folder, ranks=ranks, **hints)

    # The step while the first bias is frozen, and while it is learned. On a GPU a captured graph cannot change.
    step = make_step(run, model, optimizer, args.batch_size)
    phases = [prepare_step(step, model, args, capture=ranks.is_alone) for _ in range(2)]

    def train_step(images, labels):
        trains_bias = run.step < WHITENING_BIAS_EPOCHS * len(loader)
        model.whitening.bias.requires_grad = trains_bias
        result, done = phases[trains_bias](images, labels), run.step + 1
        if done % AVERAGE_EVERY == 0:
            optimizer.average(LAST_DECAY * (done / total_steps) ** 3)
        if done == total_steps:
            optimizer.average(1.0)  # the network is its moving average
        return result

    def end_epoch():
        more = {"tta_error": error_of_views(model, data, ranks)} if run.step == total_steps else {}
        run.end_epoch(error_rate(model, test_loader, ranks=ranks), data.split, **more)

    fit(run, train_step, lambda number: top_lr * triangle(number, total_steps), end_epoch)
    print(run.summary())
    if seed + 1 < args.seed + args.seeds:
        run.stop_if_asked()
    recorded = folder.records[-1].get("tta_error") if folder.records else None
    return error_of_views(model, data, ranks) if recorded is None else recorded


def main() -> None:
    """Parse the options, train a network for each seed, and print the accuracies."""
    parser = make_parser(__doc__)
    parser.add_argument("--epochs", type=positive_number, default=EPOCHS, metavar="N", help="default: %(default)s")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs, of --seed and those after it")
    add_options(parser, *CIFAR, *RANKS, "batch_size", "seed", "device", "dtype", "detect_anomaly", "out", "keep", "log")
    parser.set_defaults(dataset="cifar10", batch_size=BATCH_SIZE, out="runs/speedrun")
    args = parser.parse_args()
    with running(parser, args) as ranks:
        data = load_data(args, SpeedrunData)
        if args.batch_size > len(data.train):
            raise ValueError(f"--batch-size: expected at most the {len(data.train)} images, got {args.batch_size}")
        accuracies = []
        for seed in range(args.seed, args.seed + args.seeds):
            accuracies.append(100 * (1 - train(args, data, seed, ranks)))
            print(f"seed {seed}: {data.split} accuracy {accuracies[-1]:.2f} %")
        if len(accuracies) > 1:
            spread = statistics.stdev(accuracies)
            print(
                f"{len(accuracies)} seeds: mean {statistics.mean(accuracies):.2f} %, standard deviation {spread:.2f} %"
            )
        if args.dataset == "shapes":
            print("These images are synthetic and easy: their accuracy says nothing about CIFAR-10.")


if __name__ == "__main__":
    main()
