import itertools

import numpy as np
import pytest

from minidl.data import make_shapes, shapes
from minidl.data.shapes import CONTRAST, SHAPES, _contrasting_colours, _outlines, _placed, draw_shape


def test_images_and_labels_have_the_shapes_and_types_of_cifar():
    dataset = make_shapes(20)
    assert dataset.images.shape == (20, 32, 32, 3)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    assert dataset.classes == SHAPES
    assert len(set(SHAPES)) == 10


def test_classes_are_balanced():
    np.testing.assert_array_equal(np.bincount(make_shapes(50).labels), np.full(10, 5))


def test_a_longer_data_set_begins_with_the_shorter_one():
    short, long = make_shapes(15), make_shapes(40)
    np.testing.assert_array_equal(long.images[:15], short.images)
    np.testing.assert_array_equal(long.labels[:15], short.labels)


def test_the_same_arguments_give_the_same_images():
    np.testing.assert_array_equal(make_shapes(10, seed=3).images, make_shapes(10, seed=3).images)


def test_no_two_images_are_alike_across_seeds_and_splits():
    sets = [make_shapes(30, seed, train).images for seed, train in itertools.product((0, 1), (True, False))]
    images = np.concatenate(sets).reshape(120, -1)
    assert len(np.unique(images, axis=0)) == 120


@pytest.mark.parametrize("size", [16, 33, 64])
def test_images_of_other_sizes_can_be_drawn(size):
    assert make_shapes(10, size=size).images.shape == (10, size, size, 3)


def test_an_empty_data_set_is_empty():
    assert len(make_shapes(0)) == 0


def test_the_two_colours_differ_by_the_contrast_in_each_channel():
    rng = np.random.default_rng(0)
    pairs = np.array([_contrasting_colours(rng) for _ in range(2000)])
    assert pairs.min() >= 0
    assert pairs.max() <= 255
    assert np.abs(pairs[:, 0] - pairs[:, 1]).min() == CONTRAST


def test_every_outline_fits_its_circle_and_nearly_fills_it():
    for name, outline in _outlines().items():
        assert 0.99 < np.abs(outline).max() < 1.002, name


@pytest.mark.parametrize("name", SHAPES)
def test_a_placed_shape_lies_within_the_image_and_spans_a_third_of_it(name):
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = _placed(_outlines()[name], rng)
        assert min(points.real.min(), points.imag.min()) > -0.001
        assert max(points.real.max(), points.imag.max()) < 1.001
        assert np.abs(points[:, None] - points).max() > 0.3


@pytest.mark.parametrize("name", SHAPES)
def test_the_box_is_around_what_was_drawn(name, monkeypatch):
    """Without clutter and noise, what differs from the corner is the shape: its extremes, to within a pixel."""
    monkeypatch.setattr(shapes, "CLUTTER", 0)
    monkeypatch.setattr(shapes, "NOISE", 0)
    for seed in range(20):
        image, box = draw_shape(name, 64, np.random.default_rng(seed))
        rows, columns = np.nonzero((image != image[0, 0]).any(axis=2))
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(box - drawn).max() <= 1, (box, drawn)


def test_a_shape_keeps_to_its_radii_and_its_margin():
    boxes = np.stack(
        [draw_shape("circle", 100, np.random.default_rng(seed), (0.1, 0.2), 0.25)[1] for seed in range(300)]
    )
    widths = boxes[:, 2] - boxes[:, 0]
    assert 19.5 < widths.min() < 21 and 39 < widths.max() < 40.1
    assert 24.9 < boxes.min() < 27 and 73 < boxes.max() < 75.1


def test_a_shape_that_does_not_fit_between_its_margins_is_a_clear_error():
    with pytest.raises(ValueError, match=r"radius \+ margin <= 0.5 image widths, got 0.3 \+ 0.25"):
        draw_shape("circle", 100, np.random.default_rng(0), (0.1, 0.3), 0.25)


def test_a_shape_mirrored_is_the_same_shape_turned():
    """So a random flip keeps the class."""
    for name, outline in _outlines().items():
        upside_down = np.abs(outline.conj()[:, None] - outline).min(axis=1)
        left_to_right = np.abs(-outline.conj()[:, None] - outline).min(axis=1)
        assert min(upside_down.max(), left_to_right.max()) < 1e-9, name


def test_a_linear_classifier_stays_below_60_percent():
    """Ridge regression on the pixels, in closed form: if it sufficed, the data would teach nothing about depth."""
    train, test = make_shapes(4000), make_shapes(1000, train=False)
    x, x_test = (dataset.images.reshape(len(dataset), -1) / np.float32(255) for dataset in (train, test))
    mean = x.mean(axis=0)
    x, x_test = x - mean, x_test - mean
    products, with_targets = x.T @ x, x.T @ np.eye(10, dtype=np.float32)[train.labels]
    for strength in (10, 1000):
        weights = np.linalg.solve(products + strength * np.eye(len(products), dtype=np.float32), with_targets)
        accuracy = np.mean((x_test @ weights).argmax(axis=1) == test.labels)
        assert accuracy < 0.6
