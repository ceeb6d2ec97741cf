"""Dropout."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class Dropout(Function):
    """y = m x / (1 - p), where each m is 0 with probability p, else 1.   dL/dx = m dL/dy / (1 - p).

    Srivastava et al. 2014, but scaled during training ("inverted dropout"), so that evaluation needs no scaling. The
    mask m is a function of `key`, four uint32 numbers (seed low, seed high, step, layer): the key is saved, not m. The
    elements of x use numbers `first`, `first` + 1, ... of the random stream of the key.
    """

    @staticmethod
    def forward(ctx, x, *, probability: float, key, first: int = 0):
        ctx.save(probability, key.copy(), first)  # a copy, as the layer increments its key with every step
        return kernels_for(x).dropout_forward(x, probability, key, first)

    @staticmethod
    def backward(ctx, grad):
        probability, key, first = ctx.saved
        return kernels_for(grad).dropout_backward(grad, probability, key, first)
