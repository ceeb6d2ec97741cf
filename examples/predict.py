"""Classify photographs with a trained network: print the most likely classes and their probabilities.

    python examples/predict.py --weights resnet20-cifar10 --images photo.jpg pictures/
    python examples/predict.py --weights hf:timm/resnet50.tv_in1k --images photo.jpg
    python examples/predict.py --weights FILE --images pictures/ --out guesses.png      # also draw them
    python examples/predict.py --weights hf:timm/resnet50.tv_in1k --names LOC_synset_mapping.txt --images pictures/

Checkpoints of the training scripts and networks of the hub describe themselves. Other weights must have torchvision's
names and need --model. Images are then normalised as in torchvision.
"""

import sys
from pathlib import Path

import numpy as np
from common.errors import one_line_errors
from common.evaluate import probabilities
from common.figures import save_figure
from common.options import add_options, check_device, make_parser, nonempty, positive
from models.config import IMAGENET_MODELS, NetworkConfig
from models.weights import config_of, load_network
from tqdm import tqdm

from minidl import Tensor
from minidl.data import BrokenImageError, image_files, read_image
from minidl.nn import Module

BATCH = 16  # photographs at a time
PICTURES = ".png", ".pdf", ".svg"
MOST_DRAWN = 300  # photographs in a picture: matplotlib draws at most 2^16 pixels, of which each takes 190
Guesses = list[tuple[str, float]]  # (class, probability), most likely first


def find_images(paths: list[str]) -> list[Path]:
    """Replace each folder in `paths` with the image files in it."""
    return [Path(file) for path in paths for file in (image_files(path) if Path(path).is_dir() else [path])]


def predict(
    model: Module, config: NetworkConfig, paths: list[Path], top: int = 5, device: str = "cpu"
) -> dict[Path, Guesses]:
    """The `top` most likely classes of each photograph. Photographs that cannot be read are reported and skipped."""
    view, guesses = config.view(), {}
    for start in tqdm(range(0, len(paths), BATCH), disable=len(paths) <= BATCH, unit="batch"):
        pixels = {}
        for path in paths[start : start + BATCH]:
            try:
                pixels[path] = view(path)
            except (BrokenImageError, OSError) as problem:
                print(f"skipped: {str(problem).partition(';')[0]}", file=sys.stderr)
        if pixels:
            rows = probabilities(model, Tensor(np.stack(list(pixels.values())), device=device))
            guesses |= {path: top_classes(row, config.names, top) for path, row in zip(pixels, rows, strict=True)}
    return guesses


def top_classes(row: np.ndarray, names: tuple[str, ...], top: int) -> Guesses:
    """The `top` most likely classes, given the probabilities `row` of all classes."""
    order = np.argsort(-row, kind="stable")[:top]
    return [(names[i], float(row[i])) for i in order]


def draw(guesses: dict[Path, Guesses], path: Path) -> None:
    """Draw each photograph with a bar for each of its guesses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.9 * len(guesses)), dpi=100)
    axes = figure.subplots(len(guesses), 2, squeeze=False, width_ratios=(1, 2))
    for (photograph, guess), (left, right) in zip(guesses.items(), axes, strict=True):
        left.imshow(np.asarray(read_image(photograph, shorter_side=224)))
        left.set_axis_off()
        names, widths = [name.partition(",")[0] for name, _ in guess], [probability for _, probability in guess]
        rows = range(len(guess))
        right.barh(rows, widths, color="lightskyblue", height=0.7)
        right.set(yticks=[], xticks=[], xlim=(0, 1), ylim=(len(guess) - 0.5, -0.5))
        for y, name, probability in zip(rows, names, widths, strict=True):
            right.text(0.02, y, f"{name}   {probability:.1%}", va="center", fontsize=10)
        right.spines[:].set_visible(False)
        right.set_title(photograph.name, fontsize=9, loc="left")
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    """Parse the options, load the network, print its guesses and draw them."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--weights", type=nonempty, required=True, metavar="WEIGHTS", help="a file, or a name of models/weights.py"
    )
    parser.add_argument(
        "--images", type=nonempty, required=True, nargs="+", metavar="PATH", help="image files or folders"
    )
    parser.add_argument("--model", choices=IMAGENET_MODELS, metavar="NAME", help=f"one of {', '.join(IMAGENET_MODELS)}")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="number of guesses per image; default: 5")
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw the guesses to a PNG, PDF or SVG file")
    add_options(parser, "names", "device")
    args = parser.parse_args()
    with one_line_errors(parser):
        check_device(args)
        if args.out and args.out.suffix.lower() not in PICTURES:
            raise ValueError(f"--out: expected a file ending in {', '.join(PICTURES)}, got {args.out}")
        if args.out and not args.out.parent.is_dir():
            raise ValueError(f"--out: the folder {args.out.parent} is missing; create it, or choose another one")
        config = config_of(args.weights, args.model, args.names)
        images = find_images(args.images)
        if args.out and len(images) > MOST_DRAWN:
            raise ValueError(f"--out: expected at most {MOST_DRAWN} photographs to draw, got {len(images)}; omit --out")
        model, _ = load_network(args.weights, config)
        guesses = predict(model.to(args.device), config, images, args.top, args.device)
        if not guesses:
            raise ValueError("--images: none of the photographs could be read")
        for path, guess in guesses.items():
            print(path, *(f"{probability:9.1%}  {name}" for name, probability in guess), sep="\n")
        if args.out:
            draw(guesses, args.out)


if __name__ == "__main__":
    main()
