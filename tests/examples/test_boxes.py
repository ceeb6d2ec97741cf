"""Boxes with numbers that were computed by hand, and what must hold for any of them."""

import numpy as np
import pytest
from common.boxes import (
    MERGE_THRESHOLD,
    area,
    decode,
    decode_map,
    encode,
    intersection_over_union,
    localisation_error,
    match_score,
    merge_greedily,
)
from hypothesis import given
from hypothesis import strategies as st

SQUARE = np.array([0.0, 0, 6, 6])
MOVED = np.array([2.0, 0, 8, 6])  # the same, a third of its side to the right: 24 of 48 pixels are shared

coordinates, sides = st.integers(-50, 50), st.integers(1, 40)
boxes = st.tuples(coordinates, coordinates, sides, sides).map(
    lambda box: np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]], np.float64)
)


def test_a_target_is_centre_and_size_in_units_of_the_view():
    np.testing.assert_array_equal(encode([8, 16, 40, 32], size=64), [24 / 64, 24 / 64, 32 / 64, 16 / 64])


def test_a_target_is_decoded_to_the_corners():
    np.testing.assert_array_equal(decode([0.5, 0.25, 1, 0.5], size=64), [0, 0, 64, 32])


@given(st.lists(boxes, min_size=1, max_size=5), st.integers(1, 300))
def test_decoding_undoes_encoding(several, size):
    np.testing.assert_allclose(decode(encode(several, size), size), several, atol=1e-12 * size + 1e-12)


def test_each_place_has_its_own_offset():
    """Two rows and three columns of views that all say: the middle quarter."""
    targets = np.tile([0.5, 0.5, 0.5, 0.5], (2, 3, 1))
    found = decode_map(targets, size=64, stride=16)
    assert found.shape == (2, 3, 4)
    np.testing.assert_array_equal(found[0, 0], [16, 16, 48, 48])
    np.testing.assert_array_equal(found[1, 2], [16 + 32, 16 + 16, 48 + 32, 48 + 16])


def test_the_offsets_do_not_depend_on_what_stands_before_rows_and_columns(rng):
    targets = rng.random((5, 2, 3, 4))
    np.testing.assert_array_equal(decode_map(targets, 64, 16)[3], decode_map(targets[3], 64, 16))


def test_the_area_of_a_box_inside_out_is_0():
    np.testing.assert_array_equal(area(np.array([[0.0, 0, 2, 3], [2, 0, 0, 3], [2, 3, 0, 0]])), [6, 0, 0])


@pytest.mark.parametrize(
    "a, b, expected",
    [
        (SQUARE, MOVED, 24 / 48),
        (SQUARE, SQUARE, 1),
        (SQUARE, SQUARE + 6, 0),  # they touch in a corner
        (SQUARE, np.array([2.0, 2, 4, 4]), 4 / 36),  # one in the other
        (SQUARE, np.array([3.0, -3, 9, 3]), 9 / 63),
        (SQUARE, np.array([3.0, 3, 3, 3]), 0),  # a point
        (np.zeros(4), np.zeros(4), 0),  # two points
    ],
)
def test_intersection_over_union_by_hand(a, b, expected):
    assert intersection_over_union(a, b) == pytest.approx(expected)


@given(boxes, boxes)
def test_intersection_over_union_is_symmetric_and_between_0_and_1(a, b):
    overlap = intersection_over_union(a, b)
    assert overlap == intersection_over_union(b, a)
    assert 0 <= overlap <= 1
    assert (overlap == 1) == np.array_equal(a, b)


@given(boxes, boxes, st.integers(-20, 20))
def test_intersection_over_union_counts_pixels(a, b, shift):
    """Against the pixels one by one."""
    both = np.stack([a, b]).astype(int) + 50
    masks = np.zeros((2, 141, 141), bool)
    for mask, (left, top, right, bottom) in zip(masks, both, strict=True):
        mask[top:bottom, left:right] = True
    expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert intersection_over_union(a + shift, b + shift) == pytest.approx(expected)


def test_boxes_with_exactly_half_in_common_are_wrong():
    truth = np.stack([SQUARE] * 4)
    predicted = np.stack([SQUARE, MOVED, [1, 0, 7, 6], [9, 9, 15, 15]])  # 1, 1/2, 30/42, 0
    assert localisation_error(predicted, truth) == 0.5


def test_the_match_score_by_hand():
    assert match_score(SQUARE, SQUARE) == 0
    assert match_score(SQUARE, MOVED) == pytest.approx(2 / 6 + 1 - 1 / 2) == pytest.approx(MERGE_THRESHOLD)
    assert match_score(SQUARE, np.array([6.0, 8, 12, 14])) == pytest.approx(10 / 6 + 1)


def test_two_boxes_become_their_mean_and_their_scores_a_sum():
    merged, scores = merge_greedily(np.stack([SQUARE, SQUARE + 1]), np.array([0.5, 0.25]))
    np.testing.assert_array_equal(merged, [SQUARE + 0.5])
    np.testing.assert_array_equal(scores, [0.75])


def test_three_boxes_become_the_mean_of_all_three():
    """0 and 0.5 first, then 0.25 with 1.3: a mean of two means would be 0.775, not 0.6."""
    predictions = np.stack([SQUARE, SQUARE + 0.5, SQUARE + 1.3])
    merged, scores = merge_greedily(predictions, np.array([1.0, 2, 4]))
    np.testing.assert_allclose(merged, [SQUARE + 0.6])
    np.testing.assert_array_equal(scores, [7])


def test_two_that_agree_outvote_a_single_one_with_a_higher_score():
    predictions = np.stack([SQUARE + 100, SQUARE, SQUARE])
    merged, scores = merge_greedily(predictions, np.array([0.7, 0.4, 0.4]))
    np.testing.assert_array_equal(merged, [SQUARE, SQUARE + 100])
    np.testing.assert_allclose(scores, [0.8, 0.7])


def test_the_threshold_decides_what_is_merged():
    pair = np.stack([SQUARE, MOVED]), np.ones(2)
    assert len(merge_greedily(*pair, threshold=0.83)[0]) == 2
    assert len(merge_greedily(*pair, threshold=0.84)[0]) == 1


def test_merging_leaves_its_arguments_alone_and_takes_none_or_one():
    predictions, scores = np.stack([SQUARE, SQUARE]), np.ones(2)
    merge_greedily(predictions, scores)
    np.testing.assert_array_equal(predictions, [SQUARE, SQUARE])
    assert [len(part) for part in merge_greedily(np.empty((0, 4)), np.empty(0))] == [0, 0]
    np.testing.assert_array_equal(merge_greedily(SQUARE[None], np.ones(1))[0], [SQUARE])


@given(st.lists(boxes, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_boxes_apart_stay_as_they_are(several, random):
    apart = np.stack([box + 200 * number for number, box in enumerate(several)])
    scores = np.array(random.sample(range(100), len(apart)))
    merged, kept = merge_greedily(apart, scores)
    np.testing.assert_array_equal(merged, apart[np.argsort(-scores)])
    np.testing.assert_array_equal(kept, -np.sort(-scores))


@given(boxes, st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_near_duplicates_become_their_mean(box, count, seed):
    near = box + np.random.default_rng(seed).uniform(-0.02, 0.02, (count, 4))
    merged, scores = merge_greedily(near, np.ones(count))
    np.testing.assert_allclose(merged, [near.mean(axis=0)])
    assert scores == [count]
