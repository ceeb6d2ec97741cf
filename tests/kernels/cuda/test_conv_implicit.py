"""The convolution that makes no columns, by its name, as `conv.py` does not choose it."""

import importlib

import pytest

from minidl.kernels import reference
from tests.kernels.compare import TOLERANCE, Runner, assert_close
from tests.kernels.test_conv import Case

# x shape, (KH, KW, O), stride, padding: fewer and more rows, columns and depth than a tile has.
GEOMETRIES = [
    ((2, 9, 7, 3), (3, 3, 5), (1, 1), (1, 1)),
    ((3, 12, 11, 16), (3, 3, 20), (2, 2), (1, 1)),
    ((2, 8, 9, 4), (2, 3, 70), (2, 3), (0, 1)),
    ((1, 6, 6, 2), (1, 1, 3), (1, 1), (0, 0)),
    ((2, 21, 23, 3), (7, 7, 4), (2, 2), (3, 3)),
    ((1, 7, 8, 2), (2, 2, 3), (3, 3), (1, 0)),
]
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)


@pytest.fixture
def implicit(kernels):
    return importlib.import_module("minidl.kernels.cuda._conv_implicit")


@geometries
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_it_agrees_with_the_plain_loops(geometry, dtype, implicit, to_device, to_host, rng):
    x, weight, bias, grad = Case(*geometry).draw(rng)
    stride, padding = geometry[2:]
    y = reference.conv2d_forward(x, weight, bias, stride, padding)
    without_bias = reference.conv2d_forward(x, weight, None, stride, padding)
    gradients = reference.conv2d_backward(grad, x, weight, stride, padding)
    run = Runner(implicit, to_device, to_host)
    x, weight, bias, grad = (array.astype(dtype) for array in (x, weight, bias, grad))
    assert_close(run("forward", x, weight, bias, stride, padding), y, TOLERANCE[dtype])
    assert_close(run("forward", x, weight, None, stride, padding), without_bias, TOLERANCE[dtype])
    for ours, expected in zip(run("backward", grad, x, weight, stride, padding), gradients, strict=True):
        assert ours.dtype == dtype
        assert_close(ours, expected, TOLERANCE[dtype])


def test_the_weights_gradient_is_summed_over_slabs_of_pixels(implicit, to_device, to_host, rng, monkeypatch):
    monkeypatch.setattr(implicit, "SLAB_PIXELS", 10)
    x, weight, _, grad = Case(*GEOMETRIES[0]).draw(rng)
    expected = reference.conv2d_backward_weight(grad, x, weight.shape, (1, 1), (1, 1))
    run = Runner(implicit, to_device, to_host)
    assert_close(run("backward_weight", grad, x, weight.shape, (1, 1), (1, 1)), expected)
