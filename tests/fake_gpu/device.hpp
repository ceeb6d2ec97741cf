// What CUDA C++ has built in, for g++: it stands above each kernel's source, before CuPy's headers. The threads of a block
// take turns on one CPU thread (see runtime.cpp).
#pragma once
#include <math.h>

#include <iterator>
#include <type_traits>
#include <utility>

// INFINITY and its like are macros of headers, which a kernel does not include.
#undef INFINITY
#undef NAN
#undef HUGE_VAL
#undef HUGE_VALF

#include <vector_types.h>
#include <vector_functions.h>
#undef __shared__
#undef __device__
#undef __host__
#undef __global__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// All threads of a block see one copy, as only one block runs at a time, on one CPU thread. Variables of this kind lie
// side by side (those of templates too; a section of one's own would not take them): the driver finds them.
#define __shared__ static __thread

extern "C" {
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;
extern char fake_gpu_dynamic_shared[];  // memory whose size the launch gives
// These are described in runtime.cpp.
void fake_gpu_fail(const char* format, ...);
void fake_gpu_wait(unsigned int mask, int line, void (*act)(unsigned long long* const*), unsigned long long* operands);
unsigned int fake_gpu_shared_address(const void* pointer);
char* fake_gpu_shared_pointer(unsigned int address, int bytes, const char* instruction);
void fake_gpu_copy(unsigned int to, const char* from, int bytes, int from_bytes);
void fake_gpu_commit();
void fake_gpu_wait_for_copies(int groups_left);
void fake_gpu_fence_async();
void fake_gpu_wgmma_fence(int warp);
void fake_gpu_wgmma_commit(int warp);
void fake_gpu_wgmma_wait(int warp, int groups_left);
bool fake_gpu_wgmma_begins(int warp, unsigned long long a, unsigned long long b);
const char* fake_gpu_wgmma_read(int warp, unsigned int address);
}
constexpr int warpSize = 32;

// -- threads that wait for each other ---------------------------------------------------------------------------------

#define __syncthreads() fake_gpu_wait(0, __LINE__, nullptr, nullptr)
#define __syncwarp(...) fake_gpu_wait(fake_gpu::mask(__VA_ARGS__), __LINE__, nullptr, nullptr)
#define __shfl_sync(mask, value, ...) fake_gpu::shuffle<fake_gpu::INDEX>(mask, __LINE__, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) fake_gpu::shuffle<fake_gpu::UP>(mask, __LINE__, value, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) fake_gpu::shuffle<fake_gpu::DOWN>(mask, __LINE__, value, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) fake_gpu::shuffle<fake_gpu::XOR>(mask, __LINE__, value, __VA_ARGS__)
#define __ballot_sync(mask, predicate) fake_gpu::ballot(mask, __LINE__, predicate)
#define __any_sync(mask, predicate) (fake_gpu::ballot(mask, __LINE__, predicate) != 0)
#define __all_sync(mask, predicate) (fake_gpu::ballot(mask, __LINE__, !(predicate)) == 0)

namespace fake_gpu {

enum Shuffle { INDEX, UP, DOWN, XOR };

inline unsigned int mask(unsigned int given = 0xffffffff) { return given; }

inline int number() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

// Each lane brings a value and a lane, and receives the value of that lane; its own, if that one is absent.
inline void exchange(unsigned long long* const* lanes) {
    for (int i = 0; i < 32; i++)
        if (lanes[i]) lanes[i][2] = lanes[lanes[lanes[i][1]] ? lanes[i][1] : i][0];
}

template <Shuffle kind, class T>
T shuffle(unsigned int mask, int line, T value, int step, int width = 32) {
    static_assert(sizeof(T) <= 8);
    int lane = number() % 32, first = lane / width * width, source = lane;
    if (kind == INDEX) source = first + (step & (width - 1));
    if (kind == UP) source = lane - step;
    if (kind == DOWN) source = lane + step;
    if (kind == XOR) source = lane ^ step;
    if (source < first || source >= first + width) source = lane;
    unsigned long long operands[3] = {0, (unsigned long long)source};
    __builtin_memcpy(&operands[0], &value, sizeof value);
    fake_gpu_wait(mask, line, exchange, operands);
    __builtin_memcpy(&value, &operands[2], sizeof value);
    return value;
}

inline void vote(unsigned long long* const* lanes) {
    unsigned long long votes = 0;
    for (int i = 0; i < 32; i++) votes |= lanes[i] ? lanes[i][0] << i : 0;
    for (int i = 0; i < 32; i++)
        if (lanes[i]) lanes[i][0] = votes;
}

inline unsigned int ballot(unsigned int mask, int line, bool predicate) {
    unsigned long long operand = predicate;
    fake_gpu_wait(mask, line, vote, &operand);
    return operand;
}

}  // namespace fake_gpu

// -- functions --------------------------------------------------------------------------------------------------------

// As in CUDA, a NaN loses against a number.
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmax((std::common_type_t<A, B>)a, b);
    std::common_type_t<A, B> x = a, y = b;
    return x > y ? x : y;
}

template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmin((std::common_type_t<A, B>)a, b);
    std::common_type_t<A, B> x = a, y = b;
    return x < y ? x : y;
}

inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned long long)a * b >> 32; }
inline int __mulhi(int a, int b) { return (long long)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned int x) { return __builtin_bit_cast(float, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline unsigned int __float_as_uint(float x) { return __builtin_bit_cast(unsigned int, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
inline long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }

template <class T>
inline T __ldg(const T* address) {
    return *address;
}

inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline size_t __cvta_generic_to_shared(const void* pointer) { return fake_gpu_shared_address(pointer); }

// One thread runs at a time, and it is never interrupted: every read and write is atomic.
#define FAKE_ATOMIC(type, name, value)        \
    inline type name(type* address, type x) { \
        type old = *address;                  \
        *address = value;                     \
        return old;                           \
    }
#define FAKE_ATOMICS(type)                                \
    FAKE_ATOMIC(type, atomicExch, x)                      \
    FAKE_ATOMIC(type, atomicMax, old > x ? old : x)       \
    FAKE_ATOMIC(type, atomicMin, old < x ? old : x)       \
    FAKE_ATOMIC(type, atomicAnd, old& x)                  \
    FAKE_ATOMIC(type, atomicOr, old | x)                  \
    FAKE_ATOMIC(type, atomicXor, old ^ x)                 \
    inline type atomicCAS(type* address, type expected, type x) { \
        type old = *address;                              \
        if (old == expected) *address = x;                \
        return old;                                       \
    }
FAKE_ATOMICS(int)
FAKE_ATOMICS(unsigned int)
FAKE_ATOMICS(unsigned long long)
FAKE_ATOMIC(int, atomicAdd, old + x)
FAKE_ATOMIC(unsigned int, atomicAdd, old + x)
FAKE_ATOMIC(unsigned long long, atomicAdd, old + x)
FAKE_ATOMIC(float, atomicAdd, old + x)
FAKE_ATOMIC(double, atomicAdd, old + x)
FAKE_ATOMIC(int, atomicSub, old - x)
FAKE_ATOMIC(unsigned int, atomicSub, old - x)

#include <cuda_fp16.h>
#include <cuda_bf16.h>
#define __CUDACC_VER_MAJOR__ 13  // CuPy's float16 then takes CUDA's half
#include "instructions.hpp"

// -- a kernel as the driver sees it -------------------------------------------------------------------------------------

namespace fake_gpu {

template <class T>
using Bare = std::remove_cv_t<std::remove_pointer_t<T>>;

// The letter of NumPy's `dtype.kind`, or ? for what NumPy has not.
template <class T>
constexpr char kind() {
    if (std::is_same_v<T, bool>) return 'b';
    if (std::is_floating_point_v<T>) return 'f';
    if (std::is_integral_v<T>) return std::is_signed_v<T> ? 'i' : 'u';
    return '?';
}

template <class T>
constexpr int size() {
    if constexpr (std::is_void_v<T>) return 0;
    else return sizeof(T);
}

struct Parameter {
    char is, kind;  // p(ointer) or v(alue); of that which it points at, or is
    int bytes, passed;  // of that, and of the parameter
};

template <class... T>
const Parameter* parameters(void (*)(T...)) {
    static const Parameter all[] = {
        {std::is_pointer_v<T> ? 'p' : 'v', kind<Bare<T>>(), size<Bare<T>>(), (int)sizeof(T)}..., {}};
    return all;
}

template <class... T, std::size_t... i>
inline __attribute__((always_inline)) void call(void (*kernel)(T...), void** arguments, std::index_sequence<i...>) {
    kernel(*(std::remove_reference_t<T>*)arguments[i]...);
}

template <class... T>
inline __attribute__((always_inline)) void call(void (*kernel)(T...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<T...>());
}

}  // namespace fake_gpu

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))
#define FAKE_KERNEL(name, ...)                                                                       \
    FAKE_EXPORT void fake_call_##name(void** arguments) { fake_gpu::call(&__VA_ARGS__, arguments); } \
    FAKE_EXPORT const void* fake_parameters_##name() { return fake_gpu::parameters(&__VA_ARGS__); }
