"""im2col: every patch that a kernel sees becomes a row, so that a convolution is one matrix product.

Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing".
"""

import math

import cupy

from minidl.kernels.cuda._launch import CudaKernel
from minidl.kernels.cuda._windows import FIRST_WINDOW

# Numbers of columns at a time, 256 MB of float32: they have KH*KW times as many as x, so a few images are taken at a
# time. A choice, not a measurement: 0.2 % of the memory of a large GPU, and products that keep it busy.
WORKSPACE_ELEMENTS = 2**26


def output_size(size: tuple[int, int], kernel_size, stride, padding) -> tuple[int, int]:
    """(OH, OW): how many times the kernel fits into the padded input."""
    return tuple((size[i] + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i in (0, 1))


IM2COL = CudaKernel(
    "im2col",
    """
// A thread for each number (u, v, c) of a patch in each row (n, i) of output pixels. It walks along the row, from pixel
// to pixel, so that it divides only before the first. The numbers of a patch lie side by side: a warp writes
// neighbours, and reads runs of KW*C neighbours.
extern "C" __global__ void im2col(const real* __restrict__ x, real* __restrict__ columns,
                                  index H, index W, index C, index OH, index OW,
                                  index KH, index KW, index SH, index SW, index PH, index PW, index count) {
    index thread = thread_number();
    if (thread >= count) return;
    index length = KH * KW * C, number = thread % length, row = thread / length;
    index c = number % C, v = number / C % KW, u = number / C / KW;
    index n = row / OH, i = row % OH;

    index h = i * SH + u - PH, first = (n * H + h) * W * C + c;
    bool inside = h >= 0 && h < H;
    columns += row * OW * length + number;
    for (index j = 0; j < OW; j++) {
        index w = j * SW + v - PW;
        columns[j * length] = inside && w >= 0 && w < W ? x[first + w * C] : (real)0;
    }
}
""",
)

COL2IM = CudaKernel(
    "col2im",
    FIRST_WINDOW
    + """
// A thread for each number of dL/dx. It adds up what came back to it from every patch that holds it, always in the same
// order; if the patches added to the pixels instead, they would have to wait for each other. A warp reads neighbours.
extern "C" __global__ void col2im(const real* __restrict__ columns, real* __restrict__ grad_x,
                                  index H, index W, index C, index OH, index OW,
                                  index KH, index KW, index SH, index SW, index PH, index PW, index count) {
    index thread = thread_number();
    if (thread >= count) return;
    index c = thread % C, pixel = thread / C, w = pixel % W, h = pixel / W % H, n = pixel / W / H;
    index first_i = first_window(h, KH, SH, PH), end_i = min((h + PH) / SH + 1, OH);
    index first_j = first_window(w, KW, SW, PW), end_j = min((w + PW) / SW + 1, OW);

    real sum = 0;
    for (index i = first_i; i < end_i; i++) {
        for (index j = first_j; j < end_j; j++) {
            index u = h + PH - i * SH, v = w + PW - j * SW;
            sum += columns[(((n * OH + i) * OW + j) * KH * KW + u * KW + v) * C + c];
        }
    }
    grad_x[thread] = sum;
}
""",
)


class Patches:
    """The patches that a kernel sees in images (N, H, W, C), one for each pixel of its output."""

    def __init__(self, shape, kernel_size, stride, padding):
        self.shape, self.output_size = shape, output_size(shape[1:3], kernel_size, stride, padding)
        self.length = math.prod(kernel_size) * shape[3]  # of a patch
        self.are_pixels = (*kernel_size, *stride, *padding) == (1, 1, 1, 1, 0, 0)  # then x itself is the columns
        self.geometry = (*shape[1:], *self.output_size, *kernel_size, *stride, *padding)

    def chunks(self) -> list[slice]:
        """All images, in slices of nearly equal length whose columns fit the workspace; at least one image in each."""
        images = self.shape[0]
        elements_of_an_image = math.prod(self.output_size) * self.length
        count = 1
        if not self.are_pixels and images:
            count = math.ceil(images / max(1, WORKSPACE_ELEMENTS // elements_of_an_image))
        return [slice(images * i // count, images * (i + 1) // count) for i in range(count)]

    def columns(self, x):
        """The patches of a chunk of the images, as the rows of a (n*OH*OW, KH*KW*C) matrix."""
        if self.are_pixels:
            return x.reshape(-1, self.length)
        oh, ow = self.output_size
        columns = cupy.empty((len(x) * oh * ow, self.length), x.dtype)
        threads = len(x) * oh * self.length
        IM2COL.for_each(threads, x, columns, *self.geometry, threads, dtype=x.dtype)
        return columns

    def gather(self, columns, grad_x) -> None:
        """dL/dx of a chunk of the images, of dL/dcolumns."""
        COL2IM.for_each(grad_x.size, columns, grad_x, *self.geometry, grad_x.size, dtype=grad_x.dtype)
