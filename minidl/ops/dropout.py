"""Dropout."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class Dropout(Function):
    """y = m x / (1 - p), each m = 1 with probability 1 - p, else 0.   dL/dx = m dL/dy / (1 - p).

    Srivastava et al. 2014, with the scaling at training time, so that nothing is left to do at test time. The mask is a
    function of `key`, four uint32 numbers (seed low, seed high, step, layer); the key is saved instead of the mask.
    """

    @staticmethod
    def forward(ctx, x, *, probability: float, key):
        ctx.save(probability, key.copy())  # a layer's key counts on with every step
        return kernels_for(x).dropout_forward(x, probability, key)

    @staticmethod
    def backward(ctx, grad):
        probability, key = ctx.saved
        return kernels_for(grad).dropout_backward(grad, probability, key)
