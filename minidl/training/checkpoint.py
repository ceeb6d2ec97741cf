"""Checkpoints: everything that a run needs to resume, in one safetensors file, which is written atomically.

The model's weights have PyTorch's names and layouts, so any reader of safetensors can use them. All other arrays have a
"/" in their names: "optimizer/velocity.0", "buffer/..." for buffers that are not in the model's state dict, "extra/..."
for arrays that a script adds, such as the mean that it subtracts from images. Numbers and strings are JSON in the
file's header, under "counters". The header also has a checksum of the file, "sha256": damage to any bit is found.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from minidl.nn.module import Module, check_state
from minidl.optim.optimizer import Optimizer
from minidl.system.files import write_whole
from minidl.tensor import Buffer

# The supported dtypes: {name in safetensors: name in NumPy}.
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
DTYPES |= {f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}

# The checksum is the SHA-256 of the whole file with these digits in place of the checksum's own.
SHA256_KEY, NO_DIGITS = b'"sha256":"', b"0" * 64

# The first bytes of a PyTorch file: a zip archive, or a pickle of protocol 2 or later.
PYTORCH_BEGINS = b"PK\x03\x04", b"\x80"
CONVERT = """{path} looks like a PyTorch file, which can run code and is not read; {rename}convert it with PyTorch \
(if it holds more than the weights: torch.load(...)["state_dict"], or ["model"]):
    import torch, safetensors.torch
    safetensors.torch.save_file(torch.load({old!r}, weights_only=True), {new!r})"""


class BrokenCheckpointError(ValueError):
    """Raised if a checkpoint is damaged or cut off; the message names the file. Nothing was loaded from it."""


def save_checkpoint(
    path: str | Path,
    model: Module,
    optimizer: Optimizer | None = None,
    counters: dict | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> None:
    """Write the model, the optimiser's state, `counters` (any JSON) and extra arrays to one file.

    The file gets a temporary name first and is then renamed to `path`. `read_checkpoint` reads all of it back. The
    header has the SHA-256 checksum of the file.

    With a model alone, the file holds only its state dict, under PyTorch's names. To resume a run, pass the optimizer:
    with its state go the buffers that are not in the state dict, such as the counters of dropout.

    Raises ValueError for extra arrays that do not hold real numbers.
    """
    from safetensors.numpy import save

    arrays = model.state_dict()
    if optimizer is not None:
        arrays |= {f"buffer/{name}": buffer.numpy() for name, buffer in _unsaved_buffers(model)}
        arrays |= {f"optimizer/{name}": array for name, array in optimizer.state_dict().items()}
    arrays |= {f"extra/{name}": array for name, array in (extra or {}).items()}
    arrays = {name: _to_file(name, array) for name, array in arrays.items()}
    metadata = {"counters": json.dumps(counters or {}), "sha256": NO_DIGITS.decode()}
    write_whole(Path(path), *_with_checksum(save(arrays, metadata)))


def load_checkpoint(path: str | Path, model: Module, optimizer: Optimizer | None = None) -> dict:
    """Copy a checkpoint into the model and, if given, the optimiser. Return the counters.

    If any part does not fit, nothing is copied.

    Raises ValueError if a part does not fit, or `read_checkpoint` cannot read the file: BrokenCheckpointError if it is
    damaged.
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
    """Read (arrays, counters) from a safetensors file, written by `save_checkpoint` or by another program.

    Only arrays whose names start with `prefix` are read. float16 and bfloat16 are converted to float32, which holds
    their values exactly.

    The checksum is compared first. A file of another program, or of an older minidl, has none; it is read without.

    Raises, with the name of the file, BrokenCheckpointError if it is damaged, and ValueError if it holds other dtypes
    (float8, complex numbers) or is a PyTorch file. PyTorch files are never unpickled.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    if Path(path).exists() and not Path(path).is_file():
        kind = "folder" if Path(path).is_dir() else "device"
        raise ValueError(f"load_checkpoint: expected a file, got the {kind} {path}; pass the path of a file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_checksum(Path(path), metadata)
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is not a dict
            dtypes = {name: _readable(path, name, file.get_slice(name).get_dtype()) for name in names}
            arrays = {name: file.get_tensor(name) for name in names if dtypes[name] != "BF16"}
        if "BF16" in dtypes.values():  # NumPy has no bfloat16
            stored = dict(deserialize(Path(path).read_bytes()))
            arrays = {name: arrays[name] if name in arrays else _widened(stored[name]) for name in names}
    except SafetensorError as error:
        raise _explained(Path(path), error) from error
    arrays = {name: np.float32(array) if array.dtype == np.float16 else array for name, array in arrays.items()}
    return arrays, _counters(path, metadata)


# -- the checksum ------------------------------------------------------------------------------------------------------


def _with_checksum(content: bytes) -> tuple[memoryview, bytes, memoryview]:
    """Return the file in three pieces: before, in and after its checksum. To join them would need another copy."""
    start = _header(content).index(SHA256_KEY + NO_DIGITS) + len(SHA256_KEY)
    whole = memoryview(content)
    digits = hashlib.sha256(content).hexdigest().encode()
    return whole[:start], digits, whole[start + len(digits) :]


def _check_checksum(path: Path, metadata: dict[str, str]) -> None:
    """Raise BrokenCheckpointError if the file is not as it was written."""
    if "sha256" not in metadata:
        _accept_without_checksum(path, metadata)
        return
    content = np.memmap(path, np.uint8, "r")
    digits = metadata["sha256"].encode()
    start = _header(content).find(SHA256_KEY + digits) + len(SHA256_KEY)
    digest = hashlib.sha256(content[:start])
    digest.update(NO_DIGITS)
    digest.update(content[start + len(NO_DIGITS) :])
    if digest.hexdigest().encode() != digits:
        raise _damaged(path, "its bytes do not have the SHA-256 checksum that they were written with")


def _accept_without_checksum(path: Path, metadata: dict[str, str]) -> None:
    """Accept a file of another program, and warn of one from an older minidl, which wrote the counters alone."""
    if "counters" not in metadata:
        return
    if len(metadata) > 1:  # the key of the checksum is damaged
        raise _damaged(path, f"expected counters and sha256 in its header, got {sorted(metadata)}")
    note = "minidl: %s has no checksum, as it is from an older version: damage to its arrays would not be noticed"
    logging.getLogger("minidl").warning(note, path)


def _header(content: bytes | np.ndarray) -> bytes:
    """Return the file's first 8 bytes and its header, whose length they give."""
    return bytes(content[: 8 + int.from_bytes(bytes(content[:8]), "little")])


def _damaged(path: Path, reason: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(f"load_checkpoint: {path} is damaged ({reason}); use an earlier checkpoint")


# -- one array, and what else the file holds ---------------------------------------------------------------------------


def _to_file(name: str, array) -> np.ndarray:
    """Return the array C-contiguous and in native byte order: safetensors copies raw memory and ignores strides."""
    array = np.asarray(array)
    if array.dtype.name not in DTYPES.values():
        expected = f"expected {', '.join(DTYPES.values())}, got {array.dtype}"
        raise ValueError(f"save_checkpoint: {name}: {expected}; convert it to one of them")
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _readable(path: str | Path, name: str, dtype: str) -> str:
    """Return the dtype if it is supported, else raise ValueError."""
    if dtype not in DTYPES:
        expected = f"expected {', '.join(DTYPES)}, got {dtype}"
        raise ValueError(
            f"load_checkpoint: {path}: {name}: {expected}; convert it to F32 with the library that wrote it"
        )
    return dtype


def _widened(stored: dict) -> np.ndarray:
    """Convert bfloat16 to float32: the 16 bits of a bfloat16 are the upper half of the float32."""
    halves = np.frombuffer(stored["data"], "<u2").astype(np.uint32)
    return (halves << 16).view(np.float32).reshape(stored["shape"])


def _counters(path: str | Path, metadata: dict[str, str]) -> dict:
    try:
        counters = json.loads(metadata.get("counters", "{}"))
    except (ValueError, RecursionError):
        counters = None
    if not isinstance(counters, dict):
        raise BrokenCheckpointError(
            f"load_checkpoint: {path}: expected counters as minidl writes them, got damaged ones; "
            "use an earlier checkpoint"
        )
    return counters


def _explained(path: Path, error: Exception) -> ValueError:
    """Return the error for a file that safetensors cannot read, with the remedy."""
    with path.open("rb") as file:
        start = file.read(9)
        # A safetensors file begins with the length of its header, of which \x80 may be the first of 8 bytes, and a {.
        if start.startswith(PYTORCH_BEGINS) and start[8:] != b"{":
            old = path.with_suffix(".pth") if path.suffix == ".safetensors" else path  # torch.load looks at the suffix
            new = path.with_suffix(".safetensors")
            rename = f"rename it to {old} and " if old != path else ""
            words = CONVERT.format(path=path, rename=rename, old=str(old), new=str(new))
            return ValueError(f"load_checkpoint: {words}")
    return BrokenCheckpointError(
        f"load_checkpoint: {path} is not a complete safetensors file ({error}); copy or download it again, "
        "or use an earlier checkpoint"
    )


def _unsaved_buffers(model: Module) -> list[tuple[str, Buffer]]:
    return [(name, buffer) for name, buffer in model.named_buffers() if not buffer.persistent]


def _below(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
