"""A run on a device: a step sends nothing there but a small array, and waits for nothing."""

import re
import signal

import numpy as np
import pytest
import train_cifar_resnet
from common.evaluate import error_rate
from common.fit import classification_step
from common.run import READ_LOSS_EVERY, Totals
from models.resnet import cifar_resnet

from minidl.optim import SGD
from tests.examples.tools import assert_same_run, metrics, shapes, signal_after


@pytest.fixture
def train(run, device):
    """Trains ResNet-8 for two epochs of three steps, the last one smaller."""

    def train(folder, *options, where=device):
        same = ["--recipe", "paper", "--batch-size", 16, "--lr", 0.05, "--device", where, "--out", folder]
        length = [] if "--iterations" in options else ["--epochs", 2]
        return run(train_cifar_resnet, "--depth", 8, *same, *length, *options)

    return train


def test_a_run_ends_as_on_the_cpu_and_says_how_fast_it_was(tmp_path, train):
    status, output = train(tmp_path / "device")
    assert status == 0
    assert re.search(r"images/s; \d+:\d\d", output)
    train(tmp_path / "cpu", where="cpu")
    records, expected = metrics(tmp_path / "device"), metrics(tmp_path / "cpu")
    assert [record["step"] for record in records] == [3, 6]
    for record, other in zip(records, expected, strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
        assert record["train_error"] == pytest.approx(other["train_error"], abs=0.1)  # of 40 images


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_a_run_with_rounded_products_begins_alike(dtype, tmp_path, train, device):
    if device == "cpu":
        assert train(tmp_path / "rounded", "--dtype", dtype)[0] == 2
        return
    train(tmp_path / "exact", "--iterations", 1)
    train(tmp_path / "rounded", "--iterations", 1, "--dtype", dtype)
    for record, other in zip(metrics(tmp_path / "rounded"), metrics(tmp_path / "exact"), strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)
        assert record["train_loss"] != other["train_loss"]


def test_when_the_host_looks_at_the_loss_changes_nothing(tmp_path, train, device, monkeypatch):
    monkeypatch.setitem(READ_LOSS_EVERY, device, 50)
    train(tmp_path / "seldom")
    monkeypatch.setitem(READ_LOSS_EVERY, device, 1)
    train(tmp_path / "often")
    assert_same_run(tmp_path / "seldom", tmp_path / "often")


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(tmp_path, train):
    """It goes on with a batch in the middle of an epoch, before the smaller one."""
    train(tmp_path / "whole")
    with signal_after(5, signal.SIGTERM):
        assert train(tmp_path / "parts")[0] == 143
    assert len(metrics(tmp_path / "parts")) == 1
    train(tmp_path / "parts", "--resume")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_detect_anomaly_finds_a_nan_at_its_step_and_changes_no_bit(tmp_path, train, device, monkeypatch):
    """On a GPU without a graph, and although the loss is seldom read."""
    monkeypatch.setitem(READ_LOSS_EVERY, device, 50)
    train(tmp_path / "plain")
    assert train(tmp_path / "checked", "--detect-anomaly")[0] == 0
    assert_same_run(tmp_path / "checked", tmp_path / "plain")
    status, _ = train(tmp_path / "broken", "--detect-anomaly", "--lr", 1e30)
    assert re.match(r"error: step \d: \w+, (forward|backward) of ", status)


def test_a_loss_that_is_nan_stops_the_run_and_the_steps_it_may_be_of_are_named(tmp_path, train, device, monkeypatch):
    monkeypatch.setitem(READ_LOSS_EVERY, device, 50)
    status, _ = train(tmp_path, "--lr", 1e30)
    assert status.startswith("error: the loss is ")
    assert "at one of steps 0 to 2; try a lower --lr" in status


def test_a_step_copies_nothing_to_the_device_and_reads_nothing_from_it(device, kernels, monkeypatch):
    """So that all of it can be captured as a graph. A batch needs one copy, of which images it takes."""
    if device == "cpu":
        return
    import cupy

    data, totals, model = shapes(type("Options", (), {"device": device})), Totals(), cifar_resnet(8).to(device)
    step = classification_step(model, SGD(model.parameters(), 0.1, momentum=0.9))
    batches = iter(data.train_loader(16, seed=0))
    first, second = next(batches), next(batches)
    totals.add(16, *step(*first))
    asarray, copies = cupy.asarray, []

    def note_copies(array, *args):
        copies.extend([array] * (array.ndim > 0 and not isinstance(array, cupy.ndarray)))  # a number is no copy
        return asarray(array, *args)

    monkeypatch.setattr(cupy, "asarray", note_copies)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()  # which refuses copies from and to the host, whoever makes them
        totals.add(16, *step(*second))
        stream.end_capture().launch()
        stream.synchronize()
    assert copies == []
    assert len(next(batches)[0]) == 8
    assert [copy.shape for copy in copies] == [(5, 8)]
    monkeypatch.undo()
    totals.read()
    assert totals.images == 32
    assert 0 <= totals.error <= 1


def test_the_error_rate_is_that_of_the_same_model_on_the_cpu(device):
    model = cifar_resnet(8)
    expected = error_rate(model, shapes().test_loader())
    there = shapes(type("Options", (), {"device": device})).test_loader()
    assert error_rate(model.to(device), there) == pytest.approx(expected, abs=0.051)  # of 20 images
    assert np.isfinite(expected)
