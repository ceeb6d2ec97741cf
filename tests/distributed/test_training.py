"""Training on several ranks: the same parameters as in one process, and the same bits in each run."""

import numpy as np
import pytest

from tests.distributed.ranks import mpiexec, needs_mpi

pytestmark = needs_mpi
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def trained(folder, size, dtype):
    """The state dict of each rank."""
    result = mpiexec(size, "train", folder, dtype)
    assert result.returncode == 0, result.stderr
    return [dict(np.load(folder / f"{size}-{rank}.npz")) for rank in range(size)]


def as_bytes(state):
    return {name: array.tobytes() for name, array in state.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_any_number_of_ranks_trains_like_one_process(dtype, tmp_path):
    """Batches of 7, 7 and 1: the parts differ in length, and most ranks have none of the last batch."""
    (alone,) = trained(tmp_path, 1, dtype)
    for size in (2, 3, 4):
        first, *others = trained(tmp_path, size, dtype)
        for name, array in alone.items():
            np.testing.assert_allclose(first[name], array, TOLERANCE[dtype], TOLERANCE[dtype], err_msg=name)
        assert all(as_bytes(other) == as_bytes(first) for other in others)


def test_the_bits_repeat(tmp_path):
    first = trained(tmp_path, 3, "float32")
    assert [as_bytes(state) for state in trained(tmp_path, 3, "float32")] == [as_bytes(state) for state in first]
