"""How long a data-parallel training step takes: a model, bucket by bucket.

    python benchmarks/scaling_model.py       # ResNet-50 on 8, 64 and 1,024 GPUs

Backward completes the buckets of `AveragedGradients` one after the other. A thread adds each to those of the other
ranks, one at a time and in this order, while backward goes on. The step waits for the last one. `simulate` computes
when each begins and ends. It needs three things:

  Profile   How long forward, backward and the update take without any exchange, and when each bucket is complete.
  seconds   How long an all-reduce of so many bytes takes: `Cluster.all_reduce`, or a table that was measured.
  lost      The part of the computation that stands still while an all-reduce runs. On a CPU with one core for each
            rank it is 1: the thread that adds needs the core. On a GPU it is the share of the multiprocessors that
            NCCL occupies.

An all-reduce of S bytes on n ranks, in machines of g ranks, m = n / g machines:

  ring      2 (n-1) hops, each with its latency, and 2 (n-1)/n S bytes through the slowest link. No algorithm sends
            fewer bytes (Patarasu and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
            workstations"). 2 (m-1) of the hops lead to another machine.
  tree      2 (g-1 + log2 m) hops and 2 S bytes: up a tree to its root, and down again. Two trees that complement each
            other use all links (Sanders, Speck, Traeff 2009, "Two-tree algorithms for full bandwidth broadcast,
            reduction and scan"). For g = 1 it has the latency of Thakur, Rabenseifner, Gropp 2005, "Optimization of
            collective communication operations in MPICH": 2 log2(n) hops, as in recursive halving and doubling.

NCCL has both, estimates their times with these formulas, and takes the faster. So does `Cluster.all_reduce`. The
latencies are those that NCCL 2.30 itself estimates with (src/graph/tuning.cc, protocol LL128, Hopper):
microseconds for a call, and for a hop of each algorithm by NVLink and by a network.

Links, in one direction. NVLink 4: 450 GB/s for each GPU (NVIDIA H100 white paper); a copy between two GPUs reaches 83 %
of that (issue 1264 of NVIDIA/nccl). InfiniBand NDR: a card of 400 Gb/s for each of the eight GPUs (NVIDIA DGX H100).
Ethernet: one card of 100 Gb/s for the machine. All at SHARE_OF_LINK.

What the model leaves out: ranks of different speed (jitter, a slow disk), other traffic on the network, synchronised
batch-norm, whose small exchanges cannot be hidden, and that the last exchange, the counts of images, goes by MPI: it
gets NCCL's latency here.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from command_line import run_main

RESULTS = Path(__file__).resolve().parent / "results" / "scaling"


# -- a step ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """A step of one rank that exchanges nothing, in seconds. `ready` counts from the beginning of backward."""

    forward: float
    backward: float
    after: float  # from the last exchange to the next step: the update
    ready: tuple[float, ...]  # when each bucket is complete
    sizes: tuple[int, ...]  # bytes of each bucket


@dataclass(frozen=True)
class Step:
    """What comes of it, in seconds. `waiting` is from the end of backward to that of the last all-reduce."""

    seconds: float
    waiting: float
    backward_end: float  # since backward began
    exchanges: list[tuple[float, float]]  # begin and end of each all-reduce, since backward began


def simulate(profile: Profile, seconds: Callable[[int], float], lost: float = 0.0) -> Step:
    """A step whose buckets travel while backward runs. `lost` is the part of the computation that they delay."""
    clock = done = 0.0  # the time since backward began, and how much of backward is done
    backward_end, exchanges = math.nan, []
    for ready, size in zip(profile.ready, profile.sizes, strict=True):
        clock, done = clock + max(ready - done, 0), max(ready, done)  # backward goes on alone
        end = clock + seconds(size)
        reached = done + (1 - lost) * (end - clock)
        if math.isnan(backward_end) and reached >= profile.backward:
            left = profile.backward - done
            backward_end = clock + (left / (1 - lost) if left else 0)
        exchanges.append((clock, end))
        clock, done = end, min(reached, profile.backward)
    if math.isnan(backward_end):
        clock = backward_end = clock + profile.backward - done
    total = profile.forward + clock + profile.after
    return Step(total, clock - backward_end, backward_end, exchanges)


# -- an all-reduce -----------------------------------------------------------------------------------------------------

SHARE_OF_LINK = 0.8  # of its nominal rate


@dataclass(frozen=True)
class Latency:
    """Seconds of a hop, inside a machine and to another one."""

    inside: float
    between: float


CALL = 14.0e-6
RING, TREE = Latency(1.9e-6, 4.0e-6), Latency(1.25e-6, 8.5e-6)
RING_SHARE, TREE_SHARE = 0.92, 0.92 * 120 / 128  # of the bandwidth: LL128 sends flags with the data


@dataclass(frozen=True)
class Cluster:
    """Machines of `gpus` GPUs. Bandwidths in bytes per second and direction."""

    name: str
    inside: float  # of a GPU to the others of its machine
    between: float  # of a machine to the others
    gpus: int = 8

    def bandwidth(self, machines: int) -> float:
        """That of the slowest link on the way."""
        return SHARE_OF_LINK * (self.inside if machines == 1 else min(self.inside, self.between))

    def ring(self, ranks: int, size: int) -> float:
        """Seconds of a ring all-reduce of `size` bytes."""
        machines = math.ceil(ranks / self.gpus)
        between = 2 * (machines - 1)
        latency = CALL + (2 * (ranks - 1) - between) * RING.inside + between * RING.between
        return latency + 2 * (ranks - 1) / ranks * size / (RING_SHARE * self.bandwidth(machines))

    def tree(self, ranks: int, size: int) -> float:
        """Seconds of an all-reduce of `size` bytes by two trees."""
        machines = math.ceil(ranks / self.gpus)
        inside = min(ranks, self.gpus) - 1
        latency = CALL + 2 * (inside * TREE.inside + math.ceil(math.log2(machines)) * TREE.between)
        return latency + 2 * size / (TREE_SHARE * self.bandwidth(machines))

    def all_reduce(self, ranks: int, size: int) -> float:
        """Seconds of the faster of the two; none on a single rank."""
        return min(self.ring(ranks, size), self.tree(ranks, size)) if ranks > 1 else 0.0


NVLINK, NDR, ETHERNET = 450e9, 8 * 50e9, 12.5e9
CLUSTERS = Cluster("InfiniBand", NVLINK, NDR), Cluster("Ethernet", NVLINK, ETHERNET)


def interpolate(table: list[tuple[int, float]]) -> Callable[[int], float]:
    """A function from bytes to seconds, by lines between the measured points (bytes, seconds).

    Below the first point it is constant; above the last one it grows as between the last two.
    """
    table = sorted(table)

    def seconds(size: int) -> float:
        if size <= table[0][0]:
            return table[0][1]
        number = next((i for i, (least, _) in enumerate(table) if size <= least), len(table) - 1)
        (size_a, time_a), (size_b, time_b) = table[number - 1], table[number]
        return time_a + (time_b - time_a) * (size - size_a) / (size_b - size_a)

    return seconds


# -- ResNet-50 on many GPUs --------------------------------------------------------------------------------------------

GPUS = 8, 64, 1024
BATCHES = 256, 32  # images for each GPU
BUCKET_BYTES = 2**22  # the default of `AveragedGradients`
LOST = 24 / 132  # of the multiprocessors of an H200, if NCCL runs 24 blocks; an assumption


def gpu_profile(batch: int, bucket_bytes: int = BUCKET_BYTES) -> Profile:
    """A step of ResNet-50 on an H200, modelled by scaling_gpu.py to +-30 %."""
    path = RESULTS / "gpu_steps.json"
    step = json.loads(path.read_text())[str(batch)]
    sizes, ready = grouped(step["sizes"], step["ready"], bucket_bytes)
    counts = 8 * (len(step["sizes"]) + 1)  # the last exchange: how many images, and who has which gradient
    sizes, ready = (*sizes, counts), (*ready, step["backward"])
    return Profile(step["forward"], step["backward"], step["after"], ready, sizes)


def grouped(sizes: list[int], ready: list[float], bucket_bytes: int) -> tuple[list[int], list[float]]:
    """Bytes of each bucket of `AveragedGradients`, and when it is complete, from those of each parameter.

    A bucket also waits for those before it, as they travel in this order.
    """
    group_sizes, group_ready, group, latest = [], [], 0, 0.0
    for number, (size, time) in enumerate(zip(sizes, ready, strict=True), 1):
        group, latest = group + size, max(latest, time)
        if group >= bucket_bytes or number == len(sizes):
            group_sizes.append(group)
            group_ready.append(latest)
            group = 0
    return group_sizes, group_ready


def predict(cluster: Cluster, ranks: int, profile: Profile, ring_only: bool = False) -> Step:
    """A step on so many GPUs."""
    collective = cluster.ring if ring_only else cluster.all_reduce
    return simulate(profile, lambda size: collective(ranks, size), LOST if ranks > 1 else 0.0)


def alone(profile: Profile) -> float:
    """Seconds of a step that exchanges nothing."""
    return profile.forward + profile.backward + profile.after


def efficiency_table() -> str:
    """Images per second, efficiency and waiting for each cluster, batch and number of GPUs, as Markdown."""
    rows = [
        "| between machines | images for each GPU | GPUs | step | images/s | efficiency | waiting |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for batch in BATCHES:
        profile = gpu_profile(batch)
        rows.append(gpu_row("one GPU", batch, 1, alone(profile), 1.0, 0.0))
        for cluster in CLUSTERS:
            for ranks in GPUS:
                if ranks <= cluster.gpus and cluster is not CLUSTERS[0]:
                    continue  # one machine: the same without a network
                step = predict(cluster, ranks, profile)
                name = cluster.name if ranks > cluster.gpus else "one machine"
                share = step.waiting / step.seconds
                rows.append(gpu_row(name, batch, ranks, step.seconds, alone(profile) / step.seconds, share))
    return "\n".join(rows)


def gpu_row(name: str, batch: int, ranks: int, seconds: float, efficiency: float, waiting: float) -> str:
    """A row of `efficiency_table`."""
    speed = float(f"{batch * ranks / seconds:.3g}")
    cells = (
        name,
        batch,
        f"{ranks:,}",
        f"{1000 * seconds:.1f} ms",
        f"{speed:,.0f}",
        f"{efficiency:.1%}",
        f"{waiting:.1%}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


BUCKETS = {"1 MiB": 2**20, "4 MiB": 2**22, "16 MiB": 2**24, "all": 2**40}


def bucket_table(ranks: int = 1024) -> str:
    """The efficiency with other buckets, and with the ring alone, as Markdown."""
    rows = [f"| {ranks:,} GPUs | {' | '.join(BUCKETS)} | ring alone, 4 MiB |", "|---|" + "---:|" * (len(BUCKETS) + 1)]
    for cluster in CLUSTERS:
        for batch in BATCHES:
            cells = []
            for size, ring_only in [*((size, False) for size in BUCKETS.values()), (BUCKET_BYTES, True)]:
                profile = gpu_profile(batch, size)
                cells.append(f"{alone(profile) / predict(cluster, ranks, profile, ring_only).seconds:.1%}")
            rows.append(f"| {cluster.name}, {batch} images | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(efficiency_table(), bucket_table(), sep="\n\n")


if __name__ == "__main__":
    run_main(main)
