"""Make a file of weights that load_network finds by name, and the beginning of its card.

    python examples/export_weights.py --run runs/cifar10 --name resnet20-cifar10

The file holds the network's parameters, running statistics and description, and neither the optimiser's state nor the
position of the run. The card says what the weights are; complete it by hand where it says so.
"""

import re
from pathlib import Path

from common.errors import one_line_errors
from common.options import make_parser, nonempty
from models.config import NetworkConfig, read_config
from models.weights import FOLDER, find_weights, load_network

from minidl import save_checkpoint
from minidl.nn import Module
from minidl.training.checkpoint import read_checkpoint

MOST_BYTES = 2 * 2**20  # of a file in the repository
ON_BY_DEFAULT = {"batch_norm"}  # options that --no-NAME switches off
# Builder of a network for CIFAR -> the script that trains it; train_cifar_resnet.py trains all others.
SCRIPTS = {"vgg": "train_cifar_vgg.py", "speedrun": "speedrun_cifar10.py"}

CARD = """# {name}

{network}, {parameters:,} parameters, {size} x {size} pixels, {classes} classes.

    model, config = load_network("{name}")

## Data

TODO: the data set, its source and its split.

## Recipe

TODO: in words, with the paper.

## Command

    {command}

## Error

TODO: on which test set, how measured.

## Licence

TODO: of the weights; name also the terms of the data.
"""


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


def main() -> None:
    """Parse the options and write the two files."""
    parser = make_parser(__doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a training script, or a checkpoint")
    parser.add_argument("--name", type=nonempty, required=True, help="of the weights, such as resnet20-cifar10")
    parser.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help="default: examples/weights")
    args = parser.parse_args()
    with one_line_errors(parser):
        path, card = args.folder / f"{args.name}.safetensors", args.folder / f"{args.name}.md"
        if not re.fullmatch(r"[\w-][\w.-]*", args.name):
            raise ValueError(f"--name: expected letters, digits, '-', '_' and '.', got {args.name}")
        if path.exists() or card.exists():
            raise ValueError(f"--name: {path} or its card is there already; remove them or choose another name")
        if read_config(find_weights(args.run)) is None:
            raise ValueError(f"--run: {args.run} does not describe its network; train it with a script of examples")
        model, config = load_network(args.run)
        _, counters = read_checkpoint(find_weights(args.run), "extra/")
        args.folder.mkdir(parents=True, exist_ok=True)
        export(model, config, path)
        facts = {"name": args.name, "network": config.name, "size": config.size, "classes": len(config.names)}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        command = command_of(config, counters.get("options", {}))
        card.write_text(CARD.format(parameters=parameters, command=command, **facts), encoding="utf-8")
    print(f"wrote {path} ({path.stat().st_size:,} bytes) and {card}; complete the card")
    if path.stat().st_size > MOST_BYTES:
        print(f"the file is too large for the repository, which takes {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main()
