"""Convolution: the forward pass, and the gradients with respect to x and to the weights."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl.kernels import reference
from tests.kernels.compare import assert_close, nchw, nhwc, torch_gradients


class Case(NamedTuple):
    images: tuple  # (N, H, W, C)
    kernel: tuple  # (KH, KW, O)
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)

    @property
    def weight_shape(self):
        kh, kw, o = self.kernel
        return kh, kw, self.images[3], o

    @property
    def output_shape(self):
        rooms = [self.images[1 + i] + 2 * self.padding[i] - self.kernel[i] for i in (0, 1)]
        return self.images[0], *(room // self.stride[i] + 1 for i, room in enumerate(rooms)), self.kernel[2]

    def draw(self, rng):
        """x, weight, bias, grad."""
        shapes = self.images, self.weight_shape, self.kernel[2:], self.output_shape
        return [rng.standard_normal(shape) for shape in shapes]


CASES = [
    Case((2, 5, 7, 3), (3, 3, 4), padding=(1, 1)),
    Case((2, 9, 6, 2), (3, 3, 5), padding=(2, 2)),
    Case((1, 6, 5, 1), (3, 3, 1)),
    Case((3, 4, 6, 3), (1, 1, 5)),
    Case((2, 4, 3, 2), (1, 1, 3), padding=(1, 1)),  # the outermost outputs see padding only
    Case((2, 7, 8, 3), (1, 1, 4), stride=(2, 2)),
    Case((1, 32, 32, 2), (3, 3, 3), stride=(2, 2), padding=(1, 1)),
    Case((2, 23, 21, 3), (7, 7, 4), stride=(2, 2), padding=(3, 3)),
    Case((2, 9, 6, 2), (5, 5, 3)),
    Case((2, 2, 3, 4), (5, 5, 2), padding=(2, 2)),  # the kernel is larger than the image
    Case((2, 7, 9, 3), (2, 3, 4), stride=(2, 3), padding=(0, 1)),
    Case((2, 8, 11, 2), (3, 2, 3), stride=(1, 2), padding=(2, 0)),
    Case((2, 10, 11, 3), (3, 3, 2), stride=(3, 3)),  # no window reaches the last row and the last two columns
    Case((1, 9, 8, 2), (2, 2, 3), stride=(3, 3), padding=(1, 0)),  # the windows leave gaps
    Case((40, 11, 9, 32), (3, 3, 8), padding=(1, 1)),  # a few chunks
    Case((40, 22, 21, 64), (3, 3, 8), padding=(1, 1)),  # many
    Case((40, 15, 13, 16), (3, 3, 8), stride=(2, 2), padding=(1, 1)),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


# Of dL/dx and dL/dweight: an implementation may compute both from one im2col.
NEEDS = [(True, True), (True, False), (False, True), (False, False)]


def assert_conv_agrees(agrees, case, rng):
    x, weight, bias, grad = case.draw(rng)
    agrees("conv2d_forward", x, weight, bias, case.stride, case.padding)
    for needs in NEEDS:
        agrees("conv2d_backward", grad, x, weight, case.stride, case.padding, *needs)


@cases
def test_conv_agrees_with_the_plain_loops(case, agrees, rng):
    assert_conv_agrees(agrees, case, rng)


@cases
def test_the_middle_rung_by_im2col_agrees_with_the_plain_loops(case, rng):
    x, weight, bias, grad = case.draw(rng)
    geometry = case.stride, case.padding
    for some in (bias, None):
        y = reference.conv2d_forward_by_im2col(x, weight, some, *geometry)
        assert_close(y, reference.conv2d_forward(x, weight, some, *geometry))
    ours = reference.conv2d_backward_by_im2col(grad, x, weight, *geometry)
    for gradient, expected in zip(ours, reference.conv2d_backward(grad, x, weight, *geometry, True, True), strict=True):
        assert_close(gradient, expected)


@st.composite
def any_case(draw):
    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, surplus = pair(1, 4), pair(1, 3), pair(0, 2), pair(0, 6)
    size = [max(1, kernel[i] - 2 * padding[i]) + surplus[i] for i in (0, 1)]
    n, c, o = (draw(st.integers(1, 3)) for _ in range(3))
    return Case((n, *size, c), (*kernel, o), stride, padding)


@given(case=any_case())
def test_conv_agrees_with_the_plain_loops_for_any_geometry(case, agrees):
    assert_conv_agrees(agrees, case, np.random.default_rng(0))


def test_without_a_bias_nothing_is_added(agrees, run, rng):
    x, weight, bias, _ = CASES[0].draw(rng)
    agrees("conv2d_forward", x, weight, None, (1, 1), (1, 1))
    without = run("conv2d_forward", x, weight, None, (1, 1), (1, 1))
    assert_close(run("conv2d_forward", x, weight, bias, (1, 1), (1, 1)), without + bias)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "expected"),
    [(224, 7, 2, 3, 112), (112, 3, 2, 1, 56), (32, 3, 2, 1, 16), (32, 1, 2, 0, 16), (33, 1, 2, 0, 17)],
)
def test_the_output_is_as_large_as_the_windows_that_fit(size, kernel_size, stride, padding, expected, run, rng):
    """Sizes of residual networks that some frameworks refuse as inexact."""
    x, weight = rng.standard_normal((1, size, 7, 1)), rng.standard_normal((kernel_size, kernel_size, 1, 1))
    y = run("conv2d_forward", x, weight, None, (stride, stride), (padding, padding))
    assert y.shape[1] == expected


def test_the_kernel_is_not_flipped(run):
    """One tap at the upper left of a 3x3 kernel shifts the image to the lower right."""
    x = np.arange(12.0).reshape(1, 3, 4, 1)
    weight = np.zeros((3, 3, 1, 1))
    weight[0, 0] = 1
    y = run("conv2d_forward", x, weight, None, (1, 1), (1, 1))
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 0, 0, 0], [0, 0, 1, 2], [0, 4, 5, 6]])


@cases
def test_the_backward_passes_are_the_adjoints_of_the_forward_pass(case, run, rng):
    """<conv(x, w), g> = <x, grad_x> = <w, grad_w>, as conv is linear in x and in w."""
    x, weight, _, grad = case.draw(rng)
    y = run("conv2d_forward", x, weight, None, case.stride, case.padding)
    grad_x, _ = run("conv2d_backward", grad, x, weight, case.stride, case.padding, True, False)
    _, grad_weight = run("conv2d_backward", grad, x, weight, case.stride, case.padding, False, True)
    expected = np.vdot(y, grad)
    scale = np.linalg.norm(y) * np.linalg.norm(grad)  # the products may cancel, their errors do not
    assert abs(np.vdot(x, grad_x) - expected) <= 1e-12 * scale
    assert abs(np.vdot(weight, grad_weight) - expected) <= 1e-12 * scale
    both = run("conv2d_backward", grad, x, weight, case.stride, case.padding, True, True)
    assert_close(both[0], grad_x)
    assert_close(both[1], grad_weight)


@cases
def test_conv_is_that_of_pytorch(case, run, rng, torch):
    x, weight, bias, grad = case.draw(rng)

    def conv2d(x, weight, bias):
        weight = weight.permute(3, 2, 0, 1)  # (KH, KW, C, O) -> (O, C, KH, KW)
        return nhwc(torch.nn.functional.conv2d(nchw(x), weight, bias, case.stride, case.padding))

    y, (grad_x, grad_weight, grad_bias) = torch_gradients(torch, conv2d, [x, weight, bias], grad)
    assert_close(run("conv2d_forward", x, weight, bias, case.stride, case.padding), y)
    ours = run("conv2d_backward", grad, x, weight, case.stride, case.padding, True, True)
    assert_close(ours[0], grad_x)
    assert_close(ours[1], grad_weight)
    assert_close(run("bias_backward", grad), grad_bias)
