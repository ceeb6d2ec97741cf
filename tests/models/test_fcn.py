"""The FCN: its shapes, its skips, and where a score comes from."""

import numpy as np
import pytest
from models.fcn import fcn

from minidl import Tensor
from minidl.functional import interpolate, relu
from tests.models.counting import count_parameters


@pytest.mark.parametrize("skips", [0, 1, 2])
@pytest.mark.parametrize("size", [(64, 64), (32, 48), (37, 41), (8, 9)], ids=str)
def test_each_pixel_has_a_score_for_each_class_whatever_the_size(skips, size):
    x = Tensor(np.zeros((2, *size, 3), np.float32))
    assert fcn(5, skips, width=4)(x).shape == (2, *size, 5)


def test_a_skip_adds_a_1x1_convolution_and_nothing_else():
    """Of 8 and of 4 channels to 5 classes."""
    with_none, with_one, with_two = (count_parameters(fcn(5, skips, width=4)) for skips in (0, 1, 2))
    assert with_one - with_none == 8 * 5 + 5
    assert with_two - with_one == 4 * 5 + 5


def times(factor, scores):
    return interpolate(scores, scale_factor=factor, mode="bilinear")


@pytest.mark.parametrize("skips", [0, 1, 2])
def test_scores_of_finer_features_are_added_to_the_interpolated_ones(skips):
    model = fcn(3, skips, width=4).eval()
    x = Tensor(np.random.default_rng(0).standard_normal((1, 32, 48, 3), np.float32))
    fine = model.layer1(relu(model.bn1(model.conv1(x))))
    middle = model.layer2(fine)
    coarse = model.layer3(middle)
    assert [features.shape for features in (fine, middle, coarse)] == [(1, 16, 24, 4), (1, 8, 12, 8), (1, 4, 6, 16)]
    scores = model.score3(coarse)
    if skips >= 1:
        scores = times(2, scores) + model.score2(middle)
    if skips == 2:
        scores = times(2, scores) + model.score1(fine)
    np.testing.assert_allclose(model(x).numpy(), times(8 >> skips, scores).numpy(), rtol=1e-5, atol=1e-5)


def test_every_parameter_has_a_gradient():
    model = fcn(4, width=4)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 24, 24, 3), np.float32))
    (model(x) ** 2).mean().backward()
    assert all(abs(parameter.grad.numpy()).max() > 0 for parameter in model.parameters())


def test_the_same_seed_gives_the_same_network():
    first, second = (dict(fcn(4, width=4, seed=3).state_dict()) for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_another_number_of_skips_is_refused():
    with pytest.raises(ValueError, match="fcn: expected 0, 1 or 2 skips, got 3"):
        fcn(4, skips=3)
