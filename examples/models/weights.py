"""Trained networks by name.

    load_network("resnet20-cifar10")                 weights of this repository, in examples/weights
    load_network("runs/latest")                      the folder of a training script, or its checkpoint
    load_network("hf:timm/resnet50.tv_in1k")         torchvision's weights, from the Hugging Face hub

Each returns the network in evaluation mode and its config, which prepares photographs and names the classes.
"""

import difflib
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from minidl.nn import Module
from minidl.system.files import read_text
from minidl.training.checkpoint import read_checkpoint
from models.config import NetworkConfig, load_file, read_config

FOLDER = Path(__file__).parents[1] / "weights"
HUB = "hf:"

# timm's names of the networks that examples/models has: (builder, arguments).
ARCHITECTURES = {
    **{f"resnet{depth}": ("imagenet_resnet", {"depth": depth}) for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{layers}": ("vgg", {"config": config}) for layers, config in ((11, "A"), (13, "B"), (16, "D"), (19, "E"))},
}
ARCHITECTURES |= {
    f"{name}_bn": (builder, arguments | {"batch_norm": True})
    for name, (builder, arguments) in ARCHITECTURES.items()
    if builder == "vgg"
}

# timm computes VGG's fully connected layers as convolutions, 7x7 and 1x1, and has its own names for them.
CLASSIFIER_OF_TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}


def load_network(weights: str | Path, fallback: NetworkConfig | None = None) -> tuple[Module, NetworkConfig]:
    """Load (network in evaluation mode, config) by name, folder or file; `fallback` is the config of files without one.

    Raises ValueError if there are no such weights or they do not fit, and nothing is loaded then.
    """
    if str(weights).startswith(HUB):
        return load_from_hub(str(weights).removeprefix(HUB))
    path = find_weights(weights)
    if path.is_dir():
        return load_timm(path / "model.safetensors", path / "config.json", fallback)
    return load_file(path, fallback)


def find_described(weights: str | Path) -> tuple[Path, NetworkConfig | None]:
    """The file of the weights that load_network finds by name, and their config; None if the file has none."""
    if str(weights).startswith(HUB):
        repository = str(weights).removeprefix(HUB)
        return _fetched(repository, "model.safetensors"), timm_config(_fetched(repository, "config.json"))
    path = find_weights(weights)
    if path.is_dir():
        return path / "model.safetensors", timm_config(path / "config.json")
    return path, read_config(path)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The parameters and running statistics in a file, with the names and shapes of our networks."""
    arrays, _ = read_checkpoint(file)
    return from_timm({name: array for name, array in arrays.items() if "/" not in name})


def find_weights(weights: str | Path) -> Path:
    """The file of these weights: a name in examples/weights, a file, or a folder.

    A folder has a `checkpoint.safetensors` of ours, or it is that of a network of the hub: then it is returned itself.
    """
    path = Path(weights)
    if path.is_dir():
        if (path / "checkpoint.safetensors").exists():
            return path / "checkpoint.safetensors"
        if (path / "model.safetensors").exists() and (path / "config.json").exists():
            return path
        raise ValueError(
            f"load_network: expected a folder with checkpoint.safetensors, or with model.safetensors and config.json "
            f"of the hub, got {path}, which has neither"
        )
    if path.exists():
        return path
    names = sorted(file.stem for file in FOLDER.glob("*.safetensors"))
    if str(weights) in names:
        return FOLDER / f"{weights}.safetensors"
    nearest = difflib.get_close_matches(str(weights), names, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are the names {', '.join(names)}" if names else ""
    raise ValueError(f"load_network: no file, folder or network {weights}; {hint or 'give a file'}, or {HUB}OWNER/NAME")


# -- the hub -----------------------------------------------------------------------------------------------------------


def load_from_hub(repository: str) -> tuple[Module, NetworkConfig]:
    """Load a network of https://huggingface.co that timm saved, such as "timm/resnet50.tv_in1k".

    huggingface_hub downloads its two files, resumes after a break and keeps them.
    """
    return load_timm(_fetched(repository, "model.safetensors"), _fetched(repository, "config.json"))


def _fetched(repository: str, file: str) -> Path:
    """The path of a file of the hub in the cache of huggingface_hub, downloaded if it is not there."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError, HTTPError
    except ImportError:
        raise ValueError(
            f"{HUB}{repository}: needs huggingface_hub; install it with: pip install huggingface_hub"
        ) from None
    try:
        path = Path(hf_hub_download(repository, file))
        _check_content(path)
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{HUB}{repository}: {file} could not be fetched ({type(error).__name__}: {reason}); without a network, "
            f"bring model.safetensors and config.json of https://huggingface.co/{repository} into a folder and pass it"
        ) from error
    return path


def _check_content(path: Path) -> None:
    """Raise OSError, and remove the file from the cache, if it is not the one whose SHA-256 checksum the hub has told.

    huggingface_hub checks the size alone. It names a large file in its cache after the checksum; small ones have none.
    """
    stored = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", stored.name):
        return
    with stored.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != stored.name:
        path.unlink()
        stored.unlink(missing_ok=True)
        raise OSError(f"SHA-256 expected {stored.name}, got {found}; the file was removed, try again")


def load_timm(weights: Path, description: Path, fallback: NetworkConfig | None = None) -> tuple[Module, NetworkConfig]:
    """Load the network that timm's config.json describes, from weights with timm's names."""
    config = fallback or timm_config(description)
    arrays, _ = read_checkpoint(weights)
    model = config.build()
    try:
        model.load_state_dict(from_timm(arrays))
    except ValueError as error:
        raise ValueError(f"load_network: {weights}: {error}") from None
    return model.eval(), config


def timm_config(path: Path) -> NetworkConfig:
    """Read timm's config.json. Pixels are 0..255 here and 0..1 there."""
    try:
        described = json.loads(read_text(path))
        architecture, prepared = described["architecture"], described["pretrained_cfg"]
        classes, (_, size, width) = int(described["num_classes"]), prepared["input_size"]
        mean, std = (255 * np.array(prepared[name], np.float32) for name in ("mean", "std"))
        shorter_side = int(size / float(prepared["crop_pct"]))
        if not (
            size == width and 0 < shorter_side < 10_000 and 0 < classes < 10**6 and mean.shape == std.shape == (3,)
        ):
            raise ValueError("a number is out of range")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"load_network: {path} is not a config.json of timm ({type(error).__name__}: {error})"
        ) from None
    if architecture not in ARCHITECTURES:
        raise ValueError(f"load_network: {path}: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    builder, arguments = ARCHITECTURES[architecture]
    names = tuple(f"class {number}" for number in range(classes))
    arguments = arguments | {"num_classes": classes}
    return NetworkConfig(architecture, builder, arguments, names, None, shorter_side, size, mean, std)


def from_timm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename timm's layers of a VGG, whose kernels (O, C, 7, 7) become matrices (O, C * 7 * 7)."""
    renamed = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        if layer in CLASSIFIER_OF_TIMM:
            array = array.reshape(len(array), -1) if kind == "weight" else array
            name = f"{CLASSIFIER_OF_TIMM[layer]}.{kind}"
        renamed[name] = array
    return renamed
