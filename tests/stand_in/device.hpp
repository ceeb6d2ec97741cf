// What CUDA C++ knows without headers, for g++: a kernel's source stands below this file and runs on the CPU.
// The threads of a block take turns on one CPU thread (see runtime.cpp).
#include <math.h>
#include <type_traits>
#include <utility>

// INFINITY and its like are macros of headers, which a kernel does not include.
#undef INFINITY
#undef NAN
#undef HUGE_VAL
#undef HUGE_VALF

#ifndef __VECTOR_TYPES_H__  // CUDA's own header, which the fake GPU puts in front
struct uint3 {
    unsigned int x, y, z;
};
using dim3 = uint3;
#endif
extern "C" const uint3 threadIdx, blockIdx;
extern "C" const dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// All threads of a block see one copy, as only one block runs at a time. The section is filled with garbage before each.
#define __shared__ static __attribute__((section("stand_in_shared")))

// -- threads that wait for each other ---------------------------------------------------------------------------------

// Other threads run until each of the block (mask 0), or each of the warp that is named in the mask, waits at this line.
extern "C" void stand_in_wait(unsigned int mask, int line);
// A place for each thread of the block to put a value for the others.
extern "C" double stand_in_slots[1024];

#define __syncthreads() stand_in_wait(0, __LINE__)
#define __syncwarp(...) stand_in_wait(stand_in::mask(__VA_ARGS__), __LINE__)
#define __shfl_sync(mask, value, ...) stand_in::shuffle<stand_in::INDEX>(mask, __LINE__, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) stand_in::shuffle<stand_in::UP>(mask, __LINE__, value, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) stand_in::shuffle<stand_in::DOWN>(mask, __LINE__, value, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) stand_in::shuffle<stand_in::XOR>(mask, __LINE__, value, __VA_ARGS__)
#define __ballot_sync(mask, predicate) stand_in::ballot(mask, __LINE__, predicate)
#define __any_sync(mask, predicate) (stand_in::ballot(mask, __LINE__, predicate) != 0)
#define __all_sync(mask, predicate) (stand_in::ballot(mask, __LINE__, !(predicate)) == 0)

namespace stand_in {

enum Shuffle { INDEX, UP, DOWN, XOR };

inline unsigned int mask(unsigned int given = 0xffffffff) {
    return given;
}

inline int number() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

template <Shuffle kind, class T>
T shuffle(unsigned int mask, int line, T value, int step, int width = 32) {
    static_assert(sizeof(T) <= sizeof(double));
    int lane = number() % 32, first = lane / width * width, source = lane;
    if (kind == INDEX) source = first + (step & (width - 1));
    if (kind == UP) source = lane - step;
    if (kind == DOWN) source = lane + step;
    if (kind == XOR) source = lane ^ step;
    if (source < first || source >= first + width) source = lane;
    T* slot = (T*)&stand_in_slots[number()];
    *slot = value;
    stand_in_wait(mask, line);
    T result = *(T*)&stand_in_slots[number() - lane + source];
    stand_in_wait(mask, line);  // before anybody puts the next value there
    return result;
}

inline unsigned int ballot(unsigned int mask, int line, bool predicate) {
    int lane = number() % 32, block = blockDim.x * blockDim.y * blockDim.z;
    stand_in_slots[number()] = predicate;
    stand_in_wait(mask, line);
    unsigned int votes = 0;
    for (int other = 0; other < 32 && number() - lane + other < block; other++)
        if (mask >> other & 1 && stand_in_slots[number() - lane + other]) votes |= 1u << other;
    stand_in_wait(mask, line);
    return votes;
}

}  // namespace stand_in

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

#ifndef __VECTOR_TYPES_H__
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(16) uint4 {
    unsigned int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }
#endif

// -- a kernel as Python sees it ---------------------------------------------------------------------------------------

namespace stand_in {

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

// A parameter in three characters: pointer or value, kind, bytes.
template <class T>
struct Parameter {
    using Bare = std::remove_cv_t<std::remove_pointer_t<T>>;
    static constexpr char is = std::is_pointer_v<T> ? 'p' : 'v', kind = stand_in::kind<Bare>(),
                          bytes = '0' + stand_in::size<Bare>();
};

template <class... T>
const char* signature(void (*)(T...)) {
    static const char letters[] = {Parameter<T>::is..., Parameter<T>::kind..., Parameter<T>::bytes..., 0};
    return letters;
}

template <class... T, std::size_t... i>
inline __attribute__((always_inline)) void call(void (*kernel)(T...), void** arguments, std::index_sequence<i...>) {
    kernel(*(std::remove_reference_t<T>*)arguments[i]...);
}

template <class... T>
inline __attribute__((always_inline)) void call(void (*kernel)(T...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<T...>());
}

}  // namespace stand_in

extern "C" char __start_stand_in_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_stand_in_shared[] __attribute__((weak, visibility("hidden")));

#define STAND_IN_KERNEL(name)                                                                                          \
    extern "C" __attribute__((visibility("default"))) void stand_in_call(void** arguments) {                          \
        stand_in::call(&name, arguments);                                                                              \
    }                                                                                                                  \
    extern "C" __attribute__((visibility("default"))) const char* stand_in_signature() {                              \
        return stand_in::signature(&name);                                                                             \
    }                                                                                                                  \
    extern "C" __attribute__((visibility("default"))) char* stand_in_shared_memory(long long* bytes) {                \
        *bytes = __stop_stand_in_shared - __start_stand_in_shared;                                                     \
        return __start_stand_in_shared;                                                                                \
    }
