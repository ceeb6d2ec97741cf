"""More channels."""

import numpy as np

from minidl import Tensor
from minidl.functional import pad_channels
from tests.ops.case import Case


def padded(before, after, shape):
    return Case(
        f"{before} before and {after} after {shape}",
        lambda x: pad_channels(x, before, after),
        lambda torch, x: torch.nn.functional.pad(x, (before, after)),
        [shape],
        is_linear=True,
    )


CASES = [padded(1, 2, (2, 2, 3, 2)), padded(0, 3, (2, 2)), padded(2, 0, (3,)), padded(0, 0, (2, 3))]


def test_the_new_channels_are_zeros(device):
    y = pad_channels(Tensor([[1.0, 2.0]], device=device), 1, 2)
    np.testing.assert_array_equal(y.numpy(), [[0, 1, 2, 0, 0]])
