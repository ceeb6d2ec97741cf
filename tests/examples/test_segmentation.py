"""examples/common/segmentation.py: the mean intersection over union, on masks that can be counted by hand."""

import numpy as np
import pytest
from common.segmentation import class_ious, confusion_matrix, mean_iou, pixel_error, predict_masks
from models.fcn import fcn

TRUTH = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]])
SHIFTED = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])  # class 1 one pixel further


def test_a_confusion_matrix_counts_pairs_of_true_and_predicted_class():
    np.testing.assert_array_equal(confusion_matrix(TRUTH, SHIFTED, 3), [[6, 2, 0], [2, 2, 0], [0, 0, 0]])


def test_the_21_classes_of_a_mask_in_uint8_are_counted():
    """21 * 20 + 20 does not fit a uint8, the dtype of masks in PNG files."""
    mask = np.full((1, 2, 2), 20, np.uint8)
    assert confusion_matrix(mask, mask, 21)[20, 20] == 4


@pytest.mark.parametrize("mode", [True, False])
def test_predicting_masks_leaves_the_mode_of_the_network(mode):
    model = fcn(3, width=4).train(mode)
    assert predict_masks(model, np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 32, 32)
    assert model.training is mode


def test_two_masks_of_which_half_agree():
    """Class 1: 2 pixels in both, 6 in at least one. Background: 6 in both, 10 in at least one."""
    confusion = confusion_matrix(TRUTH, SHIFTED, 2)
    np.testing.assert_allclose(class_ious(confusion), [6 / 10, 2 / 6])
    assert mean_iou(confusion) == pytest.approx((6 / 10 + 2 / 6) / 2)
    assert pixel_error(confusion) == pytest.approx(4 / 12)


def test_a_right_mask_has_a_mean_of_1_and_a_wrong_one_of_0():
    assert mean_iou(confusion_matrix(TRUTH, TRUTH, 2)) == 1
    assert pixel_error(confusion_matrix(TRUTH, TRUTH, 2)) == 0
    assert mean_iou(confusion_matrix(TRUTH, 1 - TRUTH, 2)) == 0


def test_a_class_that_is_in_no_mask_does_not_count_and_one_that_is_in_a_wrong_place_does():
    absent = confusion_matrix(TRUTH, TRUTH, 5)
    np.testing.assert_array_equal(np.isnan(class_ious(absent)), [False, False, True, True, True])
    assert mean_iou(absent) == 1
    predicted = TRUTH.copy()
    predicted[0, 0] = 2
    assert mean_iou(confusion_matrix(TRUTH, predicted, 3)) == pytest.approx((7 / 8 + 1 + 0) / 3)


def test_background_everywhere_is_mostly_right_and_has_a_low_mean():
    confusion = confusion_matrix(TRUTH, np.zeros_like(TRUTH), 2)
    assert pixel_error(confusion) == pytest.approx(4 / 12)
    assert mean_iou(confusion) == pytest.approx((8 / 12) / 2)


def test_the_matrices_of_two_parts_add_up_to_that_of_the_whole():
    """Which is why they are summed: the mean of the parts' means is another number."""
    first, second = confusion_matrix(TRUTH[:2], SHIFTED[:2], 2), confusion_matrix(TRUTH[2:], SHIFTED[2:], 2)
    np.testing.assert_array_equal(first + second, confusion_matrix(TRUTH, SHIFTED, 2))


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected masks of one shape, got \(3, 4\) and \(2, 4\)"):
        confusion_matrix(TRUTH, TRUTH[:2], 2)
