"""Download a file of known size and checksum from the first of its mirrors that is fast enough.

What has arrived is kept in NAME.partial. A later download continues there, also from another mirror, because all of
them have the same bytes. The file gets its name only after its SHA-256 checksum is found to be right.
"""

import contextlib
import hashlib
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from minidl.system.files import open_exclusive

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.request import OpenerDirector

    from tqdm import tqdm

PATIENCE = 10.0  # seconds
# In bytes per second. A mirror that stays below the first speed for PATIENCE seconds is left for the next one. If all
# of them do, the reason may be the user's own connection: they are tried again, and may be slower each time. The last
# speed bounds the time that a download can take.
SPEEDS = (300_000, 100_000, 30_000, 10_000)
CHUNK = 2**16
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class RemoteFile:
    """A file on the network: its name, its size in bytes, its SHA-256 checksum, and its addresses, the best first."""

    name: str
    size: int
    sha256: str
    sources: tuple[str, ...]


class SourceError(Exception):
    """A source cannot be used: it does not answer, or it has another file."""


class UnfinishedError(SourceError):
    """A source has sent a part of the file, and then became too slow or closed the connection."""


def download(remote: RemoteFile, folder: Path, patience: float = PATIENCE, speeds: Sequence[float] = SPEEDS) -> None:
    """Download a file into a folder, which is created if it is missing.

    Args:
        remote: the file. Its sources must have https addresses; http is accepted for servers on this machine.
        folder: where it is stored, as `remote.name`. It is `remote.name` + `.partial` until it is complete.
        patience: in seconds. A source must send at least `speed * patience` bytes in this time, or the next one is
            tried.
        speeds: the values of `speed`, in bytes per second. All sources are tried with the first one, then those that
            were too slow or cut off with the second one, and so on.

    Raises:
        ConnectionError: no source sent the file. The message gives the reason for each of them.
        OSError: the file cannot be written.
        KeyboardInterrupt: after Ctrl-C. As after a ConnectionError, the .partial file stays for the next call.
    """
    partial = folder / f"{remote.name}.partial"
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open_exclusive(partial) as file, _left_tidy(partial, remote.size):
            if not (folder / remote.name).exists():  # another process can have downloaded it in the meantime
                _complete(file, remote, patience, speeds)
                os.fsync(file)
                if os.name == "nt":
                    file.close()  # Windows cannot rename an open file
                partial.replace(folder / remote.name)
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for path in created:
                path.rmdir()


@contextlib.contextmanager
def _left_tidy(partial: Path, size: int) -> Iterator[None]:
    """If a download is interrupted or fails, say what remains of it; remove the .partial file if it is empty."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"download interrupted: {_remains(partial, size)}", file=sys.stderr)
        raise
    except ConnectionError as error:
        raise ConnectionError(f"{error}; {_remains(partial, size)}") from None
    except OSError as error:  # such as a full disk
        raise OSError(f"cannot write {partial} ({error.strerror or error}); {_remains(partial, size)}") from error
    finally:
        if partial.exists() and partial.stat().st_size == 0:
            with contextlib.suppress(OSError):  # Windows cannot remove an open file
                partial.unlink()


def _remains(partial: Path, size: int) -> str:
    kept = partial.stat().st_size if partial.exists() else 0
    if kept == 0:
        return "nothing is kept"
    return f"{kept:,} of {size:,} bytes are in {partial}, and the next run continues from there"


# -- choose a source ---------------------------------------------------------------------------------------------------


def _complete(file: BinaryIO, remote: RemoteFile, patience: float, speeds: Sequence[float]) -> None:
    """Write what is missing of the file, from one source after the other, until its checksum is right."""
    from tqdm import tqdm

    arrived, sources, reasons = file.seek(0, os.SEEK_END), remote.sources, {}
    with tqdm(total=remote.size, initial=arrived, unit="B", unit_scale=True, desc=remote.name, disable=None) as bar:
        for speed in speeds:
            unfinished = []
            for source in sources:
                server = urlsplit(source).netloc or source
                bar.set_postfix_str(server, refresh=False)
                try:
                    _complete_from(source, file, remote, patience, speed, bar)
                    return
                except SourceError as error:
                    reasons[server] = _printable(str(error))
                    bar.write(f"{server}: {reasons[server]}", file=sys.stderr)
                    if isinstance(error, UnfinishedError):
                        unfinished.append(source)
            sources = unfinished
    raise ConnectionError("; ".join(f"{server}: {reason}" for server, reason in reasons.items()))


def _printable(text: str) -> str:
    """Replace control characters: a server may have sent sequences that change the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:500])


def _complete_from(source: str, file: BinaryIO, remote: RemoteFile, patience: float, speed: float, bar: "tqdm") -> None:
    """Write what is missing of the file, from one source.

    If the checksum is then wrong, and the beginning was there before, it is not known which part is to blame: all of
    the file is downloaded again. If everything came from this source, the source has another file.
    """
    while True:
        begin = file.seek(0, os.SEEK_END)
        if begin < remote.size:
            with contextlib.closing(_paced(_parts(source, begin, remote.size, patience), patience, speed)) as parts:
                for position, part in parts:
                    begin = min(begin, position)
                    file.seek(position)
                    file.write(part)
                    file.flush()  # a process that is killed leaves all that has arrived
                    bar.update(position + len(part) - bar.n)
        found = _sha256(file)
        if found == remote.sha256:
            return
        file.truncate(0)
        if begin == 0:
            raise SourceError(f"has another file: SHA-256 expected {remote.sha256}, got {found}")


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


# -- measure the speed -------------------------------------------------------------------------------------------------


def _paced(parts: Iterator[tuple[int, bytes]], patience: float, speed: float) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of a download while at least `speed * patience` bytes arrive in any `patience` seconds.

    Another thread waits for the network. The timeout of a socket would not be enough: it starts again at each byte,
    and does not apply to the look-up of a name. A thread that still waits when the download ends does no harm.
    """
    arrived, stop = queue.Queue(maxsize=1024), threading.Event()
    threading.Thread(target=_collect, args=(parts, arrived, stop), name="minidl download", daemon=True).start()
    total, recent, deadline = 0, 0, time.monotonic() + patience
    try:
        while True:
            try:
                item = arrived.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise _too_slow(total, recent, patience) from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise _source_error(item, total) from None
            yield item
            total, recent = total + len(item[1]), recent + len(item[1])
            if recent >= speed * patience:
                recent, deadline = 0, time.monotonic() + patience
    finally:
        stop.set()
        with contextlib.suppress(queue.Empty):  # make room, so that the thread does not wait for it
            while True:
                arrived.get_nowait()


def _collect(parts: Iterator[tuple[int, bytes]], arrived: queue.Queue, stop: threading.Event) -> None:
    """Put all parts into the queue, then None, or else the error that ended them."""
    try:
        for part in parts:
            arrived.put(part)
            if stop.is_set():
                return
        arrived.put(None)
    except Exception as error:  # any error of urllib, http.client, ssl and socket
        arrived.put(error)


def _too_slow(total: int, recent: int, patience: float) -> SourceError:
    if total == 0:
        return SourceError(f"no data in {patience:g} s")
    return UnfinishedError(f"too slow: {recent / patience / 1000:,.1f} kB/s in the last {patience:g} s")


def _source_error(error: Exception, total: int) -> SourceError:
    """The error of a source after `total` bytes. If some have arrived, the source is worth another attempt."""
    if isinstance(error, SourceError):
        return error
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    return UnfinishedError(f"connection lost: {reason}") if total else SourceError(f"cannot connect: {reason}")


# -- read from the network ---------------------------------------------------------------------------------------------


def _parts(source: str, begin: int, size: int, patience: float) -> Iterator[tuple[int, bytes]]:
    """Yield (position in the file, bytes) as they arrive: from `begin` on, or from 0 if the server ignores ranges.

    No more than the file's `size` is read, whatever the server sends.
    """
    with _request(source, begin, timeout=3 * patience) as response:  # later than `_paced`, which gives the reason
        position = _first_position(response, begin, size)
        while position < size and (part := response.read1(min(CHUNK, size - position))):
            yield position, part
            position += len(part)
    if position < size:
        raise UnfinishedError(f"connection closed, {size - position:,} bytes are missing")


def _request(source: str, begin: int, timeout: float) -> "HTTPResponse":
    """Request the bytes from `begin` on. If the server refuses this range, request the whole file."""
    from urllib.error import HTTPError
    from urllib.request import Request

    check_address(source)
    headers = {"User-Agent": "minidl"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        return _opener().open(Request(source, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416 and begin:  # Range Not Satisfiable
            return _request(source, 0, timeout)
        raise SourceError(f"HTTP {error.code} {error.reason}") from None


def _first_position(response: "HTTPResponse", begin: int, size: int) -> int:
    """The position in the file of the first byte of a response. Raise SourceError if it announces another file."""
    if response.status == 206:  # Partial Content
        announced = response.headers.get("Content-Range", "")
        if not re.fullmatch(rf"bytes {begin}-{size - 1}/({size}|\*)", announced):
            raise SourceError(f"has another file: expected bytes {begin}-{size - 1}/{size}, got {announced[:80]!r}")
        return begin
    if response.status != 200:
        raise SourceError(f"HTTP {response.status} {response.reason}")
    if response.length not in (None, size):  # None: the server does not announce a length
        raise SourceError(f"has another file: expected {size:,} bytes, got {response.length:,}")
    return 0


def _opener() -> "OpenerDirector":
    """An opener that checks the address of each redirection."""
    from urllib.request import HTTPRedirectHandler, build_opener

    class CheckedRedirects(HTTPRedirectHandler):
        def redirect_request(self, req, fp, code, msg, headers, newurl):
            try:
                check_address(newurl, redirected_from=req.full_url)
            except SourceError:
                fp.close()
                raise
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return build_opener(CheckedRedirects)


def check_address(address: str, redirected_from: str = "") -> None:
    """Raise SourceError unless an address is https, or http on this machine. https never leads back to http."""
    parts = urlsplit(address)
    is_local = parts.scheme == "http" and parts.hostname in THIS_MACHINE
    if parts.scheme != "https" and (not is_local or redirected_from.startswith("https:")):
        leads = "redirects to" if redirected_from else "is"
        raise SourceError(f"{leads} {address[:200]}, which is not encrypted: expected an https address")
