"""examples/degradation.py: plain and residual networks trained side by side, their responses and gradients."""

import json
import re
import signal
from argparse import Namespace

import degradation
import numpy as np
import pytest
from common.cifar import CifarData
from matplotlib.figure import Figure
from PIL import Image

from minidl import Tensor
from minidl.data import AugmentedLoader, make_shapes
from minidl.functional import cross_entropy
from minidl.training.checkpoint import read_checkpoint
from tests.examples.tools import assert_same_run, counters, metrics, shapes, signal_after


@pytest.fixture
def degrade(run, tmp_path):
    """Runs degradation.py with batches of 16 of 40 images."""

    def degrade(*options, depths=(8,), out=tmp_path):
        return run(degradation, "--depths", *depths, "--batch-size", 16, "--out", out, *options)

    return degrade


def test_degradation_trains_both_kinds_and_draws_them(degrade, tmp_path):
    status, output = degrade("--budget", 3, depths=(8, 14))
    assert status == 0
    assert f"\n{tmp_path / 'degradation.png'}\n" in output
    with Image.open(tmp_path / "degradation.png") as picture:
        assert picture.size == (1100, 1100)
    for name, layers in (("plain-8", 7), ("residual-8", 7), ("plain-14", 13), ("residual-14", 13)):
        records = metrics(tmp_path / name)
        assert [record["step"] for record in records] == [1, 2, 3]
        assert len(records[-1]["gradients"]) == layers
        assert all(norm > 0 for norm in records[-1]["gradients"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of both networks of 8 layers after 4 steps."""
    folder = tmp_path_factory.mktemp("degradation")
    options = ["--depths", "8", "--batch-size", "16", "--budget", "4", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(degradation, "load_data", shapes)
        patch.setattr("sys.argv", ["", *options])
        degradation.main()
    return folder


def test_with_detect_anomaly_it_has_the_same_bits(degrade, tmp_path, whole):
    assert degrade("--budget", 4, "--detect-anomaly")[0] == 0
    for name in ("plain-8", "residual-8"):
        assert_same_run(tmp_path / name, whole / name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_degradation_that_was_stopped_draws_what_there_is_and_goes_on_with_the_same_bits(
    degrade, tmp_path, whole, number
):
    with signal_after(2, number):
        status, output = degrade("--budget", 4)
    assert status == {signal.SIGINT: 0, signal.SIGTERM: 143, signal.SIGHUP: 129}[number]
    assert "checkpoint saved. To continue: the same command\n" in output
    assert re.search(r"^8 layers, plain +75,290 +2 ", output, re.MULTILINE)
    assert (tmp_path / "degradation.png").exists()
    assert counters(tmp_path / "plain-8")["progress"]["step"] == 2
    assert not (tmp_path / "residual-8").exists()
    assert degrade("--budget", 4)[0] == 0
    for name in ("plain-8", "residual-8"):
        assert_same_run(tmp_path / name, whole / name)


def test_a_signal_in_the_last_step_of_a_network_stops_before_the_next(degrade, tmp_path, whole):
    with signal_after(4, signal.SIGTERM):
        status, output = degrade("--budget", 4)
    assert status == 143
    assert "stopped after step 4; checkpoint saved. To continue: the same command\n" in output
    assert not (tmp_path / "residual-8").exists()
    assert (tmp_path / "degradation.png").exists()
    with signal_after(4, signal.SIGTERM):  # the plain network does not reach it again; the other one is the last
        assert degrade("--budget", 4)[0] == 0
    for name in ("plain-8", "residual-8"):
        assert_same_run(tmp_path / name, whole / name)


def test_a_budget_of_time_is_turned_into_iterations_once(degrade, tmp_path, monkeypatch):
    monkeypatch.setattr(degradation, "seconds_per_layer", lambda *_: (0.02, 0.0))
    degrade("--budget", "1s")
    written = (tmp_path / "budget.json").read_text()
    assert json.loads(written)["iterations"] == 3  # 8 layers, two networks: 0.32 s a step
    assert metrics(tmp_path / "plain-8")[-1]["step"] == 3
    monkeypatch.setattr(degradation, "seconds_per_layer", lambda *_: (0.01, 0.0))
    assert degrade("--budget", "1s")[0] == 0
    assert (tmp_path / "budget.json").read_text() == written
    status, output = degrade("--budget", "soon")
    assert status == 2
    assert "expected iterations or a time" in output


def test_a_budget_that_is_shared_in_another_way_is_refused(degrade, tmp_path, monkeypatch):
    """The figure would say that the networks had another time than they were trained for."""
    monkeypatch.setattr(degradation, "seconds_per_layer", lambda *_: (0.02, 0.0))
    degrade("--budget", "1s")
    for options, was in (
        (("--budget", "1h"), "--budget was 1s, is 1h"),
        (("--budget", "1s", "--shortcuts", "A"), "--shortcuts was ['none', 'A'], is ['A']"),
    ):
        status, output = degrade(*options)
        assert status == 2
        assert f"{tmp_path / 'budget.json'}: {was}; pass the same options, or choose another --out" in output


def test_the_responses_are_those_of_the_last_measurement(degrade, tmp_path, monkeypatch):
    """Ctrl-C saves a later checkpoint, whose responses would stand beside the errors of an earlier step."""
    with signal_after(3):
        degrade("--budget", 4, "--measurements", 2)
    record = metrics(tmp_path / "plain-8")[-1]
    drawn = []
    monkeypatch.setattr(degradation, "responses", lambda *_: pytest.fail("measured from the checkpoint"))
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, *lines, **_: drawn.extend(lines) or [])
    folder = degradation.RunFolder(tmp_path / "plain-8", True, {})
    data = shapes()
    model = degradation.make_network("none", 8, data, settings(tmp_path))
    degradation.draw_network(Figure().subplots(3), model, folder, degradation.probe_batch(data), "C0")
    assert record["step"] == 2 and record["responses"] in drawn


def test_degradation_compares_the_options_of_one_depth_in_one_column(degrade, tmp_path):
    _, output = degrade("--shortcuts", "B", "C", "--budget", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"residual-B-8", "residual-C-8", "degradation.png"}
    with Image.open(tmp_path / "degradation.png") as picture:
        assert picture.size == (800, 1100)
    for option, parameters in (("B", "78,042"), ("C", "78,330")):
        (last,) = metrics(tmp_path / f"residual-{option}-8")
        errors = rf"{last['train_error']:.2%} +{last['test_error']:.2%}"
        assert re.search(rf"^8 layers, option {option} +{parameters} +1 +{errors} +-$", output, re.MULTILINE)


def test_pre_activation_is_a_third_kind_beside_plain_and_residual(degrade, tmp_path):
    status, output = degrade("--shortcuts", "none", "A", "preact", "--budget", 2, "--measurements", 2, depths=(8, 14))
    assert status == 0
    assert re.search(r"^14 layers, pre-activation +175,066 +2 ", output, re.MULTILINE)
    with Image.open(tmp_path / "degradation.png") as picture:
        assert picture.size == (1650, 1100), "a column for each kind"
    assert [record["step"] for record in metrics(tmp_path / "preact-14")] == [1, 2]
    assert len(metrics(tmp_path / "preact-14")[-1]["gradients"]) == 13


def test_the_shortcuts_of_the_second_paper_are_compared(degrade, tmp_path):
    kinds = "constant-scaling", "exclusive-gating", "shortcut-only-gating", "dropout-shortcut"
    status, output = degrade("--shortcuts", *kinds, "--budget", 1)
    assert status == 0
    for kind in kinds:
        assert f"8 layers, {kind.replace('-', ' ')} " in output
        assert len(metrics(tmp_path / f"{kind}-8")) == 1


def test_what_stands_after_the_sum_tells_the_networks_apart():
    """relu of the first paper, nothing of the second."""
    networks = [
        degradation.make_network(kind, 8, shapes(), settings("")) for kind in ("A", "constant-scaling", "preact")
    ]
    assert [type(network.layer1[0]).__name__ for network in networks] == [
        *("BasicBlock", "ConstantScalingBlock", "PreActivationBlock"),
    ]


def settings(folder, **changes):
    """The options of degradation.py."""
    options = {"depths": [8], "shortcuts": ["none", "A"], "budget": (4, ""), "batch_size": 16, "seed": 0}
    options |= {
        "out": folder,
        "device": "cpu",
        "detect_anomaly": False,
        "dataset": "shapes",
        "limit_train": None,
        "limit_test": None,
        "holdout": False,
        "measurements": 10,
        "keep": 2,
        "log": None,
    }
    return Namespace(**options | changes)


@pytest.mark.parametrize("changed", [{"limit_train": 20}, {"limit_test": 10}, {"holdout": True}], ids=str)
@pytest.mark.parametrize("at_first", [True, False])
def test_degradation_goes_on_with_the_images_it_began_with(tmp_path, changed, at_first):
    begun, resumed = settings(tmp_path), settings(tmp_path, **changed)
    if at_first:
        begun, resumed = resumed, begun
    for iterations in (1, 1):
        degradation.train("A", 8, shapes(), begun, iterations)
    with pytest.raises(SystemExit, match=f"checkpoint.safetensors: {min(changed)} was .*; pass the same options"):
        degradation.train("A", 8, shapes(), resumed, 1)


def test_what_is_compared_stands_in_one_column():
    columns = degradation.columns_of(settings("", depths=[20, 56], shortcuts=["none", "A"]))
    assert columns == {
        "plain networks": {"20 layers": ("none", 20), "56 layers": ("none", 56)},
        "residual networks, option A": {"20 layers": ("A", 20), "56 layers": ("A", 56)},
    }
    columns = degradation.columns_of(settings("", depths=[20], shortcuts=["none", "B"]))
    assert columns == {"20 layers": {"plain": ("none", 20), "option B": ("B", 20)}}


@pytest.mark.parametrize(
    ("shortcut", "depth", "dataset", "paper"),
    [("A", 20, "cifar10", "8.75%"), ("B", 20, "cifar10", "-"), ("A", 20, "shapes", "-"), ("A", 14, "cifar10", "-")],
)
def test_the_papers_error_stands_beside_what_it_is_of(tmp_path, shortcut, depth, dataset, paper):
    """CIFAR-10, option A, a depth of table 6. The folders are read as a run from before left them."""
    args = settings(tmp_path, depths=[depth, 8], shortcuts=[shortcut], dataset=dataset)
    folder = degradation.folder_path(shortcut, depth, args)
    folder.mkdir()
    (folder / "checkpoint.safetensors").touch()
    line = {"step": 7, "train_error": 0.25, "test_error": 0.5, "split": "test", "gradients": [1.0]}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    _, *rows = degradation.table(shapes(), args).splitlines()
    assert len(rows) == 1, "a network that has not been measured has no row"
    assert rows[0].split()[-4:] == ["7", "25.00%", "50.00%", paper]


def test_a_budget_of_time_is_shared_by_all_shortcuts_and_depths(tmp_path, monkeypatch):
    """A step of a layer takes a second, with option C two; a measurement five and ten."""
    seconds = {"none": (1.0, 5.0), "A": (1.0, 5.0), "C": (2.0, 10.0)}
    monkeypatch.setattr(degradation, "seconds_per_layer", lambda shortcut, *_: seconds[shortcut])
    hour = {"budget": (1, "h"), "depths": [8, 14]}
    # 22 layers, each trained with every shortcut, and measured ten times
    iterations = degradation.count_iterations(None, settings(tmp_path / "two", **hour))
    assert iterations == int((3600 / 22 - 10 * 10) / 2)
    iterations = degradation.count_iterations(None, settings(tmp_path / "one", **hour, shortcuts=["C"]))
    assert iterations == int((3600 / 22 - 10 * 10) / 2)
    longer = settings(tmp_path / "three", **hour | {"budget": (2, "h")}, shortcuts=["none", "A", "C"])
    assert degradation.count_iterations(None, longer) == int((7200 / 22 - 10 * 20) / 4)


@pytest.mark.parametrize("count", [10, 40], ids=["fewer images than a batch", "a last batch that is smaller"])
def test_the_speed_is_that_of_full_batches_of_the_network_in_question(device, count, monkeypatch):
    made, taken = [], []
    make_network, load = degradation.make_network, AugmentedLoader._load

    def note_network(shortcut, *others):
        made.append(shortcut)
        return make_network(shortcut, *others)

    def note_batch(loader, *arguments):
        batch = load(loader, *arguments)
        taken.extend([len(batch[0])] * (loader.dataset is data.train))
        return batch

    monkeypatch.setattr(degradation, "make_network", note_network)
    monkeypatch.setattr(AugmentedLoader, "_load", note_batch)
    data = CifarData(make_shapes(count), make_shapes(20, train=False), device=device)
    step, measurement = degradation.seconds_per_layer("C", data, settings("", device=device))
    assert step > 0 and measurement > 0
    assert made == ["C"]
    assert set(taken) == {min(count, 16)}


@pytest.mark.parametrize("shortcut", degradation.KINDS)
def test_the_responses_are_those_of_the_networks_own_forward_pass(shortcut, device, rng):
    model = degradation.make_network(shortcut, 14, shapes(), settings("", device=device))
    images = Tensor(rng.standard_normal((4, 32, 32, 3), np.float32), device=device)
    deviations, logits = degradation.responses(model, images)
    assert len(deviations) == 13 and all(deviation > 0 for deviation in deviations)
    np.testing.assert_allclose(logits.numpy(), model.eval()(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shortcut", degradation.KINDS)
def test_the_gradients_are_those_of_the_3x3_layers_and_measuring_leaves_the_network_as_it_was(shortcut, rng):
    model = degradation.make_network(shortcut, 8, shapes(), settings(""))
    images, labels = Tensor(rng.random((4, 32, 32, 3), np.float32)), np.arange(4)
    before = model.state_dict()
    norms = degradation.gradient_norms(model, images, labels)
    assert all(array.tobytes() == before[name].tobytes() for name, array in model.state_dict().items())
    cross_entropy(model(images), labels).backward()
    blocks = [stage[0] for stage in (model.layer1, model.layer2, model.layer3)]
    layers = [model.conv1, *(layer for block in blocks for layer in (block.conv1, block.conv2))]
    assert norms == pytest.approx([np.linalg.norm(layer.weight.grad.numpy()) for layer in layers])


def trained(folder, device, shortcut="A"):
    """The metrics and the checkpoint's arrays after five steps, each measured, on that device."""
    args = settings(folder, device=device, shortcuts=[shortcut])
    data = shapes(args)
    degradation.train(shortcut, 8, data, args, iterations=5)
    degradation.draw(data, args, 5)
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
    records, (_, written) = trained(tmp_path, "cpu")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["residual-8"]
    assert written.keys() == {"progress", "warm_up", "loader", "options", "data", "best"}
    options = {"iterations": 5, "dataset": "shapes", "batch_size": 16, "seed": 0}
    assert written["options"] == options | {"limit_train": None, "limit_test": None, "holdout": False}
    assert records[-1].keys() >= {"step", "train_error", "test_error", "split", "gradients", "responses"}
