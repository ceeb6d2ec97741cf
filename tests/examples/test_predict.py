"""examples/predict.py: a trained network's guesses, on the terminal and drawn."""

import json
import re
import sys

import numpy as np
import predict
import pytest
from models.config import NetworkConfig
from models.resnet import imagenet_resnet
from models.weights import config_of
from PIL import Image
from safetensors.numpy import save_file

from minidl import save_checkpoint
from minidl.data import normalize
from tests.examples.tools import run_main

NAMES = ("cat, house cat", "dog", "bird", "fish", "cow", "ant")


@pytest.fixture
def weights(tmp_path):
    """Of an untrained network that knows the mean of its images."""
    arguments = {"depth": 8, "num_classes": len(NAMES)}
    mean = np.array([120.0, 110, 100], np.float32)
    config = NetworkConfig(
        "resnet8", "cifar_resnet", arguments, NAMES, None, shorter_side=36, size=32, mean=mean, std=64.0
    )
    save_checkpoint(tmp_path / "weights", config.build(seed=3), None, {"network": config.to_json()}, config.arrays())
    return tmp_path / "weights"


@pytest.fixture
def photographs(tmp_path, rng):
    """A folder with two photographs of different sizes."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, shape in (("a.png", (41, 59, 3)), ("b.jpg", (83, 39, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def guess(capsys):
    """Runs the script; (exit status, stdout, stderr)."""
    return lambda *options: run_main(predict, options, capsys)


def test_it_prints_the_five_likeliest_classes_with_their_probabilities(weights, photographs, guess):
    status, output, _ = guess("--weights", weights, "--images", photographs)
    assert status == 0
    model, config = predict.load_network(weights)
    lines = iter(output.splitlines())
    for name in ("a.png", "b.jpg"):
        path = photographs / name
        assert next(lines) == str(path)
        with Image.open(path) as image:
            scaled = image.convert("RGB").resize((51, 36) if name == "a.png" else (36, 76), Image.Resampling.BILINEAR)
        left, top = {"a.png": (10, 2), "b.jpg": (2, 22)}[name]  # as torchvision: half of 19 is 10
        pixels = np.asarray(scaled.crop((left, top, left + 32, top + 32)))[None]
        logits = model(predict.Tensor(normalize(pixels, config.mean, 64.0))).numpy()[0].astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum()
        for i in np.argsort(-expected)[:5]:
            percent, guess = re.fullmatch(r" *([\d.]+)%  (.*)", next(lines)).groups()
            assert guess == NAMES[i]
            assert float(percent) == pytest.approx(100 * expected[i], abs=0.051)  # one decimal is printed
    assert not list(lines)


def test_a_picture_has_a_row_for_each_photograph(weights, photographs, guess, tmp_path):
    options = ["--weights", weights, "--images", photographs / "a.png", photographs / "b.jpg", "--top", 2]
    status, output, _ = guess(*options, "--out", tmp_path / "guesses.png")
    assert status == 0
    assert len(output.splitlines()) == 2 * (1 + 2)
    with Image.open(tmp_path / "guesses.png") as picture:
        assert picture.size == (800, 380)


def test_too_many_photographs_for_a_picture_are_an_error_before_the_work(weights, photographs, guess, tmp_path):
    many = [photographs / "a.png"] * (predict.MOST_DRAWN + 1)
    status, output, errors = guess("--weights", weights, "--images", *many, "--out", tmp_path / "guesses.png")
    assert (status, output) == (2, "")
    assert "--out: expected at most 300 photographs to draw, got 301; omit --out" in errors
    assert predict.MOST_DRAWN * 190 < 2**16


def test_a_folder_that_is_missing_is_an_error_before_the_work(weights, photographs, guess, tmp_path):
    options = ["--weights", weights, "--images", photographs, "--out", tmp_path / "missing" / "guesses.png"]
    status, output, errors = guess(*options)
    assert (status, output) == (2, "")
    assert f"--out: the folder {tmp_path / 'missing'} is missing; create it" in errors


def test_names_replace_those_of_the_description(weights, photographs, guess, tmp_path):
    (tmp_path / "names").write_text("".join(f"n{number} name{number}\n" for number in range(len(NAMES))))
    options = ["--weights", weights, "--images", photographs / "a.png", "--names", tmp_path / "names"]
    status, output, _ = guess(*options)
    assert status == 0
    assert "name1" in output and "dog" not in output
    status, _, errors = guess(*options, "--model", "resnet18")
    assert status == 2
    assert f"--model: {weights} describes its network, resnet8; leave --model out" in errors


def test_a_network_of_the_hub_may_have_names_too(photographs, guess, tmp_path):
    save_file(imagenet_resnet(18, num_classes=2).state_dict(), tmp_path / "model.safetensors")
    prepared = {"input_size": [3, 64, 64], "crop_pct": 0.875, "mean": [0.5] * 3, "std": [0.25] * 3}
    described = {"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": prepared}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "names").write_text("n1 tench\nn2 toad\n")
    options = ["--weights", tmp_path, "--images", photographs / "a.png"]
    assert "class 1" in guess(*options)[1]
    assert "toad" in guess(*options, "--names", tmp_path / "names")[1]


def test_what_cannot_be_read_is_named_and_left_out(weights, photographs, guess):
    (photographs / "c.jpg").write_text("no image")
    options = ["--weights", weights, "--images", photographs, photographs / "missing.png"]
    status, output, errors = guess(*options)
    assert status == 0
    assert output.count("%") == 2 * 5
    assert f"skipped: read_image: {photographs / 'c.jpg'}" in errors and "skip_broken" not in errors
    assert "missing.png" in errors
    status, output, errors = guess("--weights", weights, "--images", photographs / "c.jpg")
    assert (status, output) == (2, "")
    assert "predict: error: --images: none of the photographs could be read" in errors


@pytest.mark.parametrize("top", [0, -1])
def test_no_guesses_are_an_error(weights, photographs, guess, top):
    status, _, errors = guess("--weights", weights, "--images", photographs, "--top", top)
    assert status == 2
    assert f"expected a whole number >= 1, got {top}" in errors


def test_only_the_picture_needs_matplotlib(weights, photographs, monkeypatch, guess, tmp_path):
    options = ["--weights", weights, "--images", photographs, "--out", tmp_path / "guesses.png"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        status, output, errors = guess(*options)
    assert status == 2
    assert "pip install matplotlib" in errors
    assert output.count("%") == 2 * 5
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors", None)
        patch.setitem(sys.modules, "safetensors.numpy", None)
        status, _, errors = guess(*options)
    assert status == 2
    assert "safetensors" in errors
    assert "matplotlib" not in errors


def test_weights_from_elsewhere_need_the_name_of_their_network(photographs, guess, tmp_path):
    save_checkpoint(tmp_path / "w", imagenet_resnet(18, num_classes=3, seed=1))
    (tmp_path / "names").write_text("n3 owl\nn1 tench, Tinca tinca\nn2 toad\n")
    plain = ["--weights", tmp_path / "w", "--images", photographs / "a.png"]
    status, _, errors = guess(*plain)
    assert status == 2
    assert "pass --model" in errors
    status, output, _ = guess(*plain, "--model", "resnet18")
    assert status == 0
    assert sorted(re.findall(r"class \d", output)) == ["class 0", "class 1", "class 2"]
    _, output, _ = guess(*plain, "--model", "resnet18", "--names", tmp_path / "names")
    assert "tench, Tinca tinca" in output
    config = config_of(tmp_path / "w", "resnet18", tmp_path / "names")
    assert config.names == ("tench, Tinca tinca", "toad", "owl")
    assert config.classes == ("n1", "n2", "n3")
    status, _, errors = guess(*plain, "--model", "vgg-D")
    assert status == 2
    assert "which has no classifier.6.bias" in errors
    (tmp_path / "names").write_text("n1 tench\n")
    status, _, errors = guess(*plain, "--model", "resnet18", "--names", tmp_path / "names")
    assert status == 2
    assert "expected 3 classes" in errors
