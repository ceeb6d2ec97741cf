"""Convolution by implicit GEMM: im2col's matrix product, which fetches each patch from x and never copies the patches.

It needs no workspace, and no cuBLAS, which CuPy cannot capture in a graph. (Chetlur et al. 2014, "cuDNN: Efficient
primitives for deep learning", section 3.2.)
"""

import math

import cupy

from minidl.kernels.cuda._launch import CudaKernel, contiguous, real_dtype
from minidl.kernels.cuda._product import TILE_ROWS, copied_at_once, launch_product, product_kernels
from minidl.kernels.shapes import output_size

# dL/dweight is a product with few rows and columns but a large depth. The depth is cut into slabs, so that there are
# three blocks for each multiprocessor of an H100, which run at once; a slab has at least 512 windows, so that a block
# has enough work. Chosen, not measured.
ENOUGH_BLOCKS, LEAST_WINDOWS = 3 * 132, 512

# Images of 3 channels would be copied number by number. With a fourth channel, of zeros, 8 bytes are copied at a time.
LEAST_COPY = 8

GEOMETRY = "index N, index H, index W, index C, index OH, index OW, index O, index KH, index KW, index PH, index PW"

OPERANDS = """
// Two kinds of indices are counted in three digits: a window (n, i, j) of image n, and a tap (u, v) with a channel. The
// channel is c of x or o of dL/dy.
struct Digits { int outer, middle, inner; };

__device__ Digits digits(index number, index middles, index inners) {
    index rest = number / inners, outer = rest / middles;
    return {int(outer), int(rest - outer * middles), int(number - rest * inners)};
}

// Without a division, which takes as long as ten additions.
__device__ void add(Digits& to, Digits digits, int middles, int inners) {
    to.inner += digits.inner;
    if (to.inner >= inners) {
        to.inner -= inners;
        to.middle++;
    }
    to.middle += digits.middle;
    if (to.middle >= middles) {
        to.middle -= middles;
        to.outer++;
    }
    to.outer += digits.outer;
}

// A row h and a column w of an image, and an offset in memory. The pixel that a window sees through a tap is the sum of
// two positions, that of the window and that of the tap.
struct Position {
    index offset;
    int h, w;
};
constexpr int OUTSIDE = -(1 << 30);  // a row that is in no image, whatever is added

// 0 <= i < size, in one comparison.
__device__ bool within(int i, index size) {
    return (unsigned int)i < (unsigned int)size;
}

// im2col's matrix (N*OH*OW, KH*KW*C): what the windows of x see through the taps.
struct Patches {
    const stored* numbers;
    index N, H, W, C, OH, OW, KH, KW, PH, PW;
    __device__ Position of_window(Digits window) const {
        int h = window.middle * SH - PH, w = window.inner * SW - PW;
        return {((window.outer * H + h) * W + w) * C, window.outer < N ? h : OUTSIDE, w};
    }
    __device__ Position of_tap(Digits tap) const {
        return {(tap.outer * W + tap.middle) * C + tap.inner, tap.outer, tap.middle};
    }
    __device__ bool inside(Position one, Position other) const {
        return within(one.h + other.h, H) & within(one.w + other.w, W);
    }
    __device__ const stored* address(Position line, Position depth) const {
        return numbers + (depth.offset + line.offset);
    }
};
"""

# For the tests: strides, rows and columns of a tile, and bytes copied at once.
EXAMPLES = [
    {"SH": stride, "SW": stride, "TILE_ROWS": rows, "TILE_COLUMNS": columns}
    | {"BYTES_A": a, "BYTES_B": b, "BYTES_Y": y}
    for stride, rows, columns, a, b, y in (
        (1, 64, 16, 2, 2, 2),
        (2, 64, 32, 2, 8, 8),
        (1, 128, 16, 16, 16, 16),
        (1, 64, 64, 4, 4, 16),
        (2, 128, 64, 8, 16, 16),
        (1, 64, 128, 16, 16, 16),
        (1, 128, 128, 16, 16, 16),
    )
]

FORWARD = product_kernels(
    "conv_forward",
    OPERANDS
    + f"""
// Rows are the windows (n, i, j), the depth is the taps (u, v, c), columns are the output channels.
struct PatchRows : Patches {{
    static constexpr bool along_depth = true;
    using Line = Position;
    using Step = Digits;
    Digits advances = digits(DEPTH, KW, C);
    __device__ Line line(index k) const {{ return of_window(digits(k, OH, OW)); }}
    __device__ Step step(index k) const {{ return digits(k, KW, C); }}
    __device__ void advance(Step& tap) const {{ add(tap, advances, KW, C); }}
    __device__ Position depth(Step tap) const {{ return of_tap(tap); }}
}};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_forward(
    const stored* x, const stored* weight, const real* bias, stored* y, int has_bias, {GEOMETRY}
) {{
    PatchRows patches{{{{x, N, H, W, C, OH, OW, KH, KW, PH, PW}}}};
    Matrix<false> matrix{{weight, O, O}};
    Rows<stored> rows{{y, O}};
    multiply(patches, matrix, has_bias ? bias : nullptr, rows, blockIdx.x, N * OH * OW, O, 0, KH * KW * C);
}}
""",
    EXAMPLES,
)


def conv2d_forward(x, weight, bias, stride, padding):
    """y = patches weight + bias: (N, H, W, C), (KH, KW, C, O), (O,) or None -> (N, OH, OW, O)."""
    x, weight = contiguous(x), contiguous(weight)
    channels, o = channels_to_copy(x), weight.shape[3]
    x, weight = with_channels(x, 3, channels), with_channels(weight, 2, channels)
    y = cupy.empty((len(x), *output_size(x.shape[1:3], weight.shape[:2], stride, padding), o), x.dtype)
    bias_or_any = contiguous(bias) if bias is not None else cupy.empty(0, real_dtype(x.dtype))
    arguments = x, weight, bias_or_any, y, bias is not None, *geometry(x.shape, weight.shape, y.shape, padding)
    operands = (x, channels), (weight, o), (y, o)
    launch_product(FORWARD, math.prod(y.shape[:3]), o, 1, operands, arguments, strides(stride))
    return y


ADD_CHANNELS = CudaKernel(
    "add_channels",
    """
// A thread for each number of a matrix with rows of `wide` numbers: those of x, then zeros.
extern "C" __global__ void add_channels(const stored* x, stored* wider, index length, index wide, index count) {
    index i = thread_number();
    if (i >= count) return;
    index row = i / wide, column = i % wide;
    wider[i] = column < length ? x[row * length + column] : stored(0);
}
""",
)


def channels_to_copy(x) -> int:
    """The channels that x (N, H, W, C) needs so that at least LEAST_COPY bytes can be copied at a time: C or more."""
    if copied_at_once(x, x.shape[3]) >= LEAST_COPY:
        return x.shape[3]
    run = LEAST_COPY // x.itemsize
    return -(-x.shape[3] // run) * run


def with_channels(x, axis: int, channels: int):
    """x with zeros behind its channels, which are axis `axis`."""
    shape = *x.shape[:axis], channels, *x.shape[axis + 1 :]
    if shape == x.shape:
        return x
    wider = cupy.empty(shape, x.dtype)
    lengths = math.prod(x.shape[axis:]), math.prod(shape[axis:])
    ADD_CHANNELS.for_each(wider.size, x, wider, *lengths, wider.size, dtype=x.dtype)
    return wider


def conv2d_backward(grad, x, weight, stride, padding, needs_x, needs_weight):
    """(dL/dx, dL/dweight) from dL/dy, (N, OH, OW, O). A gradient that is not needed is None."""
    grad_x = backward_x(grad, weight, x.shape, stride, padding) if needs_x else None
    return grad_x, backward_weight(grad, x, weight.shape, stride, padding) if needs_weight else None


BACKWARD_X = product_kernels(
    "conv_backward_x",
    OPERANDS
    + f"""
// The pixels x[r::SH] along one axis, and the taps that see them. (Along the other axis SW and PW.) With h = SH*m + r,
// the window i sees h through the tap u = h + PH - SH*i. Write u = first_tap + SH*a, then i = m + shift - a: all pixels
// of the phase are seen through the same taps, and the gradient of the phase is a convolution with stride 1.
struct Phase {{
    index first_pixel, pixels, first_tap, taps, shift;
}};

__device__ Phase phase_of(index r, index size, index kernel_size, index stride, index padding) {{
    index shift = (r + padding) / stride, first_tap = (r + padding) % stride;
    index pixels = r < size ? (size - r + stride - 1) / stride : 0;
    index taps = first_tap < kernel_size ? (kernel_size - first_tap + stride - 1) / stride : 0;
    return {{r, pixels, first_tap, taps, shift}};
}}

// Rows are the pixels (n, h, w) of a phase, the depth is its taps (a, b, o), columns are the input channels. An element
// is dL/dy at the window that sees the pixel through the tap.
struct GradPatches {{
    static constexpr bool along_depth = true;
    using Line = Position;
    using Step = Digits;
    const stored* numbers;
    index N, OH, OW, O;
    Phase along_h, along_w;
    index taps_w = max(along_w.taps, (index)1);  // a divisor even if there is no tap
    Digits advances = digits(DEPTH, taps_w, O);
    __device__ Line line(index k) const {{
        Digits pixel = digits(k, along_h.pixels, along_w.pixels);
        int i = pixel.middle + along_h.shift, j = pixel.inner + along_w.shift;
        return {{((pixel.outer * OH + i) * OW + j) * O, pixel.outer < N ? i : OUTSIDE, j}};
    }}
    __device__ Step step(index k) const {{ return digits(k, taps_w, O); }}
    __device__ void advance(Step& tap) const {{ add(tap, advances, taps_w, O); }}
    __device__ Position depth(Step tap) const {{
        return {{tap.inner - (tap.outer * OW + tap.middle) * O, -tap.outer, -tap.middle}};
    }}
    __device__ bool inside(Line pixel, Position tap) const {{
        return within(pixel.h + tap.h, OH) & within(pixel.w + tap.w, OW);
    }}
    __device__ const stored* address(Line pixel, Position tap) const {{ return numbers + (tap.offset + pixel.offset); }}
}};

// weight[u, v, c, o] as a matrix with row (a, b, o) and column c, for the taps (a, b) of a phase.
struct TurnedWeight {{
    static constexpr bool along_depth = true;
    using Line = index;
    using Step = Digits;
    const stored* numbers;
    index C, O, KW;
    Phase along_h, along_w;
    index taps_w = max(along_w.taps, (index)1);
    Digits advances = digits(DEPTH, taps_w, O);
    __device__ Line line(index c) const {{ return c; }}
    __device__ Step step(index k) const {{ return digits(k, taps_w, O); }}
    __device__ void advance(Step& tap) const {{ add(tap, advances, taps_w, O); }}
    __device__ index depth(Step tap) const {{
        index u = along_h.first_tap + tap.outer * SH, v = along_w.first_tap + tap.middle * SW;
        return (u * KW + v) * C * O + tap.inner;
    }}
    __device__ bool inside(Line c, index) const {{ return c < C; }}
    __device__ const stored* address(Line line, index depth) const {{ return numbers + (depth + line * O); }}
}};

// The pixels of a phase, as rows of dL/dx.
struct PixelRows {{
    using Number = stored;
    stored* numbers;
    index H, W, C;
    Phase along_h, along_w;
    __device__ stored* row(index k) const {{
        if constexpr (SH == 1 && SW == 1) return numbers + k * C;
        Digits pixel = digits(k, along_h.pixels, along_w.pixels);
        index h = along_h.first_pixel + pixel.middle * SH, w = along_w.first_pixel + pixel.inner * SW;
        return numbers + ((pixel.outer * H + h) * W + w) * C;
    }}
}};

// Neighbouring blocks compute the same tile of all phases, so that these read dL/dy from the cache. For three of the
// largest tiles on a multiprocessor, a thread would have too few registers.
extern "C" __global__ void __launch_bounds__(THREADS, LARGEST && BLOCKS > 2 ? 2 : BLOCKS) conv_backward_x(
    const stored* grad, const stored* weight, stored* grad_x, {GEOMETRY}
) {{
    Phase along_h = phase_of(blockIdx.x / SW % SH, H, KH, SH, PH), along_w = phase_of(blockIdx.x % SW, W, KW, SW, PW);
    index pixels = N * along_h.pixels * along_w.pixels, depth = along_h.taps * along_w.taps * O;
    GradPatches patches{{grad, N, OH, OW, O, along_h, along_w}};
    TurnedWeight turned{{weight, C, O, KW, along_h, along_w}};
    PixelRows rows{{grad_x, H, W, C, along_h, along_w}};
    const real* no_bias = nullptr;
    if (pixels) multiply(patches, turned, no_bias, rows, blockIdx.x / (SH * SW), pixels, C, 0, depth);
}}
""",
    EXAMPLES,
)


def backward_x(grad, weight, x_shape, stride, padding):
    """dL/dx: each pixel gathers dL/dy from all windows that see it, (N, OH, OW, O) -> (N, H, W, C).

    The pixels x[:, r::SH, s::SW] are a phase, with a product of its own: they are seen through the same taps.
    """
    grad, weight = contiguous(grad), contiguous(weight)
    grad_x = cupy.empty(x_shape, grad.dtype)
    arguments = grad, weight, grad_x, *geometry(x_shape, weight.shape, grad.shape, padding)
    operands = (grad, grad.shape[3]), (weight, weight.shape[3]), (grad_x, x_shape[3])
    rows = x_shape[0] * math.prod(-(-size // step) for size, step in zip(x_shape[1:3], stride, strict=True))
    launch_product(BACKWARD_X, rows, x_shape[3], math.prod(stride), operands, arguments, strides(stride))
    return grad_x


BACKWARD_WEIGHT = product_kernels(
    "conv_backward_weight",
    OPERANDS
    + f"""
// Rows are taps (u, v, c), the depth is the windows (n, i, j), columns are output channels.
struct PatchColumns : Patches {{
    static constexpr bool along_depth = false;
    using Line = Position;
    using Step = Digits;
    Digits advances = digits(DEPTH, OH, OW);
    __device__ Line line(index k) const {{
        Digits tap = digits(k, KW, C);
        Position position = of_tap(tap);
        return {{position.offset, tap.outer < KH ? position.h : OUTSIDE, position.w}};
    }}
    __device__ Step step(index k) const {{ return digits(k, OH, OW); }}
    __device__ void advance(Step& window) const {{ add(window, advances, OH, OW); }}
    __device__ Position depth(Step window) const {{ return of_window(window); }}
}};

// All tiles of a slab stand together, so that they read its windows from the cache.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_backward_weight(
    const stored* x, const stored* grad, real* slabs, index slab_count, {GEOMETRY}
) {{
    index taps = KH * KW * C, windows = N * OH * OW, tiles = gridDim.x / slab_count, slab = blockIdx.x / tiles;
    index length = (windows + slab_count - 1) / slab_count, first = slab * length;
    index end = first + length < windows ? first + length : windows;
    PatchColumns patches{{{{x, N, H, W, C, OH, OW, KH, KW, PH, PW}}}};
    Rows<real> rows{{slabs + slab * taps * O, O}};
    const real* no_bias = nullptr;
    multiply(patches, Matrix<false>{{grad, O, O}}, no_bias, rows, blockIdx.x % tiles, taps, O, first, end);
}}
""",
    EXAMPLES,
)

SUM_THREADS, MANY_SLABS = 256, 16

SUM_SLABS = CudaKernel(
    "sum_slabs",
    f"""
// PARTS threads for each element of the sum. Each adds every PARTS-th slab, then the first one adds what all have.
extern "C" __global__ void sum_slabs(const real* slabs, real* sum, index slab_count, index count) {{
    constexpr int NUMBERS = {SUM_THREADS} / PARTS;
    __shared__ real totals[PARTS][NUMBERS];
    int part = threadIdx.x / NUMBERS, number = threadIdx.x % NUMBERS;
    index i = (index)blockIdx.x * NUMBERS + number;
    real total = 0;
    if (i < count)
        for (index slab = part; slab < slab_count; slab += PARTS) total += slabs[slab * count + i];
    totals[part][number] = total;
    __syncthreads();
    if (part > 0 || i >= count) return;
    for (int other = 1; other < PARTS; other++) total += totals[other][number];
    sum[i] = total;
}}
""",
    examples=({"PARTS": 1}, {"PARTS": 8}),
)


def backward_weight(grad, x, weight_shape, stride, padding):
    """dL/dweight = patches^T dL/dy, in float32 or float64: a partial sum for each slab of windows, then the total."""
    grad, x = contiguous(grad), contiguous(x)
    (kh, kw, c, o), channels = weight_shape, channels_to_copy(x)
    x, taps, windows = with_channels(x, 3, channels), kh * kw * channels, math.prod(grad.shape[:3])
    slab_count = slabs_of(windows, taps, o)
    slabs = cupy.empty((slab_count, kh, kw, channels, o), real_dtype(grad.dtype))
    arguments = x, grad, slabs, slab_count, *geometry(x.shape, slabs.shape[1:], grad.shape, padding)
    operands = (x, channels), (grad, o), (slabs, o)
    launch_product(BACKWARD_WEIGHT, taps, o, slab_count, operands, arguments, strides(stride))
    grad_weight = slabs[0] if slab_count == 1 else sum_of(slabs)
    return grad_weight if channels == c else contiguous(grad_weight[:, :, :c])


def sum_of(slabs):
    """The sum over the first axis."""
    total, parts = cupy.empty(slabs.shape[1:], slabs.dtype), 8 if len(slabs) >= MANY_SLABS else 1
    blocks = -(-total.size // (SUM_THREADS // parts))
    SUM_SLABS.launch(blocks, SUM_THREADS, (slabs, total, len(slabs), total.size), slabs.dtype, {"PARTS": parts})
    return total


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
