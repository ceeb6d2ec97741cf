"""Files that are there whole, or not at all."""

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at every moment the old one or the new one is there, even if several processes write it.

    The content is written to a new file beside it, NAME.<random>.part, which is then renamed. A process that is killed
    leaves its part behind: the next call for the same path removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_parts(path)
    with _open_part(path) as file:
        part = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows does not rename an open file; elsewhere the lock is held until it has its name
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _open_part(path: Path) -> BinaryIO:
    """A new file, with the mode of any new file, locked as long as it is open, so that no process removes it."""
    while True:
        file = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part").open("xb")
        _lock(file, wait=True)
        if Path(file.name).exists():
            return file
        file.close()  # removed before it was locked


def _remove_abandoned_parts(path: Path) -> None:
    """Remove the parts of this file that no process holds a lock on. (Their names once had the process's number.)"""
    names = re.compile(rf"{re.escape(path.name)}\.([0-9a-f]{{16}}|[0-9]+)\.part")
    with os.scandir(path.parent) as entries:
        found = [
            entry.path for entry in entries if names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
    for part in map(Path, found):
        with contextlib.suppress(OSError), part.open("r+b") as file:
            if _lock(file, wait=False):
                part.unlink()


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Whether the file is locked for this process now: not if another one has it, nor without locks on this system."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Have the new name on disk too, where the system can do that."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
