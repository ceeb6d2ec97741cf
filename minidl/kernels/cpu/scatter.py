"""Adding up where numbers came from: the gradient of picking them by an array of indices."""

import math

import numpy as np


def scatter_add(grad, positions, shape):
    """y of that shape, flattened: y[p] is the sum of the numbers of grad whose position is p, in their order."""
    y = np.zeros(math.prod(shape), grad.dtype)
    np.add.at(y, positions.ravel(), grad.ravel())
    return y.reshape(shape)
