// Runs the blocks of a kernel one after the other, and the threads of a block in turns.
//
// A thread runs until it waits for others or ends. As long as none waits, one fiber (a stack of its own) runs thread
// after thread in a plain loop. A thread that waits keeps its fiber, and the next threads go on in another one; when all
// that are waited for have arrived, they go on in the same order. So a kernel without barriers costs no switches.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

struct uint3 {
    unsigned int x, y, z;
};

extern "C" {
uint3 threadIdx, blockIdx, blockDim, gridDim;
double stand_in_slots[1024];
}

namespace {

constexpr size_t STACK = 64 * 1024;

struct Fiber {
    ucontext_t start;
    jmp_buf state;
    bool fresh = true, waits = false;
    unsigned int thread, mask;  // mask: the lanes of the warp that are waited for, 0 for the whole block
    int line;
};

std::vector<Fiber*> unused, waiting;
std::vector<uint3> coordinates;  // of each thread of a block
Fiber* current;
jmp_buf scheduler;
void (*kernel)(void**);
void** arguments;
unsigned int threads, next;  // of the block: how many, and how many have been started
bool descending;
char message[200];

__attribute__((noinline)) void back_to_scheduler() {
    if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

// What every fiber does: start threads that nobody has started yet.
void work() {
    for (;;) {
        while (next < threads) {
            current->thread = descending ? threads - 1 - next : next;
            next++;
            threadIdx = coordinates[current->thread];
            kernel(arguments);
        }
        back_to_scheduler();
    }
}

Fiber* take_fiber() {
    if (unused.empty()) {
        Fiber* fiber = new Fiber;
        getcontext(&fiber->start);
        fiber->start.uc_stack.ss_sp = malloc(STACK);
        fiber->start.uc_stack.ss_size = STACK;
        fiber->start.uc_link = nullptr;
        makecontext(&fiber->start, work, 0);
        return fiber;
    }
    Fiber* fiber = unused.back();
    unused.pop_back();
    return fiber;
}

// Runs a fiber until its thread waits, or until it has nothing left to do.
__attribute__((noinline)) void resume(Fiber* fiber) {
    current = fiber;
    if (fiber->waits) threadIdx = coordinates[fiber->thread];
    fiber->waits = false;
    if (_setjmp(scheduler)) return;
    if (!fiber->fresh) _longjmp(fiber->state, 1);
    fiber->fresh = false;
    setcontext(&fiber->start);
}

void start_all_threads() {
    next = 0;
    while (next < threads) {
        Fiber* fiber = take_fiber();
        resume(fiber);
        (fiber->waits ? waiting : unused).push_back(fiber);
    }
}

bool wait_together(const Fiber* a, const Fiber* b) {
    return a->line == b->line && a->mask == b->mask;
}

bool block_is_complete() {
    if (waiting[0]->mask || waiting.size() < threads) return false;
    for (const Fiber* fiber : waiting)
        if (!wait_together(fiber, waiting[0])) return false;
    return true;
}

// Whether all threads of the warp that the mask names wait at the same line.
bool is_complete(const Fiber* fiber, const std::vector<Fiber*>& warp) {
    unsigned int lanes = threads - fiber->thread / 32 * 32, arrived = 0;  // a block's last warp may have fewer than 32
    for (const Fiber* other : warp)
        if (wait_together(fiber, other)) arrived |= 1u << other->thread % 32;
    unsigned int expected = lanes < 32 ? fiber->mask & ((1u << lanes) - 1) : fiber->mask;
    return fiber->mask && (arrived & expected) == expected && expected >> fiber->thread % 32 & 1;
}

// The waiting threads that may go on.
std::vector<Fiber*> release() {
    if (block_is_complete()) return waiting;
    std::vector<Fiber*> warps[32], released;
    for (Fiber* fiber : waiting) warps[fiber->thread / 32].push_back(fiber);
    for (Fiber* fiber : waiting)
        if (is_complete(fiber, warps[fiber->thread / 32])) released.push_back(fiber);
    return released;
}

const char* finish_waiting_threads() {
    while (!waiting.empty()) {
        std::vector<Fiber*> released = release();
        if (released.empty()) {
            snprintf(message, sizeof message,
                     "%u of the block's %u threads wait at line %d for others that wait elsewhere or have ended",
                     (unsigned int)waiting.size(), threads, waiting[0]->line);
            waiting.clear();  // their fibers are lost, as their threads cannot be ended
            return message;
        }
        for (Fiber* fiber : released) resume(fiber);
        std::vector<Fiber*> before;
        before.swap(waiting);
        for (Fiber* fiber : before) (fiber->waits ? waiting : unused).push_back(fiber);
    }
    return nullptr;
}

}  // namespace

extern "C" void stand_in_wait(unsigned int mask, int line) {
    current->waits = true;
    current->mask = mask;
    current->line = line;
    back_to_scheduler();
}

// Returns nullptr, or what went wrong.
extern "C" const char* stand_in_run(void (*call)(void**), void** with, const unsigned int* grid,
                                    const unsigned int* block, int order, char* shared, long long shared_bytes) {
    kernel = call, arguments = with, descending = order;
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
    threads = block[0] * block[1] * block[2];
    coordinates.clear();
    for (unsigned int z = 0; z < block[2]; z++)
        for (unsigned int y = 0; y < block[1]; y++)
            for (unsigned int x = 0; x < block[0]; x++) coordinates.push_back({x, y, z});
    unsigned long long blocks = (unsigned long long)grid[0] * grid[1] * grid[2];
    for (unsigned long long i = 0; i < blocks; i++) {
        unsigned long long number = descending ? blocks - 1 - i : i;
        blockIdx.x = number % grid[0];
        blockIdx.y = number / grid[0] % grid[1];
        blockIdx.z = number / grid[0] / grid[1];
        if (shared_bytes) memset(shared, 0xFF, shared_bytes);
        start_all_threads();
        if (const char* error = finish_waiting_threads()) return error;
    }
    return nullptr;
}
