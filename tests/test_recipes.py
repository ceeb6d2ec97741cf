"""The recipes are the papers', to the letter."""

from argparse import Namespace

import numpy as np
import pytest
import train_cifar_resnet
from cifar_data import CifarData
from models.resnet import cifar_resnet
from train_cifar_resnet import (
    PAPER_ERROR,
    RECIPES,
    WARMUP_DEPTH,
    WARMUP_ERROR,
    WARMUP_LR,
    count_steps,
    make_schedule,
    train,
)
from training import RunFolder

from minidl.data import make_shapes


def options(tmp_path, **changes):
    options = {"recipe": "paper", "epochs": 3, "iterations": None, "batch_size": 32, "lr": None, "weight_decay": None}
    options |= {"seed": 0, "out": tmp_path, "resume": False, "device": "cpu"}
    return Namespace(**options | {"dtype": "float32"} | changes)


def test_the_papers_learning_rate_falls_at_32k_and_48k_of_64k_iterations():
    recipe = RECIPES["paper"]
    args = options(".", epochs=None)
    steps = count_steps(args, steps_per_epoch=391)
    rate = make_schedule(args, steps)
    assert steps == 64_000
    assert [rate(step) for step in (0, 31_999)] == [0.1, 0.1]
    assert [rate(step) for step in (32_000, 47_999)] == pytest.approx([0.01, 0.01])
    assert [rate(step) for step in (48_000, 63_999)] == pytest.approx([0.001, 0.001])
    assert (recipe.weight_decay, recipe.nesterov) == (1e-4, False)


def test_the_papers_errors_are_those_of_its_table_6():
    assert PAPER_ERROR == {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}


def test_110_layers_warm_up():
    assert (WARMUP_DEPTH, WARMUP_LR, WARMUP_ERROR) == (110, 0.01, 0.80)


@pytest.mark.parametrize(("error_to_reach", "rates"), [(1.1, [0.01, 0.1]), (0.0, [0.01, 0.01])], ids=["reached", "not"])
def test_the_warm_up_ends_with_the_epoch_whose_training_error_is_low_enough(
    tmp_path, monkeypatch, error_to_reach, rates
):
    monkeypatch.setattr(train_cifar_resnet, "WARMUP_ERROR", error_to_reach)
    shapes = make_shapes(64)
    seen = []
    monkeypatch.setattr(train_cifar_resnet, "end_epoch", note_rate(train_cifar_resnet.end_epoch, seen), raising=True)
    folder = RunFolder(tmp_path, resume=False)
    train(cifar_resnet(8), CifarData(shapes, shapes, "test"), folder, options(tmp_path, epochs=4), needs_warmup=True)
    assert seen[:2] == pytest.approx(rates)


def note_rate(end_epoch, seen):
    def noting(progress, epoch, lr, *others):
        seen.append(lr)
        return end_epoch(progress, epoch, lr, *others)

    return noting


def test_augmentation_pads_with_the_mean_image_and_the_tested_view_is_not_augmented(rng):
    shapes = make_shapes(50)
    data = CifarData(shapes, shapes, "test")
    plain = data.prepare(shapes.images, rng)
    np.testing.assert_allclose(plain.mean(axis=0), 0, atol=1e-5)
    augmented = data.augment(shapes.images, rng)
    assert augmented.shape == plain.shape
    assert not np.array_equal(augmented, plain)
    corners = augmented[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).any(axis=(1, 2)).mean() > 0.5  # zeros, the mean image, moved in at a corner
