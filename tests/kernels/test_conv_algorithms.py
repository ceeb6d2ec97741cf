"""Every algorithm of a convolution, by its name, whether or not the table of shapes would choose it.

Forward and both gradients equal the plain loops in float64 and in float32, with one chunk and with several, and have
the same bits on any number of threads.
"""

import numpy as np
import pytest

import minidl
from minidl import get_convolution, set_convolution
from minidl.functional import conv2d
from minidl.kernels import reference
from minidl.kernels.cpu import _im2col, _taps, _winograd, conv

ALGORITHMS = ["im2col", "winograd", "taps"]
by_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)

# x shape, O, padding: whole tiles of 4x4 and parts of them, one image and many, one channel.
GEOMETRIES = [
    ((2, 8, 8, 3), 4, (1, 1)),
    ((1, 5, 9, 2), 3, (0, 0)),
    ((3, 7, 6, 1), 2, (2, 2)),
    ((2, 4, 11, 5), 1, (1, 0)),
    ((1, 3, 3, 2), 2, (0, 2)),
    ((2, 1, 1, 3), 2, (1, 1)),
    ((11, 14, 13, 3), 5, (1, 1)),
]
geometries = pytest.mark.parametrize(("x_shape", "out_channels", "padding"), GEOMETRIES, ids=str)


def run(algorithm, x, weight, bias, grad, padding, stride=(1, 1)):
    """y, dL/dx and dL/dweight, and each of the last two once more, computed alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "algorithm_for", lambda *_, **__: algorithm)
        geometry = stride, padding
        return [
            conv.conv2d_forward(x, weight, bias, *geometry),
            *conv.conv2d_backward(grad, x, weight, *geometry, True, True),
            conv.conv2d_backward(grad, x, weight, *geometry, True, False)[0],
            conv.conv2d_backward(grad, x, weight, *geometry, False, True)[1],
        ]


def draw(rng, x_shape, out_channels, padding):
    n, h, w, c = x_shape
    output = n, h + 2 * padding[0] - 2, w + 2 * padding[1] - 2, out_channels
    shapes = x_shape, (3, 3, c, out_channels), (out_channels,), output
    return [rng.standard_normal(shape) for shape in shapes]


def expectation(x, weight, bias, grad, padding):
    stride = (1, 1)
    gradients = reference.conv2d_backward(grad, x, weight, stride, padding, True, True)
    return [reference.conv2d_forward(x, weight, bias, stride, padding), *gradients, *gradients]


@pytest.fixture(params=["one chunk", "several"])
def chunks(request, monkeypatch):
    """As many chunks as the shapes call for, or a chunk for every image or row of tiles."""
    if request.param == "several":
        monkeypatch.setattr(_im2col, "COLUMN_ELEMENTS", 1)
        monkeypatch.setattr(_winograd, "BLOCK_COLUMNS", 1)
        for limit in ("BLOCK_TILES", "LEAST_TILES"):
            monkeypatch.setattr(_winograd, limit, 1)
        monkeypatch.setattr(_taps, "LEAST_MULTIPLICATIONS", 1)
        monkeypatch.setattr(_taps, "LEAST_PIECES", 20)


@by_algorithm
@geometries
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)], ids=["float64", "float32"])
def test_an_algorithm_equals_the_plain_loops(algorithm, x_shape, out_channels, padding, dtype, tolerance, chunks, rng):
    arrays = draw(rng, x_shape, out_channels, padding)
    results = run(algorithm, *(array.astype(dtype) for array in arrays), padding)
    for result, expected in zip(results, expectation(*arrays, padding), strict=True):
        assert result.dtype == dtype
        assert result.flags.c_contiguous
        assert abs(result - expected).max() <= tolerance * max(abs(expected).max(), 1)


@by_algorithm
@pytest.mark.parametrize("geometry", [GEOMETRIES[-1], ((40, 12, 20, 16), 24, (1, 1))], ids=str)
def test_an_algorithm_has_the_same_bits_on_any_number_of_threads(algorithm, geometry, chunks, rng):
    arrays = [array.astype(np.float32) for array in draw(rng, *geometry)]
    before = minidl.get_num_threads()
    try:
        minidl.set_num_threads(1)
        expected = run(algorithm, *arrays, geometry[2])
        for threads in (2, 3, 8):
            minidl.set_num_threads(threads)
            for ours, theirs in zip(run(algorithm, *arrays, geometry[2]), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    finally:
        minidl.set_num_threads(before)


def test_non_contiguous_arrays_are_welcome(rng):
    x_shape, out_channels, padding = GEOMETRIES[0]
    arrays = draw(rng, x_shape, out_channels, padding)
    strided = [np.repeat(array, 2, axis=-1)[..., ::2] for array in arrays]
    for algorithm in ALGORITHMS:
        for ours, theirs in zip(run(algorithm, *strided, padding), run(algorithm, *arrays, padding), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding"),
    [
        ((3, 5, 4, 6), (1, 1, 6, 7), (1, 1), (0, 0)),
        ((2, 7, 8, 3), (1, 1, 3, 4), (2, 2), (0, 0)),
        ((2, 7, 9, 3), (2, 3, 3, 4), (2, 3), (0, 1)),
        ((2, 10, 11, 3), (3, 3, 3, 2), (3, 3), (0, 0)),  # no window reaches the last row and the last two columns
        ((1, 9, 8, 2), (2, 2, 2, 3), (3, 3), (1, 0)),  # the windows leave gaps
        ((2, 4, 3, 2), (1, 1, 2, 3), (1, 1), (1, 1)),  # the outermost outputs see padding only
    ],
    ids=str,
)
def test_taps_are_for_any_kernel_and_stride(x_shape, weight_shape, stride, padding, chunks, rng):
    x, weight, bias = (rng.standard_normal(shape) for shape in (x_shape, weight_shape, weight_shape[3:]))
    y = reference.conv2d_forward(x, weight, bias, stride, padding)
    grad = rng.standard_normal(y.shape)
    gradients = reference.conv2d_backward(grad, x, weight, stride, padding, True, True)
    results = run("taps", x, weight, bias, grad, padding, stride)
    for result, expected in zip(results, [y, *gradients, *gradients], strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding"),
    [
        ((2, 8, 8, 3), (3, 3, 3, 4), (1, 1), (1, 1)),
        ((3, 5, 6, 2), (2, 5, 2, 1), (2, 1), (0, 2)),
        ((1, 6, 5, 1), (1, 4, 1, 7), (1, 1), (2, 0)),
        ((5, 3, 2, 2), (3, 3, 2, 2), (1, 1), (1, 2)),  # the outermost outputs see padding only
    ],
    ids=str,
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_pairs_are_for_an_even_number_of_columns(x_shape, weight_shape, stride, padding, has_bias, chunks, rng):
    x, weight, bias = (rng.standard_normal(shape) for shape in (x_shape, weight_shape, weight_shape[3:]))
    arrays = x, weight, bias if has_bias else None
    expected = reference.conv2d_forward(*arrays, stride, padding)
    y = conv._forward_in_pairs(*arrays, stride, padding)
    assert y.flags.c_contiguous
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_in_pairs_nan_and_infinity_reach_the_neighbour(value, convolution):
    x, weight = np.zeros((1, 7, 8, 1), np.float32), np.ones((3, 3, 1, 2), np.float32)
    x[0, 3, 4] = value
    columns = {}
    for choice in ("auto", "im2col"):
        convolution(choice)
        with np.errstate(invalid="ignore"):  # infinity times 0
            y = conv.conv2d_forward(x, weight, None, (1, 1), (1, 1))
        columns[choice] = np.flatnonzero(~np.isfinite(y).all(axis=(0, 1, 3))).tolist()
    assert columns == {"auto": [2, 3, 4, 5], "im2col": [3, 4, 5]}


BOTH = {word: (word, word) for word in ALGORITHMS}


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding", "expected"),
    [
        ((4, 56, 56, 256), (3, 3, 256, 256), (1, 1), (1, 1), BOTH["winograd"]),
        ((128, 8, 8, 64), (3, 3, 64, 64), (1, 1), (1, 1), BOTH["winograd"]),
        ((8, 14, 14, 256), (3, 3, 256, 256), (1, 1), (1, 1), BOTH["winograd"]),
        ((1, 28, 28, 128), (3, 3, 128, 128), (1, 1), (1, 1), ("winograd", "im2col")),
        ((16, 16, 16, 32), (3, 3, 32, 32), (1, 1), (1, 1), ("winograd", "im2col")),
        ((8, 16, 16, 32), (3, 3, 32, 32), (1, 1), (1, 1), BOTH["im2col"]),
        ((128, 32, 32, 16), (3, 3, 16, 16), (1, 1), (1, 1), ("pairs", "im2col")),
        ((128, 32, 33, 16), (3, 3, 16, 16), (1, 1), (1, 1), BOTH["im2col"]),
        ((128, 32, 32, 16), (3, 3, 16, 16), (2, 1), (1, 1), ("pairs", "im2col")),
        ((128, 32, 32, 16), (3, 3, 16, 16), (1, 2), (1, 1), BOTH["im2col"]),
        ((128, 32, 32, 16), (1, 1, 16, 16), (1, 1), (0, 0), BOTH["im2col"]),
        ((8, 56, 56, 64), (3, 3, 64, 128), (2, 2), (1, 1), BOTH["im2col"]),
        ((8, 56, 56, 64), (1, 1, 64, 256), (1, 1), (0, 0), BOTH["im2col"]),
        ((8, 56, 56, 64), (3, 3, 64, 64), (1, 1), (3, 3), BOTH["im2col"]),
        ((8, 56, 56, 64), (5, 5, 64, 64), (1, 1), (1, 1), BOTH["im2col"]),
        ((1, 7, 7, 512), (3, 3, 512, 512), (1, 1), (1, 1), BOTH["taps"]),
        ((8, 7, 7, 512), (3, 3, 512, 512), (1, 1), (1, 1), BOTH["taps"]),
        ((8, 14, 14, 256), (3, 3, 256, 512), (2, 2), (1, 1), BOTH["taps"]),
        ((12, 14, 14, 256), (3, 3, 256, 512), (2, 2), (1, 1), ("im2col", "taps")),
        ((4, 7, 7, 2048), (1, 1, 2048, 512), (1, 1), (0, 0), BOTH["taps"]),
        ((16, 7, 7, 2048), (1, 1, 2048, 512), (1, 1), (0, 0), BOTH["im2col"]),
        ((1, 8, 8, 64), (3, 3, 64, 64), (1, 1), (1, 1), BOTH["im2col"]),
    ],
    ids=str,
)
def test_the_shapes_say_which_algorithm_is_used_in_each_direction(x_shape, weight_shape, stride, padding, expected):
    shapes = x_shape, weight_shape, stride, padding
    assert tuple(conv.algorithm_for(*shapes, backward) for backward in (False, True)) == expected


def test_winograds_matrices_give_the_convolution_of_a_single_tile(rng):
    """y = A^T [(G g G^T) * (B^T d B)] A, the formula itself."""
    d, g = rng.standard_normal((6, 6)), rng.standard_normal((3, 3))
    a_t, g_matrix, b_t = _winograd.interpolation(_winograd.POINTS)
    y = a_t @ ((g_matrix @ g @ g_matrix.T) * (b_t @ d @ b_t.T)) @ a_t.T
    direct = [[(d[i : i + 3, j : j + 3] * g).sum() for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(y, direct, atol=1e-12)


def test_winograd_loses_little_in_float32(rng):
    """Less than a tenth of what is allowed: the points of the interpolation are chosen for it."""
    arrays = draw(rng, (8, 16, 16, 64), 64, (1, 1))
    results = run("winograd", *(array.astype(np.float32) for array in arrays), (1, 1))
    exact = run("im2col", *arrays, (1, 1))
    for result, expected in zip(results, exact, strict=True):
        assert abs(result - expected).max() <= 1e-5 * abs(expected).max()


# -- what one input does to the outputs around it, and the choice of the algorithm -------------------------------------


@pytest.fixture
def convolution():
    """set_convolution, undone afterwards."""
    before = get_convolution()
    yield set_convolution
    set_convolution(before)


def outputs_of_one_pixel(value, row, column, rng):
    """Where (24, 24) an output's window holds the pixel; what comes out; and the same in float64 by im2col."""
    x, weight = rng.standard_normal((8, 24, 24, 32)), rng.standard_normal((3, 3, 32, 32)) / 17
    x[0, row, column, 3] = value
    sees = np.zeros((24, 24), bool)
    sees[row - 1 : row + 2, column - 1 : column + 2] = True
    arrays = x.astype(np.float32), weight.astype(np.float32)
    with np.errstate(invalid="ignore"):
        y = conv2d(*map(minidl.Tensor, arrays), padding=1).numpy()
        exact, *_ = run("im2col", *(a.astype(np.float64) for a in arrays), None, y.astype(np.float64), (1, 1))
    return sees, y[0], exact[0], abs(arrays[1]).max()


pixels = pytest.mark.parametrize(("row", "column"), [(8, 8), (9, 10), (11, 12), (10, 15)])


@pixels
def test_the_error_that_a_large_pixel_spreads_with_winograd_is_bounded(row, column, rng):
    sees, y, exact, largest_weight = outputs_of_one_pixel(1e6, row, column, rng)
    error = abs(y - exact).max(axis=-1)
    assert 1e-4 < error[~sees].max() <= 5e-6 * 1e6 * largest_weight
    far = np.ones((24, 24), bool)
    far[row - 6 : row + 7, column - 6 : column + 7] = False
    assert error[far].max() < 1e-5


@pixels
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_winograd_spreads_nan_and_infinity_to_64_outputs_at_most(value, row, column, rng):
    _, y, *_ = outputs_of_one_pixel(value, row, column, rng)
    assert 16 <= (~np.isfinite(y)).any(axis=-1).sum() <= 64


@pixels
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_with_im2col_only_the_outputs_that_see_a_pixel_depend_on_it(value, row, column, rng, convolution):
    convolution("im2col")
    sees, y, *_ = outputs_of_one_pixel(value, row, column, np.random.default_rng(1))
    _, others, *_ = outputs_of_one_pixel(0.0, row, column, np.random.default_rng(1))
    np.testing.assert_array_equal((y != others).any(axis=-1), sees)


def test_the_choice_holds_for_forward_and_backward(convolution, rng):
    x, weight, _, grad = (a.astype(np.float32) for a in draw(rng, (4, 24, 24, 64), 64, (1, 1)))
    results = {}
    for choice in ("auto", "im2col"):
        convolution(choice)
        assert get_convolution() == choice
        results[choice] = (
            conv.conv2d_forward(x, weight, None, (1, 1), (1, 1)),
            *conv.conv2d_backward(grad, x, weight, (1, 1), (1, 1), True, True),
        )
    for ours, other in zip(results["im2col"], results["auto"], strict=True):
        assert not np.array_equal(ours, other)
        assert abs(ours - other).max() <= 1e-5 * abs(ours).max()


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="set_convolution: expected one of 'auto', 'im2col', got 'winograd'"):
        set_convolution("winograd")
