"""CUDA kernels: their source, compiled when it is first used, and their launch."""

import functools
import math
from typing import ClassVar

import cupy
import numpy as np

THREADS = 256  # in a block, unless a kernel says otherwise
MOST_FOR_INT = 2**30  # numbers that an int counts, with room for the last block of threads beyond them

# What every source begins with.
HEADER = """
// The upper half of a float: its sign, its exponent, and 7 bits of its mantissa. It is computed with as a float.
struct bfloat16 {
    unsigned short bits;
    bfloat16() = default;
    __device__ bfloat16(float value) {  // the nearest one, of two the even one; a NaN stays a NaN
        unsigned int whole = __float_as_uint(value), half = 0x7FFF + (whole >> 16 & 1);
        bits = value == value ? (whole + half) >> 16 : 0x7FFF;
    }
    __device__ operator float() const { return __uint_as_float((unsigned int)bits << 16); }
};

__device__ index thread_number() {
    return (index)blockIdx.x * blockDim.x + threadIdx.x;
}

// The sum of a value of every thread of the block, in a fixed order; every thread gets it. The block has a power of two
// of threads, 1,024 at most.
__device__ real block_sum(real value) {
    __shared__ real partial[1024];
    partial[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    real sum = partial[0];
    __syncthreads();  // before anybody writes to it again
    return sum;
}
"""


# dtype -> the type in which numbers lie in memory, and the type in which they are computed with.
TYPES = {"float32": ("float", "float"), "float64": ("double", "double"), "bfloat16": ("bfloat16", "float")}

FLOATS = "float32", "float64"

OLDEST, WITH_BFLOAT16 = 75, 80  # compute capabilities, times ten: Turing, and Ampere


class CudaKernel:
    """A kernel in CUDA C++: one function `extern "C" __global__ void name(...)`.

    The source leaves three types open, which are filled in for each launch: `stored` is that of the activations in
    memory, `real` that of parameters, statistics and all arithmetic (float where `stored` is bfloat16), and `index` is
    wide enough to count them, int or long long (dividing long long is slow on a GPU). HEADER stands above it. Where
    more is to be known when it is compiled, as lengths of loops and divisors, the launch names `constants`; `examples`
    are some for the tests. `dtypes` are by default all three for a source that says `stored`, and otherwise not
    bfloat16. `lowest_architecture` is the compute capability, times ten, that the source needs.
    """

    every: ClassVar[list["CudaKernel"]] = []  # for the tests that compile them all

    def __init__(
        self,
        name: str,
        source: str,
        dtypes: tuple[str, ...] | None = None,
        examples: tuple[dict[str, int], ...] = ({},),
        lowest_architecture: int = OLDEST,
    ):
        self.name, self.source, self.examples = name, HEADER + source, examples
        self.dtypes = dtypes or (tuple(TYPES) if "stored" in source else FLOATS)
        self.lowest_architecture = lowest_architecture
        CudaKernel.every.append(self)

    def needs(self, dtype) -> int:
        """The compute capability, times ten, for that dtype."""
        return max(self.lowest_architecture, WITH_BFLOAT16 if str(dtype) == "bfloat16" else OLDEST)

    def options(self, dtype, wide: bool, constants: tuple[tuple[str, int], ...] = ()) -> tuple[str, ...]:
        """What the compiler is told: the three types, and the constants."""
        stored, real = TYPES[str(dtype)]
        types = f"-Dstored={stored}", f"-Dreal={real}", f"-Dindex={'long long' if wide else 'int'}"
        return *types, *(f"-D{name}={value}" for name, value in constants)

    @functools.cache  # noqa: B019 - kernels live as long as the module
    def compiled(self, dtype, wide: bool, constants: tuple[tuple[str, int], ...]):
        """The function for these types and constants."""
        if str(dtype) not in self.dtypes:
            raise TypeError(f"{self.name}: expected numbers of {' or '.join(self.dtypes)}, got {dtype}")
        capability = int(cupy.cuda.Device().compute_capability)
        if capability < self.needs(dtype):
            remedy = "use float32" if self.needs(dtype) > OLDEST else "use device 'cpu'"
            raise RuntimeError(
                f"{self.name} with {dtype}: expected a GPU of compute capability {self.needs(dtype) / 10} or more, "
                f"got {capability / 10}; {remedy}"
            )
        return cupy.RawKernel(self.source, self.name, self.options(dtype, wide, constants))

    def launch(
        self,
        blocks: int | tuple,
        threads: int | tuple,
        arguments: tuple,
        dtype,
        constants: dict[str, int] | None = None,
    ) -> None:
        """Run it on that many blocks of threads, on the current stream.

        Arrays must be contiguous, as a kernel is given their address alone. Python's whole numbers are passed as
        `index`, its floats as `real`, and its truth values as int.
        """
        dtype = np.dtype(dtype)
        arrays = [argument for argument in arguments if isinstance(argument, cupy.ndarray)]
        for array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError(f"{self.name}: expected contiguous arrays, got one with strides {array.strides}")
        wide = max((array.size for array in arrays), default=0) > MOST_FOR_INT
        to_index, to_real = np.int64 if wide else np.int32, real_dtype(dtype).type

        def convert(argument):
            if isinstance(argument, bool):
                return np.int32(argument)
            if isinstance(argument, int):
                return to_index(argument)
            return to_real(argument) if isinstance(argument, float) else argument

        blocks, threads = (size if isinstance(size, tuple) else (size,) for size in (blocks, threads))
        if math.prod(blocks):  # CUDA refuses to start nothing
            function = self.compiled(dtype, wide, tuple((constants or {}).items()))
            function(blocks, threads, tuple(map(convert, arguments)))

    def for_each(self, count: int, *arguments, dtype) -> None:
        """Run it with a thread for each of `count` numbers; the kernel checks `i < count` itself."""
        self.launch(-(-count // THREADS), THREADS, arguments, dtype)


def real_dtype(dtype) -> np.dtype:
    """The dtype of `real`, where that of `stored` is `dtype`."""
    return np.dtype(np.float32) if str(dtype) == "bfloat16" else np.dtype(dtype)


def contiguous(array):
    """The array, or a copy of it where its numbers do not lie in their order; CuPy's own would make (1,) of ()."""
    return cupy.ascontiguousarray(array).reshape(array.shape)
