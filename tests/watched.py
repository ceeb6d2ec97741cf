"""An operation whose memory tests can watch."""

import weakref

import numpy as np

from minidl import Function


class Watched(Function):
    """y = 2 x, with a large array saved that tests can hold a weak reference to."""

    saved = None

    @staticmethod
    def forward(ctx, x):
        array = np.zeros(1000)
        Watched.saved = weakref.ref(array)
        ctx.save(array)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad
