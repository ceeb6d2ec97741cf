"""Initial weights: their fans, their distributions, and their seeds."""

import math

import numpy as np
import pytest

import minidl
from minidl.nn import init

CONV, LINEAR = (3, 5, 40, 80), (200, 300)

SHAPES = pytest.mark.parametrize("shape", [CONV, LINEAR], ids=["conv", "linear"])
FANS = {CONV: (600, 1200), LINEAR: (200, 300)}

# name: (the draw, its variance from the two fans, its fourth moment over its variance squared)
NORMAL, UNIFORM = 3.0, 1.8
DRAWS = {
    "normal": (lambda shape: init.normal(shape, 0.1), lambda fan_in, fan_out: 0.01, NORMAL),
    "uniform": (lambda shape: init.uniform(shape, 0.3), lambda fan_in, fan_out: 0.03, UNIFORM),
    "he_normal": (init.he_normal, lambda fan_in, fan_out: 2 / fan_in, NORMAL),
    "he_normal fan_out": (lambda shape: init.he_normal(shape, "fan_out"), lambda fan_in, fan_out: 2 / fan_out, NORMAL),
    "he_uniform": (init.he_uniform, lambda fan_in, fan_out: 2 / fan_in, UNIFORM),
    "he_uniform fan_out": (
        lambda shape: init.he_uniform(shape, "fan_out"),
        lambda fan_in, fan_out: 2 / fan_out,
        UNIFORM,
    ),
    "xavier_normal": (init.xavier_normal, lambda fan_in, fan_out: 2 / (fan_in + fan_out), NORMAL),
    "xavier_uniform": (init.xavier_uniform, lambda fan_in, fan_out: 2 / (fan_in + fan_out), UNIFORM),
}


@SHAPES
def test_the_fans_count_the_kernel(shape):
    assert init.fans(shape) == FANS[shape]


@SHAPES
@pytest.mark.parametrize(("draw", "variance", "kurtosis"), DRAWS.values(), ids=DRAWS)
def test_mean_variance_and_shape_of_the_distribution_are_as_named(draw, variance, kurtosis, shape):
    with minidl.fork_rng(3):
        weights = draw(shape)
    assert weights.shape == shape and weights.dtype == np.float32 and weights.flags.c_contiguous
    weights, expected = weights.astype(np.float64), variance(*FANS[shape])
    deviations = 5 / math.sqrt(weights.size)  # five standard deviations of a mean of so many numbers
    assert abs(weights.mean()) < deviations * math.sqrt(expected)
    assert weights.var() == pytest.approx(expected, rel=deviations * math.sqrt(kurtosis - 1))
    assert (weights**4).mean() / weights.var() ** 2 == pytest.approx(kurtosis, rel=0.1)


def test_normal_draws_have_their_mean():
    with minidl.fork_rng(3):
        assert init.normal((10_000,), 0.5, mean=2.0).mean() == pytest.approx(2, abs=5 * 0.5 / 100)


def test_uniform_draws_fill_their_interval_and_stay_in_it():
    with minidl.fork_rng(3):
        draws = init.uniform((10_000,), 0.25)
    assert -0.25 <= draws.min() < -0.249 and 0.249 < draws.max() <= 0.25


@pytest.mark.parametrize("draw", [draw for draw, _, _ in DRAWS.values()], ids=DRAWS)
def test_the_seed_decides_the_weights_and_each_draw_differs(draw):
    def draws(seed):
        with minidl.fork_rng(seed):
            return [draw((4, 5)).tolist() for _ in range(2)]

    first, second = draws(1)
    assert draws(1) == [first, second]
    assert first != second and draws(2)[0] != first


@pytest.mark.parametrize("draw", [init.he_normal, init.he_uniform])
def test_an_unknown_mode_is_refused(draw):
    with pytest.raises(ValueError, match="expected mode 'fan_in' or 'fan_out', got 'fan_avg'"):
        draw((2, 2), "fan_avg")
