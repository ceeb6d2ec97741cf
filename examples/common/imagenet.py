"""Data for the ImageNet scripts: DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG, with any number of classes.

Testing needs only one folder per class: DIR/val/<wnid>/*.JPEG or DIR/<wnid>/*.JPEG.
"""

import argparse
import hashlib
import os
from pathlib import Path

from minidl.data import ImageFolder, ImageLoader

TRAINING_LAYOUT = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
TEST_LAYOUT = "val/<wnid>/*.JPEG, or <wnid>/*.JPEG"


def training_folders(args: argparse.Namespace) -> tuple[ImageFolder, ImageFolder]:
    """DIR/train and DIR/val. If one is missing, a ValueError names it and says how to make it."""
    folders = _folders_in(args.data, TRAINING_LAYOUT)
    if not folders & {"train", "val"}:
        raise ValueError(
            f"--data: expected {TRAINING_LAYOUT} in {args.data}, got {_abbreviated(folders)} directly in it; "
            "move most photographs of each class to train/<class> and the rest to val/<class>"
        )
    for split, purpose in (("train", "training"), ("val", "validation")):
        if split not in folders:
            raise ValueError(
                f"--data: expected {TRAINING_LAYOUT} in {args.data}, got no {split}; "
                f"put the {purpose} photographs into {split}/<class>, one folder per class"
            )
    train = ImageFolder(Path(args.data, "train"), args.names)
    return train, ImageFolder(Path(args.data, "val"), args.names, train.classes)


def folder_to_test(args: argparse.Namespace, classes: tuple[str, ...] | None = None) -> ImageFolder:
    """DIR/val, or DIR itself if it holds the class folders. Labels are positions in `classes`, if given."""
    folders = _folders_in(args.data, TEST_LAYOUT)
    if "val" not in folders and "train" in folders:
        raise ValueError(
            f"--data: expected {TEST_LAYOUT} in {args.data}, got train without val; "
            f"create val, or test on the training photographs with --data {Path(args.data, 'train')}"
        )
    return ImageFolder(Path(args.data, "val" if "val" in folders else ""), args.names, classes)


def _folders_in(path: str, layout: str) -> set[str]:
    """The names of the folders in --data. It is an error if there are none."""
    if not Path(path).is_dir():
        found = "a file" if Path(path).exists() else "a path that does not exist"
        raise ValueError(f"--data: expected a folder with {layout}, got {found}: {path}; pass the path of the folder")
    folders = {entry.name for entry in Path(path).iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if not folders:
        raise ValueError(
            f"--data: expected {layout} in {path}, got no subfolders; sort the photographs into one folder per class"
        )
    return folders


def _abbreviated(folders: set[str]) -> str:
    """A short list of the names: 'n01, n02, ... (146 folders)'."""
    names = sorted(folders)
    return f"{', '.join(names[:2])}, ... ({len(names)} folders)" if len(names) > 2 else ", ".join(names)


def describe_files(folder: ImageFolder) -> str:
    """Such as '146 with SHA-256 0123456789abcdef': their number, and 16 digits of a checksum of their names and sizes.

    Pixels are not read, which would take hours. Dates are left out: a copy of the photographs has others.
    """
    digest, start = hashlib.sha256(), len(str(folder.root)) + 1
    for path in folder.paths:
        digest.update(os.fsencode(path[start:]) + b"\0%d\n" % os.stat(path).st_size)  # noqa: PTH116 - half the time
    return f"{len(folder):,} with SHA-256 {digest.hexdigest()[:16]}"


def report_broken(*loaders: ImageLoader, whose: str = "") -> None:
    """Print how many photographs were skipped. Each was named in a warning when it was read."""
    count = sum(len(loader.broken) for loader in loaders)
    if count:
        print(f"photographs{whose} that cannot be decoded, each replaced by the next one in the folder: {count:,}")
