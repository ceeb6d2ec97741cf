// What CuPy's own kernels need beside tests/stand_in/device.hpp: CUDA's types, atomics, and a few functions.
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
