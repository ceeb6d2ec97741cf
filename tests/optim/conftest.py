"""The small problem on which optimisers are compared."""

import pytest

from tests.optim.problem import Problem


@pytest.fixture
def problem(rng):
    """Drawn for each test."""
    return Problem(rng)
