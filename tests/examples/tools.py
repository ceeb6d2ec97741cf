"""What the tests of the scripts share."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from common.cifar import CifarData
from common.run import Run
from safetensors.numpy import load_file

from minidl.data import make_shapes
from minidl.training.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]


def shapes(args=None):
    """40 + 20 images in place of a whole data set, on the device of the options."""
    device, dtype = getattr(args, "device", "cpu"), getattr(args, "dtype", "float32").replace("tf32", "float32")
    return CifarData(make_shapes(40), make_shapes(20, train=False), "test", device, dtype)


def run_main(script, options, capsys):
    """Run a script in this process; (exit status or message, stdout, stderr)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, options)])
        try:
            script.main()
            status = 0
        except SystemExit as end:
            status = end.code
    return status, *capsys.readouterr()


def command(script, *options):
    """The command line of a script in a process of its own."""
    return [str(part) for part in (sys.executable, ROOT / "examples" / script, *options)]


@contextlib.contextmanager
def signal_after(step, number=signal.SIGINT):
    """Within it, the signal comes when a run has logged this step."""
    log = Run.log

    def log_and_signal(run, *arguments):
        log(run, *arguments)
        if run.step == step:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", log_and_signal)
        yield


def metrics(folder):
    """The records of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def counters(folder):
    """What the checkpoint of a run holds besides arrays."""
    return read_checkpoint(folder / "checkpoint.safetensors")[1]


def assert_same_run(folder, other):
    """Bit for bit the same arrays, and the same metrics but for the time."""
    arrays, others = (load_file(path / "checkpoint.safetensors") for path in (folder, other))
    assert arrays.keys() == others.keys()
    assert any(name.startswith("optimizer/") for name in arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    for ours, theirs in zip(metrics(folder), metrics(other), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
