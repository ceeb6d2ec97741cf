"""Every example runs as a user runs it, for a few steps, and keeps its promises about stopping and going on."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import degradation as degradation_example
import numpy as np
import pytest
import transfer
from models.resnet import cifar_resnet
from PIL import Image
from safetensors.numpy import load_file

from minidl import Tensor
from minidl.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[1]
TINY = ["--limit-train", "64", "--batch-size", "16"]  # an epoch of four steps


def command(script, *options):
    return [sys.executable, str(ROOT / "examples" / script), *map(str, options)]


def run(script, *options, fails=False):
    """stdout and stderr of a script that ends well, or is expected to fail."""
    done = subprocess.run(command(script, *options), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (done.returncode != 0) == fails, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def resnet(*options, **expectation):
    return run("train_cifar_resnet.py", "--depth", 8, *TINY, *options, **expectation)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def progress(folder):
    return read_checkpoint(folder / "checkpoint.safetensors")[1]["progress"]


@pytest.mark.parametrize(
    "options", [["--depth", 8], ["--depth", 20, "--shortcut", "none", "--recipe", "paper"]], ids=str
)
def test_train_cifar_resnet_runs(tmp_path, options):
    output = run("train_cifar_resnet.py", *options, *TINY, "--iterations", 2, "--out", tmp_path)
    assert f"test error of {options[1]} layers on shapes" in output
    assert re.search(r"^[\d,]+ images/s; \d+:\d\d to the final error$", output, re.MULTILINE)
    assert metrics(tmp_path)[-1]["step"] == 2


def test_train_cifar_vgg_runs(tmp_path):
    output = run("train_cifar_vgg.py", "--config", "A", *TINY, "--iterations", 2, "--out", tmp_path)
    assert "test error of VGG-A on shapes" in output


def test_a_run_leaves_metrics_a_picture_and_a_checkpoint(tmp_path):
    resnet("--epochs", 2, "--out", tmp_path)
    first, second = metrics(tmp_path)
    assert (first["epoch"], first["step"], second["step"]) == (1, 4, 8)
    assert 0 <= second["test_error"] <= 1
    assert second["seconds"] > first["seconds"] > 0
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (720, 480)
    weights = load_file(tmp_path / "checkpoint.safetensors")
    assert weights["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)  # PyTorch's names and layout


@pytest.mark.parametrize("after_step", [2, 6])
def test_a_run_that_was_interrupted_and_resumed_ends_with_the_same_bits(tmp_path, after_step):
    """Stopped in the middle of the first and of the second epoch, with batches loaded ahead."""
    resnet("--iterations", 10, "--out", tmp_path / "whole")
    stopped = interrupt(tmp_path / "parts", after_step, iterations=10)
    assert "--resume goes on" in stopped
    before = progress(tmp_path / "parts")
    resnet("--iterations", 10, "--out", tmp_path / "parts", "--resume")
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert any(name.startswith("optimizer/") for name in whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)
    for ours, theirs in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    after = progress(tmp_path / "parts")
    assert after["seconds"] > after["training_seconds"] > before["training_seconds"] > 0
    assert after["images"] == progress(tmp_path / "whole")["images"] == 160


def interrupt(folder, after_step, iterations):
    """Start a run, press Ctrl-C once the bar shows the step, and return what it says."""
    options = ["--depth", 8, *TINY, "--iterations", iterations, "--out", folder]
    every_step = os.environ | {"TQDM_MININTERVAL": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen(command("train_cifar_resnet.py", *options), env=every_step, cwd=ROOT, **pipes) as process:
        shown = b""
        while f" {after_step}/{iterations} steps".encode() not in shown:
            shown += process.stderr.read(1)
            assert process.poll() is None, shown
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
    return output.decode()


def test_recomputing_changes_no_bit_of_a_run(tmp_path):
    resnet("--depth", 14, "--epochs", 1, "--out", tmp_path / "kept")
    resnet("--depth", 14, "--epochs", 1, "--recompute", "--out", tmp_path / "recomputed")
    kept, recomputed = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("kept", "recomputed"))
    assert kept.keys() == recomputed.keys()
    assert all(array.tobytes() == recomputed[name].tobytes() for name, array in kept.items())


def degradation(folder, *options, **expectation):
    return run("degradation.py", "--depths", 8, 14, *TINY, "--out", folder, *options, **expectation)


def test_degradation_trains_both_kinds_and_draws_them(tmp_path):
    output = degradation(tmp_path, "--budget", 3)
    assert "degradation.png" in output
    with Image.open(tmp_path / "degradation.png") as picture:
        assert picture.size == (1100, 1100)
    for name, layers in (("plain-8", 7), ("residual-8", 7), ("plain-14", 13), ("residual-14", 13)):
        records = metrics(tmp_path / name)
        assert [record["step"] for record in records] == [1, 2, 3]
        assert len(records[-1]["gradients"]) == layers
        assert all(norm > 0 for norm in records[-1]["gradients"])


def test_degradation_that_was_interrupted_and_resumed_ends_with_the_same_bits(tmp_path):
    options = ["--depths", 8, *TINY, "--budget", 4]
    run("degradation.py", *options, "--out", tmp_path / "whole")
    every_step = os.environ | {"TQDM_MININTERVAL": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    stopped = command("degradation.py", *options, "--out", tmp_path / "parts")
    with subprocess.Popen(stopped, env=every_step, cwd=ROOT, **pipes) as process:
        shown = b""
        while b" 2/4" not in shown:
            shown += process.stderr.read(1)
            assert process.poll() is None, shown
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert b"the same command goes on" in output
    assert not (tmp_path / "parts" / "residual-8").exists()
    run("degradation.py", *options, "--out", tmp_path / "parts")
    for name in ("plain-8", "residual-8"):
        whole, parts = (load_file(tmp_path / run / name / "checkpoint.safetensors") for run in ("whole", "parts"))
        assert all(array.tobytes() == parts[key].tobytes() for key, array in whole.items())
        assert metrics(tmp_path / "whole" / name) == metrics(tmp_path / "parts" / name)


def test_a_budget_of_time_is_turned_into_iterations_once(tmp_path):
    degradation(tmp_path, "--budget", "1s")
    iterations = int((tmp_path / "iterations.txt").read_text())
    assert iterations == metrics(tmp_path / "plain-8")[-1]["step"] >= 1
    degradation(tmp_path, "--budget", "1h")
    assert int((tmp_path / "iterations.txt").read_text()) == iterations
    assert "expected iterations or a time" in degradation(tmp_path, "--budget", "soon", fails=True)


@pytest.mark.parametrize("kind", degradation_example.KINDS)
def test_the_responses_are_those_of_the_networks_own_forward_pass(kind, rng):
    model = cifar_resnet(14, degradation_example.KINDS[kind])
    images = Tensor(rng.standard_normal((4, 32, 32, 3), np.float32))
    deviations, logits = degradation_example.responses(model, images)
    assert len(deviations) == 13 and all(deviation > 0 for deviation in deviations)
    np.testing.assert_allclose(logits.numpy(), model.eval()(images).numpy(), rtol=1e-4, atol=1e-5)


def test_measuring_gradients_leaves_the_network_as_it_was(rng):
    model = cifar_resnet(8)
    before = model.state_dict()
    norms = degradation_example.gradient_norms(model, Tensor(rng.random((4, 32, 32, 3), np.float32)), np.arange(4))
    assert len(norms) == 7
    assert all(array.tobytes() == before[name].tobytes() for name, array in model.state_dict().items())


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    resnet("--iterations", 4, "--out", tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    output = resnet("--iterations", 8, "--lr", 1e30, "--out", tmp_path / "new", fails=True)
    assert "the loss is" in output
    assert "--lr" in output
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path):
    resnet("--iterations", 1, "--out", tmp_path)
    assert "--resume, or choose another --out" in resnet("--iterations", 1, "--out", tmp_path, fails=True)


def test_resuming_with_other_options_says_which(tmp_path):
    resnet("--iterations", 1, "--out", tmp_path)
    assert "seed was 0, is 1" in resnet("--iterations", 1, "--seed", 1, "--out", tmp_path, "--resume", fails=True)


def test_resuming_another_network_says_so(tmp_path):
    resnet("--iterations", 1, "--out", tmp_path)
    again = [*TINY, "--iterations", 1, "--out", tmp_path, "--resume"]
    output = run("train_cifar_resnet.py", "--depth", 14, *again, fails=True)
    assert "depth was 8, is 14" in output
    output = run("train_cifar_vgg.py", "--config", "A", *again, fails=True)
    assert "config was None, is A" in output


def test_the_metrics_of_a_run_without_a_checkpoint_are_not_continued(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "torn')
    resnet("--iterations", 1, "--out", tmp_path)
    assert [record["step"] for record in metrics(tmp_path)] == [1]


@pytest.mark.parametrize("option", ["--batch-size", "--limit-train", "--epochs", "--iterations"])
def test_a_count_of_nothing_is_a_clear_error(tmp_path, option):
    assert "expected a whole number >= 1" in run("train_cifar_resnet.py", option, 0, "--out", tmp_path, fails=True)


def test_resuming_what_is_not_there_is_an_error(tmp_path):
    assert "there is no" in resnet("--out", tmp_path, "--resume", fails=True)


def test_a_gpu_that_is_missing_is_a_clear_error(tmp_path):
    assert "device 'cuda'" in resnet("--device", "cuda", "--out", tmp_path, fails=True)


def test_a_depth_that_is_not_6n_plus_2_is_a_clear_error(tmp_path):
    assert "6n + 2" in run("train_cifar_resnet.py", "--depth", 21, "--out", tmp_path, fails=True)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_without_the_data_and_a_network_the_error_says_what_to_do(tmp_path, dataset):
    (tmp_path / "data").write_text("a file where the folder should be")
    output = resnet("--dataset", dataset, "--data-dir", tmp_path / "data", "--out", tmp_path / "out", fails=True)
    assert "error:" in output


def test_train_cifar_resnet_runs_on_the_real_images(tmp_path, real_cifar10):
    output = resnet(
        "--dataset", "cifar10", "--data-dir", real_cifar10, "--iterations", 2, "--holdout", "--out", tmp_path
    )
    assert "validation error" in output


def test_transfer_runs_on_any_layer_and_names_one_that_does_not_exist(tmp_path):
    resnet("--epochs", 1, "--out", tmp_path)
    options = "--depth", 8, "--limit-train", 200, "--epochs", 2
    weights = tmp_path / "checkpoint.safetensors"
    output = run("transfer.py", "--weights", weights, "--layer", "layer2.0.conv1", *options)
    assert re.search(r"training accuracy \d+\.\d+%, test accuracy \d+\.\d+%", output)
    assert "an untrained network" in run("transfer.py", "--random-init", *options)
    assert "has no layer 'layer9'" in run(
        "transfer.py", "--weights", weights, "--layer", "layer9", *options, fails=True
    )


def test_the_classifier_of_transfer_learns_what_is_linear():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    features = rng.standard_normal((300, 5)).astype(np.float32)
    features[np.arange(300), labels] += 6
    classifier = transfer.fit(features[:200], labels[:200], classes=3, epochs=200, seed=0)
    assert transfer.accuracy(classifier, features[200:], labels[200:]) > 0.95
