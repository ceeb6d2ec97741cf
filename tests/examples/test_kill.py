"""A training script that is killed while it saves, again and again, ends with the bits of one that was not.

20 kills; 200 with `pytest --long`.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
from safetensors.numpy import load_file

from minidl.training.checkpoint import read_checkpoint
from tests.examples.tools import ROOT, assert_same_run, metrics

# train_cifar_resnet.py, which kills itself before its Nth operation on the files of FOLDER: to open, lock, link,
# rename, remove or list one. N = 0: never.
KILLED = """
import os, signal, sys
import common.folder, train_cifar_resnet
from tests.examples.tools import shapes

common.folder.draw_curves = lambda *_: None  # for speed: the curves are drawn after all is saved
train_cifar_resnet.load_data = shapes
last, folder = int(sys.argv.pop(1)), sys.argv.pop(1)
OPERATIONS = {"open", "fcntl.flock", "os.link", "os.rename", "os.remove", "os.scandir"}
done = 0

def count(event, arguments):
    global done
    if event in OPERATIONS and (event == "fcntl.flock" or str(arguments[0]).startswith(folder)):
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
train_cifar_resnet.main()
"""


def start(folder, steps, last=0):
    """The script in a process of its own, with a checkpoint after every second step."""
    path = os.pathsep.join([str(ROOT / "examples"), str(ROOT)])
    options = ["--depth", 8, "--batch-size", 20, "--iterations", steps, "--keep", 3, "--out", folder]
    options += ["--resume"] if (folder / "checkpoint.safetensors").exists() else []
    command = [sys.executable, "-c", KILLED, last, folder, *options]
    environment = os.environ | {"PYTHONPATH": path, "MINIDL_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def run_to_the_end(folder, steps):
    """The script in a process that is left alone. Its progress bar is read, as a full pipe would stop it."""
    with start(folder, steps) as process:
        _, errors = process.communicate()
        assert process.returncode == 0, errors


def kill_while_it_writes(process, folder, delay):
    """Kill the process some time after it has begun to write a file."""
    while process.poll() is None and not (folder.exists() and any(folder.glob("*.part"))):
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()


def test_a_script_that_is_killed_while_it_saves_ends_with_the_same_bits(tmp_path, request):
    kills, rng = 200 if request.config.getoption("--long") else 20, np.random.default_rng(0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_to_the_end(whole, 4 * kills)
    left_behind = 0
    for number in range(kills):
        by_operation = number % 3 != 0
        with start(parts, 4 * kills, int(rng.integers(1, 60)) if by_operation else 0) as process:
            if not by_operation:
                kill_while_it_writes(process, parts, rng.uniform(0, 0.01))
            errors = process.stderr.read()
            assert process.wait() == -signal.SIGKILL, errors
        left_behind += len(list(parts.glob("*.part")))
        for path in parts.glob("*.safetensors"):
            read_checkpoint(path)  # whole: its checksum is right
    run_to_the_end(parts, 4 * kills)
    assert left_behind > 0  # some kills came in the middle of a file
    assert_same_run(whole, parts)
    steps = [record["step"] for record in metrics(parts)]
    assert steps == list(range(2, 4 * kills + 1, 2))
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in parts.iterdir()) == names
    for name in names:
        if name.endswith(".safetensors"):
            arrays, others = load_file(whole / name), load_file(parts / name)
            assert all(array.tobytes() == others[key].tobytes() for key, array in arrays.items()), name
    print(f"{kills} kills, {left_behind} parts left behind; all removed, same bits")
