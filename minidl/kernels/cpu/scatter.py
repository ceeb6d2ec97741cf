"""Sums of the elements with the same position: the gradient of indexing with an array."""

import math

import numpy as np


def scatter_add(grad, positions, shape):
    """y of the given shape. In the flattened y, y[p] is the sum of the elements of grad with position p, in order.

    The sum is in float64, because a position may have a million elements.
    """
    y = np.bincount(positions.ravel(), grad.ravel(), math.prod(shape))
    return y.reshape(shape).astype(grad.dtype, copy=False)
