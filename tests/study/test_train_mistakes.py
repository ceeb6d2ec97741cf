"""Training with planted mistakes: what is planted works, runs go on, and the verdicts are right."""

import json

import numpy as np
import pytest

import minidl
from minidl import Tensor
from minidl.functional import cross_entropy
from minidl.kernels import cpu
from minidl.study import train_mistakes
from minidl.study.__main__ import main
from minidl.study.mistakes import find, planted


@pytest.fixture
def small(monkeypatch):
    """Two steps of training."""
    monkeypatch.setattr(train_mistakes, "TEST_IMAGES", 20)
    monkeypatch.setattr(train_mistakes, "SEEDS_WITHOUT_MISTAKE", 1)
    return ["--train", "--epochs", "1", "--images", "128"]


def gradients(mistake=None):
    minidl.manual_seed(0)
    model = train_mistakes.ResNet8()
    loss = cross_entropy(
        model(Tensor(np.random.default_rng(0).random((4, 16, 16, 3), np.float32))), Tensor([0, 1, 2, 3])
    )
    if mistake is None:
        loss.backward()
    else:
        with planted(mistake):
            loss.backward()
    return [parameter.grad.numpy() for parameter in model.parameters()]


@pytest.mark.parametrize("target", train_mistakes.TARGETS)
def test_the_network_uses_each_kernel_that_a_mistake_is_planted_in(target):
    assert hasattr(cpu, target)
    result = {
        "cross_entropy_backward": "dL/dlogits",
        "linear_backward_weight": "dL/dweight",
        "bias_backward": "dL/dbias",
    }
    wrong = gradients(find(target, f"{result.get(target, 'dL/dx')} ten times too large"))
    assert any(not np.allclose(a, b) for a, b in zip(gradients(), wrong, strict=True))


def test_a_mistake_that_computes_in_float64_is_planted_in_float32():
    mistake = find("cross_entropy_backward", "dL/dlogits of -t instead of p - t: the probabilities are missing")
    assert all(gradient.dtype == np.float32 for gradient in gradients(mistake))


def test_each_mistake_is_trained_with_once_and_a_figure_drawn(small, tmp_path, capsys):
    command = ["mistakes", "relu_backward", "bias_backward", *small, "--out", str(tmp_path)]
    assert main(command) == 0
    lines = (tmp_path / "mistakes.jsonl").read_text().splitlines()
    chosen = train_mistakes.chosen(("relu_backward", "bias_backward"))
    assert [json.loads(line)["mistake"] for line in lines] == ["", *map(str, chosen)]
    assert "</svg>" in (tmp_path / "mistakes.svg").read_text()
    assert f"Of {len(chosen)} mistakes" in capsys.readouterr().out
    (tmp_path / "mistakes.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    assert main(command) == 0
    assert (tmp_path / "mistakes.jsonl").read_text().splitlines() == lines  # the last two, with the same bits


def test_ctrl_c_keeps_what_is_there(small, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_mistakes, "outcome", interrupted)
    assert main(["mistakes", *small, "--out", str(tmp_path)]) == 130
    assert "goes on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["residual_end_backward"], "the network that is trained has no residual_end_backward to plant a mistake in"),
        (["--epochs", "0"], "--epochs of at least 1"),
        (["--images", "10"], "--images of at least 64"),
        (["--out", "file"], "cannot write in file (File exists)"),
        (["--out", "torn"], "--out: torn/mistakes.jsonl: expected a record in each line"),
        (["--out", "binary"], "--out: expected a text file in UTF-8, but binary/mistakes.jsonl is not"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(options, words, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name, content in (("torn", b'{"mis'), ("binary", b"\xff")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mistakes.jsonl").write_bytes(content)
    assert main(["mistakes", *small, *options]) == 2
    assert words in capsys.readouterr().err


def test_a_figure_that_cannot_be_drawn_is_refused_before_training(small, monkeypatch, capsys):
    monkeypatch.setattr(train_mistakes, "find_spec", lambda name: None)
    assert main(["mistakes", *small]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_a_mistake_that_the_engine_refuses_is_no_result(small):
    data = train_mistakes.make_shapes(128, size=16), train_mistakes.make_shapes(20, size=16)
    mistake = find("linear_backward_weight", "dL/dweight transposed: (O, C) instead of (C, O)")
    assert "expected a gradient of (64, 10)" in train_mistakes.outcome(mistake, data, 1, 0)["refused"]


@pytest.mark.parametrize(
    ("target", "name", "least", "most"),
    [
        ("conv2d_backward", "dL/dx with the other sign", 0.5, 3),
        ("cross_entropy_backward", "dL/dlogits not multiplied by dL/dloss", 0, train_mistakes.ROUNDING),
    ],
)
def test_the_error_of_the_gradients_is_recorded(target, name, least, most, small):
    data = train_mistakes.make_shapes(128, size=16), train_mistakes.make_shapes(20, size=16)
    assert least <= train_mistakes.outcome(find(target, name), data, 1, 0)["error"] <= most


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"refused": "a shape"}, "refused"),
        ({"accuracy": 0.1}, "learns nothing"),
        ({"accuracy": 0.7}, "learns less"),
        ({"accuracy": 0.87}, "learns less"),
        ({"accuracy": 0.88}, "hidden"),
        ({"accuracy": 0.95}, "hidden"),
        ({"accuracy": 0.7, "error": 1e-6}, "no difference here"),
        ({"accuracy": 0.9, "error": float("nan")}, "hidden"),
    ],
)
def test_verdicts(record, expected):
    record = {"error": 0.5, "loss": 1.0} | record
    right = [{"accuracy": 0.9, "loss": 0.1}, {"accuracy": 0.88, "loss": 0.1}]
    assert train_mistakes.verdict(record, right) == expected


def test_training_learns():
    data = train_mistakes.make_shapes(640, size=16), train_mistakes.make_shapes(200, size=16)
    assert train_mistakes.train(*data, epochs=6)["accuracy"] > 0.25
