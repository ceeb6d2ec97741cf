"""Convolution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Tensor
from minidl.functional import conv2d
from tests.kernels.compare import assert_close, nchw, nhwc, torch_gradients
from tests.ops.case import Case, gradients


def torch_conv2d(torch, x, weight, bias=None, stride=1, padding=0):
    weight = weight.permute(3, 2, 0, 1).contiguous()  # (KH, KW, C, O) -> (O, C, KH, KW)
    return nhwc(torch.nn.functional.conv2d(nchw(x), weight, bias, stride, padding))


def conv(name, x, weight, bias=True, **options):
    """A case with images x (N, H, W, C) and a weight (KH, KW, C, O)."""
    return Case(
        name,
        lambda *tensors: conv2d(*tensors, **options),
        lambda torch, *tensors: torch_conv2d(torch, *tensors, **options),
        [x, weight, weight[3:]] if bias else [x, weight],
        is_linear=not bias,
        kept_in_float32=(1, 2),
    )


CASES = [
    conv("3x3", (2, 4, 5, 2), (3, 3, 2, 3)),
    conv("3x3, padding", (2, 3, 4, 2), (3, 3, 2, 3), padding=1),
    conv("3x3, padding, no bias", (2, 3, 4, 2), (3, 3, 2, 3), bias=False, padding=1),
    conv("1x1", (2, 3, 2, 3), (1, 1, 3, 2)),
    conv("1x1, padding", (1, 2, 3, 2), (1, 1, 2, 3), bias=False, padding=1),
    conv("1x1, stride 2", (1, 4, 5, 2), (1, 1, 2, 3), bias=False, stride=2),
    conv("3x3, stride 2, padding, an even size", (1, 6, 6, 2), (3, 3, 2, 2), bias=False, stride=2, padding=1),
    conv("7x7, stride 2, padding 3", (1, 8, 7, 1), (7, 7, 1, 2), stride=2, padding=3),
    conv("pairs", (1, 5, 7, 2), (2, 3, 2, 2), bias=False, stride=(2, 3), padding=(1, 0)),
    conv("windows with gaps", (1, 8, 7, 1), (2, 2, 1, 2), stride=3),
    conv("one channel in and out", (2, 4, 4, 1), (3, 3, 1, 1), bias=False, padding=1),
    conv("a kernel larger than the image", (2, 2, 3, 2), (5, 5, 2, 2), bias=False, padding=2),
    conv("a single output pixel", (3, 2, 3, 2), (2, 3, 2, 2)),
]


@st.composite
def geometries(draw):
    """(x, weight, stride, padding) in shapes that fit."""

    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, surplus = pair(1, 4), pair(1, 3), pair(0, 2), pair(0, 5)
    size = [max(1, kernel[i] - 2 * padding[i]) + surplus[i] for i in (0, 1)]
    n, channels, out_channels = (draw(st.integers(1, 3)) for _ in range(3))
    return (n, *size, channels), (*kernel, channels, out_channels), stride, padding


@given(geometry=geometries())
@settings(max_examples=50)
def test_any_geometry_is_that_of_pytorch(geometry, device, torch):
    x, weight, stride, padding = geometry
    case = conv("drawn", x, weight, stride=stride, padding=padding)
    arrays = case.arrays()
    grad = np.random.default_rng(1).standard_normal(case.ours(*case.tensors(device)).shape)
    y, grads = gradients(case.ours, arrays, grad, device)
    expected_y, expected = torch_gradients(torch, lambda *tensors: case.theirs(torch, *tensors), arrays, grad)
    for ours, theirs in zip([y, *grads], [expected_y, *expected], strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "expected"),
    [(32, 3, 2, 1, 16), (32, 1, 2, 0, 16), (224, 7, 2, 3, 112), (227, 11, 4, 0, 55)],
)
def test_windows_that_do_not_fill_the_image_evenly_are_no_error(size, kernel_size, stride, padding, expected, device):
    """Residual networks are full of them, and some frameworks refuse them as inexact."""
    x = Tensor(np.ones((1, size, size, 1), np.float32), device=device)
    weight = Tensor(np.ones((kernel_size, kernel_size, 1, 1), np.float32), device=device)
    assert conv2d(x, weight, stride=stride, padding=padding).shape == (1, expected, expected, 1)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("x", [(True, False)]),
        ("weight", [(False, True)]),
        ("x weight", [(True, True)]),
        ("bias", [(False, False), "bias_backward"]),
        ("x weight bias", [(True, True), "bias_backward"]),
        ("", []),
    ],
)
def test_only_the_gradients_that_are_wanted_are_computed(wanted, expected, device, kernels, monkeypatch):
    called = []
    monkeypatch.setattr(kernels, "bias_backward", lambda *args: called.append("bias_backward"))
    monkeypatch.setattr(kernels, "conv2d_backward", lambda *args: called.append(args[-2:]) or (None, None))
    inputs = dict(zip(("x", "weight", "bias"), CASES[0].tensors(device), strict=True))
    for name, tensor in inputs.items():
        tensor.requires_grad = name in wanted.split()
    y = conv2d(*inputs.values()) * Tensor(np.float64(2), device=device, requires_grad=True)
    y.sum().backward()
    assert called == expected
