"""Networks beside their twins in PyTorch."""

import pytest


@pytest.fixture
def twins(torch):
    """The networks in PyTorch; importing them needs it."""
    torch.set_num_threads(1)  # two thread pools at once wait for each other, most of all on a busy machine
    import torch_twins

    return torch_twins
