"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official Python archives: downloaded on demand, verified always.

The files are pickles, and a pickle may run any code when it is read. So each file must have its official md5 sum, and
is then read by an unpickler that can build nothing but uint8 arrays, lists, dicts, strings and numbers.
"""

import hashlib
import io
import pickle
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minidl.data.dataset import ArrayDataset
from minidl.files import write_whole


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
        ValueError: a file is damaged: its md5 sum is not the official one.
    """
    return load_archive(CIFAR10, Path(root), train, download)


def load_cifar100(root: str | Path, train: bool = True, download: bool = True) -> ArrayDataset:
    """CIFAR-100 with its 100 fine labels; all else as `load_cifar10`, with `cifar-100-python` and 161 MiB."""
    return load_archive(CIFAR100, Path(root), train, download)


def load_archive(archive: Archive, root: Path, train: bool, download: bool) -> ArrayDataset:
    """The training or test images of an archive in CIFAR's format; arguments and errors as `load_cifar10`."""
    names = archive.train if train else archive.test
    folder = _unpacked_folder(archive, root, [*names, archive.meta], download)
    batches = [unpickle(_read(archive, folder / name)) for name in names]
    classes = unpickle(_read(archive, folder / archive.meta))[archive.classes_key]
    return ArrayDataset(
        images=np.concatenate([_to_images(batch[b"data"].values) for batch in batches]),
        labels=np.concatenate([np.array(batch[archive.labels_key], dtype=np.int64) for batch in batches]),
        classes=tuple(name.decode() for name in classes),
    )


def _to_images(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # (N, C*H*W) -> (N, H, W, C)


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
            size = int(response.headers["Content-Length"] or 0)
            with tqdm.wrapattr(response, "read", total=size, desc=url, disable=None) as stream:
                shutil.copyfileobj(stream, content)
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"{failure} ({error})") from error
    return content.getvalue()


def _unpack(archive: Archive, packed: Path, folder: Path) -> None:
    """Write the archive's data files into `folder`.

    No member is extracted by its own path: regular files with an expected name are read, and written under that name.
    """
    import tarfile

    expected = {f"{archive.folder}/{name}": name for name in archive.md5}
    with tarfile.open(fileobj=io.BytesIO(_read(archive, packed))) as members:
        for member in members:
            if member.name in expected and member.isfile():
                write_whole(folder / expected[member.name], members.extractfile(member).read())


# Reading them: verified, and with no power to run code.


def _read(archive: Archive, path: Path) -> bytes:
    """The bytes of a file, which have its official md5 sum."""
    content = path.read_bytes()
    where = f"load_{archive.name}: {path.name} in {path.parent}"
    _check_md5(content, archive.md5[path.name], where, remedy="delete it and download again")
    return content


def _check_md5(content: bytes, expected: str, where: str, remedy: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(f"{where} is damaged: md5 expected {expected}, got {found}; {remedy}")


def unpickle(content: bytes) -> dict:
    """The dictionary in a CIFAR file, its keys bytes; `[b"data"].values` is its array.

    Raises:
        pickle.UnpicklingError: it asks for anything but uint8 arrays, lists, dicts, strings and numbers.
    """
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


class _PickledArray:
    """Stands in for `numpy.ndarray`, and for the function that makes an empty one; ends with uint8 `values`."""

    def __init__(self, subtype: type, shape: tuple[int, ...], code: bytes) -> None:
        """Takes NumPy's arguments; what counts comes with the state."""

    def __setstate__(self, state: tuple) -> None:
        _version, shape, _dtype, fortran_order, content = state
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _PickledType:
    """Stands in for `numpy.dtype`; lets no type pass but uint8."""

    def __init__(self, code: bytes | str, align: bool, copy: bool) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"unpickle: a CIFAR file holds uint8 arrays only, got an array of {code!r}")

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
            raise pickle.UnpicklingError(f"unpickle: a CIFAR file has no use for {module}.{name}: refused")
        return _STAND_INS[module, name]
