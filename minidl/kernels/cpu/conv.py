"""Convolution: im2col and one matrix product, a few images at a time so that the columns stay in the cache."""

import math

import numpy as np

from minidl.kernels.cpu._im2col import col2im, im2col, output_size
from minidl.kernels.cpu._parallel import chunk_length, map_chunks, scratch, sum_chunks
from minidl.kernels.cpu._shared_columns import backward_from_shared_columns

# (measured) The best buffers of columns were 2 to 7 MB a thread; this is 5 MB of float32.
COLUMN_ELEMENTS = 5 * 2**18
# The gradients of the weights are summed in at most this many parts, as each part is as large as the weights.
WEIGHT_PARTS = 16


def conv2d_forward(x, weight, bias, stride, padding):
    """y[n, i, j] = bias + (patch of x at (i, j)) . weight: (N, H, W, C), (KH, KW, C, O) -> (N, OH, OW, O)."""
    kh, kw, c, o = weight.shape
    n, oh, ow = x.shape[0], *output_size(x.shape[1:3], (kh, kw), stride, padding)
    y = np.empty((n, oh, ow, o), x.dtype)
    matrix = weight.reshape(kh * kw * c, o)

    def convolve(start, stop):
        columns = im2col(x[start:stop], (kh, kw), stride, padding)  # (n*OH*OW, KH*KW*C)
        rows = y[start:stop].reshape(-1, o)
        np.matmul(columns, matrix, out=rows)
        if bias is not None:
            rows += bias

    map_chunks(convolve, n, _images_per_chunk(oh * ow, weight.shape))
    return y


def conv2d_backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx, (N, H, W, C), of dL/dy, (N, OH, OW, O)."""
    kernel_size = weight.shape[:2]
    flipped_padding = kernel_size[0] - 1 - padding[0], kernel_size[1] - 1 - padding[1]
    if stride == (1, 1) and min(flipped_padding) >= 0:
        # x reaches y through every tap once, so dL/dx is dL/dy convolved with the kernel turned by 180 degrees.
        flipped = weight[::-1, ::-1].transpose(0, 1, 3, 2)  # (KH, KW, C, O) -> (KH, KW, O, C)
        return conv2d_forward(grad, np.ascontiguousarray(flipped), None, stride, flipped_padding)
    return _backward_x_by_scattering(grad, weight, x_shape, stride, padding)


def _backward_x_by_scattering(grad, weight, x_shape, stride, padding):
    """The transpose of each step of the forward pass, in reverse: the product, then im2col."""
    kh, kw, c, o = weight.shape
    oh, ow = grad.shape[1:3]
    grad_x = np.empty(x_shape, grad.dtype)
    matrix = np.ascontiguousarray(weight.reshape(kh * kw * c, o).T)

    def scatter(start, stop):
        rows = grad[start:stop].reshape(-1, o)
        columns = scratch("columns", (len(rows), kh * kw * c), grad.dtype)
        np.matmul(rows, matrix, out=columns)
        col2im(columns, grad_x[start:stop], (kh, kw), stride, padding)

    map_chunks(scatter, len(grad), _images_per_chunk(oh * ow, weight.shape))
    return grad_x


def conv2d_backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight, (KH, KW, C, O): columns^T dL/dy, summed over all patches."""
    kh, kw, c, o = weight_shape
    oh, ow = grad.shape[1:3]
    chunk = _images_per_chunk(oh * ow, weight_shape)

    def correlate(first, last):
        total = np.zeros((kh * kw * c, o), grad.dtype)
        for start in range(first, last, chunk):
            stop = min(start + chunk, last)
            columns = im2col(x[start:stop], (kh, kw), stride, padding)  # (n*OH*OW, KH*KW*C)
            total += columns.T @ grad[start:stop].reshape(-1, o)
        return total

    return sum_chunks(correlate, len(x), _images_per_part(len(x), chunk)).reshape(weight_shape)


def conv2d_backward(grad, x, weight, stride, padding):
    """(dL/dx, dL/dweight) where both are wanted, as they can share work."""
    kh, kw = weight.shape[:2]
    if stride == (1, 1) and padding[0] < kh and padding[1] < kw:
        chunk = _images_per_chunk(x.shape[1] * x.shape[2], weight.transpose(0, 1, 3, 2).shape)
        return backward_from_shared_columns(grad, x, weight, padding, _images_per_part(len(x), chunk), chunk)
    grad_x = conv2d_backward_x(grad, weight, x.shape, stride, padding)
    return grad_x, conv2d_backward_weight(grad, x, weight.shape, stride, padding)


def _images_per_part(images: int, chunk: int) -> int:
    return chunk * math.ceil(images / (chunk * WEIGHT_PARTS))


def _images_per_chunk(output_pixels: int, weight_shape) -> int:
    kh, kw, c, _ = weight_shape
    return chunk_length(output_pixels * kh * kw * c, COLUMN_ELEMENTS)
