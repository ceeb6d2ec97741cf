"""im2col: every patch that a kernel sees becomes a row, so that a convolution is one matrix product.

Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing".
"""

import numpy as np

from minidl.kernels.cpu._parallel import scratch


def output_size(size: tuple[int, int], kernel_size, stride, padding) -> tuple[int, int]:
    """(OH, OW): how many times the kernel fits into the padded input."""
    return tuple((size[i] + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i in (0, 1))


def patches(x: np.ndarray, kernel_size, stride) -> np.ndarray:
    """The view (N, OH, OW, KH, KW, C) of x (N, H, W, C) in which [n, i, j] is the patch of output pixel (i, j)."""
    n, h, w, c = x.shape
    oh, ow = output_size((h, w), kernel_size, stride, (0, 0))
    of_image, of_row, of_pixel, of_channel = x.strides
    strides = of_image, stride[0] * of_row, stride[1] * of_pixel, of_row, of_pixel, of_channel
    return np.lib.stride_tricks.as_strided(x, (n, oh, ow, *kernel_size, c), strides, writeable=False)


def zero_padded(x: np.ndarray, padding) -> np.ndarray:
    """x with rows and columns of zeros around it, in this thread's scratch."""
    ph, pw = padding
    if ph == pw == 0:
        return x
    n, h, w, c = x.shape
    padded = scratch("padded", (n, h + 2 * ph, w + 2 * pw, c), x.dtype)
    padded[:, :ph] = padded[:, h + ph :] = 0
    padded[:, :, :pw] = padded[:, :, w + pw :] = 0
    padded[:, ph : h + ph, pw : w + pw] = x
    return padded


def im2col(x: np.ndarray, kernel_size, stride, padding) -> np.ndarray:
    """The patches of x (N, H, W, C) as the rows of a (N*OH*OW, KH*KW*C) matrix, in this thread's scratch."""
    windows = patches(zero_padded(x, padding), kernel_size, stride)
    n, oh, ow, kh, kw, c = windows.shape
    if kh == kw == 1 and windows.flags.c_contiguous:
        return windows.reshape(n * oh * ow, c)  # a 1x1 kernel sees the pixels themselves
    columns = scratch("columns", windows.shape, x.dtype)
    np.copyto(columns, windows)
    return columns.reshape(n * oh * ow, kh * kw * c)  # (N, OH, OW, KH, KW, C) -> (N*OH*OW, KH*KW*C)


def col2im(columns: np.ndarray, grad_x: np.ndarray, kernel_size, stride, padding) -> None:
    """The transpose of im2col: add every row of columns back to the patch of grad_x (N, H, W, C) it came from."""
    (kh, kw), (sh, sw), (ph, pw) = kernel_size, stride, padding
    n, h, w, c = grad_x.shape
    oh, ow = output_size((h, w), kernel_size, stride, padding)
    columns = columns.reshape(n, oh, ow, kh, kw, c)
    padded = scratch("padded_grad", (n, h + 2 * ph, w + 2 * pw, c), grad_x.dtype)
    padded[...] = 0
    for i in range(kh):
        for j in range(kw):
            padded[:, i : i + sh * oh : sh, j : j + sw * ow : sw] += columns[:, :, :, i, j]
    grad_x[...] = padded[:, ph : h + ph, pw : w + pw]
