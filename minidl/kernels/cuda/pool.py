"""Pooling: one value for each window and channel."""

import cupy

from minidl.kernels.cuda._launch import THREADS, CudaKernel, contiguous
from minidl.kernels.cuda._slabs import columns_of
from minidl.kernels.cuda._vectors import EXAMPLES, VECTORS, aligned
from minidl.kernels.cuda._windows import FIRST_WINDOW
from minidl.kernels.shapes import output_size, tap_dtype

WARP = 32  # threads that a GPU runs in lockstep

TAP_TYPES = {"uint8": "unsigned char", "uint32": "unsigned int"}  # see tap_dtype

# In all kernels on windows a thread works on a column, that is VECTOR neighbouring channels: an image of C channels has
# `columns` of them. Neighbouring threads work on neighbouring columns, and then on the next pixel.
WINDOWS = (
    FIRST_WINDOW
    + VECTORS
    + """
// How many pixels of a window are counted along an axis: those on the image and on a border on both sides.
__device__ index counted(index start, index KH, index H, index border) {
    return min(start + KH, H + border) - max(start, -border);
}
"""
)


def _for_each_tap_type(name, source):
    """{dtype of `best_tap`: kernel}."""
    return {
        dtype: CudaKernel(
            f"{name}_{dtype}",
            source.replace("NAME", f"{name}_{dtype}").replace("TAP", type_in_c),
            examples=EXAMPLES,
        )
        for dtype, type_in_c in TAP_TYPES.items()
    }


MAX_POOL2D_FORWARD = _for_each_tap_type(
    "max_pool2d_forward",
    WINDOWS
    + """
// A thread for each vector of y, number k = j*columns + column of its row (n, i). A block stays in one row, so that few
// divisions are needed. The first tap that is not on the padding is the best one until a tap has a larger value, or a
// NaN.
extern "C" __global__ void NAME(const stored* x, stored* y, TAP* best_tap, index H, index W, index columns,
                                index OH, index OW, index KH, index KW, index SH, index SW, index PH, index PW) {
    index row = blockIdx.x, n = row / OH, i = row % OH;
    index k = (index)blockIdx.y * blockDim.x + threadIdx.x, j = k / columns, column = k % columns;
    if (k >= OW * columns) return;

    index top = i * SH - PH, left = j * SW - PW;
    index first_u = max(-top, (index)0), end_u = min(KH, H - top);
    index first_v = max(-left, (index)0), end_v = min(KW, W - left);
    index image = n * H * W * columns + column;
    Numbers best = load(x, image + ((top + first_u) * W + left + first_v) * columns);
    Vector<TAP> taps;
    for (int c = 0; c < VECTOR; c++) taps.number[c] = (TAP)(first_u * KW + first_v);
    for (index u = first_u; u < end_u; u++) {
        for (index v = first_v; v < end_v; v++) {
            Numbers pixel = load(x, image + ((top + u) * W + left + v) * columns);
            for (int c = 0; c < VECTOR; c++) {
                if (!(pixel.number[c] <= best.number[c] || isnan(best.number[c]))) {  // larger, or the first NaN
                    best.number[c] = pixel.number[c];
                    taps.number[c] = (TAP)(u * KW + v);
                }
            }
        }
    }
    store(y, row * OW * columns + k, best);
    ((Vector<TAP>*)best_tap)[row * OW * columns + k] = taps;
}
""",
)


def max_pool2d_forward(x, kernel_size, stride, padding, ceil_mode):
    """(y, best_tap): the maximum of each window, and its tap u*KW + v, the first one among equals.

    The padding is never the maximum. A NaN counts as larger than any number, so that it shows.
    """
    x = aligned(x)
    n, h, w, c = x.shape
    oh, ow = output_size((h, w), kernel_size, stride, padding, ceil_mode)
    y = cupy.empty((n, oh, ow, c), x.dtype)
    best_tap = cupy.empty(y.shape, tap_dtype(kernel_size))
    windows = oh, ow, *kernel_size, *stride, *padding
    _launch_thread_per_vector(MAX_POOL2D_FORWARD[str(best_tap.dtype)], y, (x, y, best_tap), (h, w), windows)
    return y, best_tap


MAX_POOL2D_BACKWARD = _for_each_tap_type(
    "max_pool2d_backward",
    WINDOWS
    + """
// A thread for each vector of grad_x, number k = w*columns + column of its row (n, h). It adds up the gradients of the
// windows whose best tap is its pixel, always in the same order. So no two threads write to the same element.
extern "C" __global__ void NAME(const stored* grad, const TAP* best_tap, stored* grad_x, index H, index W,
                                index columns, index OH, index OW, index KH, index KW, index SH, index SW, index PH,
                                index PW) {
    index row = blockIdx.x, n = row / H, h = row % H;
    index k = (index)blockIdx.y * blockDim.x + threadIdx.x, w = k / columns, column = k % columns;
    if (k >= W * columns) return;

    index first_j = first_window(w, KW, SW, PW);
    Numbers sum = 0;
    for (index i = first_window(h, KH, SH, PH); i < OH && i * SH <= h + PH; i++) {
        for (index j = first_j; j < OW && j * SW <= w + PW; j++) {
            index window = ((n * OH + i) * OW + j) * columns + column;
            index tap = (h + PH - i * SH) * KW + (w + PW - j * SW);
            Vector<TAP> taps = ((const Vector<TAP>*)best_tap)[window];
            Numbers g = load(grad, window);
            for (int c = 0; c < VECTOR; c++) sum.number[c] += taps.number[c] == tap ? g.number[c] : (real)0;
        }
    }
    store(grad_x, row * W * columns + k, sum);
}
""",
)


def max_pool2d_backward(grad, best_tap, x_shape, kernel_size, stride, padding):
    """dL/dx: the gradient of each window goes to its best tap."""
    dtype = tap_dtype(kernel_size)
    grad, best_tap = aligned(grad), aligned(best_tap.astype(dtype, copy=False))
    grad_x = cupy.empty(x_shape, grad.dtype)
    windows = *grad.shape[1:3], *kernel_size, *stride, *padding
    _launch_thread_per_vector(MAX_POOL2D_BACKWARD[dtype], grad_x, (grad, best_tap, grad_x), x_shape[1:3], windows)
    return grad_x


AVG_POOL2D_FORWARD = CudaKernel(
    "avg_pool2d_forward",
    WINDOWS
    + """
// A thread for each vector of y, number k = j*columns + column of its row (n, i). The border (BH, BW) is the part of
// the padding that is counted: all of it, (PH, PW), or none, (0, 0).
extern "C" __global__ void avg_pool2d_forward(const stored* x, stored* y, index H, index W, index columns, index OH,
                                              index OW, index KH, index KW, index SH, index SW, index PH, index PW,
                                              index BH, index BW) {
    index row = blockIdx.x, n = row / OH, i = row % OH;
    index k = (index)blockIdx.y * blockDim.x + threadIdx.x, j = k / columns, column = k % columns;
    if (k >= OW * columns) return;

    index top = i * SH - PH, left = j * SW - PW;
    index image = n * H * W * columns + column;
    Numbers sum = 0;
    for (index h = max(top, (index)0); h < min(top + KH, H); h++)
        for (index w = max(left, (index)0); w < min(left + KW, W); w++)
            sum = sum + load(x, image + (h * W + w) * columns);
    store(y, row * OW * columns + k, sum / (real)(counted(top, KH, H, BH) * counted(left, KW, W, BW)));
}
""",
    examples=EXAMPLES,
)


def avg_pool2d_forward(x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """y: the mean of each window. With count_include_pad the zeros of the padding count as pixels."""
    x = aligned(x)
    n, h, w, c = x.shape
    oh, ow = output_size((h, w), kernel_size, stride, padding, ceil_mode)
    y = cupy.empty((n, oh, ow, c), x.dtype)
    border = padding if count_include_pad else (0, 0)
    windows = oh, ow, *kernel_size, *stride, *padding, *border
    _launch_thread_per_vector(AVG_POOL2D_FORWARD, y, (x, y), (h, w), windows)
    return y


AVG_POOL2D_BACKWARD = CudaKernel(
    "avg_pool2d_backward",
    WINDOWS
    + """
// A thread for each vector of grad_x, number k = w*columns + column of its row (n, h). It adds up its shares of the
// gradients of the windows that cover its pixel, always in the same order.
extern "C" __global__ void avg_pool2d_backward(const stored* grad, stored* grad_x, index H, index W, index columns,
                                               index OH, index OW, index KH, index KW, index SH, index SW, index PH,
                                               index PW, index BH, index BW) {
    index row = blockIdx.x, n = row / H, h = row % H;
    index k = (index)blockIdx.y * blockDim.x + threadIdx.x, w = k / columns, column = k % columns;
    if (k >= W * columns) return;

    index first_j = first_window(w, KW, SW, PW);
    Numbers sum = 0;
    for (index i = first_window(h, KH, SH, PH); i < OH && i * SH <= h + PH; i++) {
        index rows = counted(i * SH - PH, KH, H, BH);
        for (index j = first_j; j < OW && j * SW <= w + PW; j++) {
            real share = 1 / (real)(rows * counted(j * SW - PW, KW, W, BW));
            sum = sum + load(grad, ((n * OH + i) * OW + j) * columns + column) * share;
        }
    }
    store(grad_x, row * W * columns + k, sum);
}
""",
    examples=EXAMPLES,
)


def avg_pool2d_backward(grad, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """dL/dx: the gradient of each window, in equal shares to the pixels that were averaged."""
    grad = aligned(grad)  # has the output size of ceil_mode
    grad_x = cupy.empty(x_shape, grad.dtype)
    border = padding if count_include_pad else (0, 0)
    windows = *grad.shape[1:3], *kernel_size, *stride, *padding, *border
    _launch_thread_per_vector(AVG_POOL2D_BACKWARD, grad_x, (grad, grad_x), x_shape[1:3], windows)
    return grad_x


GLOBAL_AVG_POOL_FORWARD = CudaKernel(
    "global_avg_pool_forward",
    """
// A thread for each channel of each image, which adds up the pixels; neighbouring threads read neighbouring channels.
// Where networks have this layer, images are small and channels many. For large images every 512 pixels have a partial
// sum: if a float adds up 500,000 numbers one by one, only 2 digits are left.
extern "C" __global__ void global_avg_pool_forward(const stored* x, stored* y, index pixels, index C, index count) {
    index nc = thread_number();
    if (nc >= count) return;
    const stored* image = x + nc / C * pixels * C + nc % C;
    double sum = 0;
    for (index start = 0; start < pixels; start += 512) {
        real part = 0;
        for (index pixel = start; pixel < min(start + 512, pixels); pixel++) part += (real)image[pixel * C];
        sum += part;
    }
    y[nc] = (real)(sum / pixels);
}
""",
)


def global_avg_pool_forward(x):
    """y[n, c]: the mean of channel c of image n, (N, H, W, C) -> (N, C)."""
    x = contiguous(x)
    n, h, w, c = x.shape
    y = cupy.empty((n, c), x.dtype)
    GLOBAL_AVG_POOL_FORWARD.for_each(y.size, x, y, h * w, c, y.size, dtype=x.dtype)
    return y


GLOBAL_AVG_POOL_BACKWARD = CudaKernel(
    "global_avg_pool_backward",
    VECTORS
    + """
// A thread for each vector of grad_x.
extern "C" __global__ void global_avg_pool_backward(const stored* grad, stored* grad_x, index pixels, index columns,
                                                    index count) {
    index i = thread_number();
    if (i >= count) return;
    index n = i / (pixels * columns), column = i % columns;
    store(grad_x, i, load(grad, n * columns + column) * (1 / (real)pixels));
}
""",
    examples=EXAMPLES,
)


def global_avg_pool_backward(grad, x_shape):
    """dL/dx[n, h, w, c] = dL/dy[n, c] / (H*W), (N, C) -> (N, H, W, C)."""
    grad = aligned(grad)
    _, h, w, _ = x_shape
    grad_x = cupy.empty(x_shape, grad.dtype)
    rows, columns, constants = columns_of(grad_x)
    arguments = grad, grad_x, h * w, columns, rows * columns
    GLOBAL_AVG_POOL_BACKWARD.launch(-(-rows * columns // THREADS), THREADS, arguments, grad.dtype, constants)
    return grad_x


def _launch_thread_per_vector(kernel, images, arrays, size, windows):
    """Launch a thread for each vector of the images: blockIdx.x is the row n*H + h, blockIdx.y a part of that row.

    `size` is the height and width of the input; `windows` are the numbers behind its columns.
    """
    n, h, w, _ = images.shape
    _, columns, constants = columns_of(images)
    threads = min(THREADS, -(-w * columns // WARP) * WARP)
    blocks = n * h, -(-w * columns // threads)
    kernel.launch(blocks, threads, (*arrays, *size, columns, *windows), images.dtype, constants)
