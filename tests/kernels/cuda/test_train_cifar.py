"""The training scripts on a GPU: a step sends nothing there but a small array, and waits for nothing."""

import json
import signal
from argparse import Namespace

import numpy as np
import pytest
import train_cifar_resnet
from cifar_data import CifarData
from models.resnet import cifar_resnet
from safetensors.numpy import load_file
from train_cifar_resnet import train, train_step
from training import Counter, RunFolder, computing, error_rate

from minidl import Tensor
from minidl.data import IndexLoader, make_shapes
from minidl.optim import SGD


def data():
    return CifarData(make_shapes(40), make_shapes(20, train=False), "test")  # batches of 16, 16 and 8


def run(folder, device, **changes):
    """Two epochs of ResNet-8; its metrics and what its checkpoint holds."""
    options = {"recipe": "paper", "epochs": 2, "iterations": None, "batch_size": 16, "lr": 0.05, "weight_decay": None}
    options |= {"seed": 0, "out": folder, "resume": False, "device": device, "dtype": "float32"}
    args = Namespace(**options | changes)
    train(cifar_resnet(8).to(device), data(), RunFolder(args.out, args.resume), args)
    metrics = [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    arrays = load_file(folder / "checkpoint.safetensors")
    return metrics, {name: array.tobytes() for name, array in arrays.items()}


def test_a_run_ends_as_on_the_cpu_and_says_how_fast_it_was(tmp_path, device, capsys):
    metrics, _ = run(tmp_path / "device", device)
    expected, _ = run(tmp_path / "cpu", "cpu")
    assert [record["step"] for record in metrics] == [3, 6]
    for record, other in zip(metrics, expected, strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
        assert record["train_error"] == pytest.approx(other["train_error"], abs=0.1)  # of 40 images
    assert "images/s; 0:" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_a_run_with_rounded_products_begins_alike(dtype, tmp_path, device):
    short = {"epochs": None, "iterations": 1}
    exact, _ = run(tmp_path / "exact", device, **short)
    with computing(Namespace(dtype=dtype, device=device, batch_size=16)):
        rounded, _ = run(tmp_path / "rounded", device, dtype=dtype, **short)
    for record, other in zip(rounded, exact, strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)
        assert record["train_loss"] != other["train_loss"]


def test_when_the_host_looks_at_the_loss_changes_nothing(tmp_path, device, monkeypatch):
    seldom = run(tmp_path / "seldom", device)
    monkeypatch.setitem(train_cifar_resnet.LOOK_EVERY, device, 1)
    assert run(tmp_path / "often", device) == seldom


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(tmp_path, device, monkeypatch):
    whole = run(tmp_path / "whole", device)

    steps = []

    def step_with_ctrl_c(*arguments):
        steps.append(train_step(*arguments))
        if len(steps) == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(train_cifar_resnet, "train_step", step_with_ctrl_c)
        metrics, _ = run(tmp_path / "parts", device)
    assert len(metrics) == 1
    assert run(tmp_path / "parts", device, resume=True) == whole


def test_a_loss_that_is_no_number_stops_the_run_and_the_steps_it_may_be_of_are_named(tmp_path, device):
    with pytest.raises(SystemExit, match=r"the loss is (nan|inf) at one of the steps 0 to 2; try a lower --lr"):
        run(tmp_path, device, lr=1e30)


def test_a_step_copies_nothing_to_the_device_and_reads_nothing_from_it(device, kernels, monkeypatch):
    """So that all of it can be captured as a graph, whose input is the batch."""
    import cupy

    shapes, model, counter = data().to(device), cifar_resnet(8).to(device), Counter(device)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    first, second, _ = [Tensor(batch, device=device).data for batch in IndexLoader(shapes.train, 16, shapes.augment)]
    train_step(model, optimizer, shapes, counter, first)
    asarray = cupy.asarray

    def device_arrays_only(array, *args):
        assert isinstance(array, cupy.ndarray), "a copy from the host"
        return asarray(array, *args)

    monkeypatch.setattr(cupy, "asarray", device_arrays_only)
    if cupy.__version__ == "stand-in":
        for name in ("get", "item", "tolist", "__float__", "__int__"):
            monkeypatch.setattr(cupy.ndarray, name, lambda array: pytest.fail("a look at the device's numbers"))
    train_step(model, optimizer, shapes, counter, second)
    monkeypatch.undo()
    assert counter.read().images == 32


def test_the_error_rate_is_that_of_the_same_model_on_the_cpu(device):
    model = cifar_resnet(8)
    expected = error_rate(model, data())
    assert error_rate(model.to(device), data().to(device)) == pytest.approx(expected, abs=0.051)  # of 20 images
    assert np.isfinite(expected)
