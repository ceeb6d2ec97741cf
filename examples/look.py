"""What a trained network sees: pictures of its gradients, its features and its style.

    python examples/look.py --weights resnet20-cifar10 --images photo.jpg pictures/ --out runs/looks
    python examples/look.py --weights resnet20-cifar10 --images cifar10:3 cifar10:12 --methods fgsm --out runs/looks
    python examples/look.py --weights runs/latest --images shapes:3 --style pattern:strokes --out runs/looks

Each method is a short function in examples/looking, and draws one picture:

    saliency, smoothgrad, gradcam, cam    maps.png        which pixels the answer depends on
    fgsm                                  fgsm.png        the smallest step that changes the answer
    invert                                invert.png      what is left of the image in each layer
    maximise                              maximise.png    an image for each class, or for each channel of --layer
    dream                                 dream.png       the image, changed until a layer is more active
    style (needs --style)                 style.png       the image in the style of another picture

A picture is a file, a folder of files, cifar10:N (number N of the test images), shapes:N (a drawn shape),
pattern:mosaic or pattern:strokes. docs/chapters/what-it-sees.md shows and explains all of it.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common.errors import one_line_errors
from common.evaluate import probabilities
from common.figures import save_figure
from common.options import add_options, make_parser, natural, nonempty, positive, positive_number
from looking import drawing
from looking.features import deep_dream, invert, maximise_channels, maximise_classes
from looking.gradients import saliency, smallest_step, smooth_grad
from looking.maps import class_activation_map, grad_cam, pooled_features
from looking.network import OnPixels, UnsuitedError, feature_maps, last_convolution, last_of_each_size, layers_of_style
from looking.pictures import expand, read_pixels
from looking.style import transfer_style
from models.config import NetworkConfig
from models.weights import load_network

from minidl import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAPS = "saliency", "smoothgrad", "gradcam", "cam"
METHODS = *MAPS, "fgsm", "invert", "maximise", "dream", "style"
FGSM_STEPS = np.arange(1, 33) / 255  # whole numbers of 0..255, so that the changed image can be saved as a file
MOST_MAXIMISED = 12  # classes or channels


@dataclass
class Subject:
    """What is looked at: a network, its images, and the class of each image that the methods explain."""

    model: OnPixels
    any_size: OnPixels  # the same network for images of other sizes: it subtracts one mean colour from all pixels
    config: NetworkConfig
    layers: dict[str, tuple[int, int, int]]  # (H, W, C) of each layer
    images: np.ndarray
    classes: np.ndarray

    def answers(self, images: np.ndarray, classes: np.ndarray | None = None) -> list[str]:
        """'cat 98%' for each image: the network's answer, or else these classes, and the probability."""
        rows = probabilities(self.model, Tensor(images))
        classes = rows.argmax(axis=1) if classes is None else classes
        return [f"{self.config.names[c].partition(',')[0]} {row[c]:.0%}" for c, row in zip(classes, rows, strict=True)]


# -- the pictures ------------------------------------------------------------------------------------------------------


def draw_maps(subject: Subject, args: argparse.Namespace) -> "Figure":
    """A row for each image, a column for each method."""
    model, images, classes = subject.model, subject.images, subject.classes
    maps = {}
    for method in args.methods:
        if method == "saliency":
            maps["saliency"] = saliency(model, images, classes)
        elif method == "smoothgrad":
            maps["SmoothGrad"] = smooth_grad(model, images, classes, seed=args.seed)
        elif method == "gradcam":
            layer = args.layer or last_convolution(model, subject.layers)
            maps[f"Grad-CAM, {layer}"] = grad_cam(model, images, classes, layer)
        elif method == "cam":
            maps["CAM"] = class_activation_map(model, images, classes)
    return drawing.draw_maps(images, subject.answers(images, classes), maps)


def draw_fgsm(subject: Subject, args: argparse.Namespace) -> "Figure":
    """The image, the step in each pixel, and the changed image with its new answer."""
    found = [smallest_step(subject.model, image, FGSM_STEPS) for image in subject.images]
    answers = [None if one is None else subject.answers(one[1][None])[0] for one in found]
    return drawing.draw_steps(subject.images, subject.answers(subject.images), found, answers)


def draw_invert(subject: Subject, args: argparse.Namespace) -> "Figure":
    """The image, and what is found from its features in some layers."""
    layers = [args.layer] if args.layer else last_of_each_size(subject.layers)
    columns = {"image": subject.images}
    for layer in layers:
        found, _ = invert(subject.model, subject.images, layer, args.steps or 300, seed=args.seed)
        columns[f"{layer}\n{' x '.join(map(str, subject.layers[layer]))}"] = found
    return drawing.draw_columns(columns)


def draw_maximise(subject: Subject, args: argparse.Namespace) -> "Figure":
    """An image for each class, or for the first channels of --layer."""
    size, steps = subject.config.size, args.steps or 150
    if args.layer:
        channels = np.arange(min(MOST_MAXIMISED, subject.layers[args.layer][2]))
        images, _ = maximise_channels(subject.model, args.layer, channels, size, steps, seed=args.seed)
        return drawing.draw_grid(images, [f"channel {channel}" for channel in channels])
    classes = np.arange(len(subject.config.names))
    if len(classes) > MOST_MAXIMISED:
        classes = np.unique(subject.classes)[:MOST_MAXIMISED]
    images, _ = maximise_classes(subject.model, classes, size, steps, seed=args.seed)
    return drawing.draw_grid(images, subject.answers(images, classes))


def draw_dream(subject: Subject, args: argparse.Namespace) -> "Figure":
    """The image, enlarged to --size, and dreams of some layers."""
    size = args.size or max(128, subject.config.size)
    images = np.stack([read_pixels(source, size, args.data_dir) for source in args.images])
    columns = {"image": images}
    for layer in [args.layer] if args.layer else last_of_each_size(subject.layers):
        columns[layer], _ = deep_dream(subject.any_size, images, layer, args.steps or 25, seed=args.seed)
    return drawing.draw_columns(columns)


def draw_style(subject: Subject, args: argparse.Namespace) -> "Figure":
    """Content, style, result, and the two losses."""
    size = args.size or max(128, subject.config.size)
    style = read_pixels(args.style, size, args.data_dir)[None]
    style_layers = args.style_layers or layers_of_style(subject.layers)
    content_layer = args.layer or style_layers[-1]
    rows = []
    for source in args.images:
        content = read_pixels(source, size, args.data_dir)[None]
        options = {"steps": args.steps or 150, "style_weight": args.style_weight}
        result, curves = transfer_style(subject.any_size, content, style, content_layer, style_layers, **options)
        rows.append((content[0], style[0], result[0], curves))
    return drawing.draw_style(rows)


PICTURES: dict[str, tuple[Callable[[Subject, argparse.Namespace], "Figure"], tuple[str, ...]]] = {
    "maps.png": (draw_maps, MAPS),
    "fgsm.png": (draw_fgsm, ("fgsm",)),
    "invert.png": (draw_invert, ("invert",)),
    "maximise.png": (draw_maximise, ("maximise",)),
    "dream.png": (draw_dream, ("dream",)),
    "style.png": (draw_style, ("style",)),
}


# -- the options -------------------------------------------------------------------------------------------------------


def check_options(args: argparse.Namespace, config: NetworkConfig, layers: dict[str, tuple[int, int, int]]) -> None:
    """Raise a ValueError for options that do not fit the network or each other."""
    one = [] if args.layer is None else [args.layer]
    for option, given in (("--layer", one), ("--style-layers", args.style_layers or [])):
        for name in given:
            if name not in layers:
                raise ValueError(f"{option}: expected one of {', '.join(layers)}; got {name or 'an empty string'}")
    if args.class_number is not None and args.class_number >= len(config.names):
        raise ValueError(
            f"--class: expected a number from 0 to {len(config.names) - 1}, as the network has {len(config.names)} "
            f"classes, got {args.class_number}"
        )
    if "style" in (args.methods or ()) and args.style is None:
        raise ValueError("--methods style: pass the picture with the style, such as --style pattern:strokes")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {args.out}; choose another name")


def check_suited(method: str, subject: Subject) -> None:
    """Raise an UnsuitedError if the network lacks the layers that the method needs."""
    if method == "cam":
        pooled_features(subject.model, subject.images[:1])
    elif method == "gradcam":
        last_convolution(subject.model, subject.layers)
    elif method in ("invert", "dream", "style") and not subject.layers:
        raise UnsuitedError(f"{method}: expected a network whose layers have pixels, got one without; choose others")


def suited_methods(args: argparse.Namespace, subject: Subject) -> list[str]:
    """--methods, or all that the network is suited for. A method that was asked for and does not suit is an error."""
    if args.methods:
        for method in args.methods:
            check_suited(method, subject)
        return args.methods
    methods = []
    for method in METHODS if args.style else METHODS[:-1]:
        try:
            check_suited(method, subject)
            methods.append(method)
        except UnsuitedError as problem:
            print(f"left out: {problem}")
    return methods


def options_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--weights", type=nonempty, required=True, metavar="WEIGHTS", help="a file, or a name of models/weights.py"
    )
    parser.add_argument(
        "--images", type=nonempty, required=True, nargs="+", metavar="PICTURE", help="pictures to look at, see above"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the pictures that are drawn")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help="see above; default: all")
    parser.add_argument("--class", dest="class_number", type=natural, metavar="N", help="default: the network's answer")
    parser.add_argument("--layer", metavar="NAME", help="of the network; the default depends on the method")
    parser.add_argument("--steps", type=positive, metavar="N", help="for invert, maximise, dream and style")
    parser.add_argument(
        "--size", type=positive, metavar="N", help="pixels of a side, for dream and style; default: 128"
    )
    parser.add_argument("--style", type=nonempty, metavar="PICTURE", help="the picture with the style")
    parser.add_argument("--style-layers", nargs="+", metavar="NAME", help="default: four of its first half")
    parser.add_argument(
        "--style-weight", type=positive_number, default=100, metavar="X", help="default: 100; the content's is 1"
    )
    add_options(parser, "data_dir", "seed")
    return parser


def main() -> None:
    """Parse the options, load the network, draw the pictures."""
    parser = options_parser()
    args = parser.parse_args()
    with one_line_errors():
        import matplotlib  # noqa: F401 - if it is missing, the error comes before the work
    with one_line_errors(parser):
        network, config = load_network(args.weights)
        model = OnPixels(network, config.mean, config.std)
        layers = feature_maps(model, np.full((1, config.size, config.size, 3), 0.5, np.float32))
        check_options(args, config, layers)
        args.images = expand(args.images)
        images = np.stack([read_pixels(source, config.size, args.data_dir, config.size) for source in args.images])
        if args.style is not None:
            read_pixels(args.style, config.size, args.data_dir)  # an error comes before the work
        classes = probabilities(model, Tensor(images)).argmax(axis=1)
        if args.class_number is not None:
            classes = np.full(len(images), args.class_number)
        mean_colour = np.reshape(config.mean, (-1, 3)).mean(axis=0)
        subject = Subject(model, OnPixels(network, mean_colour, config.std), config, layers, images, classes)
        args.methods = suited_methods(args, subject)
        args.out.mkdir(parents=True, exist_ok=True)  # an error comes before the work
        for name, (draw, methods) in PICTURES.items():
            if set(methods) & set(args.methods):
                save_figure(draw(subject, args), args.out / name)
                print(args.out / name)


if __name__ == "__main__":
    main()
