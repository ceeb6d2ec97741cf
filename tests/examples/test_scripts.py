"""Every script as a user runs it, in a process of its own, for a step or two."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from minidl.training.checkpoint import read_checkpoint
from tests.examples.tools import ROOT, command, metrics

TINY = "--limit-train", 64, "--batch-size", 16  # an epoch of four steps
COMMANDS = {
    "train_cifar_resnet.py": ["--depth", 8, *TINY, "--iterations", 2],
    "train_cifar_vgg.py": ["--config", "A", *TINY, "--iterations", 1],
    "degradation.py": ["--depths", 8, "--shortcuts", "A", *TINY, "--budget", 1],
    "speedrun_cifar10.py": ["--dataset", "shapes", "--limit-train", 64, "--batch-size", 32, "--epochs", 0.5],
    "localize.py": ["--images", 16, "--test-images", 4, "--class-epochs", 1, "--box-epochs", 1],
    "segment_shapes.py": ["--images", 16, "--test-images", 4, "--epochs", 1],
    "transfer.py": ["--random-init", "--depth", 8, *TINY[:2]],
}
SAYS = {
    "train_cifar_resnet.py": r"^[\d,]+ images/s; \d+:\d\d in total\ntest error of resnet8 on shapes: ",
    "train_cifar_vgg.py": r"^test error of VGG-A on shapes: \d+\.\d\d%$",
    "degradation.py": r"^8 layers, option A +75,290 +1 ",
    "speedrun_cifar10.py": r"^seed 0: test accuracy \d+\.\d\d %$",
    "localize.py": r"^96 pixels, anywhere( +\d+\.\d%){3}$",
    "segment_shapes.py": r"^mean IoU of FCN-2s on the test images: \d+\.\d%$",
    "transfer.py": r"^training accuracy \d+\.\d+%, test accuracy \d+\.\d+%$",
}


def run(script, *options):
    """stdout of a script that ends well."""
    done = subprocess.run(command(script, *options), capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_a_script_runs(tmp_path, script):
    out = [] if script in ("transfer.py", "localize.py") else ["--out", tmp_path]
    assert re.search(SAYS[script], run(script, *COMMANDS[script], *out), re.MULTILINE)
    if script != "train_cifar_resnet.py":
        return
    assert metrics(tmp_path)[-1]["step"] == 2
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (720, 480)
    weights = load_file(tmp_path / "checkpoint.safetensors")
    assert weights["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)  # PyTorch's names and layout


def test_ctrl_c_in_a_terminal_loses_nothing(tmp_path):
    """Pressed in the middle of the second epoch, once the bar shows the step."""
    options = ["--depth", 8, *TINY, "--iterations", 8]
    run("train_cifar_resnet.py", *options, "--out", tmp_path / "whole")
    every_step = os.environ | {"TQDM_MININTERVAL": "0"}
    line = command("train_cifar_resnet.py", *options, "--out", tmp_path / "parts")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen(line, env=every_step, cwd=ROOT, **pipes) as process:
        shown = b""
        while b" 6/8 steps" not in shown:
            shown += process.stderr.read(1)
            assert process.poll() is None, shown
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert b"the same command with --resume" in output
    assert read_checkpoint(tmp_path / "parts" / "checkpoint.safetensors")[1]["progress"]["step"] < 8
    run("train_cifar_resnet.py", *options, "--out", tmp_path / "parts", "--resume")
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_without_the_data_the_error_says_what_to_do(tmp_path, dataset):
    (tmp_path / "data").write_text("a file where the folder should be")
    line = command("train_cifar_resnet.py", "--dataset", dataset, "--data-dir", tmp_path / "data", "--out", tmp_path)
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_train_cifar_resnet_runs_on_the_real_images(tmp_path, real_cifar10):
    options = ["--dataset", "cifar10", "--data-dir", real_cifar10, "--limit-train", 256, "--holdout"]
    output = run("train_cifar_resnet.py", "--depth", 8, *options, "--iterations", 2, "--out", tmp_path)
    assert "validation error" in output


# -- the shape of the scripts ------------------------------------------------------------------------------------------

SOURCES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "examples").rglob("*.py")}


def test_no_script_imports_a_script():
    scripts = {path.stem for path in SOURCES if path.parent.name == "examples"}
    for path, source in SOURCES.items():
        imported = re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)
        assert not scripts & set(imported), path.name


def test_there_are_two_training_loops():
    """One to read, and one for the scripts with another subject. The tour takes two steps, one of them by hand."""
    loops = {path.name: len(re.findall(r"for .* in run\.batches\(\)", source)) for path, source in SOURCES.items()}
    loops["run.py"] -= 1  # the example in the docstring of Run
    assert {name: count for name, count in loops.items() if count} == {"train_cifar_resnet.py": 1, "fit.py": 1}
    steps = sorted(
        path.name for path, source in SOURCES.items() if re.search(r"optimizer\.step\(\)|\.step\(optimizer\)", source)
    )
    # One for images, one for boxes, one for masks, and those to read.
    to_read = ["speedrun_cifar10.py", "tour.py", "train_cifar_resnet.py"]
    assert steps == ["fit.py", "localize.py", "segment_shapes.py", *to_read]


def test_the_script_to_read_fits_two_screens():
    assert len(SOURCES[ROOT / "examples" / "train_cifar_resnet.py"].splitlines()) <= 110


def test_the_speedrun_is_short_enough_to_be_quoted():
    assert len(SOURCES[ROOT / "examples" / "speedrun_cifar10.py"].splitlines()) <= 250


def test_a_batch_makes_three_hops_from_the_loader_to_the_network(resnet, tmp_path):
    """It is made; it comes out of the loader and out of the run, and goes into the step, which calls the network."""
    hops, batch = [], []

    def note(frame, event, value):
        name = frame.f_code.co_qualname
        if name == "AugmentedLoader._load" and event == "return":
            batch[:] = value[:1]
        elif batch and not hops[2:]:
            yields = event == "return" and isinstance(value, tuple) and value and value[0] is batch[0]
            takes = event == "call" and any(value is batch[0] for value in frame.f_locals.values())
            hops.extend([name] * bool(yields or takes) * (not name.startswith("Tensor.")))

    sys.setprofile(note)
    try:
        resnet("--iterations", 1, "--out", tmp_path)
    finally:
        sys.setprofile(None)
    assert hops == ["DataLoader._batches", "Run.batches", "train.<locals>.step"]
