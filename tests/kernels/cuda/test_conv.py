"""The convolution that makes no columns: by multiply-add, and by tensor cores or their plain twin."""

import importlib

import ml_dtypes
import numpy as np
import pytest

from minidl.kernels import reference
from minidl.system.precision import tf32
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
    ((1, 5, 30, 24), (1, 1, 136), (1, 1), (0, 0)),  # what is copied at a time is 16 bytes long
    ((2, 9, 6, 8), (1, 1, 8), (2, 2), (0, 0)),  # most pixels are seen through no tap
    ((1, 2, 3, 4), (3, 3, 4), (4, 5), (1, 1)),  # the strides are longer than the image
    ((1, 23, 23, 3), (11, 11, 8), (4, 4), (2, 2)),
    ((2, 7, 9, 32), (5, 5, 24), (1, 1), (2, 2)),  # a step along the depth lies in one tap
    ((2, 8, 8, 8), (3, 3, 40), (1, 1), (1, 1)),
]
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)


@pytest.fixture
def conv(kernels):
    return importlib.import_module("minidl.kernels.cuda.conv")


@pytest.fixture
def product(kernels):
    return importlib.import_module("minidl.kernels.cuda._product")


@pytest.fixture
def with_tensor_cores(kernels):
    """A GPU that has them for bfloat16 and TF32."""
    import cupy

    if int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("needs a GPU of compute capability 8.0")


@pytest.fixture
def assert_agrees(conv, to_device, to_host, rng):
    """assert_agrees(geometry, dtype, tolerance) unless all three products are what the plain loops compute."""

    def check(geometry, dtype, tolerance):
        run, (stride, padding) = Runner(conv, to_device, to_host), geometry[2:]
        x, weight, bias, grad = (array.astype(dtype) for array in Case(*geometry).draw(rng))
        exact = [array.astype(np.float64) for array in (x, weight, bias, grad)]  # what was rounded is given to both
        bias = bias.astype(np.float32 if dtype.itemsize == 2 else dtype)
        y = run("conv2d_forward", x, weight, bias, stride, padding)
        without_bias = run("conv2d_forward", x, weight, None, stride, padding)
        grad_x, grad_weight = run("conv2d_backward", grad, x, weight, stride, padding, True, True)
        grad_weight_dtype, (x, weight, bias, grad) = bias.dtype, exact
        assert_close(y, reference.conv2d_forward(x, weight, bias, stride, padding), tolerance)
        assert_close(without_bias, reference.conv2d_forward(x, weight, None, stride, padding), tolerance)
        expected = reference.conv2d_backward(grad, x, weight, stride, padding, True, True)
        assert_close(grad_x, expected[0], tolerance)
        assert_close(grad_weight, expected[1], tolerance)
        assert y.dtype == grad_x.dtype == dtype
        assert grad_weight.dtype == grad_weight_dtype

    return check


@geometries
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_it_agrees_with_the_plain_loops(geometry, dtype, assert_agrees):
    assert_agrees(geometry, np.dtype(dtype), TOLERANCE[dtype])


@geometries
def test_bfloat16_agrees_with_the_plain_loops_but_for_the_rounding_of_the_result(
    geometry, assert_agrees, with_tensor_cores
):
    assert_agrees(geometry, np.dtype(ml_dtypes.bfloat16), 2**-8)  # half of the distance between two numbers of 8 bits


@geometries
def test_float16_agrees_with_the_plain_loops_but_for_the_rounding_of_the_result(geometry, assert_agrees):
    assert_agrees(geometry, np.dtype(np.float16), 2**-11)  # half of the distance between two numbers of 11 bits


@geometries
def test_tf32_agrees_with_the_plain_loops_but_for_the_rounding_of_the_factors(
    geometry, assert_agrees, with_tensor_cores
):
    with tf32():
        assert_agrees(geometry, np.dtype(np.float32), 2**-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_instructions_of_a_gpu_compute_what_their_plain_twins_compute(
    dtype, conv, to_device, to_host, rng, with_tensor_cores
):
    """Of tensor cores, of asynchronous copies and of rounding to TF32."""
    from minidl.kernels.cuda._launch import CudaKernel

    (x, weight, bias, grad), (stride, padding) = Case(*GEOMETRIES[-1]).draw(rng), GEOMETRIES[-1][2:]
    x, weight, grad = (array.astype(dtype) for array in (x, weight, grad))
    run = Runner(conv, to_device, to_host)

    def results():
        with tf32():
            y = run("conv2d_forward", x, weight, bias.astype(np.float32), stride, padding)
            return [
                array.astype(np.float64)
                for array in (y, *run("conv2d_backward", grad, x, weight, stride, padding, True, True))
            ]

    by_instructions = results()
    source_for = CudaKernel.source_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CudaKernel, "source_for", lambda *arguments: "#define PLAIN\n" + source_for(*arguments))
        CudaKernel.compiled.cache_clear()
        by_twins = results()
    CudaKernel.compiled.cache_clear()
    for ours, twin in zip(by_instructions, by_twins, strict=True):
        assert_close(
            ours, twin, {"bfloat16": 1e-2, "float16": 1e-3}.get(dtype, 1e-5)
        )  # a sum in another order may round up, or down


# Several tiles of the largest size, of which the last ones are not full.
LARGE = (1, 14, 13, 40), (3, 3, 136), (1, 1), (1, 1)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("enough_blocks", [0, 1000])
def test_tiles_of_128_and_of_64_rows_give_the_plain_loops_result(
    dtype, enough_blocks, product, assert_agrees, monkeypatch, with_tensor_cores
):
    monkeypatch.setattr(product, "ENOUGH_BLOCKS", enough_blocks)
    assert product.tile_of(182, 136, 1, 16, 128)[0] == (64 if enough_blocks else 128)
    with tf32():
        assert_agrees(LARGE, np.dtype(dtype), 2**-8 if dtype == ml_dtypes.bfloat16 else 2**-10)


@pytest.mark.parametrize("enough_blocks", [0, 1000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("geometry", [LARGE, ((1, 7, 5, 136), (3, 3, 72), (2, 1), (1, 0))], ids=str)
def test_wgmma_computes_what_mma_computes(
    geometry, dtype, enough_blocks, conv, product, to_device, to_host, rng, monkeypatch
):
    """For 128 and 64 columns of each product, and 128 and 64 rows."""
    import cupy

    if int(cupy.cuda.Device().compute_capability) != 90:
        pytest.skip("needs a GPU of compute capability 9.0")
    monkeypatch.setattr(product, "ENOUGH_BLOCKS", enough_blocks)
    (x, weight, _, grad), (stride, padding) = Case(*geometry).draw(rng), geometry[2:]
    x, weight, grad = (array.astype(dtype) for array in (x, weight, grad))
    run = Runner(conv, to_device, to_host)

    def results():
        conv.CudaKernel.compiled.cache_clear()
        y = run("conv2d_forward", x, weight, None, stride, padding)
        return y, *run("conv2d_backward", grad, x, weight, stride, padding, True, True)

    by_wgmma = results()
    for kernels in (conv.FORWARD, conv.BACKWARD_X, conv.BACKWARD_WEIGHT):
        monkeypatch.setattr(kernels[dtype], "for_hopper", False)
    by_mma = results()
    conv.CudaKernel.compiled.cache_clear()
    rounding = {"bfloat16": 2**-7, "float16": 2**-10}[dtype]  # a sum in another order may round up, or down
    for ours, twin in zip(by_wgmma, by_mma, strict=True):
        assert_close(ours.astype(np.float64), twin.astype(np.float64), rounding)


@pytest.fixture
def launched(conv, monkeypatch):
    """(name, constants) of each kernel that has been launched."""
    found, launch = [], conv.CudaKernel.launch

    def noted(kernel, *arguments, **others):
        found.append((kernel.name, next((a for a in arguments if isinstance(a, dict)), {})))
        return launch(kernel, *arguments, **others)

    monkeypatch.setattr(conv.CudaKernel, "launch", noted)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_large_arrays_have_long_indices_and_narrow_tiles(
    dtype, product, assert_agrees, launched, monkeypatch, with_tensor_cores
):
    monkeypatch.setattr(importlib.import_module("minidl.kernels.cuda._launch"), "MOST_FOR_INT", 10)
    monkeypatch.setattr(product, "MOST_FOR_INT", 10)
    assert_agrees(GEOMETRIES[2], np.dtype(dtype), {"bfloat16": 2**-8, "float16": 2**-11, "float32": 1e-4}[dtype])
    assert max(constants.get("TILE_COLUMNS", 0) for _, constants in launched) == 64


def test_arrays_at_an_address_that_does_not_fit_16_bytes(conv, to_device, to_host, rng):
    """What is copied at a time is then smaller."""
    (x, weight, _, grad), (stride, padding) = Case(*GEOMETRIES[-1]).draw(rng), GEOMETRIES[-1][2:]
    for skipped in (1, 2, 4):

        def moved(array, skipped=skipped):
            flat = np.concatenate([np.zeros(skipped), array.ravel()]).astype(np.float16)
            return to_device(flat)[skipped:].reshape(array.shape)

        y = to_host(conv.conv2d_forward(moved(x), moved(weight), None, stride, padding))
        assert_close(y.astype(np.float64), reference.conv2d_forward(x, weight, None, stride, padding), 2**-9)
        ours = conv.conv2d_backward(moved(grad), moved(x), moved(weight), stride, padding, True, True)
        expected = reference.conv2d_backward(grad, x, weight, stride, padding, True, True)
        for gradient, exact in zip(ours, expected, strict=True):
            assert_close(to_host(gradient).astype(np.float64), exact, 2**-9)


def test_images_of_three_channels_are_copied_at_least_8_bytes_at_a_time(conv, to_device, rng, launched):
    (x, weight, _, grad), (stride, padding) = Case(*GEOMETRIES[4]).draw(rng), GEOMETRIES[4][2:]
    x, weight, grad = (to_device(array.astype(np.float16)) for array in (x, weight, grad))
    conv.conv2d_forward(x, weight, None, stride, padding)
    conv.conv2d_backward(grad, x, weight, stride, padding, False, True)
    copied = {name: constants["BYTES_A"] for name, constants in launched if "BYTES_A" in constants}
    assert copied == {"conv_forward": 8, "conv_backward_weight": 8}


@pytest.mark.parametrize("least_windows", [10, 3])  # a few slabs, and many
def test_the_weights_gradient_is_summed_over_slabs_of_pixels(least_windows, conv, to_device, to_host, rng, monkeypatch):
    monkeypatch.setattr(conv, "LEAST_WINDOWS", least_windows)
    assert (conv.slabs_of(2 * 9 * 7, 27, 5) >= conv.MANY_SLABS) == (least_windows == 3)
    x, weight, _, grad = Case(*GEOMETRIES[0]).draw(rng)
    expected = reference.conv2d_backward(grad, x, weight, (1, 1), (1, 1), False, True)[1]
    run = Runner(conv, to_device, to_host)
    assert_close(run("backward_weight", grad, x, weight.shape, (1, 1), (1, 1)), expected)
