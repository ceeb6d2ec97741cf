"""Convolution as one matrix product, by cuBLAS, a few images at a time so that their columns fit the workspace.

Not chosen for any shape (see `conv.py`): benchmarks/gpu.py compares it with the product that is.
"""

import cupy

from minidl.kernels.cuda._bias import add_bias
from minidl.kernels.cuda._im2col import Patches
from minidl.kernels.cuda._launch import contiguous

# No chunk's columns are given a name: they would still be held while those of the next chunk are made.


def forward(x, weight, bias, stride, padding):
    """y = columns weight + bias."""
    x = contiguous(x)
    kh, kw, _, o = weight.shape
    patches = Patches(x.shape, (kh, kw), stride, padding)
    matrix = weight.reshape(patches.length, o)
    y = cupy.empty((len(x), *patches.output_size, o), x.dtype)
    for images in patches.chunks():
        cupy.matmul(patches.columns(x[images]), matrix, out=y[images].reshape(-1, o))
    add_bias(y, bias)
    return y


def backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx: dL/dcolumns = dL/dy weight^T, of which each pixel gathers its sum.

    The CPU convolves dL/dy with the turned kernel instead, phase by phase. Here that would be several small products
    for a stride, each narrow, with C columns; this is one wide product, with KH*KW*C, whatever the stride, and its
    columns are written once and read once in both cases.
    """
    grad = contiguous(grad)
    kh, kw, _, o = weight.shape
    patches = Patches(x_shape, (kh, kw), stride, padding)
    matrix = weight.reshape(patches.length, o)
    if patches.are_pixels:
        return cupy.matmul(grad.reshape(-1, o), matrix.T).reshape(x_shape)
    grad_x = cupy.empty(x_shape, grad.dtype)
    for images in patches.chunks():
        patches.gather(cupy.matmul(grad[images].reshape(-1, o), matrix.T), grad_x[images])
    return grad_x


def backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight = columns^T dL/dy, summed over the chunks in their order."""
    grad, x = contiguous(grad), contiguous(x)
    kh, kw, _, o = weight_shape
    patches = Patches(x.shape, (kh, kw), stride, padding)
    first, *others = patches.chunks()

    def product(images):
        return cupy.matmul(patches.columns(x[images]).T, grad[images].reshape(-1, o))

    total = product(first)
    for images in others:
        total += product(images)
    return total.reshape(weight_shape)


def backward(grad, x, weight, stride, padding):
    """(dL/dx, dL/dweight). They share no work: one needs the columns of x, the other makes those of dL/dx."""
    grad_x = backward_x(grad, weight, x.shape, stride, padding)
    return grad_x, backward_weight(grad, x, weight.shape, stride, padding)
