"""The folder of a run: one process at a time writes to it, and whatever ends the run, it is good to go on from."""

import errno
import json
import os
import re
import signal
import subprocess
import sys

import degradation
import localize
import pytest
import train_cifar_resnet
import train_cifar_vgg
import train_imagenet
from common import folder as folder_module
from common.folder import locked
from safetensors.numpy import load_file, save_file

from minidl.training.checkpoint import read_checkpoint
from tests.examples.tools import ROOT, metrics

# -- the lock ---------------------------------------------------------------------------------------------------------


HOLD = """
import os, sys, time
from common.folder import locked
with locked(sys.argv[1]):
    child = os.fork() if "fork" in sys.argv else 1
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """Starts a process that holds the lock of a folder; with "fork" it has a child, whose pid it prints."""
    processes = []

    def hold(folder, *fork):
        path = os.pathsep.join([str(ROOT / "examples"), str(ROOT)])
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), *fork],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, int(process.stdout.readline())

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_a_child_does_not_keep_the_lock_of_a_run_that_was_killed(tmp_path, holder):
    process, child = holder(tmp_path, "fork")
    try:
        with pytest.raises(SystemExit, match=rf"another run \(pid {process.pid}\)"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with locked(tmp_path):
            assert (tmp_path / "lock").read_text() == str(os.getpid())
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("script", [train_cifar_resnet, train_cifar_vgg, train_imagenet, degradation])
def test_every_script_that_can_be_resumed_locks_its_folder(run, tmp_path, holder, script):
    process, _ = holder(tmp_path)
    required = ["--data", tmp_path, "--model", "resnet18"] if script is train_imagenet else []
    status, _ = run(script, *required, "--out", tmp_path)
    assert f"another run (pid {process.pid}) is writing to {tmp_path}" in str(status)


def test_a_lock_is_removed_with_the_folder_that_it_made(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / "lock").exists()
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "lock").write_text("1234567")  # of a run that was killed
    with locked(tmp_path / "old"):
        assert (tmp_path / "old" / "lock").read_text() == str(os.getpid())
    assert list((tmp_path / "old").iterdir()) == []


def test_a_lock_file_that_was_replaced_in_between_is_not_taken_for_ours(tmp_path, monkeypatch):
    """Another run ends, and removes the file, after we have opened it."""
    lockf, taken = folder_module.fcntl.lockf, []

    def replace(descriptor, operation):
        if not taken:
            (tmp_path / "lock").unlink()
            (tmp_path / "lock").touch()
        taken.append(os.fstat(descriptor).st_ino)
        lockf(descriptor, operation)

    monkeypatch.setattr(folder_module.fcntl, "lockf", replace)
    with locked(tmp_path):
        assert len(taken) == 2
        assert (tmp_path / "lock").stat().st_ino == taken[1]


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_module.fcntl, "lockf", refuse)
    with locked(tmp_path):
        pass
    assert f"warning: cannot lock {tmp_path} (No locks available)" in capsys.readouterr().err


def test_a_system_without_fcntl_has_no_lock(tmp_path, monkeypatch, holder):
    holder(tmp_path)
    monkeypatch.setattr(folder_module, "fcntl", None)
    with locked(tmp_path):
        pass


# -- the order of what is written --------------------------------------------------------------------------------------


def test_curves_that_cannot_be_drawn_lose_no_epoch(resnet, tmp_path):
    (tmp_path / "curves.png").mkdir()
    status, output = resnet("--epochs", 2, "--out", tmp_path)
    assert status == 0
    assert output.count(f"warning: could not draw {tmp_path / 'curves.png'}") == 2
    assert [record["step"] for record in metrics(tmp_path)] == [2, 4]
    assert read_checkpoint(tmp_path / "checkpoint.safetensors")[1]["progress"]["step"] == 4


def test_figures_that_cannot_be_drawn_are_a_warning(run, tmp_path):
    (tmp_path / "degradation.png").mkdir()
    status, output = run(degradation, "--depths", 8, "--shortcuts", "A", "--budget", 1, "--out", tmp_path)
    assert status == 0
    assert f"warning: could not draw {tmp_path / 'degradation.png'}" in output
    assert "8 layers, option A" in output
    (tmp_path / "boxes.png").mkdir()
    few = ["--images", 8, "--test-images", 2, "--class-epochs", 1, "--box-epochs", 1]
    status, output = run(localize, *few, "--out", tmp_path)
    assert status == 0
    assert f"warning: could not draw {tmp_path / 'boxes.png'}" in output


@pytest.mark.parametrize("dies_in", ["write_whole", "save_checkpoint", "draw_curves"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_that_dies_at_the_end_of_an_epoch_ends_with_one_line_for_each(
    resnet, tmp_path, monkeypatch, dies_in, after
):
    """Before and after each of the three things that are written at the end of the second epoch."""
    resnet("--epochs", 3, "--out", tmp_path / "whole")
    write, calls = getattr(folder_module, dies_in), []

    def die(*arguments):
        calls.append(1)
        if len(calls) == 2:
            if after:
                write(*arguments)
            raise SystemExit("killed")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, dies_in, die)
        assert resnet("--epochs", 3, "--out", tmp_path / "parts")[0] == "killed"
    assert resnet("--epochs", 3, "--out", tmp_path / "parts", "--resume")[0] == 0
    for ours, theirs in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert all(array.tobytes() == parts[name].tobytes() for name, array in whole.items())


def test_metrics_that_cannot_be_written_do_not_keep_the_checkpoint_from_it(resnet, tmp_path, monkeypatch):
    """Its line is written with the next one."""
    write, calls = folder_module.write_whole, []

    def fail_once(path, content):
        calls.append(path.name)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(folder_module, "write_whole", fail_once)
    status, output = resnet("--epochs", 2, "--out", tmp_path)
    assert status == 0
    assert calls == ["metrics.jsonl", "metrics.jsonl"]
    assert f"warning: could not write {tmp_path / 'metrics.jsonl'} (No space left on device)" in output
    assert [record["step"] for record in metrics(tmp_path)] == [2, 4]


def test_a_full_disk_is_one_line_that_names_the_last_good_checkpoint(resnet, tmp_path, monkeypatch):
    save, calls = folder_module.save_checkpoint, []

    def fail(path, *arguments):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, *arguments)

    monkeypatch.setattr(folder_module, "save_checkpoint", fail)
    status, _ = resnet("--epochs", 2, "--out", tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    assert status == (
        f"error: could not write {checkpoint} (No space left on device); the last good checkpoint is {checkpoint}"
    )


# -- what cannot be read -----------------------------------------------------------------------------------------------


def cut_off(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])


def weights_alone(checkpoint):
    arrays = {name: array for name, array in load_file(checkpoint).items() if "/" not in name}
    save_file(arrays, checkpoint)


def with_counters(**changes):
    def change(checkpoint):
        _, counters = read_checkpoint(checkpoint)
        text = json.dumps({name: value for name, value in (counters | changes).items() if value is not None})
        save_file(load_file(checkpoint), checkpoint, metadata={"counters": text})

    return change


def counters_are(text):
    return lambda checkpoint: save_file(load_file(checkpoint), checkpoint, metadata={"counters": text})


DAMAGES = {
    "junk": (lambda checkpoint: checkpoint.write_bytes(b"junk" * 100), "not a complete safetensors file"),
    "cut off": (cut_off, "not a complete safetensors file"),
    "weights alone": (weights_alone, "'options' is missing"),
    "no JSON": (counters_are("{"), "expected counters as minidl writes them"),
    "another JSON": (counters_are("5"), "expected counters as minidl writes them"),
    "no progress": (with_counters(progress=None), "'progress' is missing"),
    "another progress": (with_counters(progress={"totals": {}, "epoch": 3}), "unexpected keyword argument 'epoch'"),
    "another position": (with_counters(loader={"epoch": 0, "batch": 99}), "no batch 99 of epoch 0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_resumed_is_named_in_one_line(resnet, begun, tmp_path, damage):
    for name in ("checkpoint.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_bytes((begun / name).read_bytes())
    checkpoint = tmp_path / "checkpoint.safetensors"
    change, message = DAMAGES[damage]
    change(checkpoint)
    before = checkpoint.read_bytes()
    status, _ = resnet("--epochs", 1, "--out", tmp_path, "--resume")
    assert re.fullmatch(rf"error: [^\n]*{re.escape(str(checkpoint))}[^\n]*", status)
    assert message in status
    assert checkpoint.read_bytes() == before


LINES = {
    "torn": (b'{"step": 2, "train_er', 2),
    "binary": (b"\xff\xfe\x00\x80", 2),
    "another object": (b'{"loss": 3.5}', 2),
    "no object": (b"[1, 2]", 2),
    "deep": (b"[" * 100_000, 2),
}


@pytest.mark.parametrize("damage", LINES)
def test_metrics_that_cannot_be_read_are_named_in_one_line(resnet, begun, tmp_path, damage):
    line, number = LINES[damage]
    (tmp_path / "checkpoint.safetensors").write_bytes((begun / "checkpoint.safetensors").read_bytes())
    (tmp_path / "metrics.jsonl").write_bytes((begun / "metrics.jsonl").read_bytes() + line)
    status, output = resnet("--epochs", 1, "--out", tmp_path, "--resume")
    assert status == 2
    assert f"--resume: line {number} of {tmp_path / 'metrics.jsonl'} is not a record of a run" in output
    assert "Traceback" not in output


def test_metrics_are_read_within_a_bound(resnet, begun, tmp_path, monkeypatch):
    """A file of many gigabytes is not read into memory, but named."""
    (tmp_path / "checkpoint.safetensors").write_bytes((begun / "checkpoint.safetensors").read_bytes())
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(2**40)
    status, output = resnet("--epochs", 1, "--out", tmp_path, "--resume")
    assert status == 2
    assert (
        f"--resume: expected a text file of at most 67,108,864 bytes, but {tmp_path}/metrics.jsonl is longer" in output
    )
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    status, output = resnet("--epochs", 1, "--out", tmp_path, "--resume")
    assert status == 2 and "metrics.jsonl, which is a folder; delete the file" in output


def test_a_run_goes_on_without_its_metrics(resnet, begun, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes((begun / "checkpoint.safetensors").read_bytes())
    assert resnet("--epochs", 1, "--out", tmp_path, "--resume")[0] == 0


@pytest.mark.parametrize("script", [train_cifar_resnet, train_cifar_vgg, train_imagenet, degradation, localize])
@pytest.mark.parametrize("below", ["", "run"], ids=["a file", "below a file"])
def test_out_that_is_no_folder_is_an_error_before_any_training(run, tmp_path, script, below):
    (tmp_path / "file").touch()
    required = ["--data", tmp_path, "--model", "resnet18"] if script is train_imagenet else []
    status, output = run(script, *required, "--out", tmp_path / "file" / below)
    assert str(tmp_path / "file") in f"{status}{output}"
    assert status == 2 or str(status).startswith("error: --out: cannot write to")
    assert "%|" not in output
