"""Networks beside their twins in PyTorch."""

import pytest


@pytest.fixture
def twins(torch):
    """The networks in PyTorch; importing them needs it."""
    import torch_twins

    return torch_twins
