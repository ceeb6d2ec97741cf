"""Convolution as a product whose patches are never copied: im2col's numbers are fetched where the product needs them.

Not chosen for any shape yet, as its speed has not been measured. It needs no workspace and no cuBLAS, which CuPy cannot
capture in a graph. Chetlur et al. 2014, "cuDNN: Efficient primitives for deep learning", section 3.2.
"""

import math

import cupy

from minidl.kernels.cuda._im2col import output_size
from minidl.kernels.cuda._launch import CudaKernel, contiguous
from minidl.kernels.cuda._product import PRODUCT, launch_product, tiling

SLAB_PIXELS, MOST_SLABS = 4096, 64  # pixels that a block sums for dL/dweight, and the most such sums that are added up

# Sizes of the compiled convolution: with them, the divisions below become multiplications.
SIZES = ("H", "W", "C", "OH", "OW", "O", "KH", "KW", "SH", "SW", "PH", "PW")
EXAMPLES = tuple(
    dict(zip(SIZES, (32, 32, 16, 32 // stride, 32 // stride, o, 3, 3, stride, stride, 1, 1), strict=True)) | tiling(o)
    for stride, o in ((1, 16), (2, 32), (1, 64))
)

PATCHES = (
    PRODUCT
    + """
// Row `pixel` (n, i, j), column `tap` (u, v, c) of im2col: what output pixel (i, j) of image n sees through the tap.
__device__ real patch(const real* x, index pixel, int tap) {
    int c = tap % C, v = tap / C % KW, u = tap / C / KW;
    int j = pixel % OW, i = pixel / OW % OH;
    index n = pixel / OW / OH;
    int h = i * SH + u - PH, w = j * SW + v - PW;
    return h >= 0 && h < H && w >= 0 && w < W ? x[((n * H + h) * W + w) * C + c] : (real)0;
}
"""
)

FORWARD = CudaKernel(
    "conv_forward",
    PATCHES
    + """
// Rows are output pixels, the depth the taps, columns the output channels.
struct Forward {
    static const bool a_by_columns = false;
    const real *x, *weight, *bias;
    real* y;
    int has_bias;
    __device__ real a(index pixel, index tap) { return patch(x, pixel, tap); }
    __device__ real b(index tap, index o) { return weight[tap * O + o]; }
    __device__ void put(index pixel, index o, real value) { y[pixel * O + o] = has_bias ? value + bias[o] : value; }
};

extern "C" __global__ void conv_forward(
    const real* x, const real* weight, const real* bias, real* y, index pixels, int has_bias
) {
    multiply(Forward{x, weight, bias, y, has_bias}, pixels, O, 0, KH * KW * C);
}
""",
    examples=EXAMPLES,
)


def forward(x, weight, bias, stride, padding):
    """y = patches weight + bias."""
    x, weight = contiguous(x), contiguous(weight)
    n, o = len(x), weight.shape[3]
    oh, ow = output_size(x.shape[1:3], weight.shape[:2], stride, padding)
    y = cupy.empty((n, oh, ow, o), x.dtype)
    has_bias = bias is not None
    arguments = x, weight, contiguous(bias) if has_bias else weight, y, n * oh * ow, has_bias
    constants = sizes(x.shape, weight.shape, y.shape, stride, padding) | tiling(o)
    launch_product(FORWARD, n * oh * ow, o, 1, arguments, x.dtype, constants)
    return y


BACKWARD_X = CudaKernel(
    "conv_backward_x",
    PRODUCT
    + """
// Rows are the pixels of x, the depth the taps (u, v, o) that they meet dL/dy through, columns the channels of x.
struct BackwardX {
    static const bool a_by_columns = false;
    const real *grad, *turned;
    real* grad_x;
    __device__ real a(index pixel, int tap) {
        int o = tap % O, v = tap / O % KW, u = tap / O / KW;
        int w = pixel % W, h = pixel / W % H;
        index n = pixel / W / H;
        int i = h + PH - u, j = w + PW - v;  // times the stride, where the window begins that has x at this tap
        bool inside = i >= 0 && j >= 0 && i % SH == 0 && j % SW == 0 && i / SH < OH && j / SW < OW;
        return inside ? grad[((n * OH + i / SH) * OW + j / SW) * O + o] : (real)0;
    }
    __device__ real b(index tap, index c) { return turned[tap * C + c]; }
    __device__ void put(index pixel, index c, real value) { grad_x[pixel * C + c] = value; }
};

extern "C" __global__ void conv_backward_x(const real* grad, const real* turned, real* grad_x, index pixels) {
    multiply(BackwardX{grad, turned, grad_x}, pixels, C, 0, KH * KW * O);
}
""",
    examples=EXAMPLES,
)


def backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx: each pixel gathers what came back through each tap."""
    grad = contiguous(grad)
    turned = contiguous(weight.transpose(0, 1, 3, 2))  # (KH, KW, O, C): read along c
    grad_x = cupy.empty(x_shape, grad.dtype)
    n, h, w, c = x_shape
    constants = sizes(x_shape, weight.shape, grad.shape, stride, padding) | tiling(c)
    launch_product(BACKWARD_X, n * h * w, c, 1, (grad, turned, grad_x, n * h * w), grad.dtype, constants)
    return grad_x


BACKWARD_WEIGHT = CudaKernel(
    "conv_backward_weight",
    PATCHES
    + """
// Rows are the taps, the depth the output pixels, columns the output channels. blockIdx.z is a slab of the pixels.
struct BackwardWeight {
    static const bool a_by_columns = true;
    const real *x, *grad;
    real* slab;
    __device__ real a(index tap, index pixel) { return patch(x, pixel, tap); }
    __device__ real b(index pixel, index o) { return grad[pixel * O + o]; }
    __device__ void put(index tap, index o, real value) { slab[tap * O + o] = value; }
};

extern "C" __global__ void conv_backward_weight(
    const real* x, const real* grad, real* slabs, index pixels, index length
) {
    const int taps = KH * KW * C;
    index first = (index)blockIdx.z * length;
    BackwardWeight problem{x, grad, slabs + (index)blockIdx.z * taps * O};
    multiply(problem, taps, O, first, first + length < pixels ? first + length : pixels);
}
""",
    examples=EXAMPLES,
)

SUM_SLABS = CudaKernel(
    "sum_slabs",
    """
// A thread for each number of the sum. The slabs are added in their order.
extern "C" __global__ void sum_slabs(const real* slabs, real* sum, index slab_count, index count) {
    index i = thread_number();
    if (i >= count) return;
    real total = 0;
    for (index slab = 0; slab < slab_count; slab++) total += slabs[slab * count + i];
    sum[i] = total;
}
""",
)


def backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight = patches^T dL/dy: slabs of pixels, so that there are enough blocks, and then their sum."""
    grad, x = contiguous(grad), contiguous(x)
    kh, kw, c, o = weight_shape
    pixels = math.prod(grad.shape[:3])
    length = max(SLAB_PIXELS, -(-pixels // MOST_SLABS))
    slabs = cupy.empty((-(-pixels // length), *weight_shape), grad.dtype)
    constants = sizes(x.shape, weight_shape, grad.shape, stride, padding) | tiling(o)
    arguments = x, grad, slabs, pixels, length
    launch_product(BACKWARD_WEIGHT, kh * kw * c, o, len(slabs), arguments, grad.dtype, constants)
    grad_weight = cupy.empty(weight_shape, grad.dtype)
    SUM_SLABS.for_each(grad_weight.size, slabs, grad_weight, len(slabs), grad_weight.size, dtype=grad.dtype)
    return grad_weight


def backward(grad, x, weight, stride, padding):
    """(dL/dx, dL/dweight)."""
    grad_x = backward_x(grad, weight, x.shape, stride, padding)
    return grad_x, backward_weight(grad, x, weight.shape, stride, padding)


def sizes(x_shape, weight_shape, y_shape, stride, padding) -> dict[str, int]:
    """The constants of a convolution."""
    return dict(zip(SIZES, (*x_shape[1:], *y_shape[1:], *weight_shape[:2], *stride, *padding), strict=True))
