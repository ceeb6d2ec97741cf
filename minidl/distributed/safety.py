"""Checks that the ranks run the same program on the same data, and errors that all ranks learn of."""

import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from minidl.distributed.communicator import Communicator, gather, gather_text, name_ranks
from minidl.tensor import Tensor


def check_same(communicator: Communicator, name: str, value) -> None:
    """Raise RuntimeError on every rank, naming the ranks that differ, unless `value` is the same on all ranks.

    Only digests travel (SHA-256). Every rank calls it.

    Args:
        communicator: the ranks to compare.
        name: of the value, for the message.
        value: an array, tensor, bytes, anything that JSON can hold, a Path (its name), or a dict of these, such as
            `model.state_dict()` or `vars(arguments)`.
    """
    digests = gather(communicator, np.frombuffer(digest(name, value), np.uint8))
    ranks_with: dict[bytes, list[int]] = {}
    for rank, row in enumerate(digests):
        ranks_with.setdefault(row.tobytes(), []).append(rank)
    if len(ranks_with) > 1:
        groups = sorted(ranks_with.items(), key=lambda group: (-len(group[1]), group[1]))
        found = "; ".join(f"{name_ranks(ranks)}: digest {row.hex()[:12]}" for row, ranks in groups)
        raise RuntimeError(f"check_same: expected the same {name} on every rank, got {found}; start all ranks alike")


def check_code(communicator: Communicator, *scripts: Path | str) -> None:
    """Raise RuntimeError on every rank unless all ranks have the same minidl and the same scripts, byte for byte."""
    package = Path(__file__).parents[1]
    files = {path.relative_to(package).as_posix(): path.read_bytes() for path in sorted(package.rglob("*.py"))}
    check_same(communicator, "code of minidl", files)
    for script in scripts:
        check_same(communicator, f"code of {Path(script).name}", Path(script).read_bytes())


def digest(name: str, value) -> bytes:
    """Return the SHA-256 of a value: see `check_same`."""
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        parts = [digest("key", str(key)) + digest(f"{name}.{key}", part) for key, part in items]
        return hashlib.sha256(b"".join(parts)).digest()
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value)
        head = f"{value.dtype} {value.shape} "
        return hashlib.sha256(head.encode() + content.tobytes()).digest()
    if isinstance(value, bytes):
        return hashlib.sha256(value).digest()
    try:
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=_path).encode()).digest()
    except TypeError:
        raise TypeError(
            f"check_same: {name}: expected an array, bytes, or what JSON can hold, got {type(value).__name__}"
        ) from None


@contextlib.contextmanager
def on_every_rank(communicator: Communicator) -> Iterator[None]:
    """If the block raises an Exception on some rank, raise RuntimeError on every rank, with those errors.

    The ranks exchange their errors at the end of the block. There must be no collective call inside: the ranks without
    an error would wait there for the others. For example, to read the data:

        with on_every_rank(communicator):
            images = load_cifar10(folder)
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    texts = gather_text(communicator, "" if error is None else f"{type(error).__name__}: {error}")
    failed = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]
    if failed:
        raise RuntimeError("; ".join(failed)) from error


def check_shared_folder(communicator: Communicator, path: Path | str) -> None:
    """Raise RuntimeError on every rank unless all ranks see the same folder at this path, in which rank 0 can write.

    Checkpoints are written by rank 0 and read by all. On several machines the folder must be on a shared file system.
    """
    token = np.frombuffer(secrets.token_bytes(16), np.uint8).copy()
    communicator.broadcast(token)
    probe = Path(path) / f".minidl-{token.tobytes().hex()}"
    try:
        with on_every_rank(communicator):
            if communicator.rank == 0:
                probe.write_bytes(b"")
        with on_every_rank(communicator):
            if not probe.exists():
                raise RuntimeError(
                    f"check_shared_folder: expected to see in {path} what rank 0 wrote there; the folder must be on a "
                    "file system that all machines share"
                )
    finally:
        if communicator.rank == 0:
            probe.unlink(missing_ok=True)


def _path(value) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError
