"""Checkpoints: everything that a run depends on, in one safetensors file that is whole or not there.

The model's weights stand under PyTorch's names and in PyTorch's layouts, so any reader of safetensors can use them.
What else the run needs has a "/" in its name: "optimizer/velocity.0", "buffer/..." for the buffers that are no
weights, "extra/..." for what a script adds, as the mean that it subtracts from the images. Numbers and words are JSON
in the file's header.
"""

import json
from pathlib import Path

import numpy as np

from minidl.files import write_whole
from minidl.nn.module import Module
from minidl.optim.optimizer import Optimizer
from minidl.tensor import Buffer


def save_checkpoint(
    path: str | Path,
    model: Module,
    optimizer: Optimizer | None = None,
    counters: dict | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> None:
    """Write the model, the optimiser's state, the counters, any JSON, and extra arrays to one file.

    It is a temporary file first, which is then renamed to path. `read_checkpoint` gives all of it back.
    """
    from safetensors.numpy import save

    arrays = model.state_dict()
    arrays |= {f"buffer/{name}": buffer.numpy().copy() for name, buffer in _unsaved_buffers(model)}
    if optimizer is not None:
        arrays |= {f"optimizer/{name}": array for name, array in optimizer.state_dict().items()}
    arrays |= {f"extra/{name}": np.asarray(array) for name, array in (extra or {}).items()}
    write_whole(Path(path), save(arrays, metadata={"counters": json.dumps(counters or {})}))


def load_checkpoint(path: str | Path, model: Module, optimizer: Optimizer | None = None) -> dict:
    """Copy a checkpoint into the model and, where one is given, the optimiser; returns the counters.

    All of it fits, or nothing is copied.
    """
    arrays, counters = read_checkpoint(path)
    weights = {name: array for name, array in arrays.items() if "/" not in name}
    state, buffers = _below("optimizer/", arrays), _below("buffer/", arrays)
    model.check_state_dict(weights)
    if optimizer is not None:
        optimizer.check_state_dict(state)
    _check_buffers(model, buffers)
    model.load_state_dict(weights)
    if optimizer is not None:
        optimizer.load_state_dict(state)
    for name, buffer in _unsaved_buffers(model):
        if name in buffers:
            buffer.data[...] = Buffer(buffers[name]).to(buffer.device).data
    return counters


def read_checkpoint(path: str | Path, prefix: str = "") -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, counters) of a safetensors file, one written here or a file of weights from elsewhere.

    Only the arrays whose names begin with the prefix are read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is not a dict
            arrays = {name: file.get_tensor(name) for name in names}
            return arrays, json.loads((file.metadata() or {}).get("counters", "{}"))
    except SafetensorError as error:
        raise ValueError(
            f"load_checkpoint: {path} is no whole safetensors file ({error}); use an earlier one"
        ) from error


def _unsaved_buffers(model: Module) -> list[tuple[str, Buffer]]:
    return [(name, buffer) for name, buffer in model.named_buffers() if not buffer.persistent]


def _check_buffers(model: Module, buffers: dict[str, np.ndarray]) -> None:
    for name, buffer in _unsaved_buffers(model):
        if name in buffers and buffers[name].shape != buffer.shape:
            shapes = f"expected {buffer.shape}, got {buffers[name].shape}"
            raise ValueError(f"load_checkpoint: buffer {name}: {shapes}; nothing was loaded")


def _below(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
