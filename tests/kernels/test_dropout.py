"""Dropout, and the random numbers it draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl.kernels.reference import _philox4x32

KEY = np.array([0x12345678, 0x9ABCDEF0, 7, 3], np.uint32)  # seed low, seed high, step, layer

# counter, key, words: from kat_vectors of the Random123 library, philox4x32 with 10 rounds
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, answer):
    assert _philox4x32(words(counter), words(key)) == words(answer)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    probability=st.floats(0, 0.95),
    key=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    first=st.one_of(st.integers(0, 9), st.integers(2**32 - 9, 2**32 + 9)),
)
def test_dropout_agrees_with_the_plain_loops(shape, probability, key, first, agrees):
    x = np.random.default_rng(0).standard_normal(shape)
    agrees("dropout_forward", x, probability, np.array(key, np.uint32), first)
    agrees("dropout_backward", x, probability, np.array(key, np.uint32), first)


@pytest.mark.parametrize("first", [4, 6, 21])
def test_a_part_of_an_array_is_dropped_as_in_the_whole(first, run, rng):
    x = rng.standard_normal(50)
    for kernel in ("dropout_forward", "dropout_backward"):
        np.testing.assert_array_equal(run(kernel, x[first:], 0.4, KEY, first), run(kernel, x, 0.4, KEY)[first:])


def test_far_into_a_large_array_each_element_still_takes_its_own_word(to_device, to_host, kernels, rng):
    """The loops would take minutes for it, so some elements are looked up one by one."""
    x = np.ones(2**20 + 3, np.float32)
    kept = to_host(kernels.dropout_forward(to_device(x), 0.5, to_device(KEY))) != 0
    seed_low, seed_high, step, layer = map(int, KEY)
    for i in [*rng.integers(0, x.size, 200).tolist(), x.size - 1]:
        word = _philox4x32((i // 4, 0, step, layer), (seed_low, seed_high))[i % 4]
        assert kept[i] == (word >= 2**31)


def test_backward_drops_what_forward_dropped_and_scales_alike(run, rng):
    x = rng.standard_normal((6, 7, 5))
    y, grad_x = run("dropout_forward", x, 0.4, KEY), run("dropout_backward", np.ones_like(x), 0.4, KEY)
    np.testing.assert_allclose(y, x * grad_x, rtol=1e-14)
    np.testing.assert_allclose(np.unique(grad_x), [0, 1 / 0.6], rtol=1e-14)


def test_probability_zero_keeps_everything(run, rng):
    x = rng.standard_normal((5, 7))
    np.testing.assert_array_equal(run("dropout_forward", x, 0.0, KEY), x)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_fraction_dropped_is_the_probability(probability, run):
    y = run("dropout_forward", np.ones((40, 100)), probability, KEY)
    deviation = np.sqrt(probability * (1 - probability) / y.size)
    assert abs((y == 0).mean() - probability) <= 4 * deviation


@pytest.mark.parametrize("word", range(4), ids=["seed low", "seed high", "step", "layer"])
def test_every_word_of_the_key_changes_the_mask(word, run):
    other = KEY.copy()
    other[word] += 1
    x = np.ones(1000)
    differing = run("dropout_forward", x, 0.5, KEY) != run("dropout_forward", x, 0.5, other)
    assert 400 < differing.sum() < 600  # two unrelated masks: half
