"""The product of matrices, and of batches of them."""

import numpy as np
import pytest

from tests.kernels.compare import assert_close, torch_gradients

SHAPES = {
    "one number": ((1, 1), (1, 1)),
    "vectors as matrices": ((1, 5), (5, 1)),
    "an outer product": ((5, 1), (1, 7)),
    "matrices": ((5, 7), (7, 4)),
    "more than a tile": ((130, 37), (37, 67)),
    "a large depth": ((3, 1100), (1100, 2)),
    "whole runs of 16 bytes": ((8, 16), (16, 24)),
    "batches": ((3, 5, 7), (3, 7, 4)),
    "batches of batches": ((2, 3, 5, 7), (2, 3, 7, 4)),
    "one right matrix": ((2, 3, 5, 7), (7, 4)),
    "one left matrix": ((5, 7), (2, 3, 7, 4)),
    "one left matrix in a batch of one": ((1, 5, 7), (3, 7, 4)),
    "both broadcast": ((2, 1, 5, 7), (3, 7, 4)),
    "an inner axis broadcasts": ((2, 3, 5, 7), (2, 1, 7, 4)),
    "no rows": ((0, 7), (7, 4)),
    "no depth": ((2, 5, 0), (2, 0, 4)),
    "no batch": ((0, 5, 7), (0, 7, 4)),
}
each_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def draw(rng, shapes):
    return [rng.standard_normal(shape) for shape in shapes]


@each_shape
def test_matmul_agrees_with_the_plain_loops(shapes, agrees, rng):
    agrees("matmul", *draw(rng, shapes))


@each_shape
def test_a_transposed_factor_is_read_where_it_lies(shapes, kernels, to_device, to_host, rng):
    a, b = draw(rng, shapes)
    a_turned, b_turned = (to_device(np.ascontiguousarray(x.swapaxes(-1, -2))).swapaxes(-1, -2) for x in (a, b))
    for left in (to_device(a), a_turned):
        for right in (to_device(b), b_turned):
            assert_close(to_host(kernels.matmul(left, right)), a @ b)


@pytest.mark.parametrize("name", ["matrices", "batches", "more than a tile"])
def test_matmul_is_that_of_pytorch(name, run, rng, torch):
    a, b = draw(rng, SHAPES[name])
    grad = rng.standard_normal((a @ b).shape)
    y, (grad_a, grad_b) = torch_gradients(torch, lambda a, b: a @ b, [a, b], grad)
    assert_close(run("matmul", a, b), y)
    assert_close(run("matmul", grad, b.swapaxes(-1, -2)), grad_a)
    assert_close(run("matmul", a.swapaxes(-1, -2), grad), grad_b)


@pytest.mark.parametrize("name", ["matrices", "batches", "one right matrix", "no depth"])
def test_whole_numbers_are_multiplied_too(name, run, rng):
    a, b = (rng.integers(-9, 9, shape) for shape in SHAPES[name])
    np.testing.assert_array_equal(run("matmul", a, b), a @ b)


def test_more_pairs_than_a_grid_has_blocks_are_multiplied_in_parts(run, rng):
    a, b = rng.standard_normal((2**16 + 3, 1, 2)), rng.standard_normal((2**16 + 3, 2, 1))
    assert_close(run("matmul", a, b), a @ b)
