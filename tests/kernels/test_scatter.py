"""Numbers added up at the positions they came from."""

import numpy as np
import pytest


@pytest.mark.parametrize(("count", "shape"), [(1, (1,)), (50, (3, 4)), (7, (100,)), (300, (5,))])
def test_scatter_add_agrees_with_the_plain_loops(count, shape, agrees, rng):
    agrees("scatter_add", rng.standard_normal(count), rng.integers(0, np.prod(shape), count), shape)


def test_what_has_one_position_is_added_up_and_what_nobody_has_is_zero(run):
    y = run("scatter_add", np.array([[1.0, 2.0], [4.0, 8.0]]), np.array([[3, 0], [3, 3]]), (2, 2))
    np.testing.assert_array_equal(y, [[2, 0], [0, 13]])


def test_a_million_numbers_of_one_position_are_added_with_an_error_of_float32(run):
    grad = np.full(10**6, 0.1, np.float32)
    (y,) = run("scatter_add", grad, np.zeros(10**6, np.int64), (1,))
    assert y.dtype == np.float32
    assert y == pytest.approx(1e6 * float(grad[0]), rel=1e-7)


def test_the_order_of_the_sum_is_that_of_the_numbers(kernels, to_device, to_host):
    """In float64, where 1e17 + 1 is 1e17: the same bits in every run, and those of the CPU."""
    grad, positions = np.array([1e17, 1, -1e17, 1], np.float32), np.zeros(4, np.int64)
    results = {float(to_host(kernels.scatter_add(to_device(grad), to_device(positions), (1,)))[0]) for _ in range(3)}
    assert results == {1.0}
