"""emit_nvtx: ranges with the names of the layers."""

import contextlib

import numpy as np
import pytest

import minidl
from minidl import Tensor, nn
from minidl.training import nvtx


@pytest.fixture
def ranges(monkeypatch):
    """The ranges in the order in which they end, each with those that enclose it."""
    ended, open_now = [], []

    @contextlib.contextmanager
    def time_range(name):
        open_now.append(name)
        yield
        ended.append("/".join(open_now))
        open_now.pop()

    monkeypatch.setattr(nvtx, "_time_range", lambda: time_range)
    return ended


def test_forward_and_backward_of_each_layer_have_its_name(ranges):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))).eval()
    x = Tensor(np.ones((2, 3), np.float32))
    with minidl.emit_nvtx(model):
        loss = model(x).sum()
        assert ranges == [f"Sequential/{name}" for name in ("0", "1", "2/2.0", "2/2.1", "2")] + ["Sequential"]
        ranges.clear()
        loss.backward()
    assert ranges == ["2.1 backward", "1 backward", "0 backward"]  # dropout in eval mode returns its input


def test_a_layer_with_two_names_runs_in_one_range(ranges):
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    with minidl.emit_nvtx(model):
        model(Tensor(np.ones((2, 3), np.float32)))
    assert ranges == ["Sequential/0", "Sequential/1", "Sequential/0", "Sequential"]
    assert "forward" not in vars(layer)


def test_the_numbers_are_the_same_and_nothing_stays_behind(ranges):
    model, x = nn.Linear(3, 2), Tensor(np.ones((2, 3), np.float32))
    model(x).sum().backward()
    expected = model.weight.grad.numpy().copy()
    model.zero_grad()
    with pytest.raises(ZeroDivisionError), minidl.emit_nvtx(model):
        model(x).sum().backward()
        raise ZeroDivisionError
    np.testing.assert_array_equal(model.weight.grad.numpy(), expected)
    ranges.clear()
    model(x)
    assert not ranges
    assert "forward" not in vars(model)


def test_a_network_without_gradients_has_ranges_too(ranges):
    with minidl.no_grad(), minidl.emit_nvtx(model := nn.Linear(3, 2)):
        model(Tensor(np.ones((2, 3), np.float32)))
    assert ranges == ["Linear"]


def test_cupys_ranges_are_used_on_a_gpu(device):
    if device == "cpu":
        with pytest.raises(RuntimeError, match="device 'cuda'"), minidl.emit_nvtx(nn.ReLU()):
            pass
        return
    model = nn.Linear(3, 2).to(device)
    with minidl.emit_nvtx(model):
        model(Tensor(np.ones((2, 3), np.float32), device=device)).sum().backward()
    assert model.weight.grad is not None
