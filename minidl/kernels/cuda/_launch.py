"""CUDA kernels: their source code, compiled on first use, and their launch."""

import functools
from types import MappingProxyType
from typing import ClassVar

import cupy
import numpy as np

from minidl.kernels.cuda._compile import compile_now

THREADS = 256  # the default number of threads in a block
MOST_FOR_INT = 2**30  # elements for which int is used as `index`: it must also count the threads of the last block

# Put before every source.
HEADER = """
// The upper half of a float: sign, exponent, and 7 bits of the mantissa. All arithmetic converts it to float.
struct bfloat16 {
    unsigned short bits;
    bfloat16() = default;
    __device__ bfloat16(float value) {  // rounds to nearest, ties to even; a NaN becomes 0x7FFF
#if __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
        unsigned int whole = __float_as_uint(value), half = 0x7FFF + (whole >> 16 & 1);
        bits = value == value ? (whole + half) >> 16 : 0x7FFF;
#endif
    }
    __device__ operator float() const { return __uint_as_float((unsigned int)bits << 16); }
};

// IEEE 754's half precision: 5 bits of exponent, 10 of mantissa.
struct float16 {
    unsigned short bits;
    float16() = default;
    __device__ float16(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    __device__ operator float() const {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
};

__device__ index thread_number() {
    return (index)blockIdx.x * blockDim.x + threadIdx.x;
}

// The sum of `value` over the threads of the block, in a fixed order; all threads receive it. The number of threads
// must be a power of two, at most 1,024.
__device__ real block_sum(real value) {
    __shared__ real partial[1024];
    partial[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    real sum = partial[0];
    __syncthreads();  // before `partial` is written again
    return sum;
}
"""


# dtype -> (type in memory, type for arithmetic).
TYPES = {"float32": ("float", "float"), "float64": ("double", "double")}
TYPES |= {"bfloat16": ("bfloat16", "float"), "float16": ("float16", "float")}

FLOATS = "float32", "float64"

OLDEST, WITH_BFLOAT16, HOPPER = 75, 80, 90  # compute capability times ten; the first two are Turing and Ampere
SHARED_BYTES_WITHOUT_ASKING = 48 * 1024  # of a block; for more, a kernel's attribute must be set


class CudaKernel:
    """A kernel in CUDA C++: one function `extern "C" __global__ void name(...)`.

    HEADER is put before the source. Three types in the source are set for each launch: `stored` is the type of
    activations in memory; `real` is that of parameters, statistics and all arithmetic, float if `stored` has 2 bytes;
    `index` is int, or long long for large arrays (division of long long is slow on a GPU). A launch may define more
    `constants` at compile time, such as loop lengths and divisors; `examples` are values for the tests. `dtypes`
    default to all of TYPES if the source uses `stored`, otherwise to FLOATS. `lowest_architecture` is the
    compute capability, times ten, that the source needs. `for_hopper` is True if it has code for sm_90a.
    """

    every: ClassVar[list["CudaKernel"]] = []  # for the tests, which compile all kernels

    def __init__(
        self,
        name: str,
        source: str,
        dtypes: tuple[str, ...] | None = None,
        examples: tuple[dict[str, int], ...] = ({},),
        lowest_architecture: int = OLDEST,
        for_hopper: bool = False,
    ):
        self.name, self.source, self.examples = name, HEADER + source, examples
        self.dtypes = dtypes or (tuple(TYPES) if "stored" in source else FLOATS)
        self.lowest_architecture, self.for_hopper = lowest_architecture, for_hopper
        CudaKernel.every.append(self)

    def needs(self, dtype) -> int:
        """The compute capability, times ten, that the kernel needs for the dtype."""
        return max(self.lowest_architecture, WITH_BFLOAT16 if str(dtype) == "bfloat16" else OLDEST)

    def source_for(self, dtype, wide: bool, constants: tuple[tuple[str, int], ...] = ()) -> str:
        """The source below the definitions of the three types and of the constants.

        They are not passed as compiler options: for each new set of options CuPy compiles an empty program first.
        """
        stored, real = TYPES[str(dtype)]
        types = ("stored", stored), ("real", real), ("index", "long long" if wide else "int")
        return "".join(f"#define {name} {value}\n" for name, value in (*types, *constants)) + self.source

    @functools.cache  # noqa: B019 - kernels live as long as the module
    def compiled(
        self, dtype: np.dtype, wide: bool, constants: tuple[tuple[str, int], ...], shared_bytes: int, device: int
    ):
        """The compiled function for these types and constants, on `device`, the number of the current GPU."""
        if dtype.name not in self.dtypes:
            raise TypeError(f"{self.name}: expected dtype {' or '.join(self.dtypes)}, got {dtype}")
        capability = int(cupy.cuda.Device().compute_capability)
        if capability < self.needs(dtype):
            remedy = "use float16, or float32 without tf32()" if self.needs(dtype) > OLDEST else "use device 'cpu'"
            raise RuntimeError(
                f"{self.name} with {dtype}: expected a GPU of compute capability {self.needs(dtype) / 10} or more, "
                f"got {capability / 10}; {remedy}"
            )
        # CuPy asks for sm_90. NVRTC takes both, and compiles for the one with more instructions.
        options = ("-arch=sm_90a",) if self.for_hopper and capability == HOPPER else ()
        function = cupy.RawKernel(self.source_for(dtype, wide, constants), self.name, options)
        compile_now(function)
        if shared_bytes > SHARED_BYTES_WITHOUT_ASKING:
            function.max_dynamic_shared_size_bytes = shared_bytes
        return function

    def launch(
        self,
        blocks: int | tuple,
        threads: int | tuple,
        arguments: tuple,
        dtype,
        constants: dict[str, int] = MappingProxyType({}),
        shared_bytes: int = 0,
    ) -> None:
        """Run the kernel with `blocks` blocks of `threads` threads on the current stream.

        Arrays must be contiguous, as a kernel receives only their address. A Python int is passed as `index`, a float
        as `real`, and a bool as int. `shared_bytes` is the size of the source's `extern __shared__` array.
        """
        dtype = np.dtype(dtype)
        wide = self.check_arrays(arguments)
        types = passed_as(dtype, wide)
        values = tuple([types[type(a)](a) if type(a) in types else a for a in arguments])
        blocks = blocks if type(blocks) is tuple else (blocks,)
        if 0 in blocks:  # CUDA raises an error for a launch without blocks
            return
        device = cupy.cuda.runtime.getDevice()
        function = self.compiled(dtype, wide, tuple(constants.items()), shared_bytes, device)
        function(blocks, threads if type(threads) is tuple else (threads,), values, shared_mem=shared_bytes)

    def check_arrays(self, arguments: tuple) -> bool:
        """True if an array is so large that the kernel needs `long long`. ValueError if one is not contiguous."""
        wide = False
        for argument in arguments:
            if type(argument) is cupy.ndarray:
                if not argument.flags.c_contiguous:
                    raise ValueError(f"{self.name}: expected contiguous arrays, got strides {argument.strides}")
                if argument.size > MOST_FOR_INT:
                    wide = True
        return wide

    def for_each(self, count: int, *arguments, dtype) -> None:
        """Run the kernel with a thread for each of `count` elements. The kernel itself must check `i < count`."""
        self.launch(-(-count // THREADS), THREADS, arguments, dtype)


@functools.cache
def real_dtype(dtype) -> np.dtype:
    """The dtype of `real` in a kernel where `dtype` is that of `stored`: float32 for those of 2 bytes."""
    return np.dtype(np.float32 if np.dtype(dtype).char in "Ee" else dtype)


@functools.cache
def passed_as(dtype: np.dtype, wide: bool) -> dict[type, type]:
    """The NumPy types in which a kernel receives numbers."""
    real = real_dtype(dtype).type
    return {bool: np.int32, int: np.int64 if wide else np.int32, float: real, np.float64: real}


def contiguous(array):
    """The array if it is contiguous, else a contiguous copy."""
    if type(array) is not cupy.ndarray:
        array = array.array  # it is a Deferred: see `_fusion`
    return array if array.flags.c_contiguous else cupy.ascontiguousarray(array)
