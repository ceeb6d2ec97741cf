"""Chosen, normalised, shifted and mirrored images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.data import normalize, random_crop, random_flip

# (images in all, images chosen), (H, W, C), padding
CASES = [((7, 5), (6, 5, 3), 2), ((3, 4), (4, 7, 1), 0), ((1, 1), (1, 1, 2), 3), ((30, 200), (32, 32, 3), 4)]
cases = pytest.mark.parametrize(("counts", "shape", "padding"), CASES)


def draw(rng, counts, shape, padding):
    """images, chosen, tops, lefts, flips, mean, std."""
    total, count = counts
    images, chosen = rng.integers(0, 256, (total, *shape), np.uint8), rng.integers(0, total, count)
    tops, lefts = rng.integers(0, 2 * padding + 1, (2, count))
    mean, std = rng.uniform(0, 255, shape), rng.uniform(1, 60, shape)
    return images, chosen, tops, lefts, rng.random(count) < 0.5, mean, std


@cases
def test_crop_and_flip_agrees_with_the_plain_loops(counts, shape, padding, agrees, rng):
    agrees("crop_and_flip", *draw(rng, counts, shape, padding), padding, False)


@pytest.mark.parametrize(("counts", "shape", "padding"), [case for case in CASES if case[2] < min(case[1][:2])])
def test_reflected_images_agree_with_the_plain_loops_and_with_numpy(counts, shape, padding, agrees, run, rng):
    images, chosen, tops, lefts, flips, mean, std = draw(rng, counts, shape, padding)
    agrees("crop_and_flip", images, chosen, tops, lefts, flips, mean, std, padding, True)
    border = (0, 0), (padding, padding), (padding, padding), (0, 0)
    padded = np.pad((images[chosen] - mean) / std, border, mode="reflect")
    actual = run("crop_and_flip", images, chosen, tops, lefts, flips, mean, std, padding, True)
    for image, top, left, flip, y in zip(padded, tops, lefts, flips, actual, strict=True):
        crop = image[top : top + shape[0], left : left + shape[1]]
        np.testing.assert_allclose(y, crop[:, ::-1] if flip else crop, rtol=1e-12)


def test_an_image_is_shifted_and_then_mirrored_and_zeros_move_in(run):
    images = np.array([[[[9]], [[9]]], [[[1]], [[2]]]], np.uint8).reshape(2, 1, 2, 1)
    ones = np.ones((1, 2, 1))

    def row(left, flip):
        second, top, left, flip = (np.array([number]) for number in (1, 1, left, flip))
        return run("crop_and_flip", images, second, top, left, flip, 0 * ones, ones, 1, False).ravel().tolist()

    assert [row(left, 0) for left in (0, 1, 2)] == [[0, 1], [1, 2], [2, 0]]
    assert [row(left, 1) for left in (0, 1, 2)] == [[1, 0], [2, 1], [0, 2]]


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    total=st.integers(1, 12),
    padding=st.integers(0, 5),
    seed=st.integers(0, 999),
)
def test_it_has_the_bits_of_the_three_functions_of_numpy(shape, total, padding, seed, run):
    rng = np.random.default_rng(seed)
    images, chosen, *_, mean, std = draw(rng, (total, 6), shape, padding)
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    draws, same_draws = np.random.default_rng(seed), np.random.default_rng(seed)
    expected = random_flip(random_crop(normalize(images[chosen], mean, std), draws, padding), draws)
    tops, lefts = same_draws.integers(0, 2 * padding + 1, size=(2, 6))
    flips = same_draws.random(6) < 0.5
    actual = run("crop_and_flip", images, chosen, tops, lefts, flips, mean, std, padding, False)
    assert actual.dtype == np.float32
    assert actual.tobytes() == expected.tobytes()
