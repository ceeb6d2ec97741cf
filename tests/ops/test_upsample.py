"""Bilinear interpolation."""

import numpy as np
import pytest

from minidl import Tensor
from minidl.functional import interpolate
from tests.kernels.compare import nchw, nhwc
from tests.ops.case import Case


def resized(name, shape, **options):
    def theirs(torch, x):
        return nhwc(torch.nn.functional.interpolate(nchw(x), mode="bilinear", align_corners=False, **options))

    return Case(name, lambda x: interpolate(x, mode="bilinear", **options), theirs, [shape], is_linear=True)


CASES = [
    resized("twice the size", (2, 3, 4, 2), scale_factor=2),
    resized("8 times the size", (1, 2, 1, 3), scale_factor=8),
    resized("a pair of scale factors", (1, 4, 3, 2), scale_factor=(1.5, 3)),
    resized("a size rounded down", (1, 5, 3, 2), scale_factor=(1.5, 2.5)),
    resized("smaller", (1, 5, 7, 2), scale_factor=(0.7, 0.5)),
    resized("to a size", (2, 3, 4, 1), size=(7, 5)),
    resized("to a square", (1, 3, 4, 2), size=6),
    resized("to one pixel", (1, 3, 4, 2), size=1),
    resized("the same size", (1, 3, 4, 2), size=(3, 4)),
]


@pytest.mark.parametrize("scale_factor", [1.1, 1.3, 1.9, 2.2, 0.55, (2.0, 1.7), (1.1, 2.5), (0.9, 1.1)], ids=str)
def test_a_scale_factor_is_used_as_it_is_and_not_the_ratio_of_the_sizes(scale_factor, device, torch):
    """Where both differ, as the size is rounded down, PyTorch interpolates at the given factor."""
    x = np.random.default_rng(0).standard_normal((2, 7, 5, 3))
    y = interpolate(Tensor(x, device=device), scale_factor=scale_factor, mode="bilinear").numpy()
    expected = torch.nn.functional.interpolate(nchw(torch.tensor(x)), scale_factor=scale_factor, mode="bilinear")
    np.testing.assert_allclose(y, nhwc(expected).numpy(), rtol=1e-12, atol=1e-12)


def test_a_plane_stays_a_plane(device):
    """Away from the edges, where positions are cut off."""
    h, w = np.mgrid[:6, :5].astype(np.float64)
    y = interpolate(Tensor((2 * h - 3 * w)[None, :, :, None], device=device), scale_factor=4, mode="bilinear").numpy()
    i, j = np.mgrid[:24, :20]
    expected = 2 * ((i + 0.5) / 4 - 0.5) - 3 * ((j + 0.5) / 4 - 0.5)
    np.testing.assert_allclose(y[0, 2:-2, 2:-2, 0], expected[2:-2, 2:-2], rtol=1e-12)
