"""The sides that gpu.py compares: training steps of one network, ours and PyTorch's, and how two of them take turns.

A step is: forward, cross-entropy, backward for all parameters, SGD with momentum and weight decay, gradients cleared;
the batch lies on the device already. All sides start from the same weights and batch.
"""

import contextlib
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gpu_facts import half_dtype
from step_worker import LR, MODELS, MOMENTUM, WEIGHT_DECAY, make_batch, make_ours

from minidl import Tensor, cuda_graph, tf32
from minidl.functional import cross_entropy
from minidl.optim import SGD

OUR_SIDES = {
    "graph": "half's step as one CUDA graph, through minidl.cuda_graph",
    "half": "activations in bfloat16, or float16 on GPUs without it, launch by launch",
    "tf32": "float32, its products rounded to TF32",
    "float32": "float32",
}
TORCH_SIDES = {
    "torch_float32": "PyTorch, eager, float32 without TF32",
    "torch_amp": "PyTorch, eager, autocast to the same dtype, channels_last",
    "torch_graph": "torch_amp's step as one CUDA graph",
    "torch_compile": "torch_amp through torch.compile, reduce-overhead",
}
REFERENCE = "graph"  # the side that every other side takes turns with: the one that depends least on the host
TORCH_DEVICE = "cuda"  # tests without a GPU build PyTorch's eager sides on "cpu"
LOSSES_AGREE = 1e-3  # relative difference of the first losses, in float32; they are equal to about 1e-5


@dataclass
class Side:
    """One network on the device: `step` returns the loss, on the device; `wait` waits until all steps are done.

    `peak_mb` is the memory that it has taken so far.
    """

    step: Callable[[], object]
    wait: Callable[[], None]
    peak_mb: Callable[[], float]

    def turn(self, steps: int) -> float:
        """Seconds of a step, the mean of some steps between two waits."""
        self.wait()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        return (time.perf_counter() - started) / steps

    def first_losses(self) -> list[float]:
        """Of three steps."""
        return [float(self.step().item()) for _ in range(3)]


def make_side(kind: str, name: str, batch: int, weights: dict) -> Side:
    """A side of OUR_SIDES or TORCH_SIDES, with everything freed that earlier sides have left behind."""
    free_memory()
    return (make_our_side if kind in OUR_SIDES else make_torch_side)(kind, name, batch, weights)


def possible_sides(kinds: list[str]) -> list[str]:
    """Those that this GPU has instructions for: TF32 needs compute capability 8.0."""
    import cupy

    return [kind for kind in kinds if kind != "tf32" or int(cupy.cuda.Device().compute_capability) >= 80]


def free_memory() -> None:
    """Give back the device memory that nothing uses any more."""
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules and TORCH_DEVICE == "cuda":
        sys.modules["torch"].cuda.empty_cache()


# -- ours --------------------------------------------------------------------------------------------------------------


def make_our_side(kind: str, name: str, batch: int, weights: dict) -> Side:
    """minidl's, of one of OUR_SIDES."""
    import cupy

    device = cupy.cuda.Device()
    free = device.mem_info[0]
    dtype = half_dtype() if kind in ("graph", "half") else "float32"
    step = make_our_step(name, batch, weights, dtype, rounded=kind == "tf32")
    return Side(cuda_graph(step) if kind == "graph" else step, device.synchronize, lambda: used_since(free))


def make_our_step(name: str, batch: int, weights: dict, dtype: str, rounded: bool = False) -> Callable:
    """The step, launch by launch."""
    model = make_ours(name)
    model.load_state_dict(weights)
    model.to("cuda")
    images, labels = make_batch(batch, *MODELS[name][2:])
    images, labels = Tensor(images, device="cuda").to(dtype), Tensor(labels, device="cuda").data
    optimizer = SGD(model.parameters(), LR, MOMENTUM, WEIGHT_DECAY)

    def step():
        with tf32() if rounded else contextlib.nullcontext():
            loss = cross_entropy(model(images), labels)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def used_since(free: int) -> float:
    """Megabytes of the device's memory that have been taken since `free` bytes were free."""
    import cupy

    return (free - cupy.cuda.Device().mem_info[0]) / 2**20


def estimated_mb(name: str, batch: int, weights: dict) -> float:
    """Memory of the side 'half' for a batch: a straight line through what batches of 2 and 4 images take."""
    import cupy

    taken = []
    for small in (2, 4):
        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            make_our_step(name, small, weights, half_dtype())()
        cupy.cuda.Device().synchronize()
        taken.append(pool.total_bytes() / 2**20)
        free_memory()
        pool.free_all_blocks()
    return taken[0] + max(taken[1] - taken[0], 0) / 2 * (batch - 2)


# -- PyTorch's ---------------------------------------------------------------------------------------------------------


def make_torch_side(kind: str, name: str, batch: int, weights: dict) -> Side:
    """PyTorch's, of one of TORCH_SIDES."""
    import torch
    import torch_twins

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    memory = torch.contiguous_format if kind == "torch_float32" else torch.channels_last
    wait, peak_mb = torch_device()
    model = torch_twins.make(*MODELS[name])
    model.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in weights.items()})
    model = model.to(TORCH_DEVICE).to(memory_format=memory)
    images, labels = make_batch(batch, *MODELS[name][2:])
    images = torch.from_numpy(images).permute(0, 3, 1, 2).to(TORCH_DEVICE).contiguous(memory_format=memory)
    labels = torch.from_numpy(labels).to(TORCH_DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    network = torch.compile(model, mode="reduce-overhead") if kind == "torch_compile" else model

    half = getattr(torch, half_dtype())

    def step():
        with torch.autocast(TORCH_DEVICE, half, enabled=kind != "torch_float32"):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=kind != "torch_graph")  # a graph finds its gradients where they were
        return loss.detach()

    return Side(captured(step) if kind == "torch_graph" else step, wait, peak_mb)


def torch_has_gpu() -> bool:
    """Whether PyTorch's sides can be made."""
    try:
        import torch
    except ImportError:
        return False
    return TORCH_DEVICE == "cpu" or torch.cuda.is_available()


def torch_device() -> tuple[Callable, Callable]:
    """`wait` and `peak_mb` of a Side."""
    import torch

    if TORCH_DEVICE == "cpu":
        return (lambda: None), (lambda: 0.0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return torch.cuda.synchronize, lambda: (torch.cuda.max_memory_allocated() - before) / 2**20


def captured(step: Callable) -> Callable:
    """PyTorch's step as one CUDA graph, after three steps on a stream of their own, as its documentation wants it.

    Those steps change the weights, so its first losses are not those of the other sides.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay():
        graph.replay()
        return loss

    return replay


# -- turns -------------------------------------------------------------------------------------------------------------


def measure_alone(side: Side, args) -> dict:
    """Of the reference side."""
    side.turn(args.warmup)
    return {"ms": 1000 * statistics.median(side.turn(args.steps) for _ in range(args.rounds))}


def measure_in_turns(side: Side, reference: Side, args) -> dict:
    """Side and reference take turns, A B A B ...: the medians of both, and the median of side / reference.

    A ratio of neighbouring turns does not see that a GPU's clock falls as it warms up.
    """
    for each in (side, reference):
        each.turn(args.warmup)
    pairs = [(side.turn(args.steps), reference.turn(args.steps)) for _ in range(args.rounds)]
    ours, others = zip(*pairs, strict=True)
    return {
        "ms": 1000 * statistics.median(ours),
        "reference_ms": 1000 * statistics.median(others),
        "relative": statistics.median(a / b for a, b in pairs),
    }


def loss_failures(kind: str, losses: dict[str, list[float]]) -> list[str]:
    """What is wrong with a side's first losses, given those of all sides that are known."""
    failures = []
    if not all(map(math.isfinite, losses[kind])):
        failures.append(f"the losses of {kind} are {losses[kind]}")
    for one, other, tolerance in (("float32", "torch_float32", LOSSES_AGREE), ("graph", "half", 0)):
        if kind in (one, other) and {one, other} <= losses.keys():
            difference = max(abs(a / b - 1) for a, b in zip(losses[one], losses[other], strict=True))
            if not difference <= tolerance:
                failures.append(f"the losses of {one} and {other} differ by {difference:.1e}: {losses}")
    return failures
