"""Pooling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl import Tensor
from minidl.functional import avg_pool2d, global_avg_pool, max_pool2d
from tests.kernels.compare import assert_close, nchw, nhwc, torch_gradients
from tests.ops.case import Case, distinct, gradients, normal

GEOMETRIES = {
    "2": ((2, 4, 6, 2), {"kernel_size": 2}),
    "2 of an odd size": ((1, 5, 3, 2), {"kernel_size": 2}),
    "2 of an odd size, ceil mode": ((1, 5, 3, 2), {"kernel_size": 2, "ceil_mode": True}),
    "the stem of a residual network": ((1, 6, 8, 2), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "overlapping": ((2, 4, 5, 1), {"kernel_size": 3, "stride": 1}),
    "with gaps": ((1, 7, 6, 2), {"kernel_size": 2, "stride": 3}),
    "pairs": ((1, 5, 7, 2), {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)}),
    "ceil mode and padding": ((1, 6, 5, 2), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "a last window that would see only padding": ((1, 3, 3, 1), {"kernel_size": 1, "stride": 3, "ceil_mode": True}),
    "the whole image": ((2, 3, 4, 2), {"kernel_size": (3, 4)}),
}


def largest(name, shape, options):
    return Case(
        f"max, {name}",
        lambda x: max_pool2d(x, **options),
        lambda torch, x: nhwc(torch.nn.functional.max_pool2d(nchw(x), **options)),
        [shape],
        distinct,
    )


def average(name, shape, options):
    return Case(
        f"average, {name}",
        lambda x: avg_pool2d(x, **options),
        lambda torch, x: nhwc(torch.nn.functional.avg_pool2d(nchw(x), **options)),
        [shape],
        normal,
        is_linear=True,
    )


def padding_not_counted(options):
    return {**options, "count_include_pad": False}


CASES = [
    *(largest(name, *geometry) for name, geometry in GEOMETRIES.items()),
    *(average(name, *geometry) for name, geometry in GEOMETRIES.items()),
    *(
        average(f"{name}, padding not counted", shape, padding_not_counted(options))
        for name, (shape, options) in GEOMETRIES.items()
        if "padding" in options
    ),
    Case("global", global_avg_pool, lambda torch, x: x.mean((1, 2)), [(2, 3, 4, 2)], is_linear=True),
    Case("global, of one pixel", global_avg_pool, lambda torch, x: x.mean((1, 2)), [(2, 1, 1, 3)], is_linear=True),
]


@st.composite
def drawn_cases(draw):
    """A pooling of either kind whose windows fit."""

    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride = pair(1, 4), pair(1, 4)
    padding = tuple(draw(st.integers(0, length // 2)) for length in kernel)
    size = [max(1, kernel[i] - 2 * padding[i]) + draw(st.integers(0, 5)) for i in (0, 1)]
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": draw(st.booleans())}
    shape = (draw(st.integers(1, 2)), *size, draw(st.integers(1, 2)))
    if draw(st.booleans()):
        return largest("drawn", shape, options)
    return average("drawn", shape, {**options, "count_include_pad": draw(st.booleans())})


@given(case=drawn_cases())
def test_any_geometry_is_that_of_pytorch(case, device, torch):
    arrays = case.arrays()
    grad = np.random.default_rng(1).standard_normal(case.ours(*case.tensors(device)).shape)
    y, (grad_x,) = gradients(case.ours, arrays, grad, device)
    expected_y, (expected,) = torch_gradients(torch, lambda x: case.theirs(torch, x), arrays, grad)
    assert_close(y, expected_y)
    assert_close(grad_x, expected)


def test_padding_never_wins(device):
    """With 0 around it, an image of -1 would be pooled to 0."""
    y = max_pool2d(Tensor(np.full((1, 4, 4, 1), -1.0), device=device), 3, stride=2, padding=1)
    np.testing.assert_array_equal(y.numpy(), -1)


@pytest.mark.parametrize(("size", "expected"), [(112, 56), (111, 56), (7, 4)])
def test_the_pooling_of_the_stem_halves_and_rounds_up(size, expected, device):
    x = Tensor(np.zeros((1, size, size, 1), np.float32), device=device)
    assert max_pool2d(x, 3, stride=2, padding=1).shape == (1, expected, expected, 1)


def test_the_first_of_equal_numbers_gets_the_gradient(device):
    x = Tensor(np.zeros((1, 2, 4, 1)), device=device, requires_grad=True)
    max_pool2d(x, 2).backward(Tensor(np.array([3.0, 5.0]).reshape(1, 1, 2, 1), device=device))
    np.testing.assert_array_equal(x.grad.numpy()[0, :, :, 0], [[3, 0, 5, 0], [0, 0, 0, 0]])


def test_a_number_that_wins_several_windows_gets_all_their_gradients(device):
    x = Tensor(np.array([0.0, 9.0, 0.0]).reshape(1, 1, 3, 1), device=device, requires_grad=True)
    max_pool2d(x, (1, 2), stride=1).backward(Tensor(np.array([3.0, 5.0]).reshape(1, 1, 2, 1), device=device))
    np.testing.assert_array_equal(x.grad.numpy().ravel(), [0, 8, 0])
