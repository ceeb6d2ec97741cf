"""Make a file of weights that load_network finds by name, and its card.

    python examples/export_weights.py --run runs/cifar10 --name resnet20-cifar10 --data-dir data

The file holds the network's parameters, running statistics and description, and neither the optimiser's state nor the
position of the run. The card says what the weights are: data, recipe, command, error, licence. For a network trained on
CIFAR the error is measured with the new file, on the 10,000 test images. Complete the card by hand where it says TODO.
"""

import re
from pathlib import Path

from common.errors import one_line_errors
from common.options import add_options, make_parser, nonempty
from models.config import NetworkConfig, read_config
from models.weights import FOLDER, find_described, load_network

from minidl import Tensor, no_grad, save_checkpoint
from minidl.data import load_cifar10, load_cifar100, normalize
from minidl.nn import Module
from minidl.training.checkpoint import read_checkpoint

MOST_BYTES = 2 * 2**20  # of a file in the repository
ON_BY_DEFAULT = {"batch_norm"}  # options that --no-NAME switches off
# Builder of a network for CIFAR -> the script that trains it; train_cifar_resnet.py trains all others.
SCRIPTS = {"vgg": "train_cifar_vgg.py", "speedrun": "speedrun_cifar10.py"}
FIRST, BATCH = 1000, 100  # the card also has the error on the first images, which a test can repeat in seconds
CIFAR = {"cifar10": load_cifar10, "cifar100": load_cifar100}

CARD = """# {name}

{network}, {parameters:,} parameters, {size} x {size} pixels, {classes} classes.

    model, config = load_network("{name}")

## Data

{data}

## Recipe

{recipe}

## Command

    {command}

## Error

{error}

## Licence

{licence}
"""

CIFAR_DATA = """The {images} training images of {dataset}, from https://www.cs.toronto.edu/~kriz/cifar.html
(Krizhevsky 2009, "Learning multiple layers of features from tiny images")."""
CIFAR_LICENCE = """Of the weights: that of this repository (`LICENSE`). Of the data: its page states no licence,
and asks to cite the report above."""


def export(model: Module, config: NetworkConfig, path: Path) -> None:
    """Write the network and its description, and nothing else, to a new file."""
    save_checkpoint(path, model, counters={"network": config.to_json()}, extra=config.arrays())


def command_of(config: NetworkConfig, options: dict) -> str:
    """The command line of a run, from the description of its network and the options that its checkpoint holds."""
    script = SCRIPTS.get(config.builder, "train_cifar_resnet.py")
    if "validation_side" in options:
        script = "train_imagenet.py --data DIR"
    words = ["python", f"examples/{script}"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True:
            words.append(f"--{flag}")
        elif value is False and name in ON_BY_DEFAULT:
            words.append(f"--no-{flag}")
        elif value is not False and value is not None:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(words)


def count_wrong(path: Path, dataset: str, data_dir: str) -> tuple[int, int, int]:
    """(wrong of the first 1,000, wrong of all, all): the test images that the network in the file misclassifies."""
    model, config = load_network(path)
    test, wrong = CIFAR[dataset](data_dir, train=False), []
    with no_grad():
        for start in range(0, len(test), BATCH):
            images = normalize(test.images[start : start + BATCH], config.mean, config.std)
            wrong += list(model(Tensor(images)).argmax(dim=1).numpy() != test.labels[start : start + BATCH])
    return int(sum(wrong[:FIRST])), int(sum(wrong)), len(wrong)


def facts_of_training(path: Path, options: dict, data_dir: str) -> dict[str, str]:
    """Data, recipe, error and licence of a network trained on CIFAR; of others they are to be written by hand."""
    recipe = options.get("recipe")
    facts = {"recipe": f"TODO: in words, with the paper; --recipe {recipe}." if recipe else "TODO: in words."}
    dataset = options.get("dataset")
    if dataset not in CIFAR:
        todo = {"data": "the data set, its source, its split", "error": "on which test set, how measured"}
        todo["licence"] = "of the weights; name also the terms of the data"
        return facts | {name: f"TODO: {what}." for name, what in todo.items()}
    images = 45_000 if options.get("holdout") else 50_000
    first, wrong, count = count_wrong(path, dataset, data_dir)
    error = f"{wrong / count:.2%}: {wrong:,} of the {count:,} test images wrong, {first:,} of the first {FIRST:,}."
    return facts | {
        "data": CIFAR_DATA.format(dataset=dataset, images=f"{min(images, options.get('limit_train') or images):,}"),
        "error": f"{error} Measured by export_weights.py with this file.",
        "licence": CIFAR_LICENCE,
    }


def main() -> None:
    """Parse the options and write the two files."""
    parser = make_parser(__doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a training script, or a checkpoint")
    parser.add_argument("--name", type=nonempty, required=True, help="of the weights, such as resnet20-cifar10")
    parser.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help="default: examples/weights")
    add_options(parser, "data_dir")
    args = parser.parse_args()
    with one_line_errors(parser):
        path, card = args.folder / f"{args.name}.safetensors", args.folder / f"{args.name}.md"
        if not re.fullmatch(r"[\w-][\w.-]*", args.name):
            raise ValueError(f"--name: expected letters, digits, '-', '_' and '.', got {args.name}")
        if path.exists() or card.exists():
            raise ValueError(f"--name: {path} or its card is there already; remove them or choose another name")
        if args.folder.exists() and not args.folder.is_dir():
            raise ValueError(f"--folder: expected a folder, got the file {args.folder}; choose another name")
        trained, _ = find_described(args.run)
        if read_config(trained) is None:
            raise ValueError(f"--run: {args.run} does not describe its network; train it with a script of examples")
        model, config = load_network(args.run)
        _, counters = read_checkpoint(trained, "extra/")
        args.folder.mkdir(parents=True, exist_ok=True)
        export(model, config, path)
        options = counters.get("options", {})
        facts = {"name": args.name, "network": config.name, "size": config.size, "classes": len(config.names)}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        facts |= {"parameters": parameters, "command": command_of(config, options)}
        try:
            facts |= facts_of_training(path, options, args.data_dir)
        except BaseException:
            path.unlink()  # no weights without a card
            raise
        card.write_text(CARD.format(**facts), encoding="utf-8")
    print(f"wrote {path} ({path.stat().st_size:,} bytes) and {card}; complete the card")
    if path.stat().st_size > MOST_BYTES:
        print(f"the file is too large for the repository, which takes {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main()
