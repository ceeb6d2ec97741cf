"""The kernels that work in place: parameters, optimiser states and running statistics keep their arrays.

One launch updates a whole list of parameters, because most of them are too small to be worth a launch each.
"""

import math

import cupy
import numpy as np

from minidl.kernels.cuda._launch import THREADS, CudaKernel, contiguous

PIECE = 1024  # elements of a parameter that a block updates: four for each of its threads
ENTRIES = 64  # of the table that one launch writes: 7 arguments each, 3.6 KB of the 4 KB that CUDA allows

ENTRY = """
// An entry of the table of parameters: the arrays, the number of updates (for Adam), the number of elements, and the
// first of the blocks that update the parameter.
struct Entry {
    real *parameter, *grad, *state, *other_state;
    long long *steps, size, first_block;
};
"""

_PARAMETERS = ", ".join(
    f"real* p{i}, real* g{i}, real* s{i}, real* t{i}, void* c{i}, index n{i}, index b{i}" for i in range(ENTRIES)
)
_ASSIGNMENTS = " ".join(
    f"table[{i}] = {{p{i}, g{i}, s{i}, t{i}, (long long*)c{i}, n{i}, b{i}}}; first_blocks[{i}] = b{i};"
    for i in range(ENTRIES)
)

WRITE_ENTRIES = CudaKernel(
    "write_entries",
    ENTRY
    + f"""
// One thread. The addresses, which change in each step as gradients are new arrays, are passed to the device as kernel
// arguments: a CUDA graph can capture a launch with its arguments, but not a copy from the host.
extern "C" __global__ void write_entries(Entry* table, long long* first_blocks, {_PARAMETERS}) {{
    {_ASSIGNMENTS}
}}
""",
)

# Put before the source of an update.
TABLE = (
    ENTRY
    + f"constexpr int piece = {PIECE};\n"
    + """
// The entry of the parameter that this block updates a piece of. The threads of the block search the first blocks of
// all parameters, in ascending order, for it: they are an array of their own, as each block reads all of it.
__device__ Entry find_entry(const Entry* table, const long long* first_blocks, index entries) {
    __shared__ index found;
    for (index i = threadIdx.x; i < entries; i += blockDim.x)
        if (first_blocks[i] <= blockIdx.x && (i + 1 == entries || blockIdx.x < first_blocks[i + 1])) found = i;
    __syncthreads();
    return table[found];
}

__device__ long long first_number(Entry entry) {
    return (blockIdx.x - entry.first_block) * piece + threadIdx.x;
}

__device__ long long end_number(Entry entry) {
    return min(entry.size, (blockIdx.x - entry.first_block + 1) * piece);
}
"""
)

SGD_UPDATE = CudaKernel(
    "sgd_update",
    TABLE
    + """
// A block for each piece of a parameter. The learning rate is on the device, so that a captured graph sees it change.
extern "C" __global__ void sgd_update(
    const Entry* table, const long long* first_blocks, index entries, const double* lr,
    real momentum, real weight_decay, int nesterov
) {
    Entry entry = find_entry(table, first_blocks, entries);
    real rate = *lr, *p = entry.parameter, *v = entry.state;
    for (long long i = first_number(entry); i < end_number(entry); i += blockDim.x) {
        real value = p[i], step = entry.grad[i] + weight_decay * value;
        if (momentum != 0) {
            real velocity = momentum * v[i] + step;
            v[i] = velocity;
            step = nesterov ? step + momentum * velocity : velocity;
        }
        p[i] = value - rate * step;
    }
}
""",
)


def sgd_update(parameters, grads, velocities, lr, momentum, weight_decay, nesterov):
    """One step of `optim.SGD` for each parameter p, in place. `velocities` are not read if momentum is 0."""
    velocities = velocities if momentum else parameters  # any arrays: they are not read as velocities then
    options = lr.astype(np.float64, copy=False), float(momentum), float(weight_decay), bool(nesterov)
    for table, blocks, dtype in _tables("sgd_update", parameters, grads, velocities, velocities, parameters):
        SGD_UPDATE.launch(blocks, THREADS, (*table, *options), dtype)


COUNT_STEPS = CudaKernel(
    "count_steps",
    ENTRY
    + """
// A thread for each parameter. A separate launch, because all blocks of a parameter read the count in the next one.
extern "C" __global__ void count_steps(const Entry* table, index entries) {
    index i = thread_number();
    if (i < entries) *table[i].steps += 1;
}
""",
)

ADAM_UPDATE = CudaKernel(
    "adam_update",
    TABLE
    + """
// A block for each piece of a parameter. 1 - beta is an argument because in float32 it would lose half of its digits;
// log(beta) is an argument for 1 - beta^t = -expm1(t * log(beta)).
extern "C" __global__ void adam_update(
    const Entry* table, const long long* first_blocks, index entries, const double* lr,
    real beta1, real one_less_beta1, real log_beta1, real beta2, real one_less_beta2, real log_beta2,
    real eps, real weight_decay, int decoupled
) {
    Entry entry = find_entry(table, first_blocks, entries);
    real rate = *lr, t = *entry.steps, *p = entry.parameter, *m = entry.state, *v = entry.other_state;
    real scaled_rate = rate / -expm1(t * log_beta1), correction = -expm1(t * log_beta2);
    for (long long i = first_number(entry); i < end_number(entry); i += blockDim.x) {
        real g = entry.grad[i], value = p[i];
        if (decoupled) value *= 1 - rate * weight_decay;
        else g += weight_decay * value;
        real mean = beta1 * m[i] + one_less_beta1 * g;
        real square = beta2 * v[i] + one_less_beta2 * g * g;
        m[i] = mean;
        v[i] = square;
        p[i] = value - scaled_rate * mean / (sqrt(square / correction) + eps);
    }
}
""",
)


def adam_update(parameters, grads, means, squares, steps, lr, beta1, beta2, eps, weight_decay, decoupled):
    """One step of `optim.Adam`, or of AdamW if `decoupled`, in place. `steps` counts the updates of each parameter."""
    for step in steps:
        if step.dtype != np.int64:
            raise ValueError(f"adam_update: expected counts of int64, got {step.dtype}")
    options = lr.astype(np.float64, copy=False), *_powers(beta1), *_powers(beta2), float(eps), float(weight_decay)
    for table, blocks, dtype in _tables("adam_update", parameters, grads, means, squares, steps):
        entries, _, count = table
        COUNT_STEPS.for_each(count, entries, count, dtype=dtype)
        ADAM_UPDATE.launch(blocks, THREADS, (*table, *options, bool(decoupled)), dtype)


def _powers(beta):
    """beta, 1 - beta and log(beta), each computed in float64."""
    return float(beta), float(1 - beta), math.log(beta) if beta else -math.inf


def _tables(name, parameters, *lists):
    """Yield (table, blocks, dtype) for the parameters of each dtype. `lists`: grads, two of states, steps."""
    entries = [_entry(name, *arrays) for arrays in zip(parameters, *lists, strict=True)]
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        alike = [entry for entry in entries if entry[0].dtype == dtype]
        table, blocks = _table(alike, dtype)
        yield table, blocks, dtype


def _entry(name, parameter, grad, state, other_state, steps):
    """The arrays of one parameter as the kernel needs them: contiguous, with the same shape and dtype."""
    states = state, other_state
    for array in (parameter, *states):
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: expected contiguous arrays, got strides {array.strides}; copy them first")
    grad = contiguous(grad.astype(parameter.dtype, copy=False))
    if any((array.shape, array.dtype) != (parameter.shape, parameter.dtype) for array in (grad, *states)):
        raise ValueError(f"{name}: expected grad and states with the parameter's shape and dtype, {parameter.shape}")
    return parameter, grad, *states, steps


def _table(entries, dtype):
    """(table, blocks): the table on the device (entries, first blocks, their number), and the number of blocks."""
    launches, blocks = -(-len(entries) // ENTRIES), 0
    table, first_blocks = cupy.empty((launches * ENTRIES, 7), np.int64), cupy.empty(launches * ENTRIES, np.int64)
    for start in range(0, len(entries), ENTRIES):
        arguments = []
        for arrays in entries[start : start + ENTRIES]:
            size = arrays[0].size
            arguments += [*arrays, size, blocks]
            blocks += -(-size // PIECE)
        arguments += arguments[:7] * (ENTRIES - len(arguments) // 7)  # fills the table; these copies are not counted
        part = slice(start, start + ENTRIES)
        WRITE_ENTRIES.launch(1, 1, (table[part], first_blocks[part], *arguments), dtype)
    return (table, first_blocks, len(entries)), blocks


UPDATE_RUNNING_STATISTICS = CudaKernel(
    "update_running_statistics",
    """
// A thread for each channel.
extern "C" __global__ void update_running_statistics(
    real* running_mean, real* running_variance, const real* mean, const real* variance,
    real momentum, real unbiased, index channels
) {
    index c = thread_number();
    if (c >= channels) return;
    running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean[c];
    running_variance[c] = (1 - momentum) * running_variance[c] + momentum * (unbiased * variance[c]);
}
""",
)


def update_running_statistics(running_mean, running_variance, mean, variance, momentum, count):
    """r = (1 - momentum) * r + momentum * new, in place, with the unbiased variance * count / (count - 1)."""
    new = (cupy.ascontiguousarray(array, running_mean.dtype) for array in (mean, variance))
    numbers = float(momentum), count / max(count - 1, 1), running_mean.size
    UPDATE_RUNNING_STATISTICS.for_each(
        running_mean.size, running_mean, running_variance, *new, *numbers, dtype=running_mean.dtype
    )
