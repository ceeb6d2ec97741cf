"""examples/segment_shapes.py: a small run, its files, stopping and resuming, and what is wrong with an option."""

import numpy as np
import pytest
import segment_shapes
from PIL import Image

from minidl.data import make_scenes
from tests.examples.tools import assert_same_run, metrics, run_main, signal_after

FEW = "--images", 16, "--test-images", 6, "--size", 32, "--width", 4, "--batch-size", 4


@pytest.fixture
def segment(capsys):
    """segment(folder, *options): (exit status or message, output), on few small images."""

    def segment(folder, *options):
        status, output, errors = run_main(segment_shapes, [*FEW, "--out", folder, *options], capsys)
        assert "Traceback" not in errors
        return status, output + errors

    return segment


def test_a_run_writes_its_metrics_and_its_masks(segment, tmp_path):
    status, output = segment(tmp_path, "--epochs", 2)
    assert status == 0
    assert "mean IoU of FCN-2s on the test images: " in output
    assert [record["step"] for record in metrics(tmp_path)] == [4, 8]
    for record in metrics(tmp_path):
        assert 0 <= record["mean_iou"] <= 1 and len(record["ious"]) == 11
        assert 0 <= record["test_error"] <= 1 and 0 <= record["train_error"] <= 1
        assert record["mean_iou"] == pytest.approx(np.mean([iou for iou in record["ious"] if iou is not None]))
    with Image.open(tmp_path / "masks.png") as picture:
        assert picture.size == (1000, 440)


def test_with_detect_anomaly_it_has_the_same_bits(segment, tmp_path):
    assert segment(tmp_path / "plain", "--epochs", 1)[0] == 0
    assert segment(tmp_path / "checked", "--epochs", 1, "--detect-anomaly")[0] == 0
    assert_same_run(tmp_path / "checked", tmp_path / "plain")


def test_a_class_that_is_in_no_mask_has_no_number(segment, tmp_path):
    status, output = segment(tmp_path, "--epochs", 1, "--test-images", 1)
    assert status == 0 and "none" in output and "nan" not in output
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text() and None in metrics(tmp_path)[0]["ious"]


@pytest.mark.parametrize("skips", [0, 1])
def test_there_are_networks_with_fewer_skips(segment, tmp_path, skips):
    status, output = segment(tmp_path, "--epochs", 1, "--skips", skips)
    assert status == 0
    assert f"mean IoU of FCN-{[8, 4][skips]}s on the test images: " in output


def test_a_run_ends_as_on_the_cpu(segment, tmp_path, device):
    assert segment(tmp_path / "device", "--epochs", 1, "--device", device)[0] == 0
    assert segment(tmp_path / "cpu", "--epochs", 1)[0] == 0
    (record,), (expected,) = metrics(tmp_path / "device"), metrics(tmp_path / "cpu")
    assert record["train_loss"] == pytest.approx(expected["train_loss"], rel=0.01)
    assert record["test_error"] == pytest.approx(expected["test_error"], abs=0.02)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(segment, tmp_path):
    assert segment(tmp_path / "whole", "--epochs", 2)[0] == 0
    with signal_after(6):
        status, output = segment(tmp_path / "parts", "--epochs", 2)
    assert status == 0 and "the same command with --resume" in output
    assert segment(tmp_path / "parts", "--epochs", 2, "--resume")[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_it_learns_two_images_by_heart(segment, tmp_path, monkeypatch):
    monkeypatch.setattr(segment_shapes, "draw", lambda *arguments: None)
    few = "--images", 2, "--test-images", 2, "--batch-size", 2, "--width", 16, "--epochs", 80, "--lr", 0.1
    assert segment(tmp_path, *few)[0] == 0
    last = metrics(tmp_path)[-1]
    assert last["train_error"] < 0.02
    assert last["test_error"] > last["train_error"]  # of other images


def test_the_test_images_are_counted_as_one(segment, tmp_path):
    """A model that is right on some and wrong on other images, in several batches."""
    test = make_scenes(segment_shapes.TEST_BATCH + 3, train=False, size=32)

    class Background(segment_shapes.Module):
        def forward(self, x):
            return segment_shapes.Tensor(np.eye(11, dtype=np.float32)[np.zeros(x.shape[:3], int)])

    confusion = segment_shapes.confusion_on(test, Background())
    np.testing.assert_array_equal(confusion[:, 0], np.bincount(test.masks.ravel(), minlength=11))
    assert confusion[:, 1:].sum() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", 31], "make_scenes: expected a size of 32 pixels or more, got 31"),
        (["--size", -3], "argument --size: expected a whole number >= 1, got -3"),
        (["--skips", 3], "argument --skips: invalid choice: 3"),
        (["--width", 0], "argument --width: expected a whole number >= 1, got 0"),
        (["--images", 0], "argument --images: expected a whole number >= 1, got 0"),
        (["--test-images", "many"], "argument --test-images: expected a whole number >= 1, got many"),
        (["--epochs", 0], "argument --epochs: expected a whole number >= 1, got 0"),
        (["--lr", "nan"], "argument --lr: expected a finite number >= 0, got nan"),
        (["--resume"], "--resume: there is no"),
    ],
)
def test_what_is_wrong_with_an_option_is_one_line(segment, tmp_path, options, message):
    status, output = segment(tmp_path / "run", *options)
    assert status == 2
    assert message in output
    assert not (tmp_path / "run").exists()


def test_images_of_a_size_that_no_stride_divides(segment, tmp_path):
    assert segment(tmp_path, "--size", 37, "--epochs", 1)[0] == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_rate_that_is_too_high_is_named(segment, tmp_path):
    status, _ = segment(tmp_path, "--lr", 1e30, "--epochs", 3)
    assert "try a lower --lr" in str(status)


def test_a_finished_run_without_its_metrics_can_be_resumed(segment, tmp_path):
    assert segment(tmp_path, "--epochs", 1)[0] == 0
    (tmp_path / "metrics.jsonl").unlink()
    assert segment(tmp_path, "--epochs", 1, "--resume")[0] == 0
