"""What the training scripts share: whatever ends a run, its folder is good to go on from, and the error is one line."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import degradation
import localize
import numpy as np
import pytest
import train_cifar_resnet
import train_cifar_vgg
import train_imagenet
import training
import transfer
from cifar_data import CifarData
from safetensors.numpy import load_file, save_file

from minidl.data import make_shapes
from minidl.nn import BatchNorm2d, Linear, Module
from minidl.optim import SGD
from minidl.training.checkpoint import read_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]


def shapes(args):
    return CifarData(make_shapes(40), make_shapes(20, train=False), "test")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script with few shapes, in this process; (exit status or message, stdout and stderr)."""
    monkeypatch.setattr(train_cifar_resnet, "load_data", shapes)
    monkeypatch.setattr(train_cifar_vgg, "load_data", shapes)
    monkeypatch.setattr(degradation, "load_data", shapes)

    def run(script, *options):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, options)])
        try:
            script.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, "".join(capsys.readouterr())

    return run


@pytest.fixture
def resnet(run):
    """Runs train_cifar_resnet.py, with epochs of two steps."""
    return lambda *options: run(train_cifar_resnet, "--depth", 8, "--batch-size", 20, *options)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def all_finite(checkpoint):
    return all(np.isfinite(array).all() for array in load_file(checkpoint).values())


# -- options -----------------------------------------------------------------------------------------------------------

RATES = [(train_cifar_resnet, "--lr"), (train_cifar_resnet, "--weight-decay"), (train_cifar_vgg, "--lr")]
RATES += [(train_imagenet, "--lr"), (localize, "--class-lr"), (localize, "--box-lr")]


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
@pytest.mark.parametrize(("script", "option"), RATES, ids=lambda part: getattr(part, "__name__", part))
def test_a_rate_is_a_finite_number_of_0_or_more(run, script, option, number):
    status, output = run(script, option, number)
    assert status == 2
    assert f"argument {option}: expected a finite number >= 0, got {number}" in output


@pytest.mark.parametrize("script", [train_cifar_resnet, train_imagenet, degradation, localize, transfer])
def test_a_seed_is_a_whole_number_of_0_or_more(run, script):
    status, output = run(script, "--seed", -1)
    assert status == 2
    assert "argument --seed: expected a whole number >= 0, got -1" in output


# -- NaN and infinity --------------------------------------------------------------------------------------------------


def small_run(folder, resume=False):
    """A folder, a network with batch-norm, and an optimiser with momentum."""
    model = Module()
    model.layers = {"fc": Linear(3, 2), "bn": BatchNorm2d(2)}
    return training.RunFolder(folder, resume), model, SGD(model.parameters(), 0.1, momentum=0.9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["parameter", "buffer", "optimizer"])
def test_a_checkpoint_with_nan_or_infinity_does_not_replace_a_good_one(tmp_path, where, value):
    folder, model, optimizer = small_run(tmp_path)
    folder.save(model, optimizer, {})
    good = folder.checkpoint.read_bytes()
    buffers = dict(model.named_buffers())
    arrays = {"parameter": model.layers["fc"].weight.data, "buffer": buffers["layers.bn.running_var"].data}
    (arrays | {"optimizer": optimizer.velocities[1]})[where].flat[-1] = value
    with pytest.raises(SystemExit, match=r"NaN or infinity in 1 arrays .* lower --lr .* last good checkpoint is"):
        folder.save(model, optimizer, {}, {"step": 1})
    assert folder.checkpoint.read_bytes() == good
    assert not folder.metrics.exists()


def test_large_numbers_are_finite(tmp_path):
    """Their sum would not be."""
    folder, model, optimizer = small_run(tmp_path)
    model.layers["fc"].weight.data[...] = 3e38
    folder.save(model, optimizer, {})
    assert folder.checkpoint.exists()


def test_a_run_is_not_resumed_from_nan(tmp_path):
    folder, model, optimizer = small_run(tmp_path)
    model.layers["fc"].bias.data[0] = np.nan
    save_checkpoint(folder.checkpoint, model, optimizer, {"options": {}})
    folder, model, optimizer = small_run(tmp_path, resume=True)
    message = r"checkpoint.safetensors is no checkpoint of this run \(NaN or infinity in 1 of its arrays"
    with pytest.raises(ValueError, match=message), folder.resuming():
        folder.load(model, optimizer, {})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow
@pytest.mark.parametrize("lr", ["1e3", "1e5", "1e7", "1e38"])
def test_a_learning_rate_that_is_too_high_never_leaves_a_broken_checkpoint(resnet, tmp_path, lr):
    status, _ = resnet("--epochs", 6, "--recipe", "paper", "--lr", lr, "--out", tmp_path)
    assert "the loss is" in str(status) or "NaN or infinity in" in str(status)
    checkpoint = tmp_path / "checkpoint.safetensors"
    assert ("the last good checkpoint is" in str(status)) == checkpoint.exists()
    assert ("none was saved yet" in str(status)) != checkpoint.exists()
    assert not checkpoint.exists() or all_finite(checkpoint)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("option", ["--class-lr", "--box-lr"])
def test_localize_names_the_rate_that_is_too_high(run, option):
    few = ["--images", 8, "--test-images", 2, "--class-epochs", 2, "--box-epochs", 2]
    status, output = run(localize, *few, option, 1e30)
    assert re.search(rf"^error: .*try a lower {option} \(a tenth\)$", str(status))
    assert "Traceback" not in output


# -- one run in a folder -----------------------------------------------------------------------------------------------


def command(*options):
    """train_cifar_resnet.py with an epoch of four steps, for longer than any test waits."""
    tiny = ["--depth", 8, "--limit-train", 64, "--batch-size", 16, "--iterations", 1000]
    return [str(part) for part in (sys.executable, ROOT / "examples" / "train_cifar_resnet.py", *tiny, *options)]


def start(*options):
    """The command in another process."""
    return subprocess.Popen(command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_runs_do_not_share_a_folder_and_a_killed_one_leaves_it_free(tmp_path):
    """The second is refused while the first lives; after SIGKILL it goes on, and SIGTERM saves what it did."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    with start("--out", tmp_path) as first:
        wait_for(checkpoint.exists, first)
        with start("--out", tmp_path, "--resume") as second:
            _, errors = second.communicate(timeout=120)
        first.kill()
    refusal = f"error: another run (pid {first.pid}) writes to {tmp_path}; wait for it, or choose another --out\n"
    assert (second.returncode, errors) == (1, refusal)
    assert (tmp_path / "lock").exists()
    step = read_checkpoint(checkpoint)[1]["progress"]["step"]

    written = checkpoint.stat().st_mtime_ns
    with start("--out", tmp_path, "--resume") as third:
        wait_for(lambda: checkpoint.stat().st_mtime_ns != written, third)
        third.send_signal(signal.SIGTERM)
        output, errors = third.communicate(timeout=120)
    assert third.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    last = int(re.search(r"stopped after step ([\d,]+); nothing is lost", output)[1].replace(",", ""))
    assert read_checkpoint(checkpoint)[1]["progress"]["step"] == last > step
    steps = [record["step"] for record in metrics(tmp_path)]
    assert steps == list(range(4, last + 1, 4))
    assert not (tmp_path / "lock").exists()


HOLD = """
import os, sys, time
from training import locked
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
        with pytest.raises(SystemExit, match=rf"another run \(pid {process.pid}\)"), training.locked(tmp_path):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with training.locked(tmp_path):
            assert (tmp_path / "lock").read_text() == str(os.getpid())
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("script", [train_cifar_resnet, train_cifar_vgg, train_imagenet, degradation])
def test_every_script_that_can_be_resumed_locks_its_folder(run, tmp_path, holder, script):
    process, _ = holder(tmp_path)
    required = ["--data", tmp_path, "--model", "resnet18"] if script is train_imagenet else []
    status, _ = run(script, *required, "--out", tmp_path)
    assert f"another run (pid {process.pid}) writes to {tmp_path}" in str(status)


def test_a_lock_is_removed_with_the_folder_that_it_made(tmp_path):
    with training.locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / "lock").exists()
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "lock").write_text("1234567")  # of a run that was killed
    with training.locked(tmp_path / "old"):
        assert (tmp_path / "old" / "lock").read_text() == str(os.getpid())
    assert list((tmp_path / "old").iterdir()) == []


def test_a_lock_file_that_was_replaced_in_between_is_not_taken_for_ours(tmp_path, monkeypatch):
    """Another run ends, and removes the file, after we have opened it."""
    lockf, taken = training.fcntl.lockf, []

    def replace(descriptor, operation):
        if not taken:
            (tmp_path / "lock").unlink()
            (tmp_path / "lock").touch()
        taken.append(os.fstat(descriptor).st_ino)
        lockf(descriptor, operation)

    monkeypatch.setattr(training.fcntl, "lockf", replace)
    with training.locked(tmp_path):
        assert len(taken) == 2
        assert (tmp_path / "lock").stat().st_ino == taken[1]


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(training.fcntl, "lockf", refuse)
    with training.locked(tmp_path):
        pass
    assert f"warning: {tmp_path} is not locked (No locks available)" in capsys.readouterr().err


def test_a_system_without_fcntl_has_no_lock(tmp_path, monkeypatch, holder):
    holder(tmp_path)
    monkeypatch.setattr(training, "fcntl", None)
    with training.locked(tmp_path):
        pass


# -- signals -----------------------------------------------------------------------------------------------------------


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 0), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_asks_to_stop_and_decides_the_exit_status(name, status, capsys):
    before = handlers()
    with training.StopRequest() as stop:
        assert (stop.asked, stop.status) == (False, 0)
        os.kill(os.getpid(), getattr(signal, name))
        assert (stop.asked, stop.status) == (True, status)
    assert handlers() == before
    try:
        stop.end("stopped")
        ended = 0
    except SystemExit as end:
        ended = end.code
    assert ended == status
    assert capsys.readouterr().out == "stopped\n"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_after_ctrl_c_or_sigterm_the_next_one_stops_at_once(first):
    int_before, term_before, _ = handlers()
    with training.StopRequest() as stop:
        os.kill(os.getpid(), first)
        assert handlers() == [int_before, term_before, stop._ask]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_terminal_that_closes_may_say_so_more_than_once():
    """The shell passes SIGHUP on, and the system sends it too; a session that ends adds SIGTERM."""
    with training.StopRequest() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert (stop.asked, stop.status) == (True, 129)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with training.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_degradation_saves_before_it_ends_by_a_signal(run, tmp_path, monkeypatch, number, status):
    options = ["--depths", 8, "--shortcuts", "A", "--budget", 3, "--batch-size", 20, "--out", tmp_path]
    make_step, steps = degradation.make_step, []

    def make_step_that_is_stopped(*arguments):
        step = make_step(*arguments)

        def stopped(batch):
            step(batch)
            steps.append(1)
            if len(steps) == 2:
                os.kill(os.getpid(), number)

        return stopped

    monkeypatch.setattr(degradation, "make_step", make_step_that_is_stopped)
    ended, output = run(degradation, *options)
    assert ended == status
    assert "nothing is lost: the same command goes on" in output
    checkpoint = tmp_path / "residual-8" / "checkpoint.safetensors"
    assert read_checkpoint(checkpoint)[1]["step"] == 2
    assert run(degradation, *options)[0] == 0
    assert [record["step"] for record in metrics(tmp_path / "residual-8")] == [1, 2, 3]


# Starts a command in a terminal, closes the terminal after the first epoch, and prints how the command ended.
CLOSE_TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
shown = b""
while b"epoch   1" not in shown:
    shown += os.read(terminal, 4096)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_run_whose_terminal_closes_saves_what_it_did(tmp_path):
    """As when ssh drops: the system sends SIGHUP, and nothing can be printed any more."""
    close = [sys.executable, "-c", CLOSE_TERMINAL, *command("--out", tmp_path)]
    done = subprocess.run(close, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{128 + signal.SIGHUP}\n", done.stderr
    assert read_checkpoint(tmp_path / "checkpoint.safetensors")[1]["progress"]["step"] >= 4
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("script", [train_cifar_resnet, degradation, localize])
def test_ctrl_c_at_any_other_time_shows_no_traceback(run, tmp_path, monkeypatch, script):
    def press(*_, **__):
        raise KeyboardInterrupt

    where = {train_cifar_resnet: "load_data", degradation: "count_iterations", localize: "make_placed_shapes"}
    monkeypatch.setattr(script, where[script], press)
    status, output = run(script, "--out", tmp_path)
    assert status == 130
    assert output.strip() == "stopped at once"


# -- the order of what is written --------------------------------------------------------------------------------------


def test_curves_that_cannot_be_drawn_lose_no_epoch(resnet, tmp_path):
    (tmp_path / "curves.png").mkdir()
    status, output = resnet("--epochs", 2, "--out", tmp_path)
    assert status == 0
    assert output.count(f"warning: {tmp_path / 'curves.png'} was not drawn") == 2
    assert [record["step"] for record in metrics(tmp_path)] == [2, 4]
    assert read_checkpoint(tmp_path / "checkpoint.safetensors")[1]["progress"]["step"] == 4


def test_figures_that_cannot_be_drawn_are_a_warning(run, tmp_path):
    (tmp_path / "degradation.png").mkdir()
    status, output = run(degradation, "--depths", 8, "--shortcuts", "A", "--budget", 1, "--out", tmp_path)
    assert status == 0
    assert f"warning: {tmp_path / 'degradation.png'} was not drawn" in output
    assert "8 layers, option A" in output
    (tmp_path / "boxes.png").mkdir()
    few = ["--images", 8, "--test-images", 2, "--class-epochs", 1, "--box-epochs", 1]
    status, output = run(localize, *few, "--out", tmp_path)
    assert status == 0
    assert f"warning: {tmp_path / 'boxes.png'} was not drawn" in output


@pytest.mark.parametrize("dies_in", ["write_whole", "save_checkpoint", "draw_curves"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_that_dies_at_the_end_of_an_epoch_ends_with_one_line_for_each(
    resnet, tmp_path, monkeypatch, dies_in, after
):
    """Before and after each of the three things that are written at the end of the second epoch."""
    resnet("--epochs", 3, "--out", tmp_path / "whole")
    write, calls = getattr(training, dies_in), []

    def die(*arguments):
        calls.append(1)
        if len(calls) == 2:
            if after:
                write(*arguments)
            raise SystemExit("killed")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, dies_in, die)
        assert resnet("--epochs", 3, "--out", tmp_path / "parts")[0] == "killed"
    assert resnet("--epochs", 3, "--out", tmp_path / "parts", "--resume")[0] == 0
    for ours, theirs in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert all(array.tobytes() == parts[name].tobytes() for name, array in whole.items())


def test_metrics_that_cannot_be_written_do_not_keep_the_checkpoint_from_it(resnet, tmp_path, monkeypatch):
    """Its line is written with the next one."""
    write, calls = training.write_whole, []

    def fail_once(path, content):
        calls.append(path.name)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(training, "write_whole", fail_once)
    status, output = resnet("--epochs", 2, "--out", tmp_path)
    assert status == 0
    assert calls == ["metrics.jsonl", "metrics.jsonl"]
    assert f"warning: {tmp_path / 'metrics.jsonl'} was not written (No space left on device)" in output
    assert [record["step"] for record in metrics(tmp_path)] == [2, 4]


def test_a_full_disk_is_one_line_that_names_the_last_good_checkpoint(resnet, tmp_path, monkeypatch):
    save, calls = training.save_checkpoint, []

    def fail(path, *arguments):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, *arguments)

    monkeypatch.setattr(training, "save_checkpoint", fail)
    status, _ = resnet("--epochs", 2, "--out", tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    assert status == (
        f"error: {checkpoint} was not written (No space left on device); the last good checkpoint is {checkpoint}"
    )


# -- errors of one line ------------------------------------------------------------------------------------------------


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
    "junk": (lambda checkpoint: checkpoint.write_bytes(b"junk" * 100), "no whole safetensors file"),
    "cut off": (cut_off, "no whole safetensors file"),
    "weights alone": (weights_alone, "it has no 'options'"),
    "no JSON": (counters_are("{"), "expected counters as minidl writes them"),
    "another JSON": (counters_are("5"), "expected counters as minidl writes them"),
    "no progress": (with_counters(progress=None), "it has no 'progress'"),
    "another progress": (with_counters(progress={"totals": {}, "epoch": 3}), "unexpected keyword argument 'epoch'"),
    "another position": (with_counters(loader={"epoch": 0, "batch": 99}), "no batch 99 of epoch 0"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folders of two runs after one step, to be copied."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cifar_resnet, "load_data", shapes)
        options = ["--depth", "8", "--batch-size", "20", "--epochs", "1", "--out", str(folder)]
        patch.setattr(sys, "argv", ["train_cifar_resnet.py", *options])
        train_cifar_resnet.main()
    return folder


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


def test_an_error_during_training_is_one_line(resnet, tmp_path, monkeypatch):
    def vanish(*_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "photo.jpg")

    monkeypatch.setattr(train_cifar_resnet, "train_step", vanish)
    status, _ = resnet("--epochs", 1, "--out", tmp_path)
    assert status == "error: [Errno 2] No such file or directory: 'photo.jpg'"


def test_a_bug_keeps_its_traceback(resnet, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(train_cifar_resnet, "train_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        resnet("--epochs", 1, "--out", tmp_path)


def test_output_that_nobody_reads_is_no_error(monkeypatch):
    class Gone:
        encoding = "utf-8"

        def write(self, _):
            raise OSError(errno.EIO, "Input/output error")

        flush = write

    monkeypatch.setattr(sys, "stdout", Gone())
    training.tell("a line")
