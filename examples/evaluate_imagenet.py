"""Evaluate networks on photographs with the test protocols of the VGG and ResNet papers, beside their reported errors.

    python examples/evaluate_imagenet.py --data imagenet --weights runs/D/checkpoint.safetensors --mode dense
    python examples/evaluate_imagenet.py --data imagenet --weights FILE --mode multicrop --scales 256 384 512
    python examples/evaluate_imagenet.py --data imagenet --weights D.safetensors E.safetensors --mode dense+multicrop
    python examples/evaluate_imagenet.py --data imagenet --weights resnet34.safetensors --model resnet34 --mode 10crop
    python examples/evaluate_imagenet.py --data imagenet --model vgg-A --random-init --mode center

    center      the centre crop
    10crop      the four corner crops and the centre crop, and their mirror images (Krizhevsky et al. 2012)
    multicrop   5 x 5 crops at each scale, and their mirror images (VGG, section 3.2)
    dense       the whole photograph and its mirror image. VGG's fully connected layers become convolutions, and the
                class scores are averaged over all positions. A ResNet averages its features over all positions anyway.
                Photographs vary in size, so each is a batch of its own, and --threads has no effect.

--data is a folder with val/<wnid>/*.JPEG or <wnid>/*.JPEG. Several --weights files form an ensemble. The softmax
probabilities are averaged over all views, scales and networks. --scales are the shorter sides to which photographs are
scaled; default: 256, 384 and 512 for multicrop, otherwise the side used for validation during training.
Weights without a network description, such as torchvision's, need --model.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
from common.errors import one_line_errors, precision, suggest_batch_size
from common.evaluate import probabilities, scores_of, top_errors
from common.imagenet import folder_to_test, report_broken
from common.options import PHOTOGRAPHS, add_options, check_device, make_parser, positive
from models.config import IMAGENET_MODELS, NetworkConfig, standard_config
from models.vgg import VGG, DenseVGG
from models.weights import config_of, find_described, load_network
from tqdm import tqdm

from minidl import Tensor
from minidl.data import (
    CentreView,
    CropsView,
    DeviceLoader,
    ImageFolder,
    ImageLoader,
    WholeView,
    corner_boxes,
    grid_boxes,
)
from minidl.data.images import View
from minidl.nn import Module

MODES = "center", "10crop", "multicrop", "dense", "dense+multicrop"
VGG_SCALES = [256, 384, 512]

# The papers' errors on the ILSVRC-2012 validation set: (network, mode) -> [(settings, top-1, top-5 error in per cent)].
# VGG: tables 3 to 6; S is the shorter side in training, Q in testing. ResNet: tables 2, 3 and 4.
PAPER_ERRORS = {
    ("vgg-A", "dense"): [("S = Q = 256", 29.6, 10.4)],
    ("vgg-A-LRN", "dense"): [("S = Q = 256", 29.7, 10.5)],
    ("vgg-B", "dense"): [("S = Q = 256", 28.7, 9.9), ("Q = 224, 256, 288", 28.2, 9.6)],
    ("vgg-C", "dense"): [
        ("S = Q = 256", 28.1, 9.4),
        ("S = Q = 384", 28.1, 9.3),
        ("S in [256; 512], Q = 384", 27.3, 8.8),
        ("S in [256; 512], Q = 256, 384, 512", 26.3, 8.2),
    ],
    ("vgg-D", "dense"): [
        ("S = Q = 256", 27.0, 8.8),
        ("S = Q = 384", 26.8, 8.7),
        ("S in [256; 512], Q = 384", 25.6, 8.1),
        ("S in [256; 512], Q = 256, 384, 512", 24.8, 7.5),
    ],
    ("vgg-E", "dense"): [
        ("S = Q = 256", 27.3, 9.0),
        ("S = Q = 384", 26.9, 8.7),
        ("S in [256; 512], Q = 384", 25.5, 8.0),
        ("S in [256; 512], Q = 256, 384, 512", 24.8, 7.5),
    ],
    ("vgg-D", "dense+multicrop"): [("S in [256; 512]", 24.4, 7.2)],
    ("vgg-E", "dense+multicrop"): [("S in [256; 512]", 24.4, 7.1)],
    ("vgg-D + vgg-E", "dense+multicrop"): [("S in [256; 512]", 23.7, 6.8)],
    ("plain18", "10crop"): [("", 27.94, None)],
    ("plain34", "10crop"): [("", 28.54, 10.02)],
    ("resnet18", "10crop"): [("shortcut A", 27.88, None)],
    ("resnet34", "10crop"): [("shortcut A", 25.03, 7.76), ("shortcut B", 24.52, 7.46), ("shortcut C", 24.19, 7.40)],
    ("resnet50", "10crop"): [("", 22.85, 6.71)],
    ("resnet101", "10crop"): [("", 21.75, 6.05)],
    ("resnet152", "10crop"): [("", 21.43, 5.71)],
    ("resnet34", "dense"): [("5 scales, shortcut B", 21.84, 5.71), ("5 scales, shortcut C", 21.53, 5.60)],
    ("resnet50", "dense"): [("Q = 224, 256, 384, 480, 640", 20.74, 5.25)],
    ("resnet101", "dense"): [("Q = 224, 256, 384, 480, 640", 19.87, 4.60)],
    ("resnet152", "dense"): [("Q = 224, 256, 384, 480, 640", 19.38, 4.49)],
}


def passes(model: Module, config: NetworkConfig, mode: str, scales: list[int]) -> Iterator[tuple[Module, View, int]]:
    """Yield (network, view, images per view) for each pass over the photographs that the mode needs."""
    for part in mode.split("+"):
        for scale in scales:
            yield one_pass(model, config, part, scale)


def scales_of(config: NetworkConfig, mode: str) -> list[int]:
    """The default scales: VGG's three for multi-crop (150 crops in all), otherwise the network's own."""
    return VGG_SCALES if "multicrop" in mode else [config.shorter_side]


def one_pass(model: Module, config: NetworkConfig, mode: str, scale: int) -> tuple[Module, View, int]:
    """The (network, view, images per view) of one mode at one scale. The modes are explained above."""
    crop = {"shorter_side": scale, "size": config.size, "mean": config.mean, "std": config.std}
    if mode == "center":
        return model, CentreView(**crop), 1
    if mode == "10crop":
        return model, CropsView(corner_boxes, **crop), 10
    if mode == "multicrop":
        return model, CropsView(grid_boxes, **crop), 50
    mean = config.mean.mean(axis=(0, 1)) if config.mean.ndim == 3 else config.mean  # photographs vary in size
    return DenseVGG(model) if isinstance(model, VGG) else model, WholeView(scale, mean, config.std), 2


def evaluate(
    networks: list[tuple[Module, NetworkConfig]], folder: ImageFolder, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities (N, classes), averaged over all passes of all networks, and the labels (N,)."""
    total, labels, count = 0.0, None, 0
    plans = [  # made before the first test, to report a scale that is too small for a network
        list(passes(model, config, args.mode, args.scales or scales_of(config, args.mode)))
        for model, config in networks
    ]
    for (model, _), plan in zip(networks, plans, strict=True):
        model.to(args.device)
        for network, view, views in plan:
            # Whole photographs vary in size, so each is a batch of its own.
            size = 1 if isinstance(view, WholeView) else max(1, args.batch_size // views)
            loader = ImageLoader(folder, size, view, threads=args.threads, skip_broken=args.skip_broken)
            scores, labels = run_pass(network, loader, args)
            total, count = total + scores, count + 1
        model.to("cpu")
    report_broken(loader)  # each loader reads the same photographs
    return total / count, labels


def run_pass(network: Module, loader: ImageLoader, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of each photograph, averaged over its views, and the labels."""

    def compute(views: Tensor) -> np.ndarray:
        images = views.reshape(-1, *views.shape[-3:])  # (N, views, H, W, 3) -> (N * views, H, W, 3)
        parts = [images[i : i + args.batch_size] for i in range(0, len(images), args.batch_size)]
        rows = np.concatenate([probabilities(network, part) for part in parts])
        return rows.reshape(len(views), -1, rows.shape[1]).mean(axis=1)

    batches = DeviceLoader(loader, args.device, args.dtype.replace("tf32", "float32"))
    return scores_of(compute, tqdm(batches, f"{args.mode}, side {loader.view.shorter_side}", unit="batch"))


def load_networks(args: argparse.Namespace) -> list[tuple[Module, NetworkConfig]]:
    """The networks of --weights, or an untrained one."""
    if args.random_init:
        if args.model is None:
            raise ValueError("--random-init: expected --model, got none; pass the name of a network")
        config = standard_config(args.model)
        return [(config.build(seed=args.seed).eval(), config)]
    models = [args.model if find_described(weights)[1] is None else None for weights in args.weights]
    configs = [config_of(*pair, args.names) for pair in zip(args.weights, models, strict=True)]
    if args.model not in (None, *(config.name for config in configs)):
        described = ", ".join(sorted({config.name for config in configs}))
        raise ValueError(f"--model: the weights describe their network, {described}; leave --model out")
    return [(load_network(weights, config)[0], config) for weights, config in zip(args.weights, configs, strict=True)]


def validation_folder(networks: list[tuple[Module, NetworkConfig]], args: argparse.Namespace) -> ImageFolder:
    """The photographs, with labels in the order of the classes that the networks were trained on."""
    expected, *others = sorted({len(config.names) for _, config in networks})
    if others:
        raise ValueError(
            f"--weights: an ensemble needs the same classes, got networks for {expected} and {others[0]} classes"
        )
    known = [config.classes for _, config in networks if config.classes is not None]
    if any(classes != known[0] for classes in known):
        raise ValueError("--weights: the networks of an ensemble must have the same classes in the same order")
    folder = folder_to_test(args, known[0] if known else None)
    if not known and not args.random_init and len(folder.classes) != expected:
        raise ValueError(
            f"--data: expected the {expected} classes of {args.weights[0]}, got {len(folder.classes)}, and the file "
            "does not name its classes; pass --names with one line per class"
        )
    return folder


def paper_lines(name: str, mode: str) -> list[str]:
    """The paper's errors for the network: in this mode if reported, otherwise in the others."""
    same = {key: rows for key, rows in PAPER_ERRORS.items() if key == (name, mode)}
    others = {key: rows for key, rows in PAPER_ERRORS.items() if key[0] == name}
    return [
        f"    {key[1]}{', ' * bool(how)}{how}: top-1 {top1} %" + (f", top-5 {top5} %" if top5 else "")
        for key, rows in (same or others).items()
        for how, top1, top5 in rows
    ]


def report(networks: list, scores: np.ndarray, labels: np.ndarray, seconds: float, args: argparse.Namespace) -> None:
    """Print our errors and the paper's."""
    name = " + ".join(sorted(config.name for _, config in networks))
    top1, top5 = top_errors(scores, labels)
    print(f"{name}, {args.mode}: top-1 error {top1:.2%}, top-5 {top5:.2%} of {len(labels):,} photographs")
    print(f"{1000 * seconds / len(labels):,.0f} ms per photograph")
    lines = paper_lines(name, args.mode)
    print("in the paper, on the 50,000 photographs of ILSVRC-2012:" if lines else "the papers report no error for it")
    print(*lines, sep="\n")


def main() -> None:
    """Parse the options, evaluate, and print the errors beside the paper's."""
    parser = make_parser(__doc__)
    add_options(parser, *PHOTOGRAPHS)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--weights", nargs="+", metavar="WEIGHTS", help="files, or names of models/weights.py; several form an ensemble"
    )
    source.add_argument("--random-init", action="store_true", help="an untrained --model")
    parser.add_argument("--model", choices=IMAGENET_MODELS, metavar="NAME", help=", ".join(IMAGENET_MODELS))
    parser.add_argument("--mode", choices=MODES, default="center", help="default: center")
    parser.add_argument("--scales", type=positive, nargs="+", metavar="Q", help="shorter sides; default: see above")
    add_options(parser, "batch_size", "seed", "device", "dtype", batch_size=50)
    args = parser.parse_args()
    with one_line_errors(parser):
        check_device(args)
        networks = load_networks(args)
        folder = validation_folder(networks, args)
        start = time.perf_counter()
        with precision(args.dtype), suggest_batch_size(args.batch_size):
            scores, labels = evaluate(networks, folder, args)
    report(networks, scores, labels, time.perf_counter() - start, args)


if __name__ == "__main__":
    main()
