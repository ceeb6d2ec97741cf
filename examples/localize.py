"""Find where in an image a shape is, as VGG was made to (Simonyan, Zisserman 2014, arXiv 1409.1556, appendix A).

    python examples/localize.py                           a box for each class, which the paper found better
    python examples/localize.py --boxes single            one box for all classes
    python examples/localize.py --out runs/localize       with a picture, boxes.png

First a small VGG learns to tell ten shapes apart, in random views of 48 x 48 pixels of images of 64 x 64. A copy of it,
with a new last layer, then learns the box around the shape. Both are tested on images that neither was trained on:

    central view    the true class's box, from the middle of the image: how good the boxes are by themselves
    whole image     both networks at all places of the image; the boxes of the best classes are merged, and the merged
                    box with the highest score is the answer, class included (OverFeat, Sermanet et al. 2014, 4.3)

Expect, after a minute and a half on two CPU cores, 89 % of the central views classified rightly (95 % with --seed 1),
and so many boxes right, with one box for each class | one for all classes:

    images of            central view    whole image, box    box and class
    64 pixels            97 % | 98 %     91 % | 97 %         82 % | 86 %      the shape within the central view
    96 pixels            25 % | 28 %     88 % | 92 %         81 % | 84 %      anywhere: the central view may miss it

With both seeds one box for all does better here than one for each, which learns from a tenth of the images.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common.boxes import (
    LEAST_OVERLAP,
    decode,
    decode_places,
    encode,
    intersection_over_union,
    localisation_error,
    merge_greedily,
)
from common.errors import clock, drawing, one_line_errors
from common.fit import RandomBatches, fit
from common.options import add_options, make_parser, positive, rate
from common.run import Run
from models.localization import STRIDE, VIEW, box_network, boxes_of_class, euclidean_loss, small_vgg
from models.vgg import VGG, DenseVGG

from minidl import Tensor, no_grad
from minidl.data import normalize
from minidl.data.shapes import SHAPES, draw_shape
from minidl.functional import cross_entropy, softmax
from minidl.nn import Module
from minidl.optim import SGD, OneCycleLR

BATCH = 64
IMAGE, LARGE = 64, 96  # sides of the images in pixels
MARGIN = (IMAGE - VIEW) // 2  # around the central view
RADII = 9, 18  # least and largest of the circle around a shape, in pixels
CLASSES = 3  # of an image whose boxes are merged: OverFeat's k
ROWS, COLUMNS = 3, 6  # of either half of boxes.png
HEAD = f"{'test images; right are':26}{'central view, box':>18}{'whole image, box':>18}{'box and class':>18}"


# -- the data ----------------------------------------------------------------------------------------------------------


@dataclass
class PlacedShapes:
    """Images (N, H, W, 3) of uint8, the class of the shape in each (N,), and the box around it (N, 4), in pixels."""

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.labels)

    def first(self, count: int) -> "PlacedShapes":
        """The first images alone."""
        return PlacedShapes(self.images[:count], self.labels[:count], self.boxes[:count])

    def views(self, rows: np.ndarray, lefts: np.ndarray, tops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The network's input, (n, 48, 48, 3) that begin there in the images, and the boxes in pixels of these views.

        A box may reach out of its view: the shape does, then.
        """
        corners = zip(rows, lefts, tops, strict=True)
        crops = np.stack([self.images[i, top : top + VIEW, left : left + VIEW] for i, left, top in corners])
        return prepare(crops), self.boxes[rows] - np.stack([lefts, tops, lefts, tops], axis=-1)

    def random_views(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One view of each of these images; every place is equally likely."""
        return self.views(rows, *rng.integers(0, self.images.shape[1] - VIEW + 1, (2, len(rows))))

    def central_views(self) -> tuple[np.ndarray, np.ndarray]:
        """The view in the middle of every image."""
        corners = np.full(len(self), (self.images.shape[1] - VIEW) // 2)
        return self.views(np.arange(len(self)), corners, corners)


def make_placed_shapes(count: int, size: int, margin: int, seed: int = 0, train: bool = True) -> PlacedShapes:
    """`count` images of `size` pixels, each with one shape of random class, size and place, `margin` from the edges.

    Image i depends on (seed, train, size, i) alone.
    """
    images, labels, boxes = np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int64), np.empty((count, 4))
    radii = RADII[0] / size, RADII[1] / size
    for i in range(count):
        rng = np.random.default_rng([seed, int(train), size, i])
        labels[i] = rng.integers(len(SHAPES))
        images[i], boxes[i] = draw_shape(SHAPES[labels[i]], size, rng, radii, margin / size)
    return PlacedShapes(images, labels, boxes)


def prepare(images: np.ndarray) -> np.ndarray:
    """Pixels 0..255 to what the network sees, about -2..2."""
    return normalize(images, 128, 64)


# -- training ----------------------------------------------------------------------------------------------------------


def learn_classes(network: VGG, data: PlacedShapes, args: argparse.Namespace) -> None:
    """Train the classification network on random views."""

    def measure(output: Tensor, labels: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
        return cross_entropy(output, labels), (output.argmax(dim=1) != Tensor(labels)).sum()

    learn(network, measure, data, args.class_epochs, args.class_lr, args.seed, "classes", "--class-lr")


def learn_boxes(network: VGG, data: PlacedShapes, args: argparse.Namespace) -> None:
    """Train the box network on random views; only the box of the true class counts."""

    def measure(output: Tensor, labels: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, int]:
        predicted = boxes_of_class(output, labels)
        wrong = intersection_over_union(decode(predicted.numpy(), VIEW), boxes) <= LEAST_OVERLAP
        return euclidean_loss(predicted, Tensor(encode(boxes, VIEW), dtype="float32")), int(wrong.sum())

    learn(network, measure, data, args.box_epochs, args.box_lr, args.seed, "boxes", "--box-lr")


def learn(
    network: VGG, measure: Callable, data: PlacedShapes, epochs: int, lr: float, seed: int, name: str, option: str
) -> None:
    """Train all layers, on a random view of each image in each epoch.

    `measure(output, labels, boxes)` is the loss of a batch, and how many of its images the network got wrong. The paper
    begins with a rate of 0.001 and divides it; here it goes up and down again, as the epochs are few.
    """
    optimizer = SGD(network.parameters(), lr, momentum=0.9, weight_decay=5e-4)

    def take(rows: np.ndarray, rng: np.random.Generator) -> tuple:
        views, boxes = data.random_views(rows, rng)
        return views, data.labels[rows], boxes

    def step(views: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> tuple:
        loss, wrong = measure(network(Tensor(views)), labels, boxes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss, wrong

    batches = RandomBatches(len(data), BATCH, seed, take)
    total_steps = epochs * len(batches)
    run = Run(network, optimizer, batches, total_steps, name=name, advice=f"try a lower {option} (a tenth)")
    fit(run, step, OneCycleLR(lr, total_steps))


def train(args: argparse.Namespace) -> tuple[VGG, VGG]:
    """The classification network, and the box network that began as a copy of it."""
    data = make_placed_shapes(args.images, IMAGE, MARGIN, args.seed)
    class_net = small_vgg(len(SHAPES), args.seed)
    learn_classes(class_net, data, args)
    box_net = box_network(class_net, 1 if args.boxes == "single" else len(SHAPES), args.seed)
    learn_boxes(box_net, data, args)
    return class_net, box_net


# -- testing -----------------------------------------------------------------------------------------------------------


def outputs(compute: Callable[[Tensor], Tensor], network: Module, images: np.ndarray) -> Tensor:
    """What `compute`, a part of the network, says of all images, in evaluation mode."""
    network.eval()
    with no_grad():
        parts = [compute(Tensor(images[i : i + BATCH])).numpy() for i in range(0, len(images), BATCH)]
    network.train()
    return Tensor(np.concatenate(parts))


def central_boxes(box_net: VGG, data: PlacedShapes) -> np.ndarray:
    """The box of the true class, from the central view, in pixels of the image: (N, 4)."""
    views, _ = data.central_views()
    predicted = boxes_of_class(outputs(box_net, box_net, views), data.labels).numpy()
    return decode(predicted, VIEW) + (data.images.shape[1] - VIEW) // 2


def central_classes(class_net: VGG, data: PlacedShapes) -> np.ndarray:
    """The predicted class of each central view, (N,)."""
    return outputs(class_net, class_net, data.central_views()[0]).argmax(dim=1).numpy()


def whole_image(class_net: VGG, box_net: VGG, data: PlacedShapes) -> tuple[np.ndarray, np.ndarray]:
    """The class (N,) and the box (N, 4) that come out of all places of each image."""
    images = prepare(data.images)
    scores = softmax(outputs(DenseVGG(class_net).places, class_net, images)).numpy()
    targets = outputs(DenseVGG(box_net).places, box_net, images).numpy()
    found = [localise(*maps) for maps in zip(scores, targets, strict=True)]
    return np.array([label for label, _ in found]), np.stack([box for _, box in found])


def localise(scores: np.ndarray, targets: np.ndarray) -> tuple[int, np.ndarray]:
    """The class and the box of one image, from (rows, columns, K) scores and (rows, columns, 4 or 4 K) predictions.

    Section 4.3 of OverFeat at one scale: for the k classes with the highest score anywhere, the boxes of all places are
    merged, each scored by its place's score of the class. The box with the highest sum of scores is the answer.
    """
    targets = targets.reshape(*targets.shape[:2], -1, 4)
    answers = []
    for label in np.argsort(-scores.max(axis=(0, 1)))[:CLASSES]:
        of_class = targets[:, :, label if targets.shape[2] > 1 else 0]
        candidates = decode_places(of_class, VIEW, STRIDE).reshape(-1, 4)
        merged, sums = merge_greedily(candidates, scores[:, :, label].ravel())
        answers.append((sums[0], label, merged[0]))
    _, label, box = max(answers, key=lambda answer: answer[0])
    return int(label), box


def report(class_net: VGG, box_net: VGG, data: PlacedShapes) -> str:
    """The last three columns of `HEAD`, in per cent of the images."""
    central = 1 - localisation_error(central_boxes(box_net, data), data.boxes)
    labels, found = whole_image(class_net, box_net, data)
    right = intersection_over_union(found, data.boxes) > LEAST_OVERLAP
    both = right & (labels == data.labels)
    return f"{central:18.1%}{right.mean():18.1%}{both.mean():18.1%}"


# -- the picture -------------------------------------------------------------------------------------------------------


def draw(class_net: VGG, box_net: VGG, near: PlacedShapes, anywhere: PlacedShapes, path: Path) -> None:
    """boxes.png: central views above, larger images below, each with the true and the predicted box."""
    from matplotlib.figure import Figure

    near, anywhere = near.first(ROWS * COLUMNS), anywhere.first(ROWS * COLUMNS)
    figure = Figure(figsize=(10, 13), dpi=100, layout="constrained")
    above, below = figure.subfigures(2, 1)
    views = near.images[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    found = central_boxes(box_net, near) - MARGIN
    draw_grid(above, views, near.boxes - MARGIN, found, [SHAPES[label] for label in near.labels])
    labels, found = whole_image(class_net, box_net, anywhere)
    names = [
        SHAPES[a] if a == b else f"{SHAPES[a]}, not {SHAPES[b]}" for a, b in zip(anywhere.labels, labels, strict=True)
    ]
    draw_grid(below, anywhere.images, anywhere.boxes, found, names)
    above.suptitle("central view: the box of the true class, and its intersection over union with the truth")
    below.suptitle("whole image: the class and the box that all its places together say")
    lines = above.axes[0].lines
    figure.legend(lines, ("truth", "predicted"), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def draw_grid(figure, images: np.ndarray, truth: np.ndarray, predicted: np.ndarray, names: list[str]) -> None:
    """Images, each with its two boxes; above it the class, and how well the boxes agree."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.4, foreground="black")]  # both colours are seen on any background
    overlaps = intersection_over_union(predicted, truth)
    for i, panel in enumerate(figure.subplots(ROWS, COLUMNS).ravel()):
        panel.axis("off")
        if i >= len(images):
            continue
        size = len(images[i])
        panel.imshow(images[i], extent=(0, size, size, 0))  # pixel x reaches from x to x + 1, as the boxes count
        for (left, top, right, bottom), color in ((truth[i], "white"), (predicted[i], "red")):
            x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
            panel.plot(x, y, color=color, linewidth=1.2, path_effects=outline)
        panel.set(xlim=(0, size), ylim=(size, 0))
        panel.set_title(f"{names[i]}: {overlaps[i]:.2f}", fontsize=9)


# -- all of it ---------------------------------------------------------------------------------------------------------


def train_and_test(args: argparse.Namespace) -> None:
    """Train both networks, print how good they are, and draw DIR/boxes.png."""
    start = time.perf_counter()
    near, anywhere = (
        make_placed_shapes(args.test_images, size, margin, args.seed, train=False)
        for size, margin in ((IMAGE, MARGIN), (LARGE, 0))
    )
    class_net, box_net = train(args)
    seconds = time.perf_counter() - start
    error = np.mean(central_classes(class_net, near) != near.labels)
    print(f"{args.boxes} boxes, {clock(seconds)} of training; classification error of the central view {error:.1%}")
    print(HEAD)
    print(f"{f'{IMAGE} pixels, in the middle':26}{report(class_net, box_net, near)}")
    print(f"{f'{LARGE} pixels, anywhere':26}{report(class_net, box_net, anywhere)}")
    if args.out:
        path = Path(args.out, "boxes.png")
        with drawing(path):
            draw(class_net, box_net, near, anywhere, path)


def main() -> None:
    """Read the options, train both networks, test them."""
    parser = make_parser(__doc__)
    parser.add_argument("--boxes", choices=("single", "per-class"), default="per-class", help="default: per-class")
    for name, of, lr, epochs in (("class", "classification", 0.1, 8), ("box", "box", 0.2, 4)):
        how_long, how_fast = f"of the {of} network; default: {epochs}", f"its learning rate; default: {lr}"
        parser.add_argument(f"--{name}-epochs", type=positive, default=epochs, metavar="N", help=how_long)
        parser.add_argument(f"--{name}-lr", type=rate, default=lr, metavar="LR", help=how_fast)
    parser.add_argument("--images", type=positive, default=10_000, metavar="N", help="to train on; default: 10,000")
    parser.add_argument("--test-images", type=positive, default=1000, metavar="N", help="of each size; default: 1,000")
    add_options(parser, "seed")
    parser.add_argument("--out", metavar="DIR", help="where boxes.png goes; without it nothing is drawn")
    args = parser.parse_args()
    with one_line_errors(parser):
        if args.out:
            Path(args.out).mkdir(parents=True, exist_ok=True)
    with one_line_errors():
        train_and_test(args)


if __name__ == "__main__":
    main()
