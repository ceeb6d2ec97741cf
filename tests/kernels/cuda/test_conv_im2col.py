"""What only the GPU's convolutions have: a workspace of bounded size, and numbers counted with int or long long."""

import importlib
import math
from typing import NamedTuple

import numpy as np
import pytest

from minidl.kernels import reference
from tests.kernels.compare import TOLERANCE, Runner, assert_close
from tests.kernels.test_conv import Case

# x shape, (KH, KW, O), stride, padding: with and without gaps between the windows, and a kernel that needs no columns.
GEOMETRIES = [
    ((7, 6, 5, 3), (3, 3, 4), (1, 1), (1, 1)),
    ((5, 9, 8, 2), (3, 2, 5), (2, 3), (0, 1)),
    ((3, 7, 8, 2), (2, 2, 3), (3, 3), (1, 0)),
    ((4, 5, 7, 3), (1, 1, 4), (2, 2), (0, 0)),
    ((4, 5, 7, 3), (1, 1, 4), (1, 1), (0, 0)),
]
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)


class Modules(NamedTuple):
    """The private files of kernels/cuda, which can be imported only where there is a GPU, or what stands in for it."""

    conv_im2col: object
    im2col: object
    launch: object


@pytest.fixture
def modules(kernels):
    return Modules(*(importlib.import_module(f"minidl.kernels.cuda._{name}") for name in Modules._fields))


@pytest.fixture
def patches(modules):
    """Of a geometry."""
    return lambda x_shape, kernel, stride, padding: modules.im2col.Patches(x_shape, kernel[:2], stride, padding)


@pytest.fixture
def results(modules, to_device, to_host):
    """y, dL/dx, dL/dweight, and the last two once more, from the function that computes both, by im2col."""
    run = Runner(modules.conv_im2col, to_device, to_host)

    def results(x, weight, bias, grad, stride, padding):
        return [
            run("forward", x, weight, bias, stride, padding),
            run("backward_x", grad, weight, x.shape, stride, padding),
            run("backward_weight", grad, x, weight.shape, stride, padding),
            *run("backward", grad, x, weight, stride, padding),
        ]

    return results


def draw(rng, dtype, *geometry):
    """x, weight, bias, grad."""
    return [array.astype(dtype) for array in Case(*geometry).draw(rng)]


def assert_as_specified(results, x, weight, bias, grad, stride, padding):
    wide = [array.astype(np.float64) for array in (x, weight, bias, grad)]
    y = reference.conv2d_forward(*wide[:3], stride, padding)
    gradients = reference.conv2d_backward(wide[3], wide[0], wide[1], stride, padding)
    for result, expected in zip(results, [y, *gradients, *gradients], strict=True):
        assert result.dtype == x.dtype
        assert_close(result, expected, TOLERANCE[x.dtype.type])


@geometries
@dtypes
@pytest.mark.parametrize("images", [0, 2])
def test_a_small_workspace_gives_what_a_large_one_gives(
    geometry, dtype, images, modules, patches, results, rng, monkeypatch
):
    arrays, (stride, padding) = draw(rng, dtype, *geometry), geometry[2:]
    at_once = results(*arrays, stride, padding)
    assert len(patches(*geometry).chunks()) == 1
    monkeypatch.setattr(modules.im2col, "WORKSPACE_ELEMENTS", images * elements_of_an_image(patches(*geometry)))
    count = len(patches(*geometry).chunks())
    assert count == (1 if patches(*geometry).are_pixels else math.ceil(len(arrays[0]) / max(images, 1)))
    in_chunks = results(*arrays, stride, padding)
    assert_as_specified(in_chunks, *arrays, stride, padding)
    for some, all_of_them in zip(in_chunks, at_once, strict=True):
        assert_close(some, all_of_them, TOLERANCE[dtype])


def elements_of_an_image(patches):
    """Of its columns."""
    return math.prod(patches.output_size) * patches.length


@pytest.mark.parametrize("images", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("budget", [1, 250, 2500, 25_000])
def test_every_image_is_in_one_chunk_that_fits_the_workspace(images, budget, modules, patches, monkeypatch):
    monkeypatch.setattr(modules.im2col, "WORKSPACE_ELEMENTS", budget)
    of_images = patches((images, 6, 5, 3), (3, 3), (1, 1), (1, 1))
    chunks = of_images.chunks()
    assert [n for chunk in chunks for n in range(chunk.start, chunk.stop)] == list(range(images))
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    assert max(lengths) == 1 or max(lengths) * elements_of_an_image(of_images) <= budget
    assert max(lengths) - min(lengths) <= 1


@dtypes
def test_no_images_give_gradients_of_zero(dtype, results, rng):
    arrays = draw(rng, dtype, (0, 6, 5, 3), (3, 3, 4), (1, 1), (1, 1))
    y, grad_x, grad_weight, *_ = results(*arrays, (1, 1), (1, 1))
    assert y.shape == (0, 6, 5, 4)
    assert grad_x.shape == (0, 6, 5, 3)
    assert not grad_weight.any()


@geometries
def test_more_numbers_than_an_int_can_count_are_counted_with_long_long(geometry, modules, results, rng, monkeypatch):
    """As if an int were trusted with none."""
    monkeypatch.setattr(modules.launch, "MOST_FOR_INT", 0)
    arrays = draw(rng, np.float32, *geometry)
    assert_as_specified(results(*arrays, *geometry[2:]), *arrays, *geometry[2:])
