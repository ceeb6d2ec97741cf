"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official Python archives: downloaded on demand, verified always.

The files are pickles, and a pickle may run any code when it is read. So each file must have its official md5 sum, and
is then read by an unpickler that can build nothing but uint8 arrays, lists, dicts, strings and numbers.
"""

import hashlib
import io
import pickle
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minidl.data.dataset import ArrayDataset
from minidl.system.files import write_whole

# Bytes. Both archives have about 163 MiB; a server that sends more, perhaps without an end, sends something else.
LARGEST_ARCHIVE = 2**28
CHUNK = 2**16


@dataclass(frozen=True)
class Archive:
    """A CIFAR archive: where it is, which files in it hold what, and the md5 sums of the archive and its files."""

    name: str
    url: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels_key: bytes
    classes_key: bytes
    md5: dict[str, str]


CIFAR10 = Archive(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
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
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
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
        root: a folder that holds `cifar-10-python.tar.gz`, or the unpacked `cifar-10-batches-py`, or is the latter.
        train: the training images, otherwise the test images.
        download: fetch the archive (163 MiB) into `root` where it is missing.

    Raises:
        FileNotFoundError: a file is missing, and `download` is False.
        ConnectionError: the download failed.
        ValueError: a file is damaged: its md5 sum is not the official one, or it holds something else than it should.
    """
    return load_archive(CIFAR10, Path(root), train, download)


def load_cifar100(root: str | Path, train: bool = True, download: bool = True) -> ArrayDataset:
    """CIFAR-100 with its 100 fine labels; all else as `load_cifar10`, with `cifar-100-python` and 161 MiB."""
    return load_archive(CIFAR100, Path(root), train, download)


def load_archive(archive: Archive, root: Path, train: bool, download: bool) -> ArrayDataset:
    """The training or test images of an archive in CIFAR's format; arguments and errors as `load_cifar10`."""
    names = archive.train if train else archive.test
    folder = _unpacked_folder(archive, root, [*names, archive.meta], download)
    classes = _read_classes(archive, folder / archive.meta)
    images, labels = zip(*(_read_batch(archive, folder / name, len(classes)) for name in names), strict=True)
    return ArrayDataset(np.concatenate(images), np.concatenate(labels), classes)


# Finding the files: unpacked, packed, or on the network.


def _unpacked_folder(archive: Archive, root: Path, names: Iterable[str], download: bool) -> Path:
    """The folder that holds these files; where one is missing, the archive is unpacked into it first."""
    root_is_folder = root.name == archive.folder or (root / archive.meta).exists()
    folder = root if root_is_folder else root / archive.folder
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        _unpack(archive, _packed_file(archive, root, missing, download), folder)
    return folder


def _packed_file(archive: Archive, root: Path, missing: list[str], download: bool) -> Path:
    """The archive in `root`, downloaded where it is not there."""
    path = root / archive.url.rpartition("/")[2]
    by_hand = f"put {archive.url} into {root} by hand, or use --dataset shapes, which needs no download"
    if path.exists():
        return path
    if not download:
        raise FileNotFoundError(
            f"load_{archive.name}: {', '.join(missing)} not found in {root}: pass download=True, or {by_hand}"
        )
    content = _fetch(archive.url, failure=f"load_{archive.name}: cannot download {path.name}: {by_hand}")
    where = f"load_{archive.name}: the download of {archive.url}"
    _check_md5(content, archive.md5[path.name], where, remedy="download it again")
    write_whole(path, content)
    return path


def _fetch(url: str, failure: str) -> bytes:
    """The bytes at an address, with a progress bar; `failure` is what to say when they do not come."""
    from http.client import HTTPException
    from urllib.request import urlopen

    from tqdm import tqdm

    content = io.BytesIO()
    try:
        with urlopen(url, timeout=30) as response:  # seconds without a byte
            # `length` is what is still to come; 0 or None where the server did not tell
            with tqdm.wrapattr(response, "read", total=response.length, desc=url, disable=None) as stream:
                while content.tell() <= LARGEST_ARCHIVE and (part := stream.read(CHUNK)):
                    content.write(part)
            missing = response.length or 0
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"{failure} ({error})") from error
    if content.tell() > LARGEST_ARCHIVE:
        raise ConnectionError(f"{failure} (expected at most {LARGEST_ARCHIVE:,} bytes, got more)")
    if missing:
        raise ConnectionError(f"{failure} (broken off, {missing:,} bytes are missing)")
    return content.getvalue()


def _unpack(archive: Archive, packed: Path, folder: Path) -> None:
    """Write the archive's data files into `folder`.

    No member is extracted by its own path: regular files with an expected name are read, and written under that name.
    """
    for name, content in _members(archive, packed):
        write_whole(folder / name, content)


def _members(archive: Archive, packed: Path) -> Iterator[tuple[str, bytes]]:
    """The names and the contents of the data files in the archive."""
    import tarfile

    content = io.BytesIO(_read(archive, packed))
    expected = {f"{archive.folder}/{name}": name for name in archive.md5}
    try:
        with tarfile.open(fileobj=content) as members:
            for member in members:
                if member.name in expected and member.isfile():
                    yield expected[member.name], members.extractfile(member).read()
    except MemoryError:
        raise
    except Exception as error:  # TarError, EOFError, zlib.error; what goes wrong with writing does not come here
        raise _damaged(archive, packed, f"expected a .tar.gz ({_quoted(error)})") from error


# Reading them: verified, and with no power to run code.


def _read_batch(archive: Archive, path: Path, class_count: int) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, 32, 32, 3), uint8, and the labels (N,), int64, of a file."""
    batch = _read_pickle(archive, path, (b"data", archive.labels_key))
    data, labels = batch[b"data"], batch[archive.labels_key]
    rows = data.values if isinstance(data, _PickledArray) else None
    if rows is None or rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32 or len(rows) == 0:
        got = type(data).__name__ if rows is None else rows.shape
        raise _damaged(archive, path, f"expected data (N, 3072) in uint8, got {got}")
    if not isinstance(labels, list) or len(labels) != len(rows):
        got = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise _damaged(archive, path, f"expected {len(rows)} labels, got {got}")
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < class_count]
    if wrong:
        raise _damaged(archive, path, f"expected labels in 0..{class_count - 1}, got {_quoted(wrong[0])}")
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, C*H*W) -> (N, H, W, C)
    return np.ascontiguousarray(images), np.array(labels, dtype=np.int64)


def _read_classes(archive: Archive, path: Path) -> tuple[str, ...]:
    """The names of the classes."""
    names = _read_pickle(archive, path, (archive.classes_key,))[archive.classes_key]
    try:
        if not names or not isinstance(names, list):
            raise TypeError
        return tuple(bytes.decode(name) for name in names)
    except (TypeError, UnicodeDecodeError) as error:
        raise _damaged(archive, path, f"expected names of classes, got {_quoted(names)}") from error


def _read_pickle(archive: Archive, path: Path, keys: tuple[bytes, ...]) -> dict:
    """The dictionary in a file, which has these keys."""
    try:
        content = unpickle(_read(archive, path))
    except pickle.UnpicklingError as error:
        raise _damaged(archive, path, f"expected a pickle of a dictionary ({error})") from error
    for key in keys:
        if key not in content:
            raise _damaged(archive, path, f"expected the key '{key.decode()}', got {_quoted(list(content))}")
    return content


def _read(archive: Archive, path: Path) -> bytes:
    """The bytes of a file, which have its official md5 sum."""
    content = path.read_bytes()
    where = f"load_{archive.name}: {path.name} in {path.parent}"
    _check_md5(content, archive.md5[path.name], where, remedy="delete it and download again")
    return content


def _damaged(archive: Archive, path: Path, what: str) -> ValueError:
    """The error for a file with the right md5 sum and wrong contents: the sum may be that of an archive of your own."""
    return ValueError(
        f"load_{archive.name}: {path.name} in {path.parent} is damaged: {what}; delete it and download again"
    )


def _quoted(value: object) -> str:
    """A value in a file, which may be of any length, for a message."""
    quote = reprlib.Repr()
    quote.maxstring = quote.maxother = 100
    try:
        return quote.repr(value)
    except ValueError:  # Python refuses to print numbers of more than 4,300 digits
        return type(value).__name__


def _check_md5(content: bytes, expected: str, where: str, remedy: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(f"{where} is damaged: md5 expected {expected}, got {found}; {remedy}")


def unpickle(content: bytes) -> dict:
    """The dictionary in a CIFAR file, its keys bytes; `[b"data"].values` is its array.

    Raises:
        pickle.UnpicklingError: it asks for anything but uint8 arrays, lists, dicts, strings and numbers, it is damaged,
            or it is no dictionary.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # EOFError, UnicodeError, MemoryError: all that pickle may raise
        raise pickle.UnpicklingError(f"unpickle: damaged, or no pickle: {_quoted(error)}") from error
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"unpickle: expected a dictionary, got {type(found).__name__}")
    return found


class _PickledArray:
    """Stands in for `numpy.ndarray`, and for the function that makes an empty one; ends with uint8 `values`."""

    values = np.empty(0, np.uint8)  # until its state comes

    def __init__(self, subtype: type, shape: tuple[int, ...], code: bytes) -> None:
        """Takes NumPy's arguments; what counts comes with the state."""

    def __setstate__(self, state: tuple) -> None:
        _version, shape, _dtype, fortran_order, content = state
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _PickledType:
    """Stands in for `numpy.dtype`; lets no type pass but uint8."""

    def __init__(self, code: bytes | str, align: bool, copy: bool) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(
                f"unpickle: a CIFAR file holds uint8 arrays only, got an array of {_quoted(code)}"
            )

    def __setstate__(self, state: tuple) -> None:
        """Takes byte order and alignment; a byte has neither."""


# What a CIFAR pickle asks for, and what it is given: NumPy itself never meets the file.
_STAND_INS = {
    ("numpy", "dtype"): _PickledType,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # its name since NumPy 2
}


class _Unpickler(pickle.Unpickler):
    """Hands out the stand-ins and nothing else."""

    def find_class(self, module: str, name: str) -> type:
        """The stand-in for what the pickle asks for."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(
                f"unpickle: a CIFAR file has no use for {_quoted(f'{module}.{name}')}: refused"
            )
        return _STAND_INS[module, name]
