"""Bilinear interpolation between the pixels of an image."""

import cupy

from minidl.kernels.cuda._launch import THREADS, CudaKernel
from minidl.kernels.cuda._slabs import columns_of
from minidl.kernels.cuda._vectors import EXAMPLES, VECTORS, aligned

WARP = 32  # threads that a GPU runs in lockstep

# A column is a vector of VECTOR neighbouring channels: an image of C channels has `columns` of them.
POSITIONS = (
    VECTORS
    + """
// Where pixel i of the output lies among the H pixels of the input.
__device__ real position(index i, index H, real step) {
    return min(max((i + (real)0.5) * step - (real)0.5, (real)0), (real)(H - 1));
}
"""
)

UPSAMPLE_BILINEAR2D_FORWARD = CudaKernel(
    "upsample_bilinear2d_forward",
    POSITIONS
    + """
// A thread for each vector of y, number k = j*columns + column of its row (n, i). It reads the four nearest pixels.
extern "C" __global__ void upsample_bilinear2d_forward(const stored* x, stored* y, index H, index W, index columns,
                                                       index OH, index OW, real step_h, real step_w) {
    index row = blockIdx.x, n = row / OH, i = row % OH;
    index k = (index)blockIdx.y * blockDim.x + threadIdx.x, j = k / columns, column = k % columns;
    if (k >= OW * columns) return;

    real top = position(i, H, step_h), left = position(j, W, step_w);
    index h = (index)top, w = (index)left;
    real down = top - h, right = left - w;  // the shares of the lower and of the right pixels
    index below = h + 1 < H ? W * columns : 0, beside = w + 1 < W ? columns : 0;
    index pixel = ((n * H + h) * W + w) * columns + column;
    Numbers upper = load(x, pixel) * (1 - right) + load(x, pixel + beside) * right;
    Numbers lower = load(x, pixel + below) * (1 - right) + load(x, pixel + below + beside) * right;
    store(y, row * OW * columns + k, upper * (1 - down) + lower * down);
}
""",
    examples=EXAMPLES,
)


def upsample_bilinear2d_forward(x, output_size, step):
    """y: each pixel from the four nearest ones, (N, H, W, C) -> (N, OH, OW, C)."""
    x = aligned(x)
    y = cupy.empty((len(x), *output_size, x.shape[3]), x.dtype)
    _launch_thread_per_vector(UPSAMPLE_BILINEAR2D_FORWARD, y, x, x.shape[1:3], output_size, step)
    return y


UPSAMPLE_BILINEAR2D_BACKWARD = CudaKernel(
    "upsample_bilinear2d_backward",
    POSITIONS
    + """
// The weight of input pixel h for output pixel i.
__device__ real weight(index i, index h, index H, real step) {
    return max((real)0, 1 - fabs(position(i, H, step) - h));
}

// The range of output pixels that may have input pixel h among their two nearest ones: those at h - 1 to h + 1, and one
// more on both sides, as positions are rounded. Those before the first pixel or behind the last one have it too.
__device__ index first_output(index h, real step) {
    return h == 0 ? 0 : max((index)((h - (real)0.5) / step - (real)0.5) - 1, (index)0);
}
__device__ index end_of_outputs(index h, index H, index OH, real step) {
    return h == H - 1 ? OH : min((index)((h + (real)1.5) / step) + 2, OH);
}

// A thread for each vector of grad_x, number k = w*columns + column of its row (n, h). It adds up its shares of the
// gradients of the output pixels around it, always in the same order. So no two threads write to the same element.
extern "C" __global__ void upsample_bilinear2d_backward(const stored* grad, stored* grad_x, index H, index W,
                                                        index columns, index OH, index OW, real step_h, real step_w) {
    index row = blockIdx.x, n = row / H, h = row % H;
    index k = (index)blockIdx.y * blockDim.x + threadIdx.x, w = k / columns, column = k % columns;
    if (k >= W * columns) return;

    index first_j = first_output(w, step_w), end_j = end_of_outputs(w, W, OW, step_w);
    index end_i = end_of_outputs(h, H, OH, step_h);
    Numbers sum = 0;
    for (index i = first_output(h, step_h); i < end_i; i++) {
        real of_row = weight(i, h, H, step_h);
        for (index j = first_j; j < end_j; j++) {
            Numbers g = load(grad, ((n * OH + i) * OW + j) * columns + column);
            sum = sum + g * (of_row * weight(j, w, W, step_w));
        }
    }
    store(grad_x, row * W * columns + k, sum);
}
""",
    examples=EXAMPLES,
)


def upsample_bilinear2d_backward(grad, x_shape, step):
    """dL/dx: each pixel's shares of the gradients that it had a weight for, (N, OH, OW, C) -> (N, H, W, C)."""
    grad = aligned(grad)
    grad_x = cupy.empty(x_shape, grad.dtype)
    _launch_thread_per_vector(UPSAMPLE_BILINEAR2D_BACKWARD, grad_x, grad, x_shape[1:3], grad.shape[1:3], step)
    return grad_x


def _launch_thread_per_vector(kernel, result, array, size, output_size, step):
    """Launch a thread for each vector of the result: blockIdx.x is its row n*H + h, blockIdx.y a part of that row."""
    n, h, w, _ = result.shape
    _, columns, constants = columns_of(result)
    threads = min(THREADS, -(-w * columns // WARP) * WARP)
    blocks = n * h, -(-w * columns // threads)
    arguments = array, result, *size, columns, *output_size, *map(float, step)
    kernel.launch(blocks, threads, arguments, result.dtype, constants)
