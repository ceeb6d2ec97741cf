"""The time of each kernel of a training step on a GPU, and of a convolution in every way it can be computed.

A kernel is timed as its step launches it: several launches as one CUDA graph, so that the host costs nothing, over
copies of its arrays, one after the other, so that the arrays come from memory: those of ResNet-20 would else stay in
the L2 cache (50 MB on an H100 or H200, 40 on an A100). In a step some of them do, since the kernel before has just
written them: there a kernel can be faster than here.

What CuPy launches by itself (casts, fills, copies) is the line "cupy's own": the step as a graph, captured with none of
our kernels.
"""

import contextlib
import functools
import inspect
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

import numpy as np
from gpu_facts import half_dtype

from minidl import Tensor, tf32

LAUNCHES = 10  # at least so many are timed together
MOST_COPIES = 64  # of the arguments; small arrays stay in the cache all the same, and cost little either way


# -- launches ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def launches_go_to(function: Callable) -> Iterator[Callable]:
    """Within this context function(kernel, *arguments) is called in place of each launch; yields what launches.

    `arguments` are all of CudaKernel.launch's, in their order.
    """
    from minidl.kernels.cuda._launch import CudaKernel

    launch = CudaKernel.launch
    order = inspect.signature(launch)

    def instead(*arguments, **named):
        given = order.bind(*arguments, **named)
        given.apply_defaults()
        function(*given.args)

    with mock.patch.object(CudaKernel, "launch", instead):
        yield launch


def arrays_of(arguments: tuple) -> list:
    """The different arrays among a launch's arguments, each once."""
    import cupy

    flat = [inner for outer in arguments for inner in (outer if isinstance(outer, tuple) else (outer,))]
    arrays = {array.data.ptr: array for array in flat if isinstance(array, cupy.ndarray) and array.nbytes}
    return list(arrays.values())


def with_copies(arguments: tuple) -> tuple:
    """The same arguments with a copy of each array; an array that is given twice is copied once."""
    import cupy

    copies = {array.data.ptr: array.copy() for array in arrays_of(arguments)}

    def copied(argument):
        if isinstance(argument, tuple):
            return tuple(map(copied, argument))
        is_array = isinstance(argument, cupy.ndarray) and argument.nbytes
        return copies[argument.data.ptr].reshape(argument.shape) if is_array else argument

    return copied(arguments)


def signature(kernel, arguments: tuple) -> tuple:
    """Equal for launches that take the same time: the same kernel, grid, shapes, dtypes and numbers."""

    def part(argument):
        if isinstance(argument, tuple):
            return tuple(map(part, argument))
        if isinstance(argument, Mapping):
            return tuple(sorted(argument.items()))
        if hasattr(argument, "shape") and hasattr(argument, "dtype"):
            return argument.shape, str(argument.dtype)
        return argument if isinstance(argument, str | int | float | None) else str(argument)

    return kernel.name, part(arguments)


# -- time --------------------------------------------------------------------------------------------------------------


def seconds_of(works: list[Callable]) -> float:
    """The device's time for one of some calls, the mean of them all, launched as one graph."""
    from minidl.kernels.cuda.graph import Graph

    graph = Graph()
    graph.run(works[0])  # compiled, and its memory taken
    times = -(-LAUNCHES // len(works))
    graph.capture(lambda: [work() for _ in range(times) for work in works])
    return seconds_between_events(graph.launch) / (times * len(works))


def seconds_between_events(work: Callable) -> float:
    """The device's time for what `work` queues, the second time."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    work()
    start.record()
    work()
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1000


def copies_needed(arrays: list) -> int:
    """How many copies of the arrays are more than twice what the L2 cache holds; at least 2."""
    import cupy

    cache = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id).get("l2CacheSize", 0)
    total = sum(array.nbytes for array in arrays)
    return max(2, min(MOST_COPIES, -(-2 * cache // max(total, 1))))


def time_launch(launch: Callable, kernel, arguments: tuple) -> float:
    """Seconds of one launch, over arrays that are not in the cache."""
    sets = [arguments] + [with_copies(arguments) for _ in range(copies_needed(arrays_of(arguments)) - 1)]
    return seconds_of([functools.partial(launch, kernel, *each) for each in sets])


# -- the kernels of a step ---------------------------------------------------------------------------------------------


def measure_kernels(step: Callable) -> dict:
    """Lines for the kernels of a step, those that take longest first, then CuPy's own launches; and the whole step."""
    step()  # the optimiser's state is made
    totals = defaultdict(lambda: {"launches": 0, "ms": 0.0, "bytes": 0, "flops": 0})
    seconds = {}

    def note(kernel, *arguments):
        launch(kernel, *arguments)
        key = signature(kernel, arguments)
        if key not in seconds:
            seconds[key] = time_launch(launch, kernel, arguments)
        total = totals[kernel.name]
        total["launches"] += 1
        total["ms"] += 1000 * seconds[key]
        total["bytes"] += sum(array.nbytes for array in arrays_of(arguments))
        total["flops"] += flops_of(kernel, arguments)

    with launches_go_to(note) as launch:
        step()
    lines = [line_of(name, total) for name, total in totals.items()]
    lines.sort(key=lambda line: -line["ms"])
    with launches_go_to(lambda kernel, *arguments: None):
        own = 1000 * seconds_of_step(step)
    lines.append({"kernel": "cupy's own", "launches": None, "ms": own, "gb_per_s": None, "tflop_per_s": None})
    return {"lines": lines, "sum_ms": sum(line["ms"] for line in lines), "graph_ms": 1000 * seconds_of_step(step)}


def line_of(name: str, total: dict) -> dict:
    """A line of the table."""
    rates = {"gb_per_s": total["bytes"] / total["ms"] / 1e6, "tflop_per_s": total["flops"] / total["ms"] / 1e9}
    return {"kernel": name, "launches": total["launches"], "ms": total["ms"]} | rates


def seconds_of_step(step: Callable) -> float:
    """Of a step as one graph."""
    from minidl.kernels.cuda.graph import Graph

    graph = Graph()
    graph.run(step)
    graph.capture(step)
    return seconds_between_events(graph.launch)


def parameters_of(kernel) -> list[str]:
    """The names of the parameters of a kernel's function, in order, from its source."""
    found = re.search(rf'extern "C" __global__ void[^;{{]*?\b{kernel.name}\s*\((.*?)\)\s*\{{', kernel.source, re.DOTALL)
    return [re.findall(r"\w+", parameter)[-1] for parameter in found[1].split(",")] if found else []


def flops_of(kernel, arguments: tuple) -> int:
    """Multiplications and additions of a convolution, by the numbers of its geometry; else 0."""
    if not kernel.name.startswith("conv_"):
        return 0
    given = next(part for part in arguments if isinstance(part, tuple) and arrays_of(part))
    sizes = dict(zip(parameters_of(kernel), given, strict=False))
    for constants in (part for part in arguments if isinstance(part, Mapping)):
        sizes |= constants
    dimensions = ("N", "OH", "OW", "O", "KH", "KW", "C")
    return 2 * math.prod(sizes[name] for name in dimensions) if sizes.keys() >= set(dimensions) else 0


# -- one convolution ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_wgmma() -> Iterator[None]:
    """Within this context products are compiled as for GPUs before Hopper."""
    from minidl.kernels.cuda._launch import CudaKernel

    with contextlib.ExitStack() as patches:
        for kernel in CudaKernel.every:
            patches.enter_context(mock.patch.object(kernel, "for_hopper", False))
        CudaKernel.compiled.cache_clear()
        yield
    CudaKernel.compiled.cache_clear()


def ways_to_multiply() -> dict[str, tuple[str, Callable]]:
    """{name: (dtype, context)} on this GPU."""
    import cupy

    capability, half = int(cupy.cuda.Device().compute_capability), half_dtype()
    ways = {half: (half, contextlib.nullcontext)}
    if capability == 90:
        ways[f"{half} by mma"] = half, without_wgmma
    if capability >= 80:
        ways["tf32"] = "float32", tf32
    return ways | {"float32": ("float32", contextlib.nullcontext)}


def measure_convolution(shape: tuple[int, ...]) -> list[dict]:
    """TFLOP/s of a 3x3 convolution that keeps its shape, in each way; and of cuBLAS, given the columns of im2col."""
    import cupy

    from minidl.kernels.cuda.conv import backward_weight, backward_x, conv2d_forward

    channels, geometry = shape[3], ((1, 1), (1, 1))
    flops = 2 * math.prod(shape) * 9 * channels
    numbers = [np.random.default_rng(0).standard_normal(size) for size in (shape, (3, 3, channels, channels))]
    lines = []
    for way, (dtype, context) in ways_to_multiply().items():
        x, weight = (Tensor(array, "float32", "cuda").to(dtype).data for array in numbers)
        passes = {
            "forward": functools.partial(conv2d_forward, x, weight, None, *geometry),
            "backward_x": functools.partial(backward_x, x, weight, x.shape, *geometry),
            "backward_weight": functools.partial(backward_weight, x, x, weight.shape, *geometry),
        }
        with context():
            seconds = {name: seconds_of([work]) for name, work in passes.items()}
        lines.append({"way": way} | {name: flops / time / 1e12 for name, time in seconds.items()})
    columns = cupy.ones((math.prod(shape[:3]), 9 * channels), "float32")
    matrix = cupy.ones((9 * channels, channels), "float32")
    seconds = seconds_between_events(lambda: [columns @ matrix for _ in range(LAUNCHES)]) / LAUNCHES
    lines.append({"way": "float32, cuBLAS, columns given", "forward": flops / seconds / 1e12})
    return lines
