// A CUDA driver and runtime on the CPU, for CuPy: what tests/fake_gpu/__init__.py loads as libcuda.so.1.
//
// Device memory is host memory. A stream is a queue of operations; each names those that must run before it. When they
// run is the mode's choice: "eager" at once, "lazy" not before somebody waits for them, "random" at any moment in
// between, in any order that CUDA allows. So a missing wait shows as a wrong number.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <library_types.h>
#include <link.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <chrono>

#include "runtime.cpp"

#ifndef FAKE_GPU_ARCH  // compute capability times ten
#define FAKE_GPU_ARCH 90
#endif

namespace {

std::recursive_mutex mutex;  // one CPU thread is the GPU; CuPy calls from several
using Lock = std::lock_guard<std::recursive_mutex>;

enum Mode { EAGER, LAZY, RANDOM } mode = LAZY;
std::mt19937 choice;
bool descending_order = false;

// -- operations and streams -------------------------------------------------------------------------------------------

struct Operation;
using Pending = std::shared_ptr<Operation>;
using Work = std::function<void()>;

struct Operation {
    Work work;
    std::vector<Pending> after;  // what must run before
    double seconds = 0;          // when it ran
    bool done = false;
};

struct Recording {  // a graph, or what becomes one
    std::vector<Work> steps;
};

enum CaptureState { NOT_CAPTURING, CAPTURING, INVALIDATED };

struct FakeStream {
    unsigned int flags = 0;
    Pending last;  // the latest operation
    CaptureState state = NOT_CAPTURING;
    cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeRelaxed;
    Recording* recording = nullptr;
    bool blocking() const { return !(flags & cudaStreamNonBlocking); }
};

struct FakeEvent {
    Pending operation;               // as it was last recorded
    FakeStream* captured = nullptr;  // where a capture recorded it
};

FakeStream null_stream;
std::set<FakeStream*> streams{&null_stream};
std::set<Pending> pending;
std::string failure;  // what went wrong on the device; the next call that waits reports it
std::string reported;

FakeStream* stream_of(cudaStream_t stream) {  // 1 and 2 stand for the legacy stream and the thread's own
    return (size_t)stream <= 2 ? &null_stream : (FakeStream*)stream;
}

// Runs an operation, and before it those that it waits for. No recursion: queues are long.
void run(const Pending& wanted) {
    std::vector<Pending> stack{wanted};
    while (!stack.empty()) {
        Pending top = stack.back();
        Pending before;
        for (auto& other : top->after)
            if (!other->done) before = other;
        if (!top->done && before) {
            stack.push_back(before);
            continue;
        }
        stack.pop_back();
        if (top->done) continue;
        if (top->work) top->work();
        top->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
        top->done = true;
        top->work = nullptr;
        top->after.clear();
        pending.erase(top);
    }
}

void run_some() {
    while (!pending.empty() && choice() % 2) {
        auto chosen = pending.begin();
        std::advance(chosen, choice() % pending.size());
        run(*chosen);
    }
}

void wait_for(Pending operation) {
    if (operation && !operation->done) run(operation);
}

void wait_for_all() {
    while (!pending.empty()) run(*pending.begin());
}

// CUDA's rule for the legacy default stream: it waits for all blocking streams, and they for it.
std::vector<Pending> predecessors(FakeStream* stream) {
    std::vector<Pending> result;
    for (FakeStream* other : streams) {
        bool ordered = other == stream || (stream->blocking() && other->blocking() &&
                                           (stream == &null_stream || other == &null_stream));
        if (ordered && other->last && !other->last->done) result.push_back(other->last);
    }
    return result;
}

Pending enqueue(FakeStream* stream, Work work) {
    auto operation = std::make_shared<Operation>();
    operation->work = std::move(work);
    operation->after = predecessors(stream);
    stream->last = operation;
    pending.insert(operation);
    if (mode == EAGER) wait_for_all();
    if (mode == RANDOM) run_some();
    return operation;
}

// A capture on a stream that waits for the legacy stream makes each use of the latter an error.
bool spoils_a_capture(FakeStream* stream) {
    bool spoilt = false;
    for (FakeStream* other : streams)
        if (stream == &null_stream && other->state == CAPTURING && other->blocking())
            other->state = INVALIDATED, spoilt = true;
    return spoilt;
}

// Runs the work in its turn, or records it.
cudaError_t submit(cudaStream_t handle, Work work) {
    FakeStream* stream = stream_of(handle);
    if (spoils_a_capture(stream)) return cudaErrorStreamCaptureImplicit;
    if (stream->state == INVALIDATED) return cudaErrorStreamCaptureInvalidated;
    if (stream->state == CAPTURING) stream->recording->steps.push_back(std::move(work));
    else enqueue(stream, std::move(work));
    return cudaSuccess;
}

cudaError_t report() {
    if (failure.empty()) return cudaSuccess;
    reported.swap(failure);
    failure.clear();  // a real device would be lost; here the next test starts afresh
    return cudaErrorLaunchFailure;
}

cudaError_t not_in_capture(FakeStream* stream) {
    if (stream->state == NOT_CAPTURING) return cudaSuccess;
    stream->state = INVALIDATED;
    return cudaErrorStreamCaptureUnsupported;
}

cudaError_t synchronize(FakeStream* stream) {
    if (spoils_a_capture(stream)) return cudaErrorStreamCaptureImplicit;
    if (cudaError_t error = not_in_capture(stream)) return error;
    for (auto& operation : predecessors(stream)) wait_for(operation);
    return report();
}

// -- memory -----------------------------------------------------------------------------------------------------------

constexpr size_t TOTAL = (size_t)8 << 30;  // bytes of the GPU
size_t taken = 0;
std::map<char*, size_t> device_memory, pinned_memory;

bool lies_in(const std::map<char*, size_t>& blocks, const void* address, size_t bytes = 1) {
    auto block = blocks.upper_bound((char*)address);
    if (block == blocks.begin()) return false;
    --block;
    return (char*)address + bytes <= block->first + block->second;
}

bool on_device(const void* address, long long bytes) { return lies_in(device_memory, address, bytes); }

struct Array {  // in a piece of memory that is longer at both ends: what lies beside it must stay -1
    char *piece, *begin, *end, *piece_end;
    bool intact() const {
        auto untouched = [](char byte) { return byte == -1; };
        return std::all_of(piece, begin, untouched) && std::all_of(end, piece_end, untouched);
    }
};
std::map<char*, Array> arrays;  // by the piece's end

void forget_arrays(char* begin, char* end) {  // that touch this memory
    for (auto array = arrays.upper_bound(begin); array != arrays.end() && array->second.piece < end;)
        array = arrays.erase(array);
}

cudaError_t allocate(std::map<char*, size_t>& blocks, void** address, size_t size) {
    Lock lock(mutex);
    *address = nullptr;
    if (!size) return cudaSuccess;
    if (&blocks == &device_memory && taken + size > TOTAL) return cudaErrorMemoryAllocation;
    if (posix_memalign(address, 512, size)) return cudaErrorMemoryAllocation;
    memset(*address, 0xFF, size);  // NaN or -1: nobody may count on zeros
    blocks[(char*)*address] = size;
    if (&blocks == &device_memory) taken += size;
    return cudaSuccess;
}

cudaError_t release(std::map<char*, size_t>& blocks, void* address) {
    Lock lock(mutex);
    if (!address) return cudaSuccess;
    auto block = blocks.find((char*)address);
    if (block == blocks.end()) return cudaErrorInvalidValue;
    wait_for_all();  // as cudaFree does
    if (&blocks == &device_memory) taken -= block->second;
    if (&blocks == &device_memory) forget_arrays((char*)address, (char*)address + block->second);
    blocks.erase(block);
    free(address);
    return cudaSuccess;
}

Work copying(void* to, const void* from, size_t size) {
    return [=] { memmove(to, from, size); };
}

cudaError_t copy_async(void* to, const void* from, size_t size, cudaStream_t stream) {
    bool from_device = lies_in(device_memory, from), to_device = lies_in(device_memory, to);
    bool pageable = (!from_device && !lies_in(pinned_memory, from)) || (!to_device && !lies_in(pinned_memory, to));
    if (!pageable) return submit(stream, copying(to, from, size));
    if (cudaError_t error = not_in_capture(stream_of(stream))) return error;
    if (from_device || !to_device) {  // the host waits for a copy to pageable memory
        if (cudaError_t error = submit(stream, copying(to, from, size))) return error;
        return synchronize(stream_of(stream));
    }
    auto snapshot = std::make_shared<std::string>((const char*)from, size);
    return submit(stream, [=] { memcpy(to, snapshot->data(), size); });
}

// -- kernels ----------------------------------------------------------------------------------------------------------

constexpr int LIMITS[] = {2147483647, 65535, 65535, 1024, 1024, 64};
// Of a block, in bytes: without asking, and at most (CUDA programming guide, "compute capabilities").
constexpr long long SHARED_MEMORY = 48 * 1024,
                    MOST_SHARED_MEMORY = 1024 * (FAKE_GPU_ARCH >= 90   ? 227
                                                 : FAKE_GPU_ARCH == 80 ? 163
                                                 : FAKE_GPU_ARCH > 80  ? 99
                                                                       : 64);

// Memory that the threads of a block share, of a size that the launch gives.
extern "C" {
alignas(128) char fake_gpu_dynamic_shared[MOST_SHARED_MEMORY + GUARD];
}

struct Parameter {  // as in device.hpp
    char is, kind;
    int bytes, passed;
};

struct Kernel {
    std::string name;
    void (*call)(void**);
    std::vector<Parameter> parameters;
    std::string signature;  // of the parameters, as in "pf4 vi8"
    long long shared_bytes;  // what its module declares as __shared__
    size_t shared_module;    // by this number glibc knows it
    long long most_dynamic = SHARED_MEMORY;
};

extern "C" void* __tls_get_addr(size_t* module_and_offset);  // of glibc

// The memory of a module that is __thread, which device.hpp makes of __shared__: its bytes.
long long shared_memory_of(size_t module) {
    std::pair<size_t, long long> wanted{module, 0};
    auto look = [](dl_phdr_info* library, size_t, void* data) {
        auto found = (std::pair<size_t, long long>*)data;
        for (int i = 0; library->dlpi_tls_modid == found->first && i < library->dlpi_phnum; i++)
            if (library->dlpi_phdr[i].p_type == PT_TLS) found->second = library->dlpi_phdr[i].p_memsz;
        return 0;
    };
    if (module) dl_iterate_phdr(look, &wanted);
    return wanted.second;
}

std::map<std::pair<void*, std::string>, Kernel*> kernels;

struct Launch {
    const Kernel* kernel;
    unsigned int sizes[6];  // of the grid and of a block
    unsigned int dynamic_bytes;  // of shared memory
    bool captured;  // then it may find other arrays where its own were
    std::vector<std::vector<double>> values;  // the parameters

    std::string damage() const {  // to what lies beside an array
        for (size_t i = 0; i < values.size() && !captured; i++) {
            char* address = *(char**)values[i].data();
            auto array = arrays.upper_bound(address);
            if (kernel->parameters[i].is != 'p' || array == arrays.end() || address < array->second.piece) continue;
            if (!array->second.intact())
                return "wrote beside the array that is argument " + std::to_string(i);
        }
        return "";
    }

    void operator()() {
        std::vector<void*> addresses;
        for (auto& value : values) addresses.push_back(value.data());
        size_t place[] = {kernel->shared_module, 0};
        Region declared{kernel->shared_bytes ? (char*)__tls_get_addr(place) : nullptr, kernel->shared_bytes};
        std::string text = damage() + " before this kernel ran";
        if (damage().empty()) {
            const char* error = run_kernel(kernel->call, addresses.data(), sizes, descending_order, declared,
                                           {fake_gpu_dynamic_shared, dynamic_bytes});
            text = error ? error : damage();
        }
        if (!text.empty() && failure.empty()) failure = kernel->name + ": " + text;
    }
};

// -- errors ----------------------------------------------------------------------------------------------------------

struct Error {
    cudaError_t code;
    const char *name, *text;
};
#define ERROR(name, text) {name, #name, text}
const Error ERRORS[] = {
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorNotReady, "device not ready"),
    ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing one"),
    ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(cudaErrorLaunchFailure, nullptr),
};

const Error& described(cudaError_t code) {
    static const Error unknown{code, "an error", "the fake GPU does not know it"};
    auto found = std::find_if(std::begin(ERRORS), std::end(ERRORS), [=](const Error& e) { return e.code == code; });
    return found == std::end(ERRORS) ? unknown : *found;
}

}  // namespace

extern "C" {
void fake_gpu_set_mode(int new_mode, unsigned int seed, int descending) {
    Lock lock(mutex);
    wait_for_all();
    mode = (Mode)new_mode;
    choice.seed(seed);
    descending_order = descending;
}

// Does all work that is left. Returns what went wrong with it, or nullptr.
const char* fake_gpu_finish() {
    Lock lock(mutex);
    wait_for_all();
    return report() ? reported.c_str() : nullptr;
}

// A new array in its piece of memory, both full of NaN or -1; in a capture at once, as a graph does not allocate.
void fake_gpu_array(char* piece, char* begin, char* end, char* piece_end, cudaStream_t stream) {
    Lock lock(mutex);
    bool captures = stream_of(stream)->state != NOT_CAPTURING;
    auto create = [=] {
        forget_arrays(piece, piece_end);  // those before it in this memory
        arrays[piece_end] = {piece, begin, end, piece_end};
        memset(piece, 0xFF, piece_end - piece);
    };
    if (captures) wait_for_all(), create();
    else enqueue(stream_of(stream), create);
}

const char* fake_gpu_signature(void* kernel) { return ((Kernel*)kernel)->signature.c_str(); }

// -- the driver's functions that CuPy calls (CUDA driver API) ------------------------------------------------------------

CUresult cuGetErrorName(CUresult error, const char** name) {
    return *name = error == CUDA_ERROR_NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR", CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_NOT_FOUND       ? "named symbol not found"
            : error == CUDA_ERROR_INVALID_VALUE ? "invalid argument: the kernel cannot be launched so"
                                                : described((cudaError_t)error).text;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)&null_stream, CUDA_SUCCESS; }

CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }

CUresult cuStreamGetCtx(CUstream, CUcontext* context) { return cuCtxGetCurrent(context); }

// A module is the path of a shared library: see compiler.py.
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    *module = (CUmodule)dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
    if (*module) return CUDA_SUCCESS;
    fprintf(stderr, "fake GPU driver: %s\n", dlerror());
    return CUDA_ERROR_INVALID_IMAGE;
}

CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }  // operations may still need it

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    Lock lock(mutex);
    Kernel*& kernel = kernels[{module, name}];
    if (!kernel) {
        auto call = (void (*)(void**))dlsym(module, (std::string("fake_call_") + name).c_str());
        auto parameters = (const Parameter* (*)())dlsym(module, (std::string("fake_parameters_") + name).c_str());
        if (!call || !parameters) return CUDA_ERROR_NOT_FOUND;
        size_t number = 0;
        dlinfo(module, RTLD_DI_TLS_MODID, &number);
        kernel = new Kernel{name, call, {}, "", shared_memory_of(number), number};
        for (const Parameter* p = parameters(); p->passed; p++) {
            kernel->parameters.push_back(*p);
            kernel->signature += std::string{p->is, p->kind} + std::to_string(p->bytes) + " ";
        }
    }
    *function = (CUfunction)kernel;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
    auto kernel = (Kernel*)function;
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK                 ? 1024
             : attribute == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES                   ? kernel->shared_bytes
             : attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES       ? kernel->most_dynamic
                                                                                  : 0;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value > MOST_SHARED_MEMORY) return CUDA_ERROR_INVALID_VALUE;
    ((Kernel*)function)->most_dynamic = value;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                        unsigned int by, unsigned int bz, unsigned int dynamic, CUstream stream, void** parameters,
                        void**) {
    Lock lock(mutex);
    auto kernel = (const Kernel*)function;
    Launch launch{kernel, {gx, gy, gz, bx, by, bz}, dynamic,
                  stream_of((cudaStream_t)stream)->state != NOT_CAPTURING, {}};
    for (int i = 0; i < 6; i++)
        if (!launch.sizes[i] || launch.sizes[i] > (unsigned)LIMITS[i]) return CUDA_ERROR_INVALID_VALUE;
    if ((long long)bx * by * bz > 1024 || dynamic > kernel->most_dynamic) return CUDA_ERROR_INVALID_VALUE;
    if (kernel->shared_bytes > SHARED_MEMORY) return CUDA_ERROR_INVALID_VALUE;
    if (kernel->shared_bytes + dynamic > std::max(kernel->most_dynamic, SHARED_MEMORY)) return CUDA_ERROR_INVALID_VALUE;
    for (const Parameter& parameter : kernel->parameters) {  // as they are at the time of the launch
        launch.values.emplace_back((parameter.passed + 7) / 8);
        memcpy(launch.values.back().data(), *parameters++, parameter.passed);
    }
    return (CUresult)submit((cudaStream_t)stream, std::move(launch));
}

// -- the runtime's functions that CuPy calls (CUDA runtime API) ----------------------------------------------------------

const char* cudaGetErrorName(cudaError_t error) { return described(error).name; }

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorLaunchFailure ? reported.c_str() : described(error).text;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    static const std::map<cudaDeviceAttr, int> attributes{
        {cudaDevAttrComputeCapabilityMajor, FAKE_GPU_ARCH / 10},
        {cudaDevAttrComputeCapabilityMinor, FAKE_GPU_ARCH % 10},
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMultiProcessorCount, 132},
        {cudaDevAttrMaxSharedMemoryPerBlock, SHARED_MEMORY},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, MOST_SHARED_MEMORY}};
    auto found = attributes.find(attribute);
    return *value = found == attributes.end() ? 0 : found->second, cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device) return cudaErrorInvalidDevice;
    *properties = {.name = "fake GPU",
                   .totalGlobalMem = TOTAL,
                   .sharedMemPerBlock = SHARED_MEMORY,
                   .warpSize = 32,
                   .maxThreadsPerBlock = 1024,
                   .maxThreadsDim = {LIMITS[3], LIMITS[4], LIMITS[5]},
                   .maxGridSize = {LIMITS[0], LIMITS[1], LIMITS[2]},
                   .major = FAKE_GPU_ARCH / 10,
                   .minor = FAKE_GPU_ARCH % 10,
                   .multiProcessorCount = 132,
                   .maxThreadsPerMultiProcessor = 2048,
                   .sharedMemPerBlockOptin = MOST_SHARED_MEMORY};
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int) {
    return snprintf(text, length, "0000:00:00.0"), cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    Lock lock(mutex);
    bool capturing = false;
    for (FakeStream* stream : streams) capturing |= not_in_capture(stream) != cudaSuccess;
    if (capturing) return cudaErrorStreamCaptureUnsupported;
    wait_for_all();
    return report();
}

// While any stream captures in a mode other than "relaxed", which is CuPy's, memory must not be taken or given back.
cudaError_t allocation_in_capture() {
    Lock lock(mutex);
    for (FakeStream* stream : streams)
        if (stream->state != NOT_CAPTURING && stream->capture_mode != cudaStreamCaptureModeRelaxed)
            return not_in_capture(stream);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t size) {
    cudaError_t error = allocation_in_capture();
    return error ? error : allocate(device_memory, address, size);
}

cudaError_t cudaFree(void* address) {
    cudaError_t error = allocation_in_capture();
    return error ? error : release(device_memory, address);
}

cudaError_t cudaHostAlloc(void** address, size_t size, unsigned int) { return allocate(pinned_memory, address, size); }
cudaError_t cudaFreeHost(void* address) { return release(pinned_memory, address); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    Lock lock(mutex);
    return *total = TOTAL, *free = TOTAL - taken, cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
    Lock lock(mutex);
    *attributes = {};
    bool device = lies_in(device_memory, address), pinned = lies_in(pinned_memory, address);
    attributes->type = device ? cudaMemoryTypeDevice : pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    if (device || pinned) attributes->devicePointer = (void*)address;
    if (!device) attributes->hostPointer = (void*)address;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
    Lock lock(mutex);
    return copy_async(to, from, size, stream);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
    Lock lock(mutex);
    if (cudaError_t error = submit(nullptr, copying(to, from, size))) return error;
    return synchronize(&null_stream);
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t size, cudaStream_t stream) {
    Lock lock(mutex);
    return submit(stream, [=] { memset(address, value, size); });
}

cudaError_t cudaMemset(void* address, int value, size_t size) { return cudaMemsetAsync(address, value, size, nullptr); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* result, unsigned int flags) {
    Lock lock(mutex);
    auto stream = new FakeStream;
    stream->flags = flags;
    streams.insert(stream);
    return *result = (cudaStream_t)stream, cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* result) { return cudaStreamCreateWithFlags(result, 0); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* result, unsigned int flags, int) {
    return cudaStreamCreateWithFlags(result, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {  // its work goes on
    Lock lock(mutex);
    wait_for(stream_of(stream)->last);  // or the legacy stream could no longer know of it
    streams.erase((FakeStream*)stream);
    delete (FakeStream*)stream;
    return cudaSuccess;
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned int* flags) {
    return *flags = stream_of(stream)->flags, cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Lock lock(mutex);
    return synchronize(stream_of(stream));
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {  // who asks again gets another answer
    Lock lock(mutex);
    if (predecessors(stream_of(stream)).empty()) return not_in_capture(stream_of(stream));
    cudaError_t error = synchronize(stream_of(stream));
    return error ? error : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned int) {
    Lock lock(mutex);
    FakeStream* stream = stream_of(handle);
    auto event = (FakeEvent*)event_handle;
    if (event->captured == stream && stream->state == CAPTURING) return cudaSuccess;  // the steps have an order
    if (event->captured || stream->state != NOT_CAPTURING) {  // CUDA would let the other stream join the capture
        stream->state = stream->state == NOT_CAPTURING ? NOT_CAPTURING : INVALIDATED;
        return cudaErrorStreamCaptureIsolation;
    }
    Pending operation = event->operation, barrier = std::make_shared<Operation>();
    if (!operation || operation->done) return cudaSuccess;
    barrier->after = predecessors(stream);
    barrier->after.push_back(operation);
    pending.insert(barrier);
    stream->last = barrier;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
    return *event = (cudaEvent_t) new FakeEvent, cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Lock lock(mutex);
    delete (FakeEvent*)event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
    Lock lock(mutex);
    FakeStream* stream = stream_of(stream_handle);
    auto event = (FakeEvent*)handle;
    event->captured = stream->state == CAPTURING ? stream : nullptr;
    if (event->captured) return cudaSuccess;
    if (spoils_a_capture(stream)) return cudaErrorStreamCaptureImplicit;
    event->operation = enqueue(stream, nullptr);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    Lock lock(mutex);
    auto event = (FakeEvent*)handle;
    if (event->captured) return cudaErrorCapturedEvent;
    wait_for(event->operation);
    return report();
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
    Lock lock(mutex);
    auto event = (FakeEvent*)handle;
    if (event->captured) return cudaErrorCapturedEvent;
    if (!event->operation || event->operation->done) return report();
    wait_for(event->operation);  // who asks again gets another answer
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    Lock lock(mutex);
    auto &first = ((FakeEvent*)start)->operation, &second = ((FakeEvent*)end)->operation;
    if (!first || !second) return cudaErrorInvalidValue;
    if (!first->done || !second->done) return cudaErrorNotReady;
    return *milliseconds = 1000 * (second->seconds - first->seconds), cudaSuccess;
}

// -- graphs -----------------------------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    Lock lock(mutex);
    FakeStream* stream = stream_of(handle);
    if (stream == &null_stream) return cudaErrorStreamCaptureUnsupported;
    if (stream->state != NOT_CAPTURING) return cudaErrorIllegalState;
    stream->state = CAPTURING, stream->capture_mode = mode;
    stream->recording = new Recording;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    Lock lock(mutex);
    FakeStream* stream = stream_of(handle);
    *graph = nullptr;
    if (stream->state == NOT_CAPTURING) return cudaErrorIllegalState;
    bool spoilt = stream->state == INVALIDATED;
    stream->state = NOT_CAPTURING;
    if (spoilt) delete stream->recording;
    else *graph = (cudaGraph_t)stream->recording;
    stream->recording = nullptr;
    return spoilt ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    Lock lock(mutex);
    FakeStream* stream = stream_of(handle);
    if (spoils_a_capture(stream)) return cudaErrorStreamCaptureImplicit;
    *status = stream->state == NOT_CAPTURING ? cudaStreamCaptureStatusNone
              : stream->state == CAPTURING   ? cudaStreamCaptureStatusActive
                                             : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* result, cudaGraph_t graph, unsigned long long) {
    auto recording = std::make_shared<Recording>(*(Recording*)graph);
    return *result = (cudaGraphExec_t) new std::shared_ptr<Recording>(recording), cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    Lock lock(mutex);
    auto recording = *(std::shared_ptr<Recording>*)graph;
    return submit(stream, [=] {
        for (auto& step : recording->steps) step();
    });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete (Recording*)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete (std::shared_ptr<Recording>*)graph;
    return cudaSuccess;
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

// -- libraries of which the wheels have code for GPUs only ------------------------------------------------------------------

constexpr int SUCCESS = 0, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15;  // cublasStatus_t; a handle is a place for a stream

int cublasCreate_v2(void** handle) { return *handle = new cudaStream_t(nullptr), SUCCESS; }
int cublasDestroy_v2(void*) { return SUCCESS; }
int cublasSetStream_v2(cudaStream_t* handle, cudaStream_t stream) { return *handle = stream, SUCCESS; }
int cublasGetStream_v2(cudaStream_t* handle, cudaStream_t* stream) { return *stream = *handle, SUCCESS; }
int cublasGetVersion_v2(void*, int* version) { return *version = 130000, SUCCESS; }
int cublasSetMathMode(void*, int) { return SUCCESS; }
int cublasGetMathMode(void*, int* mode) { return *mode = 0, SUCCESS; }
int cublasSetPointerMode_v2(void*, int mode) { return mode ? NOT_SUPPORTED : SUCCESS; }
int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0, SUCCESS; }

// c = alpha a b + beta c of matrices in column-major order, a and b perhaps transposed.
int cublasGemmEx(cudaStream_t* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
                 const void* a, int a_type, int a_leading, const void* b, int b_type, int b_leading, const void* beta,
                 void* c, int c_type, int c_leading, int, int) {
    Lock lock(mutex);
    if (a_type != b_type || a_type != c_type || (a_type != CUDA_R_32F && a_type != CUDA_R_64F)) return NOT_SUPPORTED;
    auto product = [=](auto scale, auto scale_c) {
        using Real = decltype(scale);
        auto at = [](const void* matrix, bool transposed, size_t leading, size_t row, size_t column) {
            return ((const Real*)matrix)[transposed ? column + row * leading : row + column * leading];
        };
        return [=] {
            for (int column = 0; column < n; column++)
                for (int row = 0; row < m; row++) {
                    Real sum = 0, &result = ((Real*)c)[row + (size_t)column * c_leading];
                    for (int i = 0; i < k; i++)
                        sum += at(a, transpose_a, a_leading, row, i) * at(b, transpose_b, b_leading, i, column);
                    result = scale * sum + (scale_c ? scale_c * result : 0);
                }
        };
    };
    Work work = a_type == CUDA_R_64F ? Work(product(*(double*)alpha, *(double*)beta))
                                     : Work(product(*(float*)alpha, *(float*)beta));
    return submit(*handle, work) ? EXECUTION_FAILED : SUCCESS;
}

// In place of Thrust: indices that sort each row, NaN last. `kind` is NumPy's letter for the dtype.
int fake_gpu_argsort(char kind, void* values, long long* order, long long rows, long long count, cudaStream_t stream) {
    Lock lock(mutex);
    auto sort = [=](auto* values) {
        return [=] {  // a graph runs it many times
            auto* row = values;
            for (long long i = 0; i < rows; i++, row += count) {
                long long* mine = order + i * count;
                for (long long k = 0; k < count; k++) mine[k] = k;
                std::stable_sort(mine, mine + count, [=](long long a, long long b) {
                    return row[a] < row[b] || (row[b] != row[b] && row[a] == row[a]);
                });
            }
        };
    };
    switch (kind) {
        case 'i': return submit(stream, sort((int*)values));
        case 'l': return submit(stream, sort((long long*)values));
        case 'f': return submit(stream, sort((float*)values));
        case 'd': return submit(stream, sort((double*)values));
        default: return cudaErrorNotSupported;
    }
}
}  // extern "C"
