"""Convolution by implicit GEMM: im2col's matrix product, which fetches each patch from x and never copies the patches.

It needs no workspace, and no cuBLAS, which CuPy cannot capture in a graph. (Chetlur et al. 2014, "cuDNN: Efficient
primitives for deep learning", section 3.2.)
"""

import math

import cupy

from minidl.kernels.cuda._launch import CudaKernel, contiguous, real_dtype
from minidl.kernels.cuda._product import TILE_ROWS, launch_product, product_kernels
from minidl.kernels.shapes import output_size

# dL/dweight is a product with few rows and columns but a large depth. The depth is cut into slabs, so that there are
# enough blocks for a large GPU; a slab has at least 512 windows, so that a block has enough work. Chosen, not measured.
ENOUGH_BLOCKS, LEAST_WINDOWS = 512, 512

GEOMETRY = "index N, index H, index W, index C, index OH, index OW, index O, index KH, index KW, index PH, index PW"

OPERANDS = """
// A window (i, j) of image n, a pixel (h, w) of image n, and a tap (u, v) with a channel: c of x, or o of dL/dy.
struct Window { index n, i, j; };
struct Pixel { index n, h, w; };
struct Tap { index u, v, channel; };

// Add `count` to the number (outer * middles + middle) * inners + inner.
__device__ void move_on(index& outer, index& middle, index& inner, index count, index middles, index inners) {
    inner += count;
    while (inner >= inners) {  // a few times; a division would take longer
        inner -= inners;
        if (++middle == middles) {
            middle = 0;
            outer++;
        }
    }
}

// im2col's matrix (N*OH*OW, KH*KW*C): the address of the pixel of x that a window sees through a tap.
struct Patches {
    const stored* numbers;
    index N, H, W, C, OH, OW, KH, KW, PH, PW;
    __device__ const stored* address(Window window, Tap tap) const {
        index h = window.i * SH + tap.u - PH, w = window.j * SW + tap.v - PW;
        bool inside = window.n < N && tap.u < KH && h >= 0 && h < H && w >= 0 && w < W;
        return inside ? numbers + ((window.n * H + h) * W + w) * C + tap.channel : nullptr;
    }
    __device__ Window window(index k) const { return {k / OW / OH, k / OW % OH, k % OW}; }
    __device__ Tap tap(index k) const { return {k / C / KW, k / C % KW, k % C}; }
};

// A row-major matrix (depth, width).
struct Matrix {
    static constexpr bool along_depth = false;
    using Line = index;
    using Step = index;
    const stored* numbers;
    index width;
    __device__ index line(index column) const { return column; }
    __device__ index step(index row) const { return row; }
    __device__ void advance(index& row, int count) const { row += count; }
    __device__ const stored* at(index column, index row) const {
        return column < width ? numbers + row * width + column : nullptr;
    }
};
"""

# For the tests: strides, columns of a tile, and bytes copied at once.
EXAMPLES = [
    {"SH": stride, "SW": stride, "TILE_COLUMNS": columns, "BYTES_A": copied, "BYTES_B": copied}
    for stride, columns, copied in ((1, 16, 2), (2, 32, 8), (1, 64, 16), (1, 128, 16))
]

FORWARD = product_kernels(
    "conv_forward",
    OPERANDS
    + f"""
// Rows are the windows (n, i, j), the depth is the taps (u, v, c), columns are the output channels.
struct PatchRows : Patches {{
    static constexpr bool along_depth = true;
    using Line = Window;
    using Step = Tap;
    __device__ Window line(index k) const {{ return window(k); }}
    __device__ Tap step(index k) const {{ return tap(k); }}
    __device__ void advance(Tap& tap, int count) const {{ move_on(tap.u, tap.v, tap.channel, count, KW, C); }}
    __device__ const stored* at(Window window, Tap tap) const {{ return address(window, tap); }}
}};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_forward(
    const stored* x, const stored* weight, const real* bias, stored* y, int has_bias, {GEOMETRY}
) {{
    PatchRows patches{{{{x, N, H, W, C, OH, OW, KH, KW, PH, PW}}}};
    multiply(patches, Matrix{{weight, O}}, has_bias ? bias : nullptr, y, N * OH * OW, O, 0, KH * KW * C);
}}
""",
    EXAMPLES,
)


def conv2d_forward(x, weight, bias, stride, padding):
    """y = patches weight + bias: (N, H, W, C), (KH, KW, C, O), (O,) or None -> (N, OH, OW, O)."""
    x, weight = contiguous(x), contiguous(weight)
    o = weight.shape[3]
    y = cupy.empty((len(x), *output_size(x.shape[1:3], weight.shape[:2], stride, padding), o), x.dtype)
    bias_or_any = contiguous(bias) if bias is not None else cupy.empty(0, real_dtype(x.dtype))
    arguments = x, weight, bias_or_any, y, bias is not None, *geometry(x.shape, weight.shape, y.shape, padding)
    operands = (x, x.shape[3]), (weight, o)
    launch_product(FORWARD, math.prod(y.shape[:3]), o, 1, operands, arguments, strides(stride))
    return y


def conv2d_backward(grad, x, weight, stride, padding, needs_x, needs_weight):
    """(dL/dx, dL/dweight) from dL/dy, (N, OH, OW, O). A gradient that is not needed is None."""
    grad_x = backward_x(grad, weight, x.shape, stride, padding) if needs_x else None
    return grad_x, backward_weight(grad, x, weight.shape, stride, padding) if needs_weight else None


BACKWARD_X = product_kernels(
    "conv_backward_x",
    OPERANDS
    + f"""
// Rows are the pixels (n, h, w), the depth is the taps (u, v, o), columns are the input channels. An element is dL/dy
// at the window that sees the pixel through the tap.
struct GradPatches {{
    static constexpr bool along_depth = true;
    using Line = Pixel;
    using Step = Tap;
    const stored* numbers;
    index N, H, W, OH, OW, O, KH, KW, PH, PW;
    __device__ Pixel line(index k) const {{ return {{k / W / H, k / W % H, k % W}}; }}
    __device__ Tap step(index k) const {{ return {{k / O / KW, k / O % KW, k % O}}; }}
    __device__ void advance(Tap& tap, int count) const {{ move_on(tap.u, tap.v, tap.channel, count, KW, O); }}
    __device__ const stored* at(Pixel pixel, Tap tap) const {{
        index i_SH = pixel.h + PH - tap.u, j_SW = pixel.w + PW - tap.v;  // i*SH and j*SW of the window (i, j)
        bool inside = pixel.n < N && tap.u < KH && i_SH >= 0 && j_SW >= 0 && i_SH % SH == 0 && j_SW % SW == 0;
        inside = inside && i_SH / SH < OH && j_SW / SW < OW;
        return inside ? numbers + ((pixel.n * OH + i_SH / SH) * OW + j_SW / SW) * O + tap.channel : nullptr;
    }}
}};

// weight[u, v, c, o] as a matrix with row (u, v, o) and column c: (KH, KW, C, O) -> (KH*KW*O, C).
struct TurnedWeight {{
    static constexpr bool along_depth = true;
    using Line = index;
    using Step = Tap;
    const stored* numbers;
    index C, O, KH, KW;
    __device__ index line(index c) const {{ return c; }}
    __device__ Tap step(index k) const {{ return {{k / O / KW, k / O % KW, k % O}}; }}
    __device__ void advance(Tap& tap, int count) const {{ move_on(tap.u, tap.v, tap.channel, count, KW, O); }}
    __device__ const stored* at(index c, Tap tap) const {{
        bool inside = c < C && tap.u < KH;
        return inside ? numbers + ((tap.u * KW + tap.v) * C + c) * O + tap.channel : nullptr;
    }}
}};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_backward_x(
    const stored* grad, const stored* weight, stored* grad_x, {GEOMETRY}
) {{
    GradPatches patches{{grad, N, H, W, OH, OW, O, KH, KW, PH, PW}};
    const real* no_bias = nullptr;
    multiply(patches, TurnedWeight{{weight, C, O, KH, KW}}, no_bias, grad_x, N * H * W, C, 0, KH * KW * O);
}}
""",
    EXAMPLES,
)


def backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx: each pixel gathers dL/dy from all windows that see it, (N, OH, OW, O) -> (N, H, W, C)."""
    grad, weight = contiguous(grad), contiguous(weight)
    grad_x = cupy.empty(x_shape, grad.dtype)
    arguments = grad, weight, grad_x, *geometry(x_shape, weight.shape, grad.shape, padding)
    operands = (grad, grad.shape[3]), (weight, weight.shape[3])
    launch_product(BACKWARD_X, math.prod(x_shape[:3]), x_shape[3], 1, operands, arguments, strides(stride))
    return grad_x


BACKWARD_WEIGHT = product_kernels(
    "conv_backward_weight",
    OPERANDS
    + f"""
// Rows are taps (u, v, c), the depth is the windows (n, i, j), columns are output channels. blockIdx.y is the slab.
struct PatchColumns : Patches {{
    static constexpr bool along_depth = false;
    using Line = Tap;
    using Step = Window;
    __device__ Tap line(index k) const {{ return tap(k); }}
    __device__ Window step(index k) const {{ return window(k); }}
    __device__ void advance(Window& window, int count) const {{
        move_on(window.n, window.i, window.j, count, OH, OW);
    }}
    __device__ const stored* at(Tap tap, Window window) const {{ return address(window, tap); }}
}};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_backward_weight(
    const stored* x, const stored* grad, real* slabs, index length, {GEOMETRY}
) {{
    index taps = KH * KW * C, windows = N * OH * OW, first = blockIdx.y * length;
    index end = first + length < windows ? first + length : windows;
    PatchColumns patches{{{{x, N, H, W, C, OH, OW, KH, KW, PH, PW}}}};
    const real* no_bias = nullptr;
    multiply(patches, Matrix{{grad, O}}, no_bias, slabs + blockIdx.y * taps * O, taps, O, first, end);
}}
""",
    EXAMPLES,
)

SUM_SLABS = CudaKernel(
    "sum_slabs",
    """
// A thread for each element of the sum. The slabs are added in order.
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
    """dL/dweight = patches^T dL/dy, in float32 or float64: a partial sum for each slab of windows, then the total."""
    grad, x = contiguous(grad), contiguous(x)
    kh, kw, c, o = weight_shape
    taps, windows = kh * kw * c, math.prod(grad.shape[:3])
    slab_count = slabs_of(windows, taps, o)
    slabs = cupy.empty((slab_count, *weight_shape), real_dtype(grad.dtype))
    arguments = x, grad, slabs, -(-windows // slab_count), *geometry(x.shape, weight_shape, grad.shape, padding)
    launch_product(BACKWARD_WEIGHT, taps, o, slab_count, ((x, c), (grad, o)), arguments, strides(stride))
    if slab_count == 1:
        return slabs[0]
    grad_weight = cupy.empty(weight_shape, slabs.dtype)
    SUM_SLABS.for_each(grad_weight.size, slabs, grad_weight, slab_count, grad_weight.size, dtype=slabs.dtype)
    return grad_weight


def slabs_of(windows: int, taps: int, o: int) -> int:
    """The number of slabs. It depends on the shape alone, so that the sums are the same on every GPU."""
    tiles = -(-taps // TILE_ROWS) * -(-o // TILE_ROWS)
    return max(1, min(ENOUGH_BLOCKS // tiles, windows // LEAST_WINDOWS))


def geometry(x_shape, weight_shape, y_shape, padding) -> tuple[int, ...]:
    """The kernel arguments that GEOMETRY declares."""
    return *x_shape, *y_shape[1:], *weight_shape[:2], *padding


def strides(stride) -> dict[str, int]:
    """The strides as compile-time constants: division by the constants 1 and 2 costs nothing."""
    return {"SH": stride[0], "SW": stride[1]}
