"""Atomic writes: a file is complete, or it does not exist. Files that one process at a time writes to. Text files."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None

MOST_BYTES_OF_TEXT = 64 * 2**20


def read_text(path: str | Path, most_bytes: int = MOST_BYTES_OF_TEXT) -> str:
    """Return the text in a file that a user names.

    Raises OSError if it cannot be read; ValueError if it is no regular file, is longer than `most_bytes`, or is not
    UTF-8. Each names the file.
    """
    try:
        return read_bounded(path, most_bytes).decode("utf-8-sig")  # Windows begins a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"expected a text file in UTF-8, but {path} is not: see byte {error.start}") from None


def read_bounded(path: str | Path, most_bytes: int = MOST_BYTES_OF_TEXT) -> bytes:
    """Return the bytes of a text file that a user names, with the errors of `read_text`."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a folder; a FIFO or a device may have no end
        raise ValueError(f"expected a text file, got {path}, which is {'a folder' if path.is_dir() else 'no file'}")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"expected a text file of at most {most_bytes:,} bytes, but {path} is longer")
    return content


def write_whole(path: Path, *content: bytes | memoryview) -> None:
    """Write a file atomically: at any time the old or the new file exists, even if several processes write it.

    The pieces of the content are written one after the other.

    The content is written to a new file in the same folder, NAME.<random>.part, which is then renamed. A process that
    is killed leaves its .part file behind; the next call for the same path removes it.

    An OSError names the file, also if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_parts(path)
    with named_in_errors(path), _open_part(path) as file:
        part = Path(file.name)
        try:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows cannot rename an open file; elsewhere the lock is held until after the renaming
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):  # the disk may be read-only by now; the first error is the one to report
                part.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """A context in which an OSError names the file. The system does not say which one it could not write."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def link_whole(source: Path, path: Path) -> None:
    """Give a file a second name, atomically replacing what had that name.

    The two names share one copy on the disk (a hard link), which is safe for files that are only ever replaced. A file
    system without hard links gets a second copy.
    """
    _remove_abandoned_parts(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        os.link(source, part)
        part.replace(path)
    except OSError:
        write_whole(path, source.read_bytes())
    finally:
        with contextlib.suppress(OSError):  # it is still there if both names were the same file before
            part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def open_exclusive(path: Path) -> BinaryIO:
    """Open a file to read and write it, and wait while another process has opened it in this way.

    The file is created if it is missing. A symbolic link is not followed, so nobody who can write to the folder can
    choose another file to be written to.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b")
        _lock(file, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat(follow_symlinks=False)):
                return file
        file.close()  # the other process renamed or removed it before it was locked here


def _open_part(path: Path) -> BinaryIO:
    """Create a .part file with default permissions, locked while it is open so that no other process removes it."""
    while True:
        file = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part").open("xb")
        _lock(file, wait=True)
        if Path(file.name).exists():
            return file
        file.close()  # another process removed it before it was locked


def _remove_abandoned_parts(path: Path) -> None:
    """Remove this file's .part files that no process has locked. (Older versions put the process id in the name.)"""
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
    """Try to lock the file. Return False if another process has locked it, or the system has no such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Flush the folder, and so the new file name, to disk, if the system supports it."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
