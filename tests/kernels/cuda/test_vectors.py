"""Kernels whose threads work on 16 bytes: for each length of a vector, and wherever an array begins."""

import ml_dtypes
import numpy as np
import pytest

from minidl.kernels import reference
from tests.kernels.compare import arrays_in, map_arrays

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
TOLERANCE = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 1e-5, "float64": 1e-12}
EPS, KEY = 1e-3, np.array([7, 1, 3, 2], np.uint32)
WINDOW = (3, 2), (2, 2), (1, 1)  # kernel_size, stride, padding


class Images:
    """An argument in the dtype of activations; the others are float32 if that is bfloat16."""

    def __init__(self, array):
        self.array = array


def calls(rng, channels):
    """(name, arguments) of every kernel on vectors."""
    x, y, grad = (rng.standard_normal((3, 7, 6, channels)).astype(ml_dtypes.bfloat16) for _ in range(3))
    mean, weight, bias = rng.standard_normal((3, channels)).astype(np.float32)
    variance = rng.uniform(0.5, 2, channels).astype(np.float32)
    pooled = rng.standard_normal((3, 4, 4, channels)).astype(ml_dtypes.bfloat16)
    padded = rng.standard_normal((3, 7, 3 * channels)).astype(ml_dtypes.bfloat16)
    x_, y_, grad_, pooled_, padded_ = map(Images, (x, y, grad, pooled, padded))
    row = Images(grad[:, 0, 0])
    _, taps = reference.max_pool2d_forward(x.astype(np.float64), *WINDOW, True)
    yield "add", x_, y_
    yield "relu_forward", x_
    yield "relu_backward", grad_, y_
    yield "gelu_forward", x_, "none", True
    yield "gelu_forward", x_, "tanh", False
    yield "gelu_backward", grad_, y_
    yield "bias_backward", grad_
    yield "dropout_forward", x_, 0.3, KEY
    yield "batch_statistics", x_
    yield "batch_norm_apply", x_, mean, variance, weight, bias, EPS
    yield "batch_norm_backward", grad_, x_, mean, variance, weight, EPS, True
    yield "batch_norm_backward", grad_, x_, mean, variance, weight, EPS, False
    yield "pad_channels_forward", x_, channels, 2 * channels
    yield "pad_channels_backward", padded_, 0, channels
    yield "max_pool2d_forward", x_, *WINDOW, True
    yield "max_pool2d_backward", pooled_, taps, x.shape, *WINDOW
    yield "avg_pool2d_forward", x_, *WINDOW, True, False
    yield "avg_pool2d_backward", pooled_, x.shape, *WINDOW, True, False
    yield "global_avg_pool_forward", x_
    yield "global_avg_pool_backward", row, x.shape
    yield "upsample_bilinear2d_forward", x_, (9, 13), (7 / 9, 6 / 13)
    yield "upsample_bilinear2d_backward", grad_, (3, 4, 9, channels), (4 / 7, 9 / 6)


def converted(arguments, images, others):
    """The arguments as plain arrays: images of the one dtype, other floats of the other."""
    plain = [arg.array.astype(images) if isinstance(arg, Images) else arg for arg in arguments]
    floats = [
        arg.dtype == np.float32 if hasattr(arg, "dtype") and not isinstance(arg, Images) else False for arg in arguments
    ]
    return [array.astype(others) if is_float else array for array, is_float in zip(plain, floats, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 12, 6, 5])  # of bfloat16, a vector is 8, 4, 2 and 1
def test_the_kernels_agree_with_the_plain_loops_for_each_length_of_a_vector(
    channels, dtype, kernels, to_device, to_host, rng
):
    real = np.float64 if dtype == "float64" else np.float32
    for name, *arguments in calls(rng, channels):
        expected = getattr(reference, name)(*converted(arguments, np.float64, np.float64))
        actual = getattr(kernels, name)(*map_arrays(to_device, converted(arguments, DTYPES[dtype], real)))
        for ours, wanted in zip(arrays_in(map_arrays(to_host, actual)), arrays_in(expected), strict=True):
            if wanted.dtype.kind == "f":
                error = abs(ours.astype(np.float64) - wanted).max()
                assert error <= TOLERANCE[dtype] * abs(wanted).max(), name
            else:
                np.testing.assert_array_equal(ours, wanted, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_that_begins_anywhere_gives_the_same_bits(dtype, kernels, to_device, to_host, rng):
    """A view: here of all but the first element."""

    def shifted(array):
        if not array.ndim:
            return to_device(array)
        return to_device(np.concatenate([array.ravel()[:1], array.ravel()]))[1:].reshape(array.shape)

    real = np.float64 if dtype == "float64" else np.float32
    for name, *arguments in calls(rng, 16):
        plain = converted(arguments, DTYPES[dtype], real)
        kernel = getattr(kernels, name)
        whole, views = (kernel(*map_arrays(place, plain)) for place in (to_device, shifted))
        for ours, wanted in zip(arrays_in(views), arrays_in(whole), strict=True):
            np.testing.assert_array_equal(to_host(ours).view(np.uint8), to_host(wanted).view(np.uint8), err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 1000, 1001, 4096])
def test_elementwise_kernels_reach_each_element(size, kernels, to_device, to_host, rng):
    for dtype in DTYPES.values():
        a, b = rng.integers(-9, 9, (2, size)).astype(dtype)
        for name, expected in (("add", a + b), ("relu_backward", np.where(b > 0, a, 0))):
            y = to_host(getattr(kernels, name)(to_device(a), to_device(b)))
            np.testing.assert_array_equal(y.astype(np.float64), expected.astype(np.float64))


def test_integers_are_padded_too(kernels, to_device, to_host):
    y = kernels.pad_channels_forward(to_device(np.array([[3, 4]])), 1, 2)
    assert to_host(y).tolist() == [[0, 3, 4, 0, 0]]


@pytest.mark.parametrize("shape", [(2**18, 2), (2**15, 16), (70_000, 5)])
def test_statistics_keep_their_digits_whatever_the_threads_begin_with(
    shape, kernels, to_device, to_host, rng, monkeypatch
):
    """With as many rows for each thread as large batches give it, the first a thousand deviations from the others."""
    import importlib

    slabs = importlib.import_module("minidl.kernels.cuda._slabs")
    monkeypatch.setattr(slabs, "BLOCKS_AT_ONCE", 1)
    x = rng.standard_normal(shape).astype(np.float32)
    x[:128] += 1e3  # what threads begin with
    mean, variance = map(to_host, kernels.batch_statistics(to_device(x)))
    np.testing.assert_allclose(variance, x.var(0, np.float64), rtol=1e-5)
    assert (abs(mean - x.mean(0, np.float64)) <= 1e-5 * x.std(0, np.float64)).all()
