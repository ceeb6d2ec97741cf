"""Localise a shape in an image with a VGG (Simonyan and Zisserman 2014, arXiv 1409.1556, appendix A).

    python examples/localize.py                         # one box per class, which the paper found better
    python examples/localize.py --boxes single          # one box for all classes
    python examples/localize.py --out runs/localize     # also draw boxes.png

First a small VGG learns to classify ten shapes, from random 48 x 48 views of 64 x 64 images. Then a copy of it with a
new last layer learns to predict the box around the shape. Both networks are tested on new images, in two ways:

    central view    the predicted box of the true class, from the centre crop: measures the box regression alone
    whole image     both networks run at all positions of the image. The boxes of the top classes are merged; the result
                    is the merged box with the highest score, with its class (OverFeat, Sermanet et al. 2014, 4.3)

Expected after a minute and a half on two CPU cores: 89 % accuracy on the central views (95 % with --seed 1), and these
fractions of correct boxes, with one box per class | one box for all classes:

    images of            central view    whole image, box    box and class
    64 pixels            97 % | 98 %     91 % | 97 %         82 % | 86 %      shape within the central view
    96 pixels            25 % | 28 %     88 % | 92 %         81 % | 84 %      shape anywhere, often outside that view

Here one box for all classes is better with both seeds: a box per class learns from only a tenth of the images.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common.boxes import (
    IOU_THRESHOLD,
    decode,
    decode_map,
    encode,
    intersection_over_union,
    localisation_error,
    merge_greedily,
)
from common.errors import format_time, one_line_errors, warn_if_not_drawn
from common.evaluate import evaluating
from common.figures import save_figure
from common.fit import RandomBatches, fit
from common.options import add_options, make_parser, nonempty, positive, rate
from common.run import Run
from models.localization import STRIDE, VIEW, box_network, boxes_of_class, euclidean_loss, small_vgg
from models.vgg import VGG, DenseVGG

from minidl import Tensor
from minidl.data import normalize
from minidl.data.shapes import SHAPES, draw_shape
from minidl.functional import cross_entropy, softmax
from minidl.nn import Module
from minidl.optim import SGD, OneCycleLR

BATCH = 64
IMAGE, LARGE = 64, 96  # sides of the images in pixels
MARGIN = (IMAGE - VIEW) // 2  # pixels around the central view
RADII = 9, 18  # minimum and maximum radius of a shape in pixels
TOP_CLASSES = 3  # classes of an image whose boxes are merged: OverFeat's k
ROWS, COLUMNS = 3, 6  # in each half of boxes.png
HEADER = f"{'test images; correct:':26}{'central view, box':>18}{'whole image, box':>18}{'box and class':>18}"


# -- the data ----------------------------------------------------------------------------------------------------------


@dataclass
class PlacedShapes:
    """Images (N, H, W, 3) of uint8, the class of the shape in each (N,), and its box (N, 4) in pixels."""

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.labels)

    def first(self, count: int) -> "PlacedShapes":
        """The first `count` images."""
        return PlacedShapes(self.images[:count], self.labels[:count], self.boxes[:count])

    def views(self, rows: np.ndarray, lefts: np.ndarray, tops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cut (n, 48, 48, 3) views at these corners, normalised; also return the boxes in pixels of the views.

        If a view cuts through the shape, the box extends beyond the view.
        """
        corners = zip(rows, lefts, tops, strict=True)
        crops = np.stack([self.images[i, top : top + VIEW, left : left + VIEW] for i, left, top in corners])
        return prepare(crops), self.boxes[rows] - np.stack([lefts, tops, lefts, tops], axis=-1)

    def random_views(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Cut one view at a uniformly random position from each image in `rows`."""
        return self.views(rows, *rng.integers(0, self.images.shape[1] - VIEW + 1, (2, len(rows))))

    def central_views(self) -> tuple[np.ndarray, np.ndarray]:
        """Cut the central view of every image."""
        corners = np.full(len(self), (self.images.shape[1] - VIEW) // 2)
        return self.views(np.arange(len(self)), corners, corners)


def make_placed_shapes(count: int, size: int, margin: int, seed: int = 0, train: bool = True) -> PlacedShapes:
    """Draw `count` images of `size` pixels, each with one random shape at least `margin` pixels from the edges.

    Image i depends only on (seed, train, size, i).
    """
    images, labels, boxes = np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int64), np.empty((count, 4))
    radii = RADII[0] / size, RADII[1] / size
    for i in range(count):
        rng = np.random.default_rng([seed, int(train), size, i])
        labels[i] = rng.integers(len(SHAPES))
        images[i], boxes[i] = draw_shape(SHAPES[labels[i]], size, rng, radii, margin / size)
    return PlacedShapes(images, labels, boxes)


def prepare(images: np.ndarray) -> np.ndarray:
    """Normalise pixels from 0..255 to the network's input, about -2..2."""
    return normalize(images, 128, 64)


# -- training ----------------------------------------------------------------------------------------------------------


def learn_classes(network: VGG, data: PlacedShapes, args: argparse.Namespace) -> None:
    """Train the classification network on random views."""

    def criterion(output: Tensor, labels: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
        return cross_entropy(output, labels), (output.argmax(dim=1) != Tensor(labels)).sum()

    learn(network, criterion, data, args.class_epochs, args.class_lr, args.seed, "classes", "--class-lr")


def learn_boxes(network: VGG, data: PlacedShapes, args: argparse.Namespace) -> None:
    """Train the box network on random views. Only the box of the true class enters the loss."""

    def criterion(output: Tensor, labels: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, int]:
        predicted = boxes_of_class(output, labels)
        wrong = intersection_over_union(decode(predicted.numpy(), VIEW), boxes) <= IOU_THRESHOLD
        return euclidean_loss(predicted, Tensor(encode(boxes, VIEW), dtype="float32")), int(wrong.sum())

    learn(network, criterion, data, args.box_epochs, args.box_lr, args.seed, "boxes", "--box-lr")


def learn(
    network: VGG, criterion: Callable, data: PlacedShapes, epochs: int, lr: float, seed: int, name: str, option: str
) -> None:
    """Train all layers on one random view of each image per epoch.

    `criterion(output, labels, boxes)` returns the loss of a batch and its number of wrong predictions. The paper starts
    at a learning rate of 0.001 and divides it; the one-cycle schedule suits the few epochs here.
    """
    optimizer = SGD(network.parameters(), lr, momentum=0.9, weight_decay=5e-4)

    def make_batch(rows: np.ndarray, rng: np.random.Generator) -> tuple:
        views, boxes = data.random_views(rows, rng)
        return views, data.labels[rows], boxes

    def step(views: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> tuple:
        loss, wrong = criterion(network(Tensor(views)), labels, boxes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss, wrong

    batches = RandomBatches(len(data), BATCH, seed, make_batch)
    total_steps = epochs * len(batches)
    run = Run(network, optimizer, batches, total_steps, name=name, nan_hint=f"try a lower {option} (a tenth)")
    fit(run, step, OneCycleLR(lr, total_steps))


def train(args: argparse.Namespace) -> tuple[VGG, VGG]:
    """Train the classification network, then the box network that starts as a copy of it. Return both."""
    data = make_placed_shapes(args.images, IMAGE, MARGIN, args.seed)
    class_net = small_vgg(len(SHAPES), args.seed)
    learn_classes(class_net, data, args)
    box_net = box_network(class_net, 1 if args.boxes == "single" else len(SHAPES), args.seed)
    learn_boxes(box_net, data, args)
    return class_net, box_net


# -- testing -----------------------------------------------------------------------------------------------------------


def predict(compute: Callable[[Tensor], Tensor], network: Module, images: np.ndarray) -> Tensor:
    """Apply `compute`, a method of the network, to all images in batches, in evaluation mode."""
    with evaluating(network):
        parts = [compute(Tensor(images[i : i + BATCH])).numpy() for i in range(0, len(images), BATCH)]
    return Tensor(np.concatenate(parts))


def central_boxes(box_net: VGG, data: PlacedShapes) -> np.ndarray:
    """The predicted box (N, 4) of the true class, from the central view, in pixels of the image."""
    views, _ = data.central_views()
    predicted = boxes_of_class(predict(box_net, box_net, views), data.labels).numpy()
    return decode(predicted, VIEW) + (data.images.shape[1] - VIEW) // 2


def central_classes(class_net: VGG, data: PlacedShapes) -> np.ndarray:
    """The predicted class of each central view, (N,)."""
    return predict(class_net, class_net, data.central_views()[0]).argmax(dim=1).numpy()


def whole_image(class_net: VGG, box_net: VGG, data: PlacedShapes) -> tuple[np.ndarray, np.ndarray]:
    """The class (N,) and the box (N, 4) predicted from all positions of each image."""
    images = prepare(data.images)
    scores = softmax(predict(DenseVGG(class_net).places, class_net, images)).numpy()
    targets = predict(DenseVGG(box_net).places, box_net, images).numpy()
    found = [localise(*maps) for maps in zip(scores, targets, strict=True)]
    return np.array([label for label, _ in found]), np.stack([box for _, box in found])


def localise(scores: np.ndarray, targets: np.ndarray) -> tuple[int, np.ndarray]:
    """The class and the box of one image, from (rows, columns, K) scores and (rows, columns, 4 or 4 K) box targets.

    OverFeat, section 4.3, at one scale: for each of the k classes with the highest scores, the boxes of all positions
    are merged; a box has the class score of its position. The merged box with the highest sum of scores is the result.
    """
    targets = targets.reshape(*targets.shape[:2], -1, 4)
    answers = []
    for label in np.argsort(-scores.max(axis=(0, 1)))[:TOP_CLASSES]:
        of_class = targets[:, :, label if targets.shape[2] > 1 else 0]
        candidates = decode_map(of_class, VIEW, STRIDE).reshape(-1, 4)
        merged, sums = merge_greedily(candidates, scores[:, :, label].ravel())
        answers.append((sums[0], label, merged[0]))
    _, label, box = max(answers, key=lambda answer: answer[0])
    return int(label), box


def report(class_net: VGG, box_net: VGG, data: PlacedShapes) -> str:
    """The last three columns of the table under `HEADER`, in per cent of the images."""
    central = 1 - localisation_error(central_boxes(box_net, data), data.boxes)
    labels, found = whole_image(class_net, box_net, data)
    right = intersection_over_union(found, data.boxes) > IOU_THRESHOLD
    both = right & (labels == data.labels)
    return f"{central:18.1%}{right.mean():18.1%}{both.mean():18.1%}"


# -- the picture -------------------------------------------------------------------------------------------------------


def draw(class_net: VGG, box_net: VGG, small: PlacedShapes, large: PlacedShapes, path: Path) -> None:
    """Draw boxes.png: central views above, large images below, each with its true and its predicted box."""
    from matplotlib.figure import Figure

    small, large = small.first(ROWS * COLUMNS), large.first(ROWS * COLUMNS)
    figure = Figure(figsize=(10, 13), dpi=100, layout="constrained")
    above, below = figure.subfigures(2, 1)
    views = small.images[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    found = central_boxes(box_net, small) - MARGIN
    draw_grid(above, views, small.boxes - MARGIN, found, [SHAPES[label] for label in small.labels])
    labels, found = whole_image(class_net, box_net, large)
    names = [
        SHAPES[a] if a == b else f"{SHAPES[a]}, not {SHAPES[b]}" for a, b in zip(large.labels, labels, strict=True)
    ]
    draw_grid(below, large.images, large.boxes, found, names)
    above.suptitle("central view: the box of the true class, and its intersection over union with the truth")
    below.suptitle("whole image: the class and the box predicted from all positions together")
    lines = above.axes[0].lines
    figure.legend(lines, ("truth", "predicted"), loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


def draw_grid(figure, images: np.ndarray, truth: np.ndarray, predicted: np.ndarray, names: list[str]) -> None:
    """Draw images with their true and predicted boxes, titled with the name and the intersection over union."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.4, foreground="black")]  # keeps both colours visible on any background
    overlaps = intersection_over_union(predicted, truth)
    for i, panel in enumerate(figure.subplots(ROWS, COLUMNS).ravel()):
        panel.axis("off")
        if i >= len(images):
            continue
        size = len(images[i])
        panel.imshow(images[i], extent=(0, size, size, 0))  # pixel x covers [x, x + 1], as in the boxes
        for (left, top, right, bottom), color in ((truth[i], "white"), (predicted[i], "red")):
            x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
            panel.plot(x, y, color=color, linewidth=1.2, path_effects=outline)
        panel.set(xlim=(0, size), ylim=(size, 0))
        panel.set_title(f"{names[i]}: {overlaps[i]:.2f}", fontsize=9)


# -- the script --------------------------------------------------------------------------------------------------------


def train_and_test(args: argparse.Namespace) -> None:
    """Train both networks, print the results and draw DIR/boxes.png."""
    start = time.perf_counter()
    small, large = (
        make_placed_shapes(args.test_images, size, margin, args.seed, train=False)
        for size, margin in ((IMAGE, MARGIN), (LARGE, 0))
    )
    class_net, box_net = train(args)
    seconds = time.perf_counter() - start
    error = np.mean(central_classes(class_net, small) != small.labels)
    print(f"{args.boxes} boxes, trained for {format_time(seconds)}; classification error on central views {error:.1%}")
    print(HEADER)
    print(f"{f'{IMAGE} pixels, in the middle':26}{report(class_net, box_net, small)}")
    print(f"{f'{LARGE} pixels, anywhere':26}{report(class_net, box_net, large)}")
    if args.out:
        path = Path(args.out, "boxes.png")
        with warn_if_not_drawn(path):
            draw(class_net, box_net, small, large, path)


def main() -> None:
    """Parse the options, train both networks and test them."""
    parser = make_parser(__doc__)
    parser.add_argument("--boxes", choices=("single", "per-class"), default="per-class", help="default: per-class")
    for name, of, lr, epochs in (("class", "classification", 0.1, 8), ("box", "box", 0.2, 4)):
        how_long, how_fast = f"for the {of} network; default: {epochs}", f"its maximum learning rate; default: {lr}"
        parser.add_argument(f"--{name}-epochs", type=positive, default=epochs, metavar="N", help=how_long)
        parser.add_argument(f"--{name}-lr", type=rate, default=lr, metavar="LR", help=how_fast)
    parser.add_argument("--images", type=positive, default=10_000, metavar="N", help="for training; default: 10,000")
    parser.add_argument("--test-images", type=positive, default=1000, metavar="N", help="per size; default: 1,000")
    add_options(parser, "seed")
    parser.add_argument("--out", type=nonempty, metavar="DIR", help="folder for boxes.png; default: draw nothing")
    args = parser.parse_args()
    with one_line_errors(parser):
        if args.out and Path(args.out).is_file():
            raise ValueError(f"--out: expected a folder, got the file {args.out}; choose another name")
        if args.out:
            Path(args.out).mkdir(parents=True, exist_ok=True)
    with one_line_errors():
        train_and_test(args)


if __name__ == "__main__":
    main()
