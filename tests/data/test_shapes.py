import itertools

import numpy as np
import pytest

from minidl.data import make_scenes, make_shapes, shapes
from minidl.data.shapes import CONTRAST, SHAPES, _contrasting_colours, _outlines, _placed, draw_scene, draw_shape


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


# -- several shapes, with masks ----------------------------------------------------------------------------------------


def test_scenes_have_an_image_and_a_class_for_each_pixel():
    scenes = make_scenes(12, size=48)
    assert scenes.images.shape == (12, 48, 48, 3) and scenes.images.dtype == np.uint8
    images, masks = scenes[np.array([3, 5])]
    assert images.shape == (2, 48, 48, 3)
    assert masks.shape == (2, 48, 48) and masks.dtype == np.int64
    np.testing.assert_array_equal(masks, scenes.masks[[3, 5]])
    assert len(scenes) == 12 and scenes.classes == ("background", *SHAPES)


def test_scenes_depend_on_seed_split_and_number_alone():
    short, long = make_scenes(5, seed=2), make_scenes(9, seed=2)
    np.testing.assert_array_equal(long.images[:5], short.images)
    np.testing.assert_array_equal(long.masks[:5], short.masks)
    sets = [make_scenes(10, seed, train).images for seed, train in itertools.product((0, 1), (True, False))]
    assert len(np.unique(np.concatenate(sets).reshape(40, -1), axis=0)) == 40


def test_each_scene_has_a_shape_and_all_shapes_occur():
    masks = make_scenes(200).masks
    shapes_of_scene = [len(np.unique(mask)) - 1 for mask in masks]
    assert min(shapes_of_scene) >= 1 and max(shapes_of_scene) >= 3
    pixels = np.bincount(masks.ravel(), minlength=11)
    assert len(pixels) == 11 and pixels.min() > 0
    assert 0.7 < pixels[0] / masks.size < 0.9


def test_a_mask_is_where_the_image_differs_from_the_background(monkeypatch):
    """Without clutter and noise: up to pixels at the edges, of which a shape covers less than half."""
    monkeypatch.setattr(shapes, "CLUTTER", 0)
    monkeypatch.setattr(shapes, "NOISE", 0)
    for seed in range(30):
        image, mask = draw_scene(64, np.random.default_rng(seed))
        background = image[mask == 0]
        colours, counts = np.unique(background, axis=0, return_counts=True)
        differs = (image != colours[counts.argmax()]).any(axis=2)
        assert differs[mask > 0].all()  # all of each shape
        assert differs[mask == 0].mean() < 0.06  # and little beyond it
        for label in np.unique(mask[mask > 0]):
            assert abs(image[mask == label].astype(int) - colours[counts.argmax()]).max() >= CONTRAST


def test_scenes_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="make_scenes: expected a size of 32 pixels or more, got 31"):
        make_scenes(1, size=31)
    assert make_scenes(1, size=32).masks.shape == (1, 32, 32)
