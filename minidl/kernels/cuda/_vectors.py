"""Several neighbouring numbers per thread, read and written 16 bytes at a time.

A thread that reads one bfloat16 uses 2 of the 16 bytes that one instruction can read, and computes an address for each
number. So a thread of the kernels here works on VECTOR neighbouring numbers. The source reads as if it were one.
"""

import math

from minidl.kernels.cuda._launch import THREADS, CudaKernel, contiguous

LARGEST_ACCESS = 16  # bytes that a thread reads or writes with one instruction
EXAMPLES = {"VECTOR": 1}, {"VECTOR": 8}  # of constants, for the tests that compile kernels

# Put before the source of such a kernel, which is compiled with a constant VECTOR: 1, 2, 4 or 8.
VECTORS = """
// VECTOR neighbouring numbers. They are aligned, so that they are read and written together.
template <typename Number>
struct alignas(sizeof(Number) * VECTOR < 16 ? sizeof(Number) * VECTOR : 16) Vector {
    Number number[VECTOR];
};

// As a thread computes with them: an operation on vectors is one on each of their numbers.
struct Numbers : Vector<real> {
    Numbers() = default;
    __device__ Numbers(real value) {
        for (int k = 0; k < VECTOR; k++) number[k] = value;
    }
};

__device__ Numbers operator+(Numbers a, Numbers b) {
    for (int k = 0; k < VECTOR; k++) a.number[k] += b.number[k];
    return a;
}

__device__ Numbers operator-(Numbers a, Numbers b) {
    for (int k = 0; k < VECTOR; k++) a.number[k] -= b.number[k];
    return a;
}

__device__ Numbers operator*(Numbers a, Numbers b) {
    for (int k = 0; k < VECTOR; k++) a.number[k] *= b.number[k];
    return a;
}

__device__ Numbers operator/(Numbers a, Numbers b) {
    for (int k = 0; k < VECTOR; k++) a.number[k] /= b.number[k];
    return a;
}

// 1 / sqrt(a).
__device__ Numbers inverse_sqrt(Numbers a) {
    for (int k = 0; k < VECTOR; k++) a.number[k] = rsqrt(a.number[k]);
    return a;
}

template <typename Number>
__device__ void convert(Vector<Number> vector, Numbers& numbers) {
    for (int k = 0; k < VECTOR; k++) numbers.number[k] = (real)vector.number[k];
}

template <typename Number>
__device__ void convert(Numbers numbers, Vector<Number>& vector) {
    for (int k = 0; k < VECTOR; k++) vector.number[k] = numbers.number[k];
}

#if __CUDA_ARCH__ >= 800 && VECTOR > 1
// Pairs of bfloat16 are words: converted with two instructions, and back with one.
template <>
struct alignas(2 * VECTOR) Vector<bfloat16> {
    unsigned int pair[VECTOR / 2];
};

__device__ void convert(Vector<bfloat16> vector, Numbers& numbers) {
    for (int k = 0; k < VECTOR; k += 2) {
        numbers.number[k] = __uint_as_float(vector.pair[k / 2] << 16);
        numbers.number[k + 1] = __uint_as_float(vector.pair[k / 2] & 0xFFFF0000);
    }
}

__device__ void convert(Numbers numbers, Vector<bfloat16>& vector) {
    for (int k = 0; k < VECTOR; k += 2) {
        float low = numbers.number[k], high = numbers.number[k + 1];
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(vector.pair[k / 2]) : "f"(high), "f"(low));
    }
}
#endif

// Vector number i of an array: its numbers i * VECTOR ... i * VECTOR + VECTOR - 1.
template <typename Number>
__device__ Numbers load(const Number* x, index i) {
    Numbers numbers;
    convert(((const Vector<Number>*)x)[i], numbers);
    return numbers;
}

// Write vector number i of an array.
template <typename Number>
__device__ void store(Number* y, index i, Numbers numbers) {
    Vector<Number> vector;
    convert(numbers, vector);
    ((Vector<Number>*)y)[i] = vector;
}
"""


def vector_size(length: int, dtype) -> int:
    """How many neighbouring numbers a thread works on: 16 bytes of them, or fewer, so that they divide `length`.

    `length` is that of an array's rows, or the size of the array. The result depends on shape and dtype alone, as the
    order of sums depends on it.
    """
    return math.gcd(length, LARGEST_ACCESS // dtype.itemsize)


def aligned(array):
    """The array if it is contiguous and begins at a multiple of 16 bytes, as all but views do; else a copy."""
    array = contiguous(array)
    return array.copy() if array.data.ptr % LARGEST_ACCESS else array


def for_each_vector(kernel: CudaKernel, *arrays, **constants: int) -> None:
    """Run the kernel with a thread for each vector of the arrays, which have the same size and dtype.

    The kernel receives the arrays and the number of vectors. It is compiled with the constants and with VECTOR.
    """
    size, dtype = arrays[0].size, arrays[0].dtype
    vector = vector_size(size, dtype)
    count = size // vector
    kernel.launch(-(-count // THREADS), THREADS, (*arrays, count), dtype, {"VECTOR": vector, **constants})
