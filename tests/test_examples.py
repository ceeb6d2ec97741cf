"""Every example runs as a user runs it, for a few steps, and keeps its promises about stopping and going on."""

import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import degradation as degradation_example
import numpy as np
import pytest
import transfer
from cifar_data import CifarData
from models.resnet import cifar_resnet
from PIL import Image
from safetensors.numpy import load_file
from training import StopRequest

from minidl import FeatureExtractor, Tensor
from minidl.data import make_shapes
from minidl.functional import cross_entropy
from minidl.training.checkpoint import read_checkpoint

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


def test_degradation_compares_the_options_of_one_depth_in_one_column(tmp_path):
    output = run("degradation.py", "--depths", 8, "--shortcuts", "B", "C", *TINY, "--budget", 1, "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"residual-B-8", "residual-C-8", "degradation.png"}
    with Image.open(tmp_path / "degradation.png") as picture:
        assert picture.size == (800, 1100)
    for option, parameters in (("B", "78,042"), ("C", "78,330")):
        (last,) = metrics(tmp_path / f"residual-{option}-8")
        errors = rf"{last['train_error']:.2%} +{last['test_error']:.2%}"
        assert re.search(rf"^8 layers, option {option} +{parameters} +1 +{errors} +-$", output, re.MULTILINE)


def settings(folder, **changes):
    """The options of degradation.py."""
    options = {"depths": [8], "shortcuts": ["none", "A"], "budget": (4, ""), "batch_size": 16, "seed": 0}
    options |= {"out": folder, "device": "cpu", "dataset": "shapes", "limit_train": None, "holdout": False}
    return Namespace(**options | changes)


def shapes():
    return CifarData(make_shapes(40), make_shapes(20, train=False), "test")  # batches of 16, 16 and 8


@pytest.mark.parametrize("changed", [{"limit_train": 20}, {"holdout": True}], ids=str)
@pytest.mark.parametrize("at_first", [True, False])
def test_degradation_goes_on_with_the_images_it_began_with(tmp_path, changed, at_first):
    begun, resumed = settings(tmp_path), settings(tmp_path, **changed)
    if at_first:
        begun, resumed = resumed, begun
    degradation_example.Run("A", 8, shapes(), begun, 4).save()
    degradation_example.Run("A", 8, shapes(), begun, 4)
    with pytest.raises(SystemExit, match=f"--resume: {min(changed)} was .*; give the same options"):
        degradation_example.Run("A", 8, shapes(), resumed, 4)


def test_what_is_compared_stands_in_one_column():
    columns = degradation_example.columns_of(settings("", depths=[20, 56], shortcuts=["none", "A"]))
    assert columns == {
        "plain networks": {"20 layers": ("none", 20), "56 layers": ("none", 56)},
        "residual networks, option A": {"20 layers": ("A", 20), "56 layers": ("A", 56)},
    }
    columns = degradation_example.columns_of(settings("", depths=[20], shortcuts=["none", "B"]))
    assert columns == {"20 layers": {"plain": ("none", 20), "option B": ("B", 20)}}


@pytest.mark.parametrize(
    ("shortcut", "depth", "dataset", "paper"),
    [("A", 20, "cifar10", "8.75%"), ("B", 20, "cifar10", "-"), ("A", 20, "shapes", "-"), ("A", 14, "cifar10", "-")],
)
def test_the_papers_error_stands_beside_what_it_is_of(tmp_path, shortcut, depth, dataset, paper):
    """CIFAR-10, option A, a depth of table 6. The folders are read as a run from before left them."""
    args = settings(tmp_path, depths=[depth, 8], shortcuts=[shortcut], dataset=dataset)
    folder = degradation_example.folder_of(shortcut, depth, args)
    folder.mkdir()
    (folder / "checkpoint.safetensors").touch()
    line = {"step": 7, "train_error": 0.25, "test_error": 0.5, "split": "test", "gradients": [1.0]}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    _, *rows = degradation_example.table(shapes(), args).splitlines()
    assert len(rows) == 1, "a network that has not been measured has no row"
    assert rows[0].split()[-4:] == ["7", "25.00%", "50.00%", paper]


def test_a_budget_of_time_is_shared_by_all_shortcuts_and_depths(tmp_path, monkeypatch):
    """A step of a layer takes a second, with option C two; a measurement five and ten."""
    seconds = {"none": (1.0, 5.0), "A": (1.0, 5.0), "C": (2.0, 10.0)}
    monkeypatch.setattr(degradation_example, "seconds_of_a_layer", lambda shortcut, *_: seconds[shortcut])
    hour = {"budget": (1, "h"), "depths": [8, 14]}
    # 22 layers, each trained with every shortcut, and measured ten times
    iterations = degradation_example.count_iterations(None, settings(tmp_path / "two", **hour))
    assert iterations == int((3600 / 22 - 10 * 10) / 2)
    iterations = degradation_example.count_iterations(None, settings(tmp_path / "one", **hour, shortcuts=["C"]))
    assert iterations == int((3600 / 22 - 10 * 10) / 2)
    longer = settings(tmp_path / "three", **hour | {"budget": (2, "h")}, shortcuts=["none", "A", "C"])
    assert degradation_example.count_iterations(None, longer) == int((7200 / 22 - 10 * 20) / 4)


@pytest.mark.parametrize("count", [10, 40], ids=["fewer images than a batch", "a last batch that is smaller"])
def test_the_speed_is_that_of_full_batches_of_the_network_in_question(device, count, monkeypatch):
    made, taken = [], []
    make_network, take = degradation_example.make_network, CifarData.take

    def note_network(shortcut, *others):
        made.append(shortcut)
        return make_network(shortcut, *others)

    def note_batch(data, batch, dataset, view):
        taken.extend([batch.shape[1]] * (dataset is data.train))
        return take(data, batch, dataset, view)

    monkeypatch.setattr(degradation_example, "make_network", note_network)
    monkeypatch.setattr(CifarData, "take", note_batch)
    data = CifarData(make_shapes(count), make_shapes(20, train=False), "test").to(device)
    step, measurement = degradation_example.seconds_of_a_layer("C", data, settings("", device=device))
    assert step > 0 and measurement > 0
    assert made == ["C"]
    assert set(taken) == {min(count, 16)}


@pytest.mark.parametrize("shortcut", degradation_example.KINDS)
def test_the_responses_are_those_of_the_networks_own_forward_pass(shortcut, device, rng):
    model = cifar_resnet(14, shortcut).to(device)
    images = Tensor(rng.standard_normal((4, 32, 32, 3), np.float32), device=device)
    deviations, logits = degradation_example.responses(model, images)
    assert len(deviations) == 13 and all(deviation > 0 for deviation in deviations)
    np.testing.assert_allclose(logits.numpy(), model.eval()(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shortcut", degradation_example.KINDS)
def test_the_gradients_are_those_of_the_3x3_layers_and_measuring_leaves_the_network_as_it_was(shortcut, rng):
    model, images, labels = cifar_resnet(8, shortcut), Tensor(rng.random((4, 32, 32, 3), np.float32)), np.arange(4)
    before = model.state_dict()
    norms = degradation_example.gradient_norms(model, images, labels)
    assert all(array.tobytes() == before[name].tobytes() for name, array in model.state_dict().items())
    cross_entropy(model(images), labels).backward()
    blocks = [stage[0] for stage in (model.layer1, model.layer2, model.layer3)]
    layers = [model.conv1, *(layer for block in blocks for layer in (block.conv1, block.conv2))]
    assert norms == pytest.approx([np.linalg.norm(layer.weight.grad.numpy()) for layer in layers])


def trained(folder, device, shortcut="A"):
    """The metrics and the checkpoint's arrays after five steps, two measured, on that device."""
    data, args = shapes().to(device), settings(folder, device=device)
    run = degradation_example.Run(shortcut, 8, data, args, iterations=5)
    with StopRequest() as stop:
        degradation_example.train(run, 5, stop)
    args.shortcuts, args.depths = [shortcut], [8]
    degradation_example.draw(data, args, 5)
    (folder_of_run,) = (path for path in folder.iterdir() if path.is_dir())
    return metrics(folder_of_run), read_checkpoint(folder_of_run / "checkpoint.safetensors")


def test_degradation_on_a_device_gives_the_cpus_numbers(tmp_path, device):
    records, _ = trained(tmp_path / "device", device, "B")
    expected, _ = trained(tmp_path / "cpu", "cpu", "B")
    assert [record["step"] for record in records] == [record["step"] for record in expected] == [1, 2, 3, 4, 5]
    for record, other in zip(records, expected, strict=True):
        assert record["gradients"] == pytest.approx(other["gradients"], rel=0.05)
        assert record["train_error"] == pytest.approx(other["train_error"], abs=0.1)
        assert record["test_error"] == pytest.approx(other["test_error"], abs=0.1)


def test_a_run_of_degradation_writes_down_what_it_needs_to_go_on(tmp_path):
    records, (_, counters) = trained(tmp_path, "cpu")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["residual-8"]
    assert counters.keys() == {"step", "warming_up", "totals", "loader", "options"}
    options = {"iterations": 5, "dataset": "shapes", "batch_size": 16, "seed": 0}
    assert counters["options"] == options | {"limit_train": None, "holdout": False}
    assert records[-1].keys() == {"step", "train_error", "test_error", "split", "gradients"}


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
    assert "device 'cuda'" in degradation(tmp_path, "--device", "cuda", fails=True)
    assert "device 'cuda'" in run("transfer.py", "--random-init", "--device", "cuda", *TINY[:2], fails=True)


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
    options = "--limit-train", 200, "--epochs", 2
    weights = tmp_path / "checkpoint.safetensors"  # it says itself that it is of 8 layers
    output = run("transfer.py", "--weights", weights, "--layer", "layer2.0.conv1", *options)
    assert re.search(r"training accuracy \d+\.\d+%, test accuracy \d+\.\d+%", output)
    assert "an untrained network" in run("transfer.py", "--random-init", "--depth", 8, *options)
    assert "has no layer 'layer9'" in run(
        "transfer.py", "--weights", weights, "--layer", "layer9", *options, fails=True
    )


@pytest.mark.parametrize("layer", ["layer2", "fc"])
def test_the_features_of_transfer_are_those_of_the_network_on_any_device(layer, device):
    data, model = shapes().to(device), cifar_resnet(8).eval()
    images = Tensor(data.prepare(make_shapes(20, train=False).images, np.random.default_rng(0)))
    expected = FeatureExtractor(model, layer)(images).numpy()
    expected = expected.mean(axis=(1, 2)) if layer == "layer2" else expected
    features = transfer.features_of(data, data.test, FeatureExtractor(model.to(device), layer), "test")
    assert isinstance(features, np.ndarray)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)


def test_transfer_runs_on_any_device(device):
    accuracies = transfer.transfer(cifar_resnet(8).to(device), shapes().to(device), "layer3", epochs=5, seed=0)
    on_the_cpu = transfer.transfer(cifar_resnet(8), shapes(), "layer3", epochs=5, seed=0)
    assert accuracies == pytest.approx(on_the_cpu, abs=0.1)


def test_the_classifier_of_transfer_learns_what_is_linear():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    features = rng.standard_normal((300, 5)).astype(np.float32)
    features[np.arange(300), labels] += 6
    classifier = transfer.fit(features[:200], labels[:200], classes=3, epochs=200, seed=0)
    assert transfer.accuracy(classifier, features[200:], labels[200:]) > 0.95
