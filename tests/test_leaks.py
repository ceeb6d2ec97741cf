"""Memory, threads and files after thousands of steps, forwards without backward, errors and loaders left in the middle.

    python tests/test_leaks.py --steps 10000      # in a few minutes

Each case runs in a process of its own, without Python's cycle collector: what is left is left by reference counts.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Growth of the resident memory between the first tenth of the repetitions and the last: 1 %, and the noise of malloc.
MOST_GROWTH, NOISE = 0.01, 2**20

CHILD = """
import gc, json, os, sys, threading
import numpy as np
import minidl
from minidl import Function, Tensor, apply
from minidl.data import ArrayDataset, DataLoader
from minidl.functional import cross_entropy
from minidl.nn import BatchNorm2d, Conv2d, GlobalAvgPool, Linear, ReLU, Sequential
from minidl.optim import SGD

gc.disable()
rng = np.random.default_rng(0)
model = Sequential(Conv2d(3, 16, 3), BatchNorm2d(16), ReLU(), GlobalAvgPool(), Linear(16, 10))
optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
images, labels = rng.random((8, 12, 12, 3), np.float32), np.arange(8)
data = ArrayDataset(rng.random((64, 12, 12, 3), np.float32), np.arange(64) % 10)

class Broken(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return x.copy()

    @staticmethod
    def backward(ctx, grad):
        raise ZeroDivisionError("on purpose")

def step():
    cross_entropy(model(Tensor(images)), labels).backward()
    optimizer.step()
    optimizer.zero_grad()

def forward_without_backward():
    cross_entropy(model(Tensor(images)), labels)

def error_in_backward():
    try:
        apply(Broken, model(Tensor(images))).sum().backward()
    except ZeroDivisionError:
        optimizer.zero_grad()
    else:
        raise AssertionError

def loader_left_in_the_middle():
    for batch in DataLoader(data, 8):
        break

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def facts():
    for thread in threading.enumerate():  # a loader's thread ends after the batch that it loads
        if thread.name == "DataLoader":
            thread.join()
    return {"resident": resident(), "threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd"))}

repeat, times = globals()[sys.argv[1]], int(sys.argv[2])
for _ in range(times // 10):
    repeat()
before = facts()
for _ in range(times - times // 10):
    repeat()
after = facts()
print(json.dumps({"before": before, "after": after, "cycles": gc.collect()}))
"""
CASES = {"step": 400, "forward_without_backward": 400, "error_in_backward": 400, "loader_left_in_the_middle": 100}
# How often in the long run, as multiples of --steps.
SHARES = {"step": 1, "forward_without_backward": 0.1, "error_in_backward": 0.1, "loader_left_in_the_middle": 0.05}


def run(case: str, times: int) -> dict:
    """The facts before and after, of a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", CHILD, case, str(times)]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def problems(facts: dict) -> list[str]:
    """What grew, in words."""
    before, after = facts["before"], facts["after"]
    allowed = MOST_GROWTH * before["resident"] + NOISE
    found = [f"{name}: {before[name]} -> {after[name]}" for name in ("threads", "files") if before[name] != after[name]]
    if after["resident"] > before["resident"] + allowed:
        found.append(f"resident memory: {before['resident']:,} -> {after['resident']:,} bytes")
    return found


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_behind(case):
    assert problems(run(case, CASES[case])) == []


def test_growth_is_found():
    flat = {"resident": 100 * 2**20, "threads": 1, "files": 3}
    assert problems({"before": flat, "after": flat}) == []
    assert len(problems({"before": flat, "after": {"resident": 104 * 2**20, "threads": 2, "files": 4}})) == 3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    failed = False
    for case, share in SHARES.items():
        times = max(100, round(arguments.steps * share))
        facts = run(case, times)
        growth = facts["after"]["resident"] - facts["before"]["resident"]
        words = problems(facts) or ["flat"]
        failed = failed or words != ["flat"]
        print(
            f"{case:28} {times:6,} times: {facts['before']['resident'] / 2**20:.1f} MiB resident, "
            f"{growth / 2**20:+.2f}; cycles for the collector: {facts['cycles']}; {', '.join(words)}"
        )
    sys.exit(failed)
