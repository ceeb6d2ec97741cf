"""The matrix product, by NumPy, which calls BLAS."""

import numpy as np

from minidl.kernels.cpu._threads import product_of_blas


def matmul(a, b):
    """y = a b over the last two axes: (..., n, k), (..., k, m) -> (..., n, m). The other axes broadcast."""
    with product_of_blas():
        return np.matmul(a, b, order="C")
