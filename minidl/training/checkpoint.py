"""Checkpoints: everything that a run depends on, in one safetensors file that is whole or not there.

The model's weights stand under PyTorch's names and in PyTorch's layouts, so any reader of safetensors can use them.
What else the run needs has a "/" in its name: "optimizer/velocity.0", "buffer/..." for the buffers that are no
weights, "extra/..." for what a script adds, as the mean that it subtracts from the images. Numbers and words are JSON
in the file's header.
"""

import json
from pathlib import Path

import numpy as np

from minidl.nn.module import Module, check_state
from minidl.optim.optimizer import Optimizer
from minidl.system.files import write_whole
from minidl.tensor import Buffer

# The dtypes that are written and read, by their names in files and in NumPy.
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
DTYPES |= {f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}

# What a PyTorch file begins with: a zip archive, or a pickle of protocol 2 or later.
PYTORCH_BEGINS = b"PK\x03\x04", b"\x80"
CONVERT = """{path} looks like a PyTorch file, which may hold code and is not read; {rename}convert it with PyTorch \
(where it holds more than the weights: torch.load(...)["state_dict"], or ["model"]):
    import torch, safetensors.torch
    safetensors.torch.save_file(torch.load({old!r}, weights_only=True), {new!r})"""


def save_checkpoint(
    path: str | Path,
    model: Module,
    optimizer: Optimizer | None = None,
    counters: dict | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> None:
    """Write the model, the optimiser's state, the counters, any JSON, and extra arrays to one file.

    It is a temporary file first, which is then renamed to path. `read_checkpoint` gives all of it back.

    Without an optimizer, counters and extra arrays the file holds the weights alone, as PyTorch does. To resume a run,
    pass the optimizer: the buffers that are no weights, such as the counters of dropout, are saved with its state.

    Raises ValueError for extra arrays that do not hold real numbers.
    """
    from safetensors.numpy import save

    arrays = model.state_dict()
    if optimizer is not None:
        arrays |= {f"buffer/{name}": buffer.numpy() for name, buffer in _unsaved_buffers(model)}
        arrays |= {f"optimizer/{name}": array for name, array in optimizer.state_dict().items()}
    arrays |= {f"extra/{name}": array for name, array in (extra or {}).items()}
    arrays = {name: _to_file(name, array) for name, array in arrays.items()}
    write_whole(Path(path), save(arrays, metadata={"counters": json.dumps(counters or {})}))


def load_checkpoint(path: str | Path, model: Module, optimizer: Optimizer | None = None) -> dict:
    """Copy a checkpoint into the model and, where one is given, the optimiser; returns the counters.

    All of it fits, or nothing is copied.

    Raises ValueError where it does not fit, or the file is damaged or of another kind: see `read_checkpoint`.
    """
    arrays, counters = read_checkpoint(path)
    weights = {name: array for name, array in arrays.items() if "/" not in name}
    state = _below("optimizer/", arrays)
    buffers = {name: buffer for name, buffer in _unsaved_buffers(model) if f"buffer/{name}" in arrays}
    try:
        model.check_state_dict(weights)
        if optimizer is not None:
            optimizer.check_state_dict(state)
        expected = {f"buffer/{name}": (buffer.shape, buffer.dtype) for name, buffer in buffers.items()}
        check_state("buffers", expected, {name: arrays[name] for name in expected})
    except ValueError as error:
        raise ValueError(f"load_checkpoint: {path}: {error}") from None
    model.load_state_dict(weights)
    if optimizer is not None:
        optimizer.load_state_dict(state)
    for name, buffer in buffers.items():
        buffer.data[...] = Buffer(arrays[f"buffer/{name}"]).to(buffer.device).data
    return counters


def read_checkpoint(path: str | Path, prefix: str = "") -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, counters) of a safetensors file, one written here or a file of weights from elsewhere.

    Only the arrays whose names begin with the prefix are read. float16 and bfloat16 come as float32, which holds all
    their numbers.

    Raises ValueError, with the name of the file, where it is damaged, holds other dtypes (float8, complex numbers), or
    is a PyTorch file, which is never unpickled.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is not a dict
            dtypes = {name: _readable(path, name, file.get_slice(name).get_dtype()) for name in names}
            arrays = {name: file.get_tensor(name) for name in names if dtypes[name] != "BF16"}
            metadata = file.metadata() or {}
        if "BF16" in dtypes.values():  # NumPy has no such dtype
            stored = dict(deserialize(Path(path).read_bytes()))
            arrays = {name: arrays[name] if name in arrays else _widened(stored[name]) for name in names}
    except SafetensorError as error:
        raise ValueError(f"load_checkpoint: {_what_it_is(Path(path), error)}") from error
    arrays = {name: np.float32(array) if array.dtype == np.float16 else array for name, array in arrays.items()}
    return arrays, _counters(path, metadata)


def _to_file(name: str, array) -> np.ndarray:
    """In C's order and the machine's: safetensors takes the address, and knows nothing of strides."""
    array = np.asarray(array)
    if array.dtype.name not in DTYPES.values():
        expected = f"expected {', '.join(DTYPES.values())}, got {array.dtype}"
        raise ValueError(f"save_checkpoint: {name}: {expected}; convert it to one of them")
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _readable(path: str | Path, name: str, dtype: str) -> str:
    """The dtype, if it is one that is read."""
    if dtype not in DTYPES:
        expected = f"expected {', '.join(DTYPES)}, got {dtype}"
        raise ValueError(
            f"load_checkpoint: {path}: {name}: {expected}; convert it to F32 with the library that wrote it"
        )
    return dtype


def _widened(stored: dict) -> np.ndarray:
    """bfloat16 -> float32: a bfloat16 number is the upper half of the float32 number."""
    halves = np.frombuffer(stored["data"], "<u2").astype(np.uint32)
    return (halves << 16).view(np.float32).reshape(stored["shape"])


def _counters(path: str | Path, metadata: dict[str, str]) -> dict:
    try:
        counters = json.loads(metadata.get("counters", "{}"))
    except (ValueError, RecursionError):
        counters = None
    if not isinstance(counters, dict):
        raise ValueError(f"load_checkpoint: {path}: expected counters as minidl writes them, got damaged ones")
    return counters


def _what_it_is(path: Path, error: Exception) -> str:
    """What a file that safetensors does not read may be, and what to do."""
    with path.open("rb") as file:
        if file.read(4).startswith(PYTORCH_BEGINS):
            old = path.with_suffix(".pth") if path.suffix == ".safetensors" else path  # torch.load goes by the suffix
            new = path.with_suffix(".safetensors")
            rename = f"rename it to {old} and " if old != path else ""
            return CONVERT.format(path=path, rename=rename, old=str(old), new=str(new))
    return f"{path} is no whole safetensors file ({error}); use an earlier one"


def _unsaved_buffers(model: Module) -> list[tuple[str, Buffer]]:
    return [(name, buffer) for name, buffer in model.named_buffers() if not buffer.persistent]


def _below(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
