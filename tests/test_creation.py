"""Tensors made from a shape, and the seeds behind the random ones."""

import threading

import numpy as np
import pytest

import minidl
from minidl import arange, fork_rng, manual_seed, ones, randn, zeros
from minidl.random import next_draw, next_generator


@pytest.fixture(autouse=True)
def _own_draws():
    """No test here changes the draws of another."""
    with fork_rng(0):
        yield


@pytest.mark.parametrize("make", [zeros, ones, randn])
def test_a_shape_comes_in_one_piece_or_in_several(make, device):
    for shape in ((2, 3), [2, 3]):
        assert make(shape, device=device).shape == make(*shape, device=device).shape == (2, 3)
    assert make(4, device=device).shape == (4,)
    assert make(device=device).shape == make((), device=device).shape == ()
    assert make(0, 2, device=device).shape == (0, 2)


@pytest.mark.parametrize("make", [zeros, ones, randn])
def test_float32_unless_asked_otherwise_and_a_leaf(make, device):
    x = make(2, device=device)
    assert (x.dtype, x.device, x.requires_grad) == (np.float32, device, False)
    y = make(2, dtype=minidl.float64, device=device, requires_grad=True)
    assert (y.dtype, y.requires_grad) == (np.float64, True)
    (y * 2).sum().backward()
    assert y.grad is not None


def test_their_numbers(device):
    np.testing.assert_array_equal(zeros(2, 2, device=device).numpy(), np.zeros((2, 2)))
    np.testing.assert_array_equal(ones(2, 2, dtype="int64", device=device).numpy(), np.ones((2, 2)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", [zeros, ones, randn, arange])
def test_halves_by_name(make, dtype, device):
    x = make(3, dtype=dtype, device=device)
    assert str(x.dtype) == dtype and x.shape == (3,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_randn_is_normal(dtype, device):
    x = randn(100_000, dtype=dtype, device=device).to("float64")
    deviation = 5 / np.sqrt(100_000)  # five standard deviations of the mean
    assert abs(x.mean().item()) < deviation
    assert abs(x.var().item() - 1) < np.sqrt(2) * deviation
    assert abs((x**4).mean().item() - 3) < np.sqrt(96) * deviation


@pytest.mark.parametrize(
    ("arguments", "expected", "dtype"),
    [
        ((3,), [0, 1, 2], "int64"),
        ((1, 3), [1, 2], "int64"),
        ((5, 0, -2), [5, 3, 1], "int64"),
        ((0, 1, 0.25), [0, 0.25, 0.5, 0.75], "float32"),
        ((2.0,), [0, 1], "float32"),
        ((0,), [], "int64"),
    ],
)
def test_arange_is_that_of_numpy(arguments, expected, dtype, device):
    x = arange(*arguments, device=device)
    np.testing.assert_array_equal(x.numpy(), expected)
    assert x.dtype == dtype


@pytest.mark.parametrize("dtype", ["float64", np.float32, minidl.float64])
def test_arange_in_another_dtype(dtype, device):
    assert arange(3, dtype=dtype, device=device).dtype == dtype


# -- seeds -------------------------------------------------------------------------------------------------------------


def draw():
    return randn(5).numpy().tolist()


def test_a_seed_starts_the_draws_anew():
    manual_seed(7)
    first, second = draw(), draw()
    assert first != second
    manual_seed(7)
    assert [draw(), draw()] == [first, second]
    manual_seed(8)
    assert draw() != first


def test_a_draw_is_a_function_of_the_seed_and_its_number():
    """Two integers, which a checkpoint can hold."""
    manual_seed(7)
    draw()
    assert next_draw() == (7, 1)
    np.testing.assert_array_equal(next_generator().standard_normal(5), np.random.default_rng((7, 2)).standard_normal(5))


def test_the_size_of_a_draw_does_not_change_the_next():
    manual_seed(7)
    randn(3)
    after_few = draw()
    manual_seed(7)
    randn(1000)
    assert draw() == after_few


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None, 2**64])
def test_a_seed_is_a_whole_number_of_64_bits(seed):
    with pytest.raises(ValueError, match=r"manual_seed: expected a whole number from 0 to 2\*\*64 - 1, got "):
        manual_seed(seed)


def test_numpys_whole_numbers_are_seeds_too():
    manual_seed(7)
    expected = draw()
    manual_seed(np.int64(7))
    assert draw() == expected


def test_a_fork_leaves_the_draws_after_it_as_they_were():
    manual_seed(7)
    expected = [draw(), draw()]
    manual_seed(7)
    first = draw()
    with fork_rng(1):
        forked = draw()
    assert [first, draw()] == expected
    manual_seed(1)
    assert draw() == forked


def test_forks_nest_and_end_with_an_exception_too():
    manual_seed(7)
    before = next_draw()
    with pytest.raises(KeyError), fork_rng(1), fork_rng(2):
        draw()
        raise KeyError
    assert next_draw() == (before[0], before[1] + 1)


def test_a_bad_seed_forks_nothing():
    manual_seed(7)
    with pytest.raises(ValueError, match="whole number"), fork_rng(-1):
        pass
    assert next_draw() == (7, 0)


def test_each_thread_draws_for_itself():
    manual_seed(7)
    thread = threading.Thread(target=lambda: [manual_seed(1), draw()])
    thread.start()
    thread.join()
    assert next_draw() == (7, 0)


def test_nothing_draws_from_numpys_global_state():
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    draw()
    np.testing.assert_array_equal(np.random.get_state()[1], state)
