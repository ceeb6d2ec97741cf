// What stands above each source, before CuPy's headers: CUDA's types, atomics, and what tests/stand_in/device.hpp has.
#pragma once
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
#include "../stand_in/device.hpp"
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#define __CUDACC_VER_MAJOR__ 13  // CuPy's float16 then takes CUDA's half

extern "C" char stand_in_dynamic_shared[];  // memory whose size the launch gives

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

inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline void __threadfence() {}
inline void __threadfence_block() {}

// A kernel as the driver sees it: call it for one thread; the bytes of each parameter; its signature (device.hpp).
namespace fake_gpu {
template <class... T>
const int* sizes(void (*)(T...)) {
    static const int bytes[] = {(int)sizeof(T)..., -1};
    return bytes;
}
}  // namespace fake_gpu

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))
#define FAKE_KERNEL(name, ...)                                                                          \
    FAKE_EXPORT void fake_call_##name(void** arguments) { stand_in::call(&__VA_ARGS__, arguments); }    \
    FAKE_EXPORT const int* fake_sizes_##name() { return fake_gpu::sizes(&__VA_ARGS__); }                \
    FAKE_EXPORT const char* fake_signature_##name() { return stand_in::signature(&__VA_ARGS__); }

FAKE_EXPORT char* fake_shared(long long* bytes) {  // the memory that the threads of a block share
    *bytes = __stop_stand_in_shared - __start_stand_in_shared;
    return __start_stand_in_shared;
}
