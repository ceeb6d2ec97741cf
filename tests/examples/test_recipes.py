"""The recipes are the papers', to the letter."""

import numpy as np
import pytest
import train_cifar_resnet
from common.recipes import (
    CIFAR_RECIPES,
    IMAGENET_RECIPES,
    PAPER_ERROR,
    WARMUP_DEPTH,
    WARMUP_ERROR,
    WARMUP_LR,
    WarmUp,
)

from tests.examples.tools import metrics, shapes


def test_the_papers_learning_rate_falls_at_32k_and_48k_of_64k_iterations():
    recipe = CIFAR_RECIPES["paper"]
    assert recipe.steps(steps_per_epoch=391) == 64_000
    rate = recipe.schedule(recipe.lr, 64_000)
    assert [rate(step) for step in (0, 31_999)] == [0.1, 0.1]
    assert [rate(step) for step in (32_000, 47_999)] == pytest.approx([0.01, 0.01])
    assert [rate(step) for step in (48_000, 63_999)] == pytest.approx([0.001, 0.001])
    assert (recipe.weight_decay, recipe.nesterov) == (1e-4, False)


def test_the_papers_errors_are_those_of_its_table_6():
    assert PAPER_ERROR == {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}


def test_the_recipes_for_photographs_are_the_papers():
    """Simonyan and Zisserman (2014), section 3.1; He et al. (2015), section 3.4."""
    simonyan, he = IMAGENET_RECIPES["vgg"], IMAGENET_RECIPES["resnet"]
    assert (simonyan.lr, simonyan.weight_decay, simonyan.decays_all, simonyan.epochs) == (1e-2, 5e-4, False, 74)
    assert (he.lr, he.weight_decay, he.decays_all, he.sides, he.per_pixel_mean) == (0.1, 1e-4, True, (256, 480), True)
    assert (simonyan.sides, simonyan.per_pixel_mean) == ((256, 256), False)
    assert he.steps(1_281_167 // 256) == pytest.approx(600_000, rel=0.01)
    assert simonyan.steps(1_281_167 // 256) == pytest.approx(370_000, rel=0.01)


@pytest.mark.parametrize(("name", "lowest"), [("vgg", 1e-5), ("resnet", 0.0)])
def test_the_learning_rate_for_vgg_falls_three_times_and_for_resnet_without_end(name, lowest):
    recipe = IMAGENET_RECIPES[name]
    plateau = recipe.schedule(recipe.lr, 1000, patience=2)
    rates = [plateau.report(0.5) for _ in range(100)]
    assert rates[:4] == pytest.approx([recipe.lr] * 3 + [recipe.lr / 10])
    assert rates[-1] == pytest.approx(lowest, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.2, 5e-4, 10, None)),
        ({"lr": 0.0, "weight_decay": 0.0}, (0.0, 0.0, 10, None)),
        ({"epochs": 3}, (0.2, 5e-4, 3, None)),
        ({"iterations": 7}, (0.2, 5e-4, None, 7)),
    ],
)
def test_the_options_come_before_the_recipe(options, expected):
    nothing = dict.fromkeys(["lr", "weight_decay", "epochs", "iterations"])
    recipe = CIFAR_RECIPES["fast"].with_options(type("Options", (), nothing | options))
    assert (recipe.lr, recipe.weight_decay, recipe.epochs, recipe.iterations) == expected
    assert recipe.steps(10) == (7 if "iterations" in options else 10 * recipe.epochs)


def test_epochs_replace_the_iterations_of_a_recipe():
    args = type("Options", (), {"lr": None, "weight_decay": None, "epochs": 2, "iterations": None})
    assert CIFAR_RECIPES["paper"].with_options(args).steps(10) == 20


def test_110_layers_warm_up():
    assert (WARMUP_DEPTH, WARMUP_LR, WARMUP_ERROR) == (110, 0.01, 0.80)
    schedule = WarmUp(lambda step: 0.1)
    seen = []
    for error in (0.9, 0.8, 0.79, 0.9):
        seen.append(schedule(0))
        schedule.report(error)
    assert [*seen, schedule(0)] == [0.01, 0.01, 0.01, 0.1, 0.1]
    other = WarmUp(lambda step: 0.1)
    other.load_state_dict(schedule.state_dict())
    assert other(0) == 0.1
    assert WarmUp(lambda step: 0.1, warming_up=False)(0) == 0.1


@pytest.mark.parametrize(("error_to_reach", "rates"), [(1.1, [0.01, 0.1]), (0.0, [0.01, 0.01])], ids=["reached", "not"])
def test_the_warm_up_ends_with_the_epoch_whose_training_error_is_low_enough(
    run, tmp_path, monkeypatch, error_to_reach, rates
):
    monkeypatch.setattr("common.recipes.WARMUP_ERROR", error_to_reach)
    monkeypatch.setattr(train_cifar_resnet, "WARMUP_DEPTH", 8)
    run(train_cifar_resnet, "--depth", 8, "--recipe", "paper", "--epochs", 4, "--batch-size", 40, "--out", tmp_path)
    assert [record["lr"] for record in metrics(tmp_path)][:2] == pytest.approx(rates)


def test_augmentation_pads_with_the_mean_image_and_the_tested_view_is_not_augmented(rng):
    data = shapes()
    images = data.train.images
    plain = data.prepare(images, rng)
    np.testing.assert_allclose(plain.mean(axis=0), 0, atol=1e-5)
    augmented = data.augment(images, rng)
    assert augmented.shape == plain.shape
    assert not np.array_equal(augmented, plain)
    corners = augmented[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).any(axis=(1, 2)).mean() > 0.5  # zeros, the mean image, moved in at a corner
