"""The data of the ImageNet scripts: DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG, any number of classes.

A folder for each class is all that testing needs: DIR/val/<wnid>/*.JPEG, or DIR/<wnid>/*.JPEG.
"""

import argparse
from pathlib import Path

from minidl.data import ImageFolder, ImageLoader

TRAINING_LAYOUT = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
TEST_LAYOUT = "val/<wnid>/*.JPEG, or <wnid>/*.JPEG"


def training_folders(args: argparse.Namespace) -> tuple[ImageFolder, ImageFolder]:
    """DIR/train and DIR/val; a ValueError says which of them is missing, and how to get it."""
    folders = _folders_in(args.data, TRAINING_LAYOUT)
    if not folders & {"train", "val"}:
        raise ValueError(
            f"--data: expected {TRAINING_LAYOUT} in {args.data}, got {_some(folders)} directly in it; "
            "move most photographs of each class to train/<class>, and some to val/<class>"
        )
    for split, others in (("train", "those to train on"), ("val", "those to test on")):
        if split not in folders:
            raise ValueError(
                f"--data: expected {TRAINING_LAYOUT} in {args.data}, got no {split}; "
                f"put photographs there, {others}, in a folder for each class"
            )
    train = ImageFolder(Path(args.data, "train"), args.names)
    return train, ImageFolder(Path(args.data, "val"), args.names, train.classes)


def folder_to_test(args: argparse.Namespace, classes: tuple[str, ...] | None = None) -> ImageFolder:
    """DIR/val, or DIR itself where that holds the folders of the classes; labelled as `classes` say."""
    folders = _folders_in(args.data, TEST_LAYOUT)
    if "val" not in folders and "train" in folders:
        raise ValueError(
            f"--data: expected {TEST_LAYOUT} in {args.data}, got train without val; "
            f"put photographs to test on there, or test those of --data {Path(args.data, 'train')}"
        )
    return ImageFolder(Path(args.data, "val" if "val" in folders else ""), args.names, classes)


def _folders_in(place: str, layout: str) -> set[str]:
    """The names of the folders in --data; at least one."""
    if not Path(place).is_dir():
        found = "a file" if Path(place).exists() else "nothing there"
        raise ValueError(f"--data: expected a folder with {layout}, got {found}: {place}; give the folder's path")
    folders = {path.name for path in Path(place).iterdir() if path.is_dir() and not path.name.startswith(".")}
    if not folders:
        raise ValueError(
            f"--data: expected {layout} in {place}, got no folder in it; sort the photographs into a folder per class"
        )
    return folders


def _some(folders: set[str]) -> str:
    """'n01, n02, ... (146 folders)'."""
    names = sorted(folders)
    return f"{', '.join(names[:2])}, ... ({len(names)} folders)" if len(names) > 2 else ", ".join(names)


def count_broken(*loaders: ImageLoader) -> None:
    """Say how many photographs were left out; each was named when it was met."""
    count = sum(len(loader.broken) for loader in loaders)
    if count:
        print(
            f"left out, as they cannot be decoded: {count:,} photographs, each replaced by the next one of its folder"
        )
