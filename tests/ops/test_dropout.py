"""Dropout."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.functional import dropout
from tests.ops.case import Case, Constant

KEY = np.array([3, 0, 7, 1], np.uint32)  # seed low, seed high, step, layer
WORDS = Constant(KEY)


def scales(shape, probability):
    """What each number is multiplied by: 0, or 1 / (1 - probability)."""
    return dropout(Tensor(np.ones(shape)), probability, KEY).numpy()


def dropped(probability, shape):
    return Case(
        f"probability {probability} on {shape}",
        lambda x: dropout(x, probability, WORDS.on(x.device).data),
        lambda torch, x: x * torch.tensor(scales(shape, probability), dtype=x.dtype),
        [shape],
        is_linear=True,
    )


CASES = [dropped(0.5, (3, 4, 5)), dropped(0.1, (7, 3)), dropped(0.9, (40,)), dropped(0.0, (2, 3))]


@pytest.fixture
def ones(device):
    return Tensor(np.ones((100, 1000), np.float32), device=device)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_so_many_are_dropped_and_the_mean_is_kept(probability, ones):
    y = dropout(ones, probability, KEY).numpy()
    assert set(np.unique(y)) == {0, np.float32(1 / (1 - probability))}
    # Five standard deviations of a mean of 100,000 numbers that are 0 or 1.
    assert abs((y == 0).mean() - probability) < 5 * np.sqrt(probability * (1 - probability) / 100_000)
    assert y.mean() == pytest.approx(1, abs=0.02)


def test_with_probability_0_nothing_is_dropped(ones):
    np.testing.assert_array_equal(dropout(ones, 0, KEY).numpy(), 1)


def test_the_same_key_gives_the_same_mask(ones):
    np.testing.assert_array_equal(dropout(ones, 0.5, KEY).numpy(), dropout(ones, 0.5, KEY.copy()).numpy())


@pytest.mark.parametrize("word", range(4), ids=["seed low", "seed high", "step", "layer"])
def test_each_word_of_the_key_changes_the_mask(word, ones):
    other = KEY.copy()
    other[word] += 1
    equal = dropout(ones, 0.5, KEY).numpy() == dropout(ones, 0.5, other).numpy()
    assert abs(equal.mean() - 0.5) < 5 * 0.5 / np.sqrt(100_000)


def test_backward_drops_what_forward_dropped_though_the_key_counted_on(ones):
    key = KEY.copy()
    ones.requires_grad = True
    y = dropout(ones, 0.5, key)
    key[2] += 1  # as the layer does after every step
    y.sum().backward()
    np.testing.assert_array_equal(ones.grad.numpy(), y.numpy())


def test_the_mask_does_not_depend_on_the_shape_or_the_dtype(ones):
    flat = Tensor(np.ones(ones.numel()), device=ones.device)
    np.testing.assert_array_equal(dropout(ones, 0.3, KEY).numpy().ravel() == 0, dropout(flat, 0.3, KEY).numpy() == 0)
