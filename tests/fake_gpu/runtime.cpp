// Runs the blocks of a kernel one after the other, and the threads of a block in turns.
//
// A warp goes as far as it can before the next one begins: to a barrier that needs the whole block. So a barrier that is
// missing lets a warp read what another one has not written, or write what another one still reads. Within a warp a
// thread runs until it waits for others or ends. As long as none waits, one fiber (a stack of its own) runs thread after
// thread in a plain loop. A thread that waits keeps its fiber, and the next threads go on in another one.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

struct Triple {
    unsigned int x, y, z;
};

using Act = void (*)(unsigned long long* const* lanes);  // what the lanes of a warp do together, see device.hpp

extern "C" {
Triple threadIdx, blockIdx, blockDim, gridDim;
}

namespace {

constexpr size_t STACK = 128 * 1024;
constexpr int GUARD = 256;  // bytes behind shared memory that nobody may write

struct Fiber {
    ucontext_t start;
    jmp_buf state;
    char* stack = (char*)malloc(STACK);
    bool fresh, waits;
    unsigned int thread, mask;  // mask: the lanes of the warp that are waited for, 0 for the whole block
    int line;
    Act act;
    unsigned long long* operands;
};

struct Copy {  // cp.async: what has been started and not been waited for
    char* to;
    const char* from;
    int bytes, from_bytes, group;
};

struct Copies {  // of a thread
    std::vector<Copy> pending;
    int groups;  // so many have been committed
};

struct Read {  // by a wgmma, of shared memory
    const char* place;
    char bytes[16];
    int group;
};

struct Products {  // of a warp: wgmma that have been issued and not been waited for
    std::vector<Read> reads;
    int groups;                  // so many have been committed
    bool fenced;                 // registers, by wgmma.fence
    unsigned long long history;  // a hash of the descriptors of all wgmma of the block
};

struct Region {
    char* start;
    long long bytes;
};

std::vector<Fiber*> unused, waiting[32];  // waiting: in each warp
std::vector<Triple> coordinates;          // of each thread of a block
Copies copies[1024];
bool unfenced[1024];    // of a thread: whether copies have landed since it last executed fence.proxy.async
Products products[32];  // of each warp
Region fixed, dynamic;  // shared memory: what the kernel declares, and what the launch gives
Fiber* current;         // nullptr in the scheduler
jmp_buf scheduler;
void (*kernel)(void**);
void** arguments;
unsigned int threads, next, end;  // of the block: how many; which will be started
bool descending;
char message[400];  // what went wrong

bool on_device(const void* address, long long bytes);  // whether it is memory of the device

__attribute__((noinline)) void back_to_scheduler() {
    if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

}  // namespace

// A thread that calls this ends, and so does the kernel.
extern "C" void fake_gpu_fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    if (!*message) vsnprintf(message, sizeof message, format, values);
    va_end(values);
    if (current) back_to_scheduler();
}

namespace {

// What every fiber does: start threads that nobody has started yet.
void work() {
    for (;;) {
        while (next < end) {
            current->thread = descending ? threads - 1 - next : next;
            next++;
            threadIdx = coordinates[current->thread];
            kernel(arguments);
            if (copies[current->thread].pending.size())
                fake_gpu_fail("%d asynchronous copies of thread %u are not waited for",
                              (int)copies[current->thread].pending.size(), current->thread);
            if (products[current->thread / 32].reads.size())
                fake_gpu_fail("wgmma of warp %u are not waited for", current->thread / 32);
        }
        back_to_scheduler();
    }
}

// Runs a fiber until its thread waits, or until it has nothing left to do.
__attribute__((noinline)) void resume(Fiber* fiber) {
    current = fiber;
    if (fiber->waits) threadIdx = coordinates[fiber->thread];
    fiber->waits = false;
    if (!_setjmp(scheduler)) {
        if (!fiber->fresh) _longjmp(fiber->state, 1);
        fiber->fresh = false;
        getcontext(&fiber->start);
        fiber->start.uc_stack = {.ss_sp = fiber->stack, .ss_size = STACK};
        makecontext(&fiber->start, work, 0);
        setcontext(&fiber->start);
    }
    fiber = current;  // a jump may have lost the parameter
    current = nullptr;
    fiber->fresh = *message;  // after an error its stack is used anew
    (fiber->waits ? waiting[fiber->thread / 32] : unused).push_back(fiber);
}

// Start threads of a warp; those before `next` have been started.
void start_threads() {
    while (next < end && !*message) {
        if (unused.empty()) unused.push_back(new Fiber{.fresh = true, .waits = false});
        Fiber* fiber = unused.back();
        unused.pop_back();
        resume(fiber);
    }
}

bool wait_together(const Fiber* a, const Fiber* b) {
    return a->line == b->line && a->mask == b->mask && a->act == b->act;
}

// Let those threads of a warp go on that wait at one place, if all that the mask names are there.
bool release(std::vector<Fiber*>& warp) {
    for (Fiber* first : warp) {
        if (!first->mask) continue;
        unsigned int lanes = std::min(32u, threads - first->thread / 32 * 32), arrived = 0;
        unsigned int expected = lanes < 32 ? first->mask & ((1u << lanes) - 1) : first->mask;
        unsigned long long* operands[32] = {};
        for (Fiber* fiber : warp)
            if (wait_together(fiber, first))
                arrived |= 1u << fiber->thread % 32, operands[fiber->thread % 32] = fiber->operands;
        if ((arrived & expected) != expected || !(expected >> first->thread % 32 & 1)) continue;
        auto stays = [&](Fiber* fiber) { return !wait_together(fiber, first); };
        std::vector<Fiber*> released(std::stable_partition(warp.begin(), warp.end(), stays), warp.end());
        warp.resize(warp.size() - released.size());
        threadIdx = coordinates[first->thread];  // `act` asks for the warp
        if (first->act) first->act(operands);
        for (Fiber* fiber : released) resume(fiber);
        return true;
    }
    return false;
}

// Whether each thread waits, and all at the same line for the whole block; error: some wait, but not so.
bool block_waits() {
    size_t count = 0;
    const Fiber* first = nullptr;
    bool together = true;
    for (auto& warp : waiting)
        for (const Fiber* fiber : warp) {
            if (!first) first = fiber;
            count++, together &= !fiber->mask && wait_together(fiber, first);
        }
    if (!count || (together && count == threads)) return count;
    fake_gpu_fail("%u of the block's %u threads wait at line %d for others that wait elsewhere or have ended",
                  (unsigned int)count, threads, first->line);
    return false;
}

// Calls step(i) for 0 <= i < count, in ascending or in descending order.
template <class Step>
void in_order(unsigned long long count, Step step) {
    for (unsigned long long i = 0; i < count && !*message; i++) step(descending ? count - 1 - i : i);
}

// Before a block, as the one before it may have failed.
void forget_products() {
    memset(unfenced, 0, sizeof unfenced);
    for (Products& of_warp : products) {
        of_warp.reads.clear();
        of_warp.groups = of_warp.fenced = of_warp.history = 0;
    }
}

// The four warps of a warpgroup execute each wgmma together, with the same descriptors.
void compare_warpgroups() {
    for (unsigned int warp = 0; warp < threads / 32; warp++)
        if (products[warp].history != products[warp / 4 * 4].history)
            fake_gpu_fail("warps %u and %u of a warpgroup did not execute the same wgmma", warp / 4 * 4, warp);
}

void run_block() {
    next = end = 0;
    forget_products();
    unsigned int warps = (threads + 31) / 32;
    in_order(warps, [&](int warp) {  // thread number `next` from the end, if descending
        end = descending ? threads - 32 * warp : std::min(threads, 32u * (warp + 1));
        start_threads();
        while (!*message && release(waiting[warp])) {}
    });
    while (!*message && block_waits())
        in_order(warps, [&](int warp) {
            std::vector<Fiber*> released;
            released.swap(waiting[warp]);
            for (Fiber* fiber : released) resume(fiber);
            while (!*message && release(waiting[warp])) {}
        });
    compare_warpgroups();
}

// After an error: the threads that still wait are given up.
void forget_threads() {
    for (auto& warp : waiting) {
        for (Fiber* fiber : warp) fiber->fresh = true, fiber->waits = false, unused.push_back(fiber);
        warp.clear();
    }
    for (Copies& of_thread : copies) of_thread.pending.clear();
}

bool is_guarded(const Region& region) {
    for (int i = 0; i < GUARD; i++)
        if (region.start[region.bytes + i] != -1) return false;
    return true;
}

// Returns nullptr, or what went wrong.
const char* run_kernel(void (*call)(void**), void** with, const unsigned int* sizes, bool order, Region declared,
                       Region given) {
    kernel = call, arguments = with, descending = order, fixed = declared, dynamic = given, *message = 0;
    gridDim = {sizes[0], sizes[1], sizes[2]}, blockDim = {sizes[3], sizes[4], sizes[5]};
    threads = blockDim.x * blockDim.y * blockDim.z;
    coordinates.clear();
    for (unsigned int z = 0; z < blockDim.z; z++)
        for (unsigned int y = 0; y < blockDim.y; y++)
            for (unsigned int x = 0; x < blockDim.x; x++) coordinates.push_back({x, y, z});
    in_order((unsigned long long)sizes[0] * sizes[1] * sizes[2], [&](unsigned long long number) {
        blockIdx.x = number % sizes[0];
        blockIdx.y = number / sizes[0] % sizes[1];
        blockIdx.z = number / sizes[0] / sizes[1];
        if (fixed.bytes) memset(fixed.start, 0xFF, fixed.bytes);
        memset(dynamic.start, 0xFF, dynamic.bytes + GUARD);
        run_block();
        if (!is_guarded(dynamic)) fake_gpu_fail("wrote behind its %lld bytes of shared memory", dynamic.bytes);
    });
    if (*message) forget_threads();
    return *message ? message : nullptr;
}

// Shared memory as instructions know it, by 32-bit addresses: what the kernel declares begins at 0, then the dynamic part.
long long start_of_dynamic() {
    return (fixed.bytes + 15) / 16 * 16;
}

bool lies_in(const Region& region, const char* address, int bytes) {
    return address >= region.start && address + bytes <= region.start + region.bytes;
}

}  // namespace

extern "C" {
// Other threads run until each of the block (mask 0), or each of the warp that is named in the mask, waits at this line.
// Then `act`, if given, is called once, with the operands of all lanes.
void fake_gpu_wait(unsigned int mask, int line, Act act, unsigned long long* operands) {
    current->waits = true, current->mask = mask, current->line = line, current->act = act, current->operands = operands;
    back_to_scheduler();
}

unsigned int fake_gpu_shared_address(const void* pointer) {
    auto address = (const char*)pointer;
    if (lies_in(fixed, address, 0)) return address - fixed.start;
    if (!lies_in(dynamic, address, 0)) fake_gpu_fail("the address of shared memory is asked for, but it is none");
    return start_of_dynamic() + (address - dynamic.start);
}

// nullptr, after an error, where so many bytes do not lie in shared memory or are misaligned.
char* fake_gpu_shared_pointer(unsigned int address, int bytes, const char* instruction) {
    char* pointer = address < start_of_dynamic() ? fixed.start + address : dynamic.start + address - start_of_dynamic();
    if (!lies_in(fixed, pointer, bytes) && !lies_in(dynamic, pointer, bytes))
        return fake_gpu_fail("%s: %d bytes at %u are not in shared memory", instruction, bytes, address), nullptr;
    if (address % bytes)
        return fake_gpu_fail("%s: misaligned, %d bytes at %u of shared memory", instruction, bytes, address), nullptr;
    return pointer;
}

// It lands as late as possible: when the thread waits for its group. Until then its target is NaN.
void fake_gpu_copy(unsigned int to, const char* from, int bytes, int from_bytes) {
    char* pointer = fake_gpu_shared_pointer(to, bytes, "cp.async");
    if (from_bytes < 0 || from_bytes > bytes) fake_gpu_fail("cp.async: %d of %d bytes", from_bytes, bytes);
    if (from_bytes && !on_device(from, from_bytes)) fake_gpu_fail("cp.async: %p is no global memory", from);
    if ((size_t)from % bytes) fake_gpu_fail("cp.async: misaligned, %d bytes at %p", bytes, from);
    memset(pointer, 0xFF, bytes);
    Copies& mine = copies[current->thread];
    mine.pending.push_back({pointer, from, bytes, from_bytes, mine.groups});
}

void fake_gpu_commit() { copies[current->thread].groups++; }

void fake_gpu_wait_for_copies(int groups_left) {  // -1: all, those of no group too
    Copies& mine = copies[current->thread];
    auto lands = [&](const Copy& copy) {
        if (copy.group >= mine.groups - groups_left) return false;
        memcpy(copy.to, copy.from, copy.from_bytes);
        memset(copy.to + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
        unfenced[current->thread] = true;
        return true;
    };
    mine.pending.erase(std::remove_if(mine.pending.begin(), mine.pending.end(), lands), mine.pending.end());
}

void fake_gpu_fence_async() { unfenced[current->thread] = false; }

void fake_gpu_wgmma_fence(int warp) { products[warp].fenced = true; }

void fake_gpu_wgmma_commit(int warp) { products[warp].groups++; }

// A wgmma computes when it is issued, which is as early as possible, and remembers what it read. So a kernel that reads
// the sums before it waits goes unnoticed.
void fake_gpu_wgmma_wait(int warp, int groups_left) {
    Products& mine = products[warp];
    auto done = [&](const Read& read) {
        if (read.group >= mine.groups - groups_left) return false;
        if (memcmp(read.place, read.bytes, sizeof read.bytes))
            fake_gpu_fail("shared memory that wgmma reads was written before it was waited for");
        return true;
    };
    mine.reads.erase(std::remove_if(mine.reads.begin(), mine.reads.end(), done), mine.reads.end());
    mine.fenced = false;
}

// Whether a warp may issue a wgmma with these descriptors. Copies are all that is known here to need fence.proxy.async:
// plain stores to shared memory need it, too, but nothing sees them.
bool fake_gpu_wgmma_begins(int warp, unsigned long long a, unsigned long long b) {
    Products& mine = products[warp];
    if (!mine.fenced)
        return fake_gpu_fail("warp %d: no wgmma.fence before the first wgmma, or since wgmma.wait_group", warp), false;
    auto found = std::find(unfenced, unfenced + threads, true);
    if (found != unfenced + threads) {
        fake_gpu_fail("wgmma: thread %d copied to shared memory without fence.proxy.async", (int)(found - unfenced));
        return false;
    }
    for (unsigned long long descriptor : {a, b}) mine.history = (mine.history + 1) * 0x9E3779B97F4A7C15 + descriptor;
    return true;
}

// 16 bytes of shared memory, or nullptr after an error.
const char* fake_gpu_wgmma_read(int warp, unsigned int address) {
    const char* place = fake_gpu_shared_pointer(address, 16, "wgmma");
    if (!place) return nullptr;
    Products& mine = products[warp];
    mine.reads.push_back({.place = place, .bytes = {}, .group = mine.groups});
    memcpy(mine.reads.back().bytes, place, 16);
    return place;
}
}  // extern "C"

// -- what g++ checks in kernels (-fsanitize) ------------------------------------------------------------------------------

struct SourcePlace {
    const char* file;
    unsigned int line, column;
};

extern "C" {
void __ubsan_handle_type_mismatch_v1(const SourcePlace* place, size_t pointer) {
    fake_gpu_fail("line %u: null or misaligned address 0x%zx", place->line, pointer);
}

void __ubsan_handle_out_of_bounds(const SourcePlace* place, long long index) {
    fake_gpu_fail("line %u: index %lld is out of bounds", place->line, index);
}
}  // extern "C"
