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
from minidl.training.checkpoint import load_checkpoint, read_checkpoint
from models.config import (
    LARGEST_SIZE,
    NetworkConfig,
    check_config,
    check_variant,
    damaged,
    read_config,
    torchvision_config,
)

FOLDER = Path(__file__).parents[1] / "weights"
HUB = "hf:"
HUB_WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"  # the files of a network that timm saved

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
    file, described = find_described(weights)
    config = described or fallback
    if config is None:
        raise ValueError(f"load_network: {file} does not describe its network; pass --model")
    try:
        model = config.build()
    except (TypeError, ValueError) as error:
        if described is None:
            raise
        raise damaged(file, error) from error
    check_variant(file, config)
    if file.name == HUB_WEIGHTS:
        _load_timm(file, model)
    else:
        load_checkpoint(file, model)
    return model.eval(), config


def config_of(weights: str | Path, model: str | None = None, names: str | Path | None = None) -> NetworkConfig:
    """The config of these weights, as they describe it; for others, that of torchvision's network `model`.

    The file `names`, if given, has the names of the classes: see `minidl.data.read_names`.
    """
    file, described = find_described(weights)
    if described is None and model is None:
        raise ValueError(f"load_network: {file} does not describe its network; pass --model")
    if described is not None and model not in (None, described.name):
        raise ValueError(f"--model: {weights} describes its network, {described.name}; leave --model out")
    config = described or torchvision_config(model, file)
    return config if names is None else config.with_names(names)


def find_described(weights: str | Path) -> tuple[Path, NetworkConfig | None]:
    """The file of the weights that load_network finds by name, and their config; None if the file has none."""
    if str(weights).startswith(HUB):
        repository = str(weights).removeprefix(HUB)
        return _fetched(repository, HUB_WEIGHTS), timm_config(_fetched(repository, HUB_CONFIG))
    path = find_weights(weights)
    if path.is_dir():
        return path / HUB_WEIGHTS, timm_config(path / HUB_CONFIG)
    return path, read_config(path)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The parameters and running statistics in a file, with the names and shapes of our networks."""
    arrays, _ = read_checkpoint(file)
    return from_timm({name: array for name, array in arrays.items() if "/" not in name})


def find_weights(weights: str | Path) -> Path:
    """The file of these weights: a name in examples/weights, a file, or a folder.

    A folder is that of a run of ours, with a `checkpoint.safetensors`, and with `average.safetensors` if the moving
    average was tested; or it is that of a network of the hub: then it is returned itself.
    """
    path = Path(weights)
    if path.is_dir():
        for name in ("average.safetensors", "checkpoint.safetensors"):
            if (path / name).exists():
                return path / name
        if (path / HUB_WEIGHTS).exists() and (path / HUB_CONFIG).exists():
            return path
        raise ValueError(
            f"load_network: expected a folder with checkpoint.safetensors, or with {HUB_WEIGHTS} and {HUB_CONFIG} "
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


def _fetched(repository: str, file: str) -> Path:
    """The path of a file of https://huggingface.co/REPOSITORY, such as "timm/resnet50.tv_in1k".

    huggingface_hub downloads it to its cache, resumes after a break, and keeps it.
    """
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
    except HFValidationError:
        raise ValueError(f"load_network: expected {HUB}OWNER/NAME, got {HUB}{repository}") from None
    except (OSError, HTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{HUB}{repository}: {file} could not be fetched ({type(error).__name__}: {reason}); without a network, "
            f"bring {HUB_WEIGHTS} and {HUB_CONFIG} of https://huggingface.co/{repository} into a folder and pass it"
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


def timm_config(path: Path) -> NetworkConfig:
    """Read timm's config.json. Pixels are 0..255 here and 0..1 there.

    Photographs are always scaled bilinearly, and cropped in the centre: `interpolation` and `crop_mode` are not read.
    """
    try:
        described = json.loads(read_text(path))
        architecture, classes = described["architecture"], described["num_classes"]
        if architecture not in list(ARCHITECTURES):
            raise ValueError(f"expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
        if type(classes) is not int or not 0 < classes <= LARGEST_SIZE:
            raise ValueError(f"expected num_classes in 1..{LARGEST_SIZE}, got {classes!r}")
        prepared = described["pretrained_cfg"]
        channels, size, width = prepared["input_size"]
        if (channels, size) != (3, width):
            raise ValueError(f"expected input_size [3, N, N], got {prepared['input_size']}")
        shorter_side = int(size / float(prepared["crop_pct"]))
        mean, std = (255 * np.array(prepared[name], np.float32) for name in ("mean", "std"))
        builder, arguments = ARCHITECTURES[architecture]
        arguments, names = arguments | {"num_classes": classes}, tuple(f"class {number}" for number in range(classes))
        config = NetworkConfig(architecture, builder, arguments, names, None, shorter_side, size, mean, std)
        check_config(config)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"load_network: {path} is not the config.json of a network that minidl has ({what})") from None
    return config


def _load_timm(file: Path, model: Module) -> None:
    """Load weights with timm's names."""
    try:
        model.load_state_dict(read_arrays(file))
    except ValueError as error:
        raise ValueError(f"load_network: {file}: {error}") from None


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
