"""The matrix product, by NumPy, which calls BLAS."""

import numpy as np


def matmul(a, b):
    """y = a b over the last two axes: (..., n, k), (..., k, m) -> (..., n, m). The other axes broadcast."""
    return np.matmul(a, b, order="C")
