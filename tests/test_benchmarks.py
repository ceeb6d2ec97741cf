"""The benchmarks run, write what they promise, and compare equal work."""

import json
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import fast_paths
import feeding
import images as image_benchmark
import kernels as kernel_benchmark
import numpy as np
import pytest
import train_step
from common.cifar import CifarData
from PIL import Image
from safetensors.numpy import save_file
from step_worker import make_ours

import minidl
from minidl import Tensor, get_convolution, nn, optim, set_convolution
from minidl.data import RESNET_SIDES, TrainingView, make_shapes
from minidl.functional import cross_entropy
from minidl.kernels import cpu
from minidl.kernels.cpu import conv

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# On one thread, as PyTorch's threads wait for each other for very long where other programs run too.
SMALL = ["--model", "resnet20", "--batch", "2", "--threads", "1"]


def run(script, path, *options):
    """The record that a benchmark writes for ResNet-20 and a batch of 2."""
    command = [sys.executable, BENCHMARKS / script, *SMALL, "--json", path, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.fixture
def threads_as_before():
    """What a benchmark sets for the whole process is undone; PyTorch has one thread in all tests."""
    before = minidl.get_num_threads()
    yield
    minidl.set_num_threads(before)


# -- train_step.py -----------------------------------------------------------------------------------------------------

QUICK_STEPS = ["--rounds", "1", "--steps", "1", "--warmup", "0"]


def test_train_step_measures_ours_alone(tmp_path):
    record = run("train_step.py", tmp_path / "record.json", *QUICK_STEPS, "--forward")
    assert [record[key] for key in ("model", "batch", "mode", "threads")] == ["resnet20", 2, "forward", 1]
    assert record["ours_ms"] > 0
    assert not [key for key in record if "torch" in key or "ratio" in key]


def test_train_step_measures_ours_against_torch(torch, tmp_path):
    record = run("train_step.py", tmp_path / "record.json", *QUICK_STEPS, "--against", "torch")
    assert (record["mode"], record["threads"]) == ("train", 1)
    for layout in ("default", "channels_last"):
        assert record[f"ratio_{layout}"] == pytest.approx(record["ours_ms"] / record[f"torch_{layout}_ms"], rel=0.01)
    memory = [f"{kind}_rss_{who}_mb" for kind in ("peak", "step") for who in ("ours", "torch")]
    assert all(record[key] > 0 for key in memory)


def test_ctrl_c_ends_a_side_silently(tmp_path, capfd):
    save_file(make_ours("resnet20").state_dict(), tmp_path / "weights")
    arguments = Namespace(model="resnet20", batch=1, threads=1, forward=True)
    side = train_step.Side("ours", arguments, tmp_path / "weights")
    side.process.send_signal(signal.SIGINT)
    side.close()
    assert side.process.returncode == -signal.SIGINT
    assert not capfd.readouterr().err


class FakeSide:
    """Takes no time; PyTorch's losses are off by what the class says."""

    off = 0.0

    def __init__(self, name, args, weights):
        self.name, self.turns, self.blas = name, [], ""
        self.losses = [2.3, 2.2, 2.1 + (self.off if name == "channels_last" else 0)]
        self.memory = {"peak_rss": 1.0, "step_rss": 1.0}

    def warm_up(self, steps):
        pass

    def take_turn(self, steps):
        self.turns.append(1.0)

    def close(self):
        pass


@pytest.mark.parametrize(
    ("off", "fails"), [(0.0, False), (1e-3, False), (1e-2, True), (-1e-2, True), (float("nan"), True)]
)
def test_train_step_fails_where_the_losses_differ(off, fails, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    monkeypatch.setattr(train_step, "Side", FakeSide)
    monkeypatch.setattr(train_step, "versions", lambda args: {})
    monkeypatch.setattr(FakeSide, "off", off)
    monkeypatch.setattr(sys, "argv", ["train_step.py", *SMALL, "--against", "torch", "--json", str(path)])
    if fails:
        with pytest.raises(SystemExit, match=r"losses differ.*channels_last"):
            train_step.main()
    else:
        train_step.main()
    assert path.exists() != fails


# -- kernels.py: running it --------------------------------------------------------------------------------------------


def calls_of(record, kernel):
    return sum(row["count"] for row in record["kernels"] if kernel in row["kernels"])


def test_kernels_measures_ours_alone(tmp_path):
    record = run("kernels.py", tmp_path / "record.json", "--repeat", "1", "--plot", tmp_path / "plot.png")
    rows = record["kernels"]
    totals = [row["total_ms"] for row in rows]
    assert totals == sorted(totals, reverse=True)
    assert [calls_of(record, name) for name in ("conv2d_forward", "batch_statistics", "batch_norm_apply")] == [19] * 3
    assert calls_of(record, "sgd_update") == 1
    assert all(row["ours_ms"] > 0 and row["rate"] >= 0 for row in rows)
    assert not [key for row in rows for key in row if "torch" in key or "ratio" in key]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width == 1320


def test_kernels_measures_ours_against_torch(torch, tmp_path, monkeypatch, threads_as_before):
    """In this process, which has PyTorch."""
    options = [*SMALL, "--json", str(tmp_path / "record.json"), "--repeat", "1", "--apart", "--against", "torch"]
    monkeypatch.setattr(sys, "argv", ["kernels.py", *options])
    kernel_benchmark.main()
    record = json.loads((tmp_path / "record.json").read_text())
    # The images themselves need no gradient, so that the first convolution has one; the others are counted twice.
    assert calls_of(record, "conv2d_backward") == 18 + 19
    for row in record["kernels"]:
        assert row["ratio_channels_last"] == pytest.approx(row["ours_ms"] / row["torch_channels_last_ms"], rel=0.1)


# -- kernels.py: its parts ---------------------------------------------------------------------------------------------


def step_of_a_small_network():
    """One training step through the layers that ResNet-20 has not; its operations."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=True),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(4, 4, 1, bias=True),
        nn.BatchNorm2d(4),
        nn.GlobalAvgPool(),
        nn.Linear(4, 5),
    )
    optimizer = optim.SGD(model.parameters(), 0.1, 0.9)
    images = np.random.default_rng(0).standard_normal((3, 12, 10, 3), np.float32)
    with kernel_benchmark.recording(cpu) as operations:
        cross_entropy(model(Tensor(images)), np.arange(3)).backward()
        optimizer.step()
    return {operation.name: operation for operation in operations}


def test_a_recording_ends_with_its_context():
    before = dict(vars(cpu))
    with pytest.raises(ZeroDivisionError), kernel_benchmark.recording(cpu):
        assert cpu.relu_forward is not before["relu_forward"]
        _ = 1 / 0
    assert vars(cpu) == before


def test_calls_with_equal_shapes_are_counted_and_others_kept_apart():
    with kernel_benchmark.recording(cpu) as operations:
        for shape in ((2, 3), (2, 3), (3, 2)):
            cpu.relu_forward(np.zeros(shape, np.float32))
    assert [(kernel_benchmark.label(operation), operation.count) for operation in operations] == [
        ("2x3", 2),
        ("3x2", 1),
    ]


def test_labels_say_what_is_not_as_usual():
    operations = step_of_a_small_network()
    labels = {name: kernel_benchmark.label(operation) for name, operation in operations.items()}
    assert labels["max_pool2d_forward"] == "3x6x5x4, kernel 3, stride 2, padding 1"
    assert labels["conv2d_forward"] in ("3x12x10x3, 3x3x3x4, stride 2, padding 1", "3x3x3x4, 1x1x4x4")
    assert labels["sgd_update"] == f"8 arrays, {3 * 3 * 3 * 4 + 4 + 4 * 4 + 4 + 8 + 4 * 5 + 5} numbers"


def test_work_is_counted_by_the_definition():
    x, weight = np.zeros((2, 5, 5, 3), np.float32), np.zeros((3, 3, 3, 4), np.float32)
    conv = kernel_benchmark.Operation([(cpu.conv2d_forward, (x, weight, None, (1, 1), (1, 1)))])
    assert kernel_benchmark.flops(conv, conv.run()) == 2 * (2 * 5 * 5) * (3 * 3 * 3) * 4
    relu = kernel_benchmark.Operation([(cpu.relu_forward, (x,))])
    assert kernel_benchmark.flops(relu, relu.run()) == 0
    assert kernel_benchmark.moved_bytes(relu, relu.run()) == 2 * x.nbytes
    p = [np.zeros(8, np.float32)]
    update = kernel_benchmark.Operation([(cpu.sgd_update, (p, p, p, 0.1, 0.9, 0.0, False))])
    assert kernel_benchmark.moved_bytes(update, update.run()) == 5 * p[0].nbytes  # grad is only read


@pytest.mark.parametrize("layout", ["default", "channels_last"])
def test_pytorch_is_given_the_same_work(layout, torch):
    import torch_kernels

    operations = step_of_a_small_network()
    assert {"max_pool2d_backward", "relu_backward", "bias_backward", "linear_backward_weight"} <= operations.keys()
    for name, operation in operations.items():
        theirs = torch_kernels.counterpart(name, layout, operation.arguments)
        torch_kernels.check_same(name, operation.run()[-1], theirs())


def test_other_work_is_found_out(torch):
    import torch_kernels

    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 2, 3, 4)
    theirs = torch_kernels.counterpart("relu_forward", "default", (x,))
    with pytest.raises(SystemExit, match="relu_forward and PyTorch's counterpart differ"):
        torch_kernels.check_same("relu_forward", x, theirs())


def test_a_kernel_without_a_counterpart_has_none(torch):
    import torch_kernels

    assert torch_kernels.counterpart("a kernel of the future", "default", ()) is None


# -- fast_paths.py -----------------------------------------------------------------------------------------------------


LOSSES = ["losses", "--dataset", "shapes", "--limit-train", "256", "--steps", "2", "--seeds", "0", "--side"]


def first_losses_of_a_process(side):
    command = [sys.executable, str(BENCHMARKS / "fast_paths.py"), *LOSSES, side]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["losses"]


@pytest.fixture
def first_losses(monkeypatch, capsys):
    """The same in this process, with the same images."""
    for module, name in ((cpu, "conv2d_backward"), (conv, "SMALL_PRODUCT")):
        monkeypatch.setattr(module, name, getattr(module, name))  # fast_paths.py sets it for good
    data = CifarData(make_shapes(256), make_shapes(20, train=False), "test")
    monkeypatch.setattr(fast_paths, "load_data", lambda args: data)

    def losses(side):
        monkeypatch.setattr(sys, "argv", ["fast_paths.py", *LOSSES, side])
        fast_paths.main()
        return json.loads(capsys.readouterr().out)["losses"]

    before = get_convolution()
    yield losses
    set_convolution(before)


def test_the_first_losses_are_the_same_without_the_fast_paths_and_in_pytorch(torch, first_losses):
    fast = first_losses_of_a_process("fast")
    assert len(fast) == 2
    assert first_losses("torch_default") == pytest.approx(fast, rel=1e-4)
    assert first_losses("im2col") == pytest.approx(fast, rel=1e-4)
    assert get_convolution() == "im2col"


def test_the_sides_are_compared_step_by_step(capsys):
    results = {side: {"losses": [2.0, 1.0]} for side in fast_paths.SIDES}
    results["im2col"] = {"losses": [2.0, 1.5]}
    fast_paths.compare_losses(results)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fast and im2col: largest relative difference 5.0e-01"
    assert lines[1] == "fast and loops: largest relative difference 0.0e+00"
    assert lines[-1].startswith("torch_default and torch_channels_last:")


# -- recompute.py ------------------------------------------------------------------------------------------------------


def test_recompute_measures_both_sides_and_their_losses_agree():
    command = [sys.executable, BENCHMARKS / "recompute.py", "--depth", "14", "--batch", "2"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert (first[1], second[1]) == ("with", "without")
    assert first[-1] == second[-1]  # the loss
    assert all(float(line[3]) > 0 and float(line[5]) > 0 for line in (first, second))


# -- images.py ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
    """A folder of one class with three photographs."""
    (tmp_path / "images" / "n01440764").mkdir(parents=True)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((400, 300)).save(tmp_path / "images" / "n01440764" / f"{i}.JPEG")
    return tmp_path / "images"


def test_the_plain_loop_makes_the_same_views(photographs):
    for i, path in enumerate(sorted(photographs.rglob("*.JPEG"))):
        plain, ours = image_benchmark.plain_view, TrainingView(RESNET_SIDES)
        views = [view(path, np.random.default_rng(i)).astype(int) for view in (plain, ours)]
        np.testing.assert_allclose(*views, atol=2)  # ours scales no more than the crop


def test_images_are_counted_for_each_side(photographs, tmp_path):
    options = ["--data", photographs, "--limit", "2", "--rounds", "1", "--batch", "2", "--json", tmp_path / "record"]
    command = [sys.executable, BENCHMARKS / "images.py", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record").read_text())
    assert list(record["results"]) == ["plain loop", "ImageLoader, threads=1", "ImageLoader, threads=2"]
    assert all(rate > 0 for rates in record["results"].values() for rate in rates.values())
    assert 0 < record["free_cores"] < 3


# -- feeding.py --------------------------------------------------------------------------------------------------------


def test_a_network_is_fed_and_its_waiting_is_measured(photographs):
    options = ["--data", photographs, "--batch", "2", "--rounds", "1", "--steps", "1"]
    command = [sys.executable, BENCHMARKS / "feeding.py", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    fed, in_memory = (re.findall(r"[\d.]+", line) for line in done.stdout.splitlines())
    assert float(fed[0]) > float(fed[1]) >= 0
    assert float(in_memory[0]) > float(in_memory[1]) >= 0


def test_nothing_is_decoded_while_the_other_side_is_measured(photographs, monkeypatch):
    """A loader that is slower than the network would catch up then, and hide half of the waiting."""
    in_memory, decoded, steps = [], [], []

    class SlowView:
        def __init__(self, *_, **__):
            pass

        def __call__(self, path, rng):
            time.sleep(0.02)
            decoded.append(bool(in_memory))
            return np.zeros((2, 2, 3), np.float32)

    def train(model, optimizer, batches, count):
        in_memory[:] = [1] * ("repeat" in type(batches).__name__)
        for _ in range(count):
            next(batches)
        time.sleep(0.1 * len(in_memory))
        steps.append(count)
        return 1.0, 0.0

    monkeypatch.setattr(feeding, "TrainingView", SlowView)
    monkeypatch.setattr(feeding, "train", train)
    feeding.measure(Namespace(data=photographs, model="resnet18", device="cpu", batch=1, threads=1, rounds=2, steps=3))
    assert decoded and not any(decoded)
    assert steps == [2, 3] * 4
