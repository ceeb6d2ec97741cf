"""Convolution as a product whose patches are never copied: im2col's numbers are fetched where the product needs them.

It needs no workspace, and no cuBLAS, which CuPy cannot capture in a graph. (The name of this is implicit GEMM: Chetlur
et al. 2014, "cuDNN: Efficient primitives for deep learning", section 3.2.)
"""

import math

import cupy

from minidl.kernels.cuda._launch import CudaKernel, contiguous, real_dtype
from minidl.kernels.cuda._product import TILE_ROWS, launch_product, product_kernels
from minidl.kernels.shapes import output_size

# dL/dweight is a product of few rows and columns and a great depth: slabs of it, so that there are enough blocks to
# keep a large GPU busy, but not of fewer pixels than make a block's work worth its start. Choices, not measurements.
ENOUGH_BLOCKS, LEAST_PIXELS = 512, 512

GEOMETRY = "index N, index H, index W, index C, index OH, index OW, index O, index KH, index KW, index PH, index PW"

OPERANDS = """
// A pixel (n, i, j), or a tap (u, v, c): counted with the innermost number first, up to `middles` and `inners`.
struct Place {
    index outer, middle, inner;
};

__device__ Place place_of(index number, index middles, index inners) {
    return {number / inners / middles, number / inners % middles, number % inners};
}

__device__ void move_on(Place& place, index count, index middles, index inners) {
    place.inner += count;
    while (place.inner >= inners) {  // a few times, where division would take longer
        place.inner -= inners;
        if (++place.middle == middles) {
            place.middle = 0;
            place.outer++;
        }
    }
}

// im2col's matrix: what output pixel (n, i, j) sees of x through tap (u, v, c).
struct Patches {
    const stored* numbers;
    index N, H, W, C, OH, OW, KH, KW, PH, PW;
    __device__ const stored* number(Place pixel, Place tap) const {
        index h = pixel.middle * SH + tap.outer - PH, w = pixel.inner * SW + tap.middle - PW;
        bool inside = pixel.outer < N && tap.outer < KH && h >= 0 && h < H && w >= 0 && w < W;
        return inside ? numbers + ((pixel.outer * H + h) * W + w) * C + tap.inner : nullptr;
    }
    __device__ Place pixel(index number) const { return place_of(number, OH, OW); }
    __device__ Place tap(index number) const { return place_of(number, KW, C); }
};

// A matrix as it lies in memory: its rows are the depth.
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

# For the tests: strides, columns of a tile, and how many bytes are copied at once.
EXAMPLES = [
    {"SH": stride, "SW": stride, "TILE_COLUMNS": columns, "BYTES_A": copied, "BYTES_B": copied}
    for stride, columns, copied in ((1, 16, 2), (2, 32, 8), (1, 64, 16), (1, 128, 16))
]

FORWARD = product_kernels(
    "conv_forward",
    OPERANDS
    + f"""
// Rows are output pixels, the depth the taps, columns the output channels.
struct PatchRows : Patches {{
    static constexpr bool along_depth = true;
    using Line = Place;
    using Step = Place;
    __device__ Place line(index number) const {{ return pixel(number); }}
    __device__ Place step(index number) const {{ return tap(number); }}
    __device__ void advance(Place& tap, int count) const {{ move_on(tap, count, KW, C); }}
    __device__ const stored* at(Place pixel, Place tap) const {{ return number(pixel, tap); }}
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
    """(dL/dx, dL/dweight) of dL/dy, (N, OH, OW, O); None for one that is not needed."""
    grad_x = backward_x(grad, weight, x.shape, stride, padding) if needs_x else None
    return grad_x, backward_weight(grad, x, weight.shape, stride, padding) if needs_weight else None


BACKWARD_X = product_kernels(
    "conv_backward_x",
    OPERANDS
    + f"""
// Rows are the pixels of x, the depth the taps (u, v, o) that they meet dL/dy through, columns the channels of x.
struct GradPatches {{
    static constexpr bool along_depth = true;
    using Line = Place;
    using Step = Place;
    const stored* numbers;
    index N, H, W, OH, OW, O, KH, KW, PH, PW;
    __device__ Place line(index number) const {{ return place_of(number, H, W); }}
    __device__ Place step(index number) const {{ return place_of(number, KW, O); }}
    __device__ void advance(Place& tap, int count) const {{ move_on(tap, count, KW, O); }}
    __device__ const stored* at(Place pixel, Place tap) const {{
        // Times the stride, where the window begins that sees the pixel through this tap.
        index i = pixel.middle + PH - tap.outer, j = pixel.inner + PW - tap.middle;
        bool inside = pixel.outer < N && tap.outer < KH && i >= 0 && j >= 0 && i % SH == 0 && j % SW == 0;
        inside = inside && i / SH < OH && j / SW < OW;
        return inside ? numbers + ((pixel.outer * OH + i / SH) * OW + j / SW) * O + tap.inner : nullptr;
    }}
}};

// weight[u, v, c, o] in row (u, v, o) and column c.
struct TurnedWeight {{
    static constexpr bool along_depth = true;
    using Line = index;
    using Step = Place;
    const stored* numbers;
    index C, O, KH, KW;
    __device__ index line(index c) const {{ return c; }}
    __device__ Place step(index number) const {{ return place_of(number, KW, O); }}
    __device__ void advance(Place& tap, int count) const {{ move_on(tap, count, KW, O); }}
    __device__ const stored* at(index c, Place tap) const {{
        bool inside = c < C && tap.outer < KH;
        return inside ? numbers + ((tap.outer * KW + tap.middle) * C + c) * O + tap.inner : nullptr;
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
    """dL/dx: each pixel gathers what came back through each tap."""
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
// Rows are the taps, the depth the output pixels, columns the output channels. blockIdx.y is a slab of the pixels.
struct PatchColumns : Patches {{
    static constexpr bool along_depth = false;
    using Line = Place;
    using Step = Place;
    __device__ Place line(index number) const {{ return tap(number); }}
    __device__ Place step(index number) const {{ return pixel(number); }}
    __device__ void advance(Place& pixel, int count) const {{ move_on(pixel, count, OH, OW); }}
    __device__ const stored* at(Place tap, Place pixel) const {{ return number(pixel, tap); }}
}};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_backward_weight(
    const stored* x, const stored* grad, real* slabs, index length, {GEOMETRY}
) {{
    index taps = KH * KW * C, pixels = N * OH * OW, first = blockIdx.y * length;
    index end = first + length < pixels ? first + length : pixels;
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
    """dL/dweight = patches^T dL/dy, in the dtype of the sums: slabs of pixels, and then their sum."""
    grad, x = contiguous(grad), contiguous(x)
    kh, kw, c, o = weight_shape
    taps, pixels = kh * kw * c, math.prod(grad.shape[:3])
    slab_count = slabs_of(pixels, taps, o)
    slabs = cupy.empty((slab_count, *weight_shape), real_dtype(grad.dtype))
    arguments = x, grad, slabs, -(-pixels // slab_count), *geometry(x.shape, weight_shape, grad.shape, padding)
    launch_product(BACKWARD_WEIGHT, taps, o, slab_count, ((x, c), (grad, o)), arguments, strides(stride))
    if slab_count == 1:
        return slabs[0]
    grad_weight = cupy.empty(weight_shape, slabs.dtype)
    SUM_SLABS.for_each(grad_weight.size, slabs, grad_weight, slab_count, grad_weight.size, dtype=slabs.dtype)
    return grad_weight


def slabs_of(pixels: int, taps: int, o: int) -> int:
    """How many slabs: a function of the shape alone, so that sums come out the same on every GPU."""
    tiles = -(-taps // TILE_ROWS) * -(-o // TILE_ROWS)
    return max(1, min(ENOUGH_BLOCKS // tiles, pixels // LEAST_PIXELS))


def geometry(x_shape, weight_shape, y_shape, padding) -> tuple[int, ...]:
    """The arguments of GEOMETRY."""
    return *x_shape, *y_shape[1:], *weight_shape[:2], *padding


def strides(stride) -> dict[str, int]:
    """Constants of the compiled kernels, as dividing by 1 and 2 is then free."""
    return {"SH": stride[0], "SW": stride[1]}
