"""Command lines that make no sense: each ends with one line that says what is wrong, and leaves nothing behind.

The table has more than 400 of them, for all scripts. They run in this process, with few images; some run as a user
runs them, in a process of their own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import degradation
import evaluate_imagenet
import export_weights
import localize
import look
import numpy as np
import predict
import pytest
import segment_shapes
import speedrun_cifar10
import tour
import train_cifar_resnet
import train_cifar_vgg
import train_imagenet
import transfer
from models.resnet import cifar_resnet
from PIL import Image
from safetensors.numpy import save_file

from minidl import save_checkpoint
from tests.examples.tools import ROOT, run_main, shapes

# -- the table ---------------------------------------------------------------------------------------------------------

# In the table, words in capitals are files and folders that `things` makes, or paths where nothing is.
COUNTS = "0", "-1", "1.5", "ten", "", "nan"
SEEDS = "-1", "0.5", "x", ""
RATES = "nan", "inf", "-5", "-1e-9", "fast", ""
CHOICES = "nonsense", ""
DEVICES = "gpu", "cuda:x", "cuda:-1", "", "cuda:99"

RESNET = ["--depth", "8", "--epochs", "1", "--batch-size", "20"]
VGG = ["--config", "A", "--epochs", "1", "--batch-size", "20"]
IMAGENET = ["--data", "PHOTOS", "--model", "resnet18", "--size", "32", "--sides", "36", "--iterations", "1"]
IMAGENET += ["--statistics", "CACHE"]
DEGRADATION = ["--depths", "8", "--shortcuts", "A", "--budget", "1"]
SPEEDRUN = ["--dataset", "shapes", "--epochs", "0.5", "--batch-size", "20"]
LOCALIZE = ["--images", "8", "--test-images", "2", "--class-epochs", "1", "--box-epochs", "1"]
TRANSFER = ["--random-init", "--depth", "8"]
PREDICT = ["--weights", "WEIGHTS", "--images", "PHOTO"]
EVALUATE = ["--data", "PHOTOS", "--model", "resnet18", "--random-init"]
LOOK = ["--weights", "WEIGHTS", "--images", "shapes:0", "--methods", "saliency", "--out", "pictures"]
SEGMENT = ["--images", "8", "--test-images", "2", "--size", "16", "--epochs", "1", "--batch-size", "4"]
EXPORT = ["--run", "WEIGHTS", "--name", "tiny", "--folder", "NOWHERE"]

# script -> (options that it runs with, {option: values that make no sense}, other options that make no sense)
SCRIPTS = {
    look: (
        LOOK,
        {
            "--methods": CHOICES,
            "--class": ("11", "-1", "1.5", ""),
            "--layer": CHOICES,
            "--steps": COUNTS,
            "--size": COUNTS,
            "--images": ("NOWHERE", "FILE", "EMPTY", "shapes:x", "cifar11:0"),
            "--weights": ("NOWHERE", "FILE", "BARE", "JUNK", "hf:", "resnet20-nonsense"),
            "--out": ("FILE",),
        },
        [["--nonsense"]],
    ),
    segment_shapes: (
        SEGMENT,
        {
            **dict.fromkeys(("--images", "--test-images", "--epochs", "--batch-size", "--blocks", "--width"), COUNTS),
            "--skips": ("3", "-1", "x", ""),
            "--device": DEVICES,
            "--size": (*COUNTS, "7"),
            "--lr": RATES,
            "--out": ("FILE", ""),
        },
        [["--resume", "--out", "NOWHERE"]],
    ),
    export_weights: (
        EXPORT,
        {"--run": ("NOWHERE", "FILE", "BARE", "JUNK", "FOREIGN", "nonsense"), "--name": ("", "a/b", "..")},
        [["--nonsense"]],
    ),
    train_cifar_resnet: (
        RESNET,
        {
            "--depth": (*COUNTS, "7", "21"),
            "--shortcut": CHOICES,
            "--recipe": CHOICES,
            "--dataset": CHOICES,
            "--batch-size": COUNTS,
            "--epochs": COUNTS,
            "--iterations": COUNTS,
            "--limit-train": COUNTS,
            "--keep": COUNTS,
            "--seed": SEEDS,
            "--lr": RATES,
            "--weight-decay": RATES,
            "--device": DEVICES,
            "--dtype": (*CHOICES, "bfloat16", "float64"),
            "--out": ("FILE", "FILE/run", "/proc/run", ""),
        },
        [
            ["--epochs", "1", "--iterations", "1"],
            ["--resume"],
            ["--resume", "--out", "NOWHERE"],
            ["--resume", "--out", "JUNK"],
            ["--resume", "--out", "FOREIGN"],
            ["--epoch"],
            ["--frobnicate"],
            ["stray"],
            ["--lr"],
        ],
    ),
    train_cifar_vgg: (
        VGG,
        {
            "--config": CHOICES,
            "--recipe": CHOICES,
            "--batch-size": COUNTS,
            "--seed": SEEDS,
            "--lr": RATES,
            "--weight-decay": RATES,
            "--keep": COUNTS,
            "--device": DEVICES,
            "--out": ("FILE", "FILE/run", "/proc/run", ""),
        },
        [["--batch-norm", "yes"], ["--resume"], ["--resume", "--out", "JUNK"], ["stray"]],
    ),
    train_imagenet: (
        IMAGENET,
        {
            "--data": ("NOWHERE", "FILE", "EMPTY", "PHOTOS/train", "PHOTOS/train/n01", "ONLY_TRAIN", ""),
            "--model": CHOICES,
            "--recipe": CHOICES,
            "--shortcut": (*CHOICES, "none"),
            "--variant": CHOICES,
            "--init": CHOICES,
            "--init-from": ("NOWHERE", "FILE", "EMPTY", "WEIGHTS", "PICKLE", ""),
            "--sides": COUNTS,
            "--validation-side": (*COUNTS, "31"),
            "--size": (*COUNTS, "37"),
            "--micro-batch": COUNTS,
            "--patience": SEEDS,
            "--threads": COUNTS,
            "--lr": RATES,
            "--statistics": ("EMPTY", "FILE", "FILE/cache.npz", "PHOTO"),
            "--names": ("NOWHERE", "FILE", "EMPTY", "PHOTO", ""),
            "--device": DEVICES,
            "--out": ("FILE", "FILE/run", "/proc/run", ""),
        },
        [["--sides", "1", "2", "3"], ["--resume"], ["--resume", "--out", "JUNK"], ["stray"]],
    ),
    degradation: (
        DEGRADATION,
        {
            "--depths": (*COUNTS, "7", "21"),
            "--shortcuts": CHOICES,
            "--budget": (*COUNTS, "1d", "h", "-5min", "0s", "1e3"),
            "--batch-size": COUNTS,
            "--seed": SEEDS,
            "--device": DEVICES,
            "--out": ("FILE", "FILE/run", "/proc/run", "", "JUNK_RUNS"),
        },
        [["--depths"], ["--shortcuts"], ["--resume"], ["--budget", "1h", "--out", "TORN"]],
    ),
    speedrun_cifar10: (
        SPEEDRUN,
        {
            "--epochs": ("0", "nan", "-0.5", "inf", "x", ""),
            "--seeds": COUNTS,
            "--batch-size": (*COUNTS, "41"),
            "--dtype": (*CHOICES, "float16"),
            "--device": DEVICES,
            "--out": ("FILE", "FILE/run", "/proc/run", "", "JUNK_SEED"),
        },
        [["--resume"], ["--lr", "1"]],
    ),
    localize: (
        LOCALIZE,
        {
            "--boxes": CHOICES,
            "--class-epochs": COUNTS,
            "--box-epochs": COUNTS,
            "--class-lr": RATES,
            "--box-lr": RATES,
            "--images": COUNTS,
            "--test-images": COUNTS,
            "--seed": SEEDS,
            "--out": ("FILE", "FILE/run", "/proc/run", ""),
        },
        [["--device", "cuda"], ["stray"]],
    ),
    transfer: (
        TRANSFER,
        {
            "--layer": ("layer9", "", "layer1.0.conv9", "logits"),
            "--epochs": COUNTS,
            "--depth": (*COUNTS, "7"),
            "--seed": SEEDS,
            "--device": DEVICES,
            "--dataset": CHOICES,
        },
        [["--weights", "WEIGHTS"], ["--shortcut", "D"]],
    ),
    predict: (
        PREDICT,
        {
            "--weights": ("NOWHERE", "FILE", "EMPTY", "PHOTO", "PICKLE", "BARE", "JUNK/checkpoint.safetensors", ""),
            "--images": ("NOWHERE", "EMPTY", "FILE", "BROKEN_PHOTO", ""),
            "--model": CHOICES,
            "--top": COUNTS,
            "--names": ("NOWHERE", "EMPTY", "FILE"),
            "--device": DEVICES,
            "--out": ("NOWHERE/guesses.png", "EMPTY", "guesses.xyz", "FILE/guesses.png", "/proc/guesses.png"),
        },
        [["--images"], ["--weights"], ["--model", "resnet18", "--weights", "BARE"]],
    ),
    evaluate_imagenet: (
        EVALUATE,
        {
            "--data": ("NOWHERE", "FILE", "EMPTY", "ONLY_TRAIN", ""),
            "--model": CHOICES,
            "--mode": (*CHOICES, "11crop"),
            "--scales": (*COUNTS, "10"),
            "--batch-size": COUNTS,
            "--threads": COUNTS,
            "--names": ("NOWHERE", "FILE", "EMPTY", "PHOTO"),
            "--device": DEVICES,
            "--dtype": (*CHOICES, "tf32"),
        },
        [["--weights", "WEIGHTS"], ["stray"]],
    ),
    tour: ([], {}, [["0"], ["11"], ["-1"], ["two"], ["1", "99"], ["1.5"], ["--step", "1"], [""]]),
}

# Folders of runs whose checkpoint is not one that can be resumed: the command line is right, and the exit status 1.
DAMAGED = {"JUNK", "JUNK_SEED", "JUNK_RUNS", "FOREIGN"}

# What a script needs, left out.
INCOMPLETE = [
    (train_imagenet, []),
    (train_imagenet, ["--data", "PHOTOS"]),
    (train_imagenet, ["--model", "resnet18"]),
    (transfer, []),
    (transfer, ["--weights", "NOWHERE"]),
    (transfer, ["--weights", "FILE"]),
    (transfer, ["--weights", "EMPTY"]),
    (transfer, ["--weights", "BARE"]),
    (transfer, ["--weights", "PICKLE"]),
    (transfer, ["--weights", "JUNK/checkpoint.safetensors"]),
    (predict, []),
    (predict, ["--weights", "WEIGHTS"]),
    (predict, ["--images", "PHOTO"]),
    (evaluate_imagenet, ["--data", "PHOTOS"]),
    (evaluate_imagenet, ["--random-init", "--data", "PHOTOS"]),
    (evaluate_imagenet, ["--weights", "NOWHERE", "--data", "PHOTOS"]),
    (evaluate_imagenet, ["--weights", "FILE", "--data", "PHOTOS"]),
    (evaluate_imagenet, ["--weights", "BARE", "--data", "PHOTOS"]),
    (evaluate_imagenet, ["--weights", "WEIGHTS", "--data", "PHOTOS"]),
]

TABLE = [
    *(
        (script, [*runs, option, value])
        for script, (runs, options, _) in SCRIPTS.items()
        for option in options
        for value in options[option]
    ),
    *((script, [*runs, *more]) for script, (runs, _, others) in SCRIPTS.items() for more in others),
    *INCOMPLETE,
]


# -- the files that the table names ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """The folder with all files that the table names in capitals."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "FILE").write_bytes(b"\xff\xfe nothing that anyone would read\n\0")
    (folder / "PICKLE").write_bytes(b"\x80\x04K\x05.")
    for name in ("EMPTY", "JUNK", "FOREIGN", "TORN", "JUNK_SEED/seed0", "JUNK_RUNS/residual-8"):
        (folder / name).mkdir(parents=True)
    for name in ("JUNK", "JUNK_SEED/seed0", "JUNK_RUNS/residual-8"):
        (folder / name / "checkpoint.safetensors").write_bytes(b"junk" * 100)
    (folder / "TORN" / "budget.json").write_text("many")
    for split in ("PHOTOS/train", "PHOTOS/val", "ONLY_TRAIN/train"):
        for number, wnid in enumerate(("n01", "n02")):
            (folder / split / wnid).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (40, 44), (90 * number, 60 * i, 200)).save(folder / split / wnid / f"{i}.png")
    Image.new("RGB", (40, 44)).save(folder / "PHOTO.png")
    (folder / "PHOTO.png").rename(folder / "PHOTO")
    (folder / "BROKEN_PHOTO").write_bytes((folder / "PHOTO").read_bytes()[:60])
    model = cifar_resnet(8)
    save_checkpoint(
        folder / "WEIGHTS",
        model,
        None,
        {"network": shapes().config("a", "cifar_resnet", depth=8).to_json()},
        shapes().config("a", "cifar_resnet", depth=8).arrays(),
    )
    save_checkpoint(folder / "FOREIGN" / "checkpoint.safetensors", model, None, {"lr": 3})
    save_file({"a": np.zeros(3)}, folder / "BARE")
    return folder


@pytest.fixture
def few_images(monkeypatch):
    """Data sets of 40 + 20 shapes in place of whole ones, unless CIFAR is asked for."""
    for script in (train_cifar_resnet, train_cifar_vgg, degradation, transfer, speedrun_cifar10):
        load = script.load_data
        monkeypatch.setattr(
            script,
            "load_data",
            lambda args, *kind, load=load: load(args, *kind) if args.dataset != "shapes" else few(args, *kind),
        )


def few(args, *kind):
    data = shapes(args)
    return kind[0](data.train, data.test) if kind else data


def with_paths(options, folder):
    """The options with paths in `folder` in place of the words in capitals."""
    return [str(folder / word) if re.match("[A-Z]{3}", word) else word for word in options]


# -- the tests ---------------------------------------------------------------------------------------------------------


def everything_in(*folders):
    """The paths and sizes of all files but CACHE, with statistics of photographs, which are right whatever follows."""
    paths = [path for folder in folders for path in Path(folder).rglob("*") if path.name != "CACHE"]
    return {path: path.stat().st_size if path.is_file() else 0 for path in paths}


def lines_of(errors):
    """The lines of stderr, without the usage, the progress bars, and those that name a photograph that is skipped."""
    lines = [line.split("\r")[-1].rstrip() for line in errors.splitlines()]
    lines = [line for line in lines if line and "%|" not in line and not line.startswith("skipped: ")]
    if lines and lines[0].startswith("usage:"):
        lines = lines[1:]
        while lines and lines[0].startswith(" "):
            lines = lines[1:]
    return lines


def name_of(case):
    script, options = case
    return f"{script.__name__} {' '.join(options[-2:])}"


def test_the_table_is_long_enough():
    assert len(TABLE) > 400
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"test_my_layer"}
    assert {script.__name__ for script, _ in TABLE} == scripts


@pytest.mark.parametrize("case", TABLE, ids=name_of)
def test_a_command_line_that_makes_no_sense_is_one_line(things, few_images, tmp_path, monkeypatch, capsys, case):
    script, options = case
    monkeypatch.chdir(tmp_path)
    before = everything_in(tmp_path, things)
    status, _, errors = run_main(script, with_paths(options, things), capsys)
    lines = lines_of(errors)
    if isinstance(status, str):  # sys.exit(message) prints the message, and the exit status is 1
        assert DAMAGED & set(options)
        lines = [*lines, *status.splitlines()]
        assert lines[0].startswith("error: ")
    else:
        assert status == 2
        assert lines[0].startswith(f"{script.__name__}: error: ")
    if case not in INCOMPLETE and len(options) > 1 and options[-2].startswith("--"):  # it says which option is wrong
        names = options[-2].removeprefix("--"), with_paths(options, things)[-1] or "empty"
        assert any(name in lines[0] for name in names), lines[0]
    program = [line for line in lines[1:] if line.startswith("    ")]  # to copy, which converts a file of PyTorch
    assert [lines[0], *program] == lines
    assert not program or "PICKLE" in options
    assert everything_in(tmp_path, things) == before


# -- as a user runs them -----------------------------------------------------------------------------------------------

BY_USERS = {
    "examples/train_cifar_resnet.py": ["--weight-decay nan --out run", "--weight-decay -5", "--depth 7 --out runs/run"],
    "examples/train_cifar_vgg.py": ["--resume --out runs/run"],
    "examples/train_imagenet.py": ["--data nowhere --model resnet18 --out runs/run"],
    "examples/evaluate_imagenet.py": ["--data nowhere --model resnet18 --random-init"],
    "examples/predict.py": ["--weights nowhere --images nowhere"],
    "examples/degradation.py": ["--out /proc/run", "--out FILE"],
    "examples/speedrun_cifar10.py": ["--seeds 0"],
    "examples/localize.py": ["--boxes none", "--out FILE"],
    "examples/segment_shapes.py": ["--lr nan"],
    "examples/transfer.py": ["--weights nowhere"],
    "examples/look.py": ["--weights nowhere --images shapes:0 --methods saliency"],
    "examples/export_weights.py": ["--run nowhere --name tiny"],
    "examples/tour.py": ["11"],
    "-m minidl": ["nonsense"],
    "-m minidl.study": [
        *("nonsense", "exercise nonsense", "exercise relu --seconds 0", "exercise --grade nowhere", "exercise --hint"),
        *("explain nonsense", "explain resnet20 --weights nowhere", "explain resnet20 --weights FILE"),
        *("explain resnet20 --image FILE", "explain resnet20 --label 99", "explain resnet20 --out nowhere/page.html"),
        *(
            "explain resnet20 --out /proc/page.html",
            "explain nowhere.py:make",
            "explain FILE:make",
            "mistakes nonsense",
        ),
    ],
    "benchmarks/train_step.py": ["--batch 0", "--rounds none", "--model nonsense", "--json nowhere/x.json"],
    "benchmarks/kernels.py": ["--threads 0", "--json nowhere/x.json", "--plot nowhere/x.png", "--model nonsense"],
    "benchmarks/grid.py": [
        "--out FILE --quick",
        "--out nowhere --show",
        "--out FOLDER --show",
        "--out x --seconds nan",
    ],
    "benchmarks/images.py": ["--data nowhere", "--data . --limit 0", "--data FILE", "--data ."],
    "benchmarks/feeding.py": ["--data FILE", "--data nowhere", "--data . --model nonsense", "--data . --batch 0"],
    "benchmarks/recompute.py": ["--depth 7 --batch 2", "--steps 0", "--depth x"],
    "benchmarks/shortcut_kinds.py": ["--runs nowhere", "--runs . --data-dir FILE --out out"],
    "benchmarks/fast_paths.py": [
        *("nonsense", "losses --lr nan", "losses --steps 0", "accuracy --seeds -1"),
        "losses --dataset shapes --limit-train 2 --lr 0 --device gpu",
    ],
    "benchmarks/gpu_model.py": [
        "--batch 0",
        "--measured nowhere",
        "--measured FILE",
        "--measured BINARY",
        "--gpus none",
    ],
    "benchmarks/gpu_report.py": ["--out run --only nonsense", "--out run --minutes nan", "--out run --limit -1"],
    "benchmarks/gpu.py": ["--what nonsense", "--batch 0", "--minutes nan", "--json nowhere/x.json"],
    "benchmarks/launches.py": ["nonsense", "resnet20 ten float32 90 x.json", "resnet20 1 float8 90 x.json"],
    "benchmarks/step_worker.py": ["nonsense", "ours nonsense 1 1 FILE", "ours resnet20 ten 1 FILE"],
    "benchmarks/gpu_facts.py": ["", "x.json more"],
    "benchmarks/scaling.py": ["--out FILE", "--out run --environment nonsense"],
    "benchmarks/scaling_gpu.py": ["--batches 0"],
    "benchmarks/scaling_model.py": ["nonsense"],
    "benchmarks/scaling_rank.py": ["nonsense"],
}


def programs():
    """The files of examples/ and benchmarks/ that are programs, and the modules of minidl that are."""
    files = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).glob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files if "__main__" in path.read_text(encoding="utf-8")}
    modules = [path.parent.relative_to(ROOT) for path in (ROOT / "minidl").rglob("__main__.py")]
    return found | {f"-m {'.'.join(path.parts)}" for path in modules}


def test_every_program_is_given_nonsense():
    assert BY_USERS.keys() == programs()


@pytest.mark.parametrize(("program", "options"), [(name, words) for name, lines in BY_USERS.items() for words in lines])
def test_what_a_user_sees_of_nonsense_is_one_message_and_exit_status_2(tmp_path, program, options):
    (tmp_path / "FILE").write_text("nothing that anyone would read")
    (tmp_path / "BINARY").write_bytes(bytes(range(256)))
    (tmp_path / "FOLDER" / "cells.jsonl").mkdir(parents=True)
    before = everything_in(tmp_path)
    done = run_as_a_user(tmp_path, program, options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = lines_of(done.stderr)
    assert len(lines) == 1 or program == "-m minidl.study", lines  # which breaks its line
    assert everything_in(tmp_path) == before


def test_a_run_that_fails_has_exit_status_1(tmp_path):
    done = run_as_a_user(tmp_path, "examples/localize.py", "--images 8 --test-images 2 --class-lr 1e30")
    assert done.returncode == 1, done.stderr
    (line,) = lines_of(done.stderr)
    assert line.startswith("error: ")


def run_as_a_user(folder, program, options):
    """The finished process of a command line."""
    words = program.split() if program.startswith("-m") else [ROOT / program]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MINIDL_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words, *options.split()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
