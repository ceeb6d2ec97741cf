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


class CudaKernel:
    """A kernel in CUDA C++: one function `extern "C" __global__ void name(...)`.

    The source leaves two types open, which are filled in for each launch: `real` is that of the numbers, float or
    double, and `index` is wide enough to count them, int or long long (dividing long long is slow on a GPU). HEADER
    stands above it. Where more is to be known when it is compiled, as lengths of loops and divisors, the launch names
    `constants`; `examples` are some for the tests.
    """

    lowest_architecture = 75  # the compute capability, times ten, below which the source does not compile
    every: ClassVar[list["CudaKernel"]] = []  # for the tests that compile them all

    def __init__(self, name: str, source: str, dtypes: tuple[str, ...] = ("float32", "float64"), examples=({},)):
        self.name, self.source, self.dtypes, self.examples = name, HEADER + source, dtypes, examples
        CudaKernel.every.append(self)

    def options(self, dtype, wide: bool, constants: tuple[tuple[str, int], ...] = ()) -> tuple[str, ...]:
        """What the compiler is told: the two types, and the constants."""
        real = {"float32": "float", "float64": "double"}[str(np.dtype(dtype))]
        types = f"-Dreal={real}", f"-Dindex={'long long' if wide else 'int'}"
        return *types, *(f"-D{name}={value}" for name, value in constants)

    @functools.cache  # noqa: B019 - kernels live as long as the module
    def compiled(self, dtype, wide: bool, constants: tuple[tuple[str, int], ...]):
        """The function for these two types and constants."""
        capability = int(cupy.cuda.Device().compute_capability)
        if capability < self.lowest_architecture:
            raise RuntimeError(
                f"{self.name}: expected a GPU of compute capability {self.lowest_architecture / 10} or more, "
                f"got {capability / 10}; use device 'cpu'"
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
        to_index, to_real = np.int64 if wide else np.int32, dtype.type

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


def contiguous(array):
    """The array, or a copy of it where its numbers do not lie in their order; CuPy's own would make (1,) of ()."""
    return cupy.ascontiguousarray(array).reshape(array.shape)
