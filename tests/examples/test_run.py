"""A run: whatever ends it, nothing is lost, and the error is one line."""

import argparse
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import degradation
import localize
import numpy as np
import pytest
import train_cifar_resnet
import train_cifar_vgg
from common.errors import drop_closed_output, log
from common.fit import prepare_step
from common.folder import RunFolder
from common.run import READ_LOSS_EVERY, Run
from common.stop import StopRequest
from safetensors.numpy import load_file, save_file

from minidl import GradScaler, Tensor
from minidl.data import DataLoader, make_shapes
from minidl.nn import BatchNorm2d, Linear, Module
from minidl.optim import SGD
from minidl.training.checkpoint import read_checkpoint
from tests.examples.tools import assert_same_run, command, counters, metrics, shapes, signal_after

# -- NaN and infinity --------------------------------------------------------------------------------------------------


def small_run(folder, resume=False, steps=4):
    """A run of a network with batch-norm, by an optimiser with momentum, in epochs of two steps."""
    model = Module()
    model.layers = {"fc": Linear(3, 2), "bn": BatchNorm2d(2)}
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    return Run(model, optimizer, DataLoader(make_shapes(4), 2), steps, RunFolder(folder, resume, {}))


def train(run, before_epoch_ends=lambda: None):
    """Log steps without taking any."""
    with run:
        for _ in run.batches():
            run.log(Tensor(1.0), 1)
            if run.epoch_ended:
                before_epoch_ends()
                run.end_epoch(0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["parameter", "buffer", "optimizer"])
def test_a_checkpoint_with_nan_or_infinity_does_not_replace_a_good_one(tmp_path, where, value):
    train(small_run(tmp_path, steps=2))
    run = small_run(tmp_path, resume=True)
    good = run.folder.checkpoint.read_bytes(), run.folder.metrics.read_bytes()

    def poison():
        fc, buffers = run.model.layers["fc"], dict(run.model.named_buffers())
        arrays = {"parameter": fc.weight.data, "buffer": buffers["layers.bn.running_var"].data}
        (arrays | {"optimizer": run.optimizer.velocities[1]})[where].flat[-1] = value

    with pytest.raises(SystemExit, match=r"NaN or infinity in 1 arrays .* lower --lr .* last good checkpoint is"):
        train(run, poison)
    assert (run.folder.checkpoint.read_bytes(), run.folder.metrics.read_bytes()) == good


def test_large_numbers_are_finite(tmp_path):
    """Their sum would not be."""
    run = small_run(tmp_path)
    run.model.layers["fc"].weight.data[...] = 3e38
    train(run)
    assert run.folder.checkpoint.exists()


def test_a_run_is_not_resumed_from_nan(tmp_path):
    train(small_run(tmp_path, steps=2))
    arrays, counters = read_checkpoint(tmp_path / "checkpoint.safetensors")
    arrays["layers.fc.bias"][0] = np.nan
    save_file(arrays, tmp_path / "checkpoint.safetensors", metadata={"counters": json.dumps(counters)})
    message = r"checkpoint.safetensors is not a checkpoint of this run \(NaN or infinity in 1 of its arrays"
    with pytest.raises(SystemExit, match=message):
        train(small_run(tmp_path, resume=True))


@pytest.mark.parametrize("lr", ["1e3", "1e5", "1e7", "1e38"])
def test_a_learning_rate_that_is_too_high_never_leaves_a_broken_checkpoint(resnet, tmp_path, lr):
    status, _ = resnet("--epochs", 6, "--recipe", "paper", "--lr", lr, "--out", tmp_path)
    assert "the loss is" in str(status) or "NaN or infinity in" in str(status)
    checkpoint = tmp_path / "checkpoint.safetensors"
    assert ("the last good checkpoint is" in str(status)) == checkpoint.exists()
    assert ("no checkpoint exists" in str(status)) != checkpoint.exists()
    assert not checkpoint.exists() or all(np.isfinite(array).all() for array in load_file(checkpoint).values())


@pytest.mark.filterwarnings("default")  # as for users: printed
def test_an_overflow_is_one_line_and_no_warning_of_numpy(resnet, tmp_path):
    """At the step with the loss that is infinite or NaN, and no later one: the bar stands before it."""
    status, output = resnet("--epochs", 6, "--recipe", "paper", "--lr", "1e38", "--out", tmp_path)
    step = int(re.fullmatch(r"error: the loss is (inf|nan) at step (\d+); .*; no checkpoint exists", status)[2])
    assert step <= 2
    assert "Warning" not in output and "encountered" not in output and "nan" not in output


def test_detect_anomaly_names_the_step_the_operation_and_the_layer(resnet, tmp_path, monkeypatch):
    """The network is poisoned after step 2, the last one of the first epoch, whose checkpoint is good."""
    real_log = Run.log

    def log_and_poison(run, *arguments):
        real_log(run, *arguments)
        if run.step == 3:
            dict(run.model.named_parameters())["layer2.0.bn1.weight"].data[...] = 3e38

    monkeypatch.setattr(Run, "log", log_and_poison)
    status, output = resnet("--epochs", 3, "--detect-anomaly", "--out", tmp_path)
    assert re.match(
        r"error: step 3: BatchNorm, forward of layer2\.0\.bn1: the output has .* inf among [\d,]+ numbers, and all "
        rf"inputs are finite; try a lower --lr \(a tenth\); the last good checkpoint is {tmp_path}/checkpoint",
        status,
    )
    assert "Warning" not in output
    assert all(np.isfinite(array).all() for array in load_file(tmp_path / "checkpoint.safetensors").values())


@pytest.mark.parametrize("script", [train_cifar_resnet, train_cifar_vgg])
def test_a_run_with_detect_anomaly_has_the_same_bits(run, tmp_path, script):
    same = ["--batch-size", 20, "--epochs", 2, *(["--depth", 8] if script is train_cifar_resnet else ["--config", "A"])]
    assert run(script, *same, "--out", tmp_path / "plain")[0] == 0
    assert run(script, *same, "--out", tmp_path / "checked", "--detect-anomaly")[0] == 0
    assert_same_run(tmp_path / "checked", tmp_path / "plain")


def test_a_run_can_be_resumed_with_detect_anomaly(resnet, tmp_path):
    resnet("--epochs", 2, "--out", tmp_path / "whole")
    with signal_after(3):
        resnet("--epochs", 2, "--out", tmp_path / "parts")
    assert resnet("--epochs", 2, "--out", tmp_path / "parts", "--resume", "--detect-anomaly")[0] == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_detect_anomaly_is_refused_with_a_scaler():
    """Whose overflows are no anomalies."""
    args = argparse.Namespace(detect_anomaly=True, device="cuda")
    with pytest.raises(ValueError, match=r"^--detect-anomaly: float16 gradients overflow .*; use --dtype bfloat16"):
        prepare_step(lambda: None, Linear(1, 1), args, GradScaler())


@pytest.mark.parametrize("loss", [np.inf, -np.inf, np.nan])
def test_a_run_stops_at_the_step_whose_loss_is_not_finite(tmp_path, loss):
    run, losses = small_run(tmp_path), iter([1.0, loss, 1.0, 1.0])
    with pytest.raises(SystemExit, match=f"error: the loss is {loss} at step 1; .*; no checkpoint exists"), run:
        for _ in run.batches():
            run.log(Tensor(next(losses)), 1)
    assert run.step == 2


@pytest.mark.parametrize("option", ["--class-lr", "--box-lr"])
def test_localize_names_the_rate_that_is_too_high(run, option):
    few = ["--images", 8, "--test-images", 2, "--class-epochs", 2, "--box-epochs", 2]
    status, output = run(localize, *few, option, 1e30)
    assert re.search(rf"^error: .*try a lower {option} \(a tenth\)$", str(status))
    assert "Traceback" not in output


# -- one run in a folder -----------------------------------------------------------------------------------------------


def start(*options):
    """train_cifar_resnet.py in a process of its own: an epoch of four steps, for longer than any test waits."""
    tiny = ["--depth", 8, "--limit-train", 64, "--batch-size", 16, "--iterations", 1000]
    line = command("train_cifar_resnet.py", *tiny, *options)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    deadline = time.monotonic() + 600
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
            _, errors = second.communicate(timeout=600)
        first.kill()
    refusal = f"error: another run (pid {first.pid}) is writing to {tmp_path}; wait for it or choose another --out\n"
    assert (second.returncode, errors) == (1, refusal)
    assert (tmp_path / "lock").exists()
    step = read_checkpoint(checkpoint)[1]["progress"]["step"]

    written = checkpoint.stat().st_mtime_ns
    with start("--out", tmp_path, "--resume") as third:
        wait_for(lambda: checkpoint.stat().st_mtime_ns != written, third)
        third.send_signal(signal.SIGTERM)
        output, errors = third.communicate(timeout=600)
    assert third.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    last = int(re.search(r"stopped after step ([\d,]+); checkpoint saved", output)[1].replace(",", ""))
    assert read_checkpoint(checkpoint)[1]["progress"]["step"] == last > step
    steps = [record["step"] for record in metrics(tmp_path)]
    assert steps == list(range(4, last + 1, 4))
    assert not (tmp_path / "lock").exists()


# -- signals -----------------------------------------------------------------------------------------------------------


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 0), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_asks_to_stop_and_decides_the_exit_status(name, status):
    before = handlers()
    with StopRequest() as stop:
        assert (stop.asked, stop.status) == (False, 0)
        os.kill(os.getpid(), getattr(signal, name))
        assert (stop.asked, stop.status) == (True, status)
    assert handlers() == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_after_ctrl_c_or_sigterm_the_next_one_stops_at_once(first):
    int_before, term_before, _ = handlers()
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        assert handlers() == [int_before, term_before, stop._ask]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_terminal_that_closes_may_say_so_more_than_once():
    """The shell passes SIGHUP on, and the system sends it too; a session that ends adds SIGTERM."""
    with StopRequest() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert (stop.asked, stop.status) == (True, 129)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [3, 4])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(resnet, tmp_path, whole, step, number):
    """In the middle of the second epoch, and at its end."""
    with signal_after(step, number):
        status, output = resnet("--epochs", 3, "--out", tmp_path)
    assert status == {signal.SIGINT: 0, signal.SIGTERM: 143, signal.SIGHUP: 129}[number]
    assert f"stopped after step {step}; checkpoint saved. To continue: the same command with --resume" in output
    assert [record["step"] for record in metrics(tmp_path)] == [2, 4][: step // 2]
    before = counters(tmp_path)["progress"]
    assert before["step"] == step
    assert resnet("--epochs", 3, "--out", tmp_path, "--resume")[0] == 0
    assert_same_run(tmp_path, whole)
    after = counters(tmp_path)["progress"]
    assert after["seconds"] > after["training_seconds"] > before["training_seconds"] > 0
    assert after["images"] == counters(whole)["progress"]["images"] == 120


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of three epochs."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cifar_resnet, "load_data", shapes)
        patch.setattr(sys, "argv", ["", "--depth", "8", "--batch-size", "20", "--epochs", "3", "--out", str(folder)])
        train_cifar_resnet.main()
    return folder


def test_a_signal_at_the_last_step_does_not_unfinish_a_run(resnet, tmp_path):
    with signal_after(4, signal.SIGTERM):
        status, output = resnet("--epochs", 2, "--out", tmp_path)
    assert status == 0
    assert "test error of resnet8" in output


def test_a_run_saves_now_and_then_within_an_epoch(resnet, tmp_path, whole):
    """It is killed at the end of the second epoch, after four steps."""
    end_epoch = Run.end_epoch

    def die(run, *arguments):
        if run.step == 4:
            raise SystemExit("killed")
        end_epoch(run, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.run.SAVE_EVERY", 3)
        patch.setattr(Run, "end_epoch", die)
        assert resnet("--epochs", 3, "--out", tmp_path)[0] == "killed"
    assert counters(tmp_path)["progress"]["step"] == 3
    assert resnet("--epochs", 3, "--out", tmp_path, "--resume")[0] == 0
    assert_same_run(tmp_path, whole)


def test_a_run_that_is_over_says_so_again(resnet, copy_of_begun):
    before = (copy_of_begun / "checkpoint.safetensors").read_bytes()
    status, output = resnet("--epochs", 1, "--out", copy_of_begun, "--resume")
    assert status == 0
    error = metrics(copy_of_begun)[-1]["test_error"]
    assert f"test error of resnet8 on shapes: {error:.2%}" in output
    assert (copy_of_begun / "checkpoint.safetensors").read_bytes() == before


def test_a_run_goes_on_without_its_metrics(resnet, copy_of_begun):
    (copy_of_begun / "metrics.jsonl").unlink()
    assert resnet("--epochs", 1, "--out", copy_of_begun, "--resume")[0] == 0


def test_a_finished_run_is_not_overwritten_by_accident(resnet, copy_of_begun):
    status, output = resnet("--epochs", 1, "--out", copy_of_begun)
    assert status == 2
    assert "continue with --resume or choose another --out" in output


def test_what_the_folder_lacks_is_said_before_data_are_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(train_cifar_resnet, "load_data", lambda args: pytest.fail("the data were loaded"))
    status, output = run(train_cifar_resnet, "--out", tmp_path, "--resume")
    assert status == 2
    assert f"there is no {tmp_path / 'checkpoint.safetensors'}; omit --resume to start a new run" in output


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (train_cifar_resnet, ["--depth", 8, "--seed", 1], "seed was 0, is 1"),
        (train_cifar_resnet, ["--depth", 14], "depth was 8, is 14"),
        (train_cifar_vgg, ["--config", "A"], "config was None, is A"),
    ],
)
def test_resuming_with_other_options_says_which(run, copy_of_begun, script, options, message):
    same = ["--batch-size", 20, "--epochs", 1, "--out", copy_of_begun, "--resume"]
    status, _ = run(script, *options, *same)
    assert str(status).startswith(f"error: {copy_of_begun / 'checkpoint.safetensors'}: ")
    assert message in status


def test_the_metrics_of_a_run_without_a_checkpoint_are_not_continued(resnet, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "torn')
    resnet("--iterations", 1, "--out", tmp_path)
    assert [record["step"] for record in metrics(tmp_path)] == [1]


def test_when_the_loss_is_looked_at_changes_nothing(resnet, tmp_path, monkeypatch, whole):
    monkeypatch.setitem(READ_LOSS_EVERY, "cpu", 50)
    assert resnet("--epochs", 3, "--out", tmp_path)[0] == 0
    assert_same_run(tmp_path, whole)


def test_recomputing_changes_no_bit_of_a_run(run, tmp_path):
    options = ["--depth", 14, "--batch-size", 20, "--epochs", 1]
    run(train_cifar_resnet, *options, "--out", tmp_path / "kept")
    run(train_cifar_resnet, *options, "--recompute", "--out", tmp_path / "recomputed")
    assert_same_run(tmp_path / "kept", tmp_path / "recomputed")


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
    tiny = ["--depth", 8, "--limit-train", 64, "--batch-size", 16, "--iterations", 1000, "--out", tmp_path]
    close = [sys.executable, "-c", CLOSE_TERMINAL, *command("train_cifar_resnet.py", *tiny)]
    done = subprocess.run(close, capture_output=True, text=True, timeout=600)
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
    assert output.strip() == "interrupted"


def test_an_error_during_training_is_one_line(resnet, tmp_path, monkeypatch):
    def vanish(*_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "photo.jpg")

    monkeypatch.setattr(Run, "log", vanish)
    status, _ = resnet("--epochs", 1, "--out", tmp_path)
    assert status == "error: [Errno 2] No such file or directory: 'photo.jpg'"


def test_a_bug_keeps_its_traceback(resnet, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Run, "log", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        resnet("--epochs", 1, "--out", tmp_path)


def test_output_that_nobody_reads_is_no_error(monkeypatch):
    class Gone:
        encoding = "utf-8"

        def write(self, *_):
            raise OSError(errno.EIO, "Input/output error")

        flush = write

    monkeypatch.setattr(sys, "stdout", Gone())
    log("a line")
    drop_closed_output()
    sys.stdout.flush()  # as Python does at its end, with exit status 120 if that fails


# -- messages and states of other parts --------------------------------------------------------------------------------


def test_messages_of_minidl_stand_on_a_line_of_their_own(resnet, tmp_path, monkeypatch):
    """Such as that kernels are being compiled: in the first step, when the bar is on the screen."""
    step = Run.log

    def log_message(run, *arguments):
        logging.getLogger("minidl").warning("minidl: a message")
        step(run, *arguments)

    monkeypatch.setattr(Run, "log", log_message)
    status, output = resnet("--epochs", 1, "--out", tmp_path / "run")
    assert status == 0
    lines = output.replace("\r", "\n").split("\n")
    assert lines.count("minidl: a message") == 2  # each once, and alone


def test_a_part_that_the_checkpoint_lacks_starts_anew(tmp_path):
    train(small_run(tmp_path, steps=2))
    run, scaler = small_run(tmp_path, resume=True), GradScaler(8.0)
    run.stateful = {"scaler": scaler}
    train(run)
    assert scaler.get_scale() == 8
    assert "scaler" in counters(tmp_path)
