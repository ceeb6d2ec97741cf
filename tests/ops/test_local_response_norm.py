"""Local response normalisation."""

import numpy as np

from minidl import Tensor
from minidl.functional import local_response_norm
from tests.ops.case import Case


def normalised(channels, size, **constants):
    """PyTorch's alpha multiplies the mean of the window, ours, like the paper's, the sum."""
    alpha, beta, k = (constants.get(name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("k", 2.0)))

    def theirs(torch, x):
        y = torch.nn.functional.local_response_norm(x.permute(0, 3, 1, 2), size, alpha * size, beta, k)
        return y.permute(0, 2, 3, 1)

    name = f"{size} of {channels} channels, {constants}"
    return Case(name, lambda x: local_response_norm(x, size, **constants), theirs, [(2, 1, 2, channels)])


CASES = [
    normalised(7, 5),
    normalised(7, 5, alpha=0.5, beta=0.6, k=1.0),
    normalised(6, 4, alpha=0.5),
    normalised(3, 7, alpha=0.5, beta=1.0),
    normalised(4, 1, alpha=0.5),
    normalised(1, 3, alpha=0.5),
]


def test_each_number_is_divided_by_what_its_neighbours_add_up_to(device):
    x = Tensor([[[[1.0, 2.0, 3.0, 4.0]]]], device=device)
    y = local_response_norm(x, size=3, alpha=1, beta=1, k=1)
    np.testing.assert_allclose(y.numpy()[0, 0, 0], [1 / 6, 2 / 15, 3 / 30, 4 / 26], rtol=1e-6)
