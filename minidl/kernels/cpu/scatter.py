"""Adding up where numbers came from: the gradient of picking them by an array of indices."""

import math

import numpy as np


def scatter_add(grad, positions, shape):
    """y of that shape, flattened: y[p] is the sum of the numbers of grad whose position is p, in their order.

    They are added in float64: one position may have a million of them.
    """
    y = np.bincount(positions.ravel(), grad.ravel(), math.prod(shape))
    return y.reshape(shape).astype(grad.dtype, copy=False)
