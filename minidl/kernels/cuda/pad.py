"""More channels, filled with zeros: the parameter-free shortcut of residual networks (option A)."""

import math

import cupy

from minidl.kernels.cuda._launch import THREADS, TYPES, CudaKernel
from minidl.kernels.cuda._vectors import EXAMPLES, VECTORS, aligned, vector_size

SHIFT_CHANNELS = CudaKernel(
    "shift_channels",
    VECTORS
    + """
// A thread for each vector of y. A row of x has `x_columns` vectors of channels, a row of y has `y_columns`. Column c
// of y is column c + shift of x, or 0 where x has none.
extern "C" __global__ void shift_channels(
    const stored* x, stored* y, index x_columns, index y_columns, index shift, index count
) {
    index i = thread_number();
    if (i >= count) return;
    index row = i / y_columns, column = i % y_columns + shift;
    store(y, i, 0 <= column && column < x_columns ? load(x, row * x_columns + column) : Numbers(0));
}
""",
    examples=EXAMPLES,
)


def pad_channels_forward(x, before, after):
    """y: zeros added before and after the channels: (..., C) -> (..., before + C + after)."""
    channels = x.shape[-1]
    if x.dtype.name not in TYPES:  # integers: too rare for a kernel
        y = cupy.zeros((*x.shape[:-1], before + channels + after), x.dtype)
        y[..., before : before + channels] = x
        return y
    return _shift_channels(x, before + channels + after, -before, math.gcd(channels, before, after))


def pad_channels_backward(grad, before, after):
    """dL/dx: dL/dy without the added channels: (..., before + C + after) -> (..., C)."""
    channels = grad.shape[-1] - before - after
    return _shift_channels(grad, channels, before, math.gcd(channels, before, after))


def _shift_channels(x, channels, shift, divisor):
    """y of that many channels, of which channel c is channel c + shift of x. `divisor` divides all three numbers."""
    x = aligned(x)
    y = cupy.empty((*x.shape[:-1], channels), x.dtype)
    vector = vector_size(divisor, x.dtype)
    count = y.size // vector
    arguments = x, y, x.shape[-1] // vector, channels // vector, shift // vector, count
    SHIFT_CHANNELS.launch(-(-count // THREADS), THREADS, arguments, x.dtype, {"VECTOR": vector})
    return y
