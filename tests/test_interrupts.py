"""Ctrl-C at random moments of training in one process: none is lost, and the next step is right.

    python tests/test_interrupts.py --presses 1000      # in a few minutes

The parent presses Ctrl-C (SIGINT) and waits until the child says that it has caught it. After each one the child
computes a step and compares every gradient, the threads of BLAS and the locks with those before the first.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import faulthandler, hashlib, os, signal, sys, threading, time
import numpy as np
from threadpoolctl import threadpool_info
import minidl
from minidl import Tensor
from minidl.data import AugmentedLoader, ArrayDataset, CropAndFlip, DataLoader
from minidl.functional import cross_entropy
from minidl.nn import BatchNorm2d, Conv2d, Flatten, GlobalAvgPool, Linear, MaxPool2d, ReLU, Sequential
from minidl.optim import SGD

signal.signal(signal.SIGINT, signal.SIG_IGN)  # until everything stands
faulthandler.register(signal.SIGUSR1, file=sys.stdout)  # where every thread is, if an answer does not come
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()  # if the parent is killed
minidl.set_num_threads(2)
model = Sequential(
    Conv2d(3, 64, 3, padding=1), BatchNorm2d(64), ReLU(), MaxPool2d(2), Conv2d(64, 64, 3), ReLU(),
    Conv2d(64, 32, 1), GlobalAvgPool(), Linear(32, 10),
)
rng = np.random.default_rng(0)
data = ArrayDataset(rng.integers(0, 256, (64, 16, 16, 3), np.uint8), rng.integers(0, 10, 64))
loader = DataLoader(data, 16, transform=lambda images, rng: images.astype(np.float32) / 255)

def step(images, labels):
    model.zero_grad()
    cross_entropy(model(Tensor(images)), labels).backward()

fixed = rng.random((16, 16, 16, 3), np.float32), np.arange(16) % 10
optimizer = SGD(model.parameters(), lr=0.0, momentum=0.9)  # steps that change nothing: each gradient must repeat

def facts():
    model.eval()  # the running statistics do not move
    step(*fixed)
    model.train()
    digest = hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in model.parameters())).hexdigest()
    blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return digest, blas

state = model.state_dict()
expected, answer = facts(), "ready"
while True:
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(answer, flush=True)  # the next press may come: it is caught here too
        while True:
            for batch in loader:
                step(*batch)
                optimizer.step()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        model.load_state_dict(state)
        found = facts()
        answer = "caught" if found == expected else f"wrong: {found}, not {expected}"
"""
SECONDS_TO_ANSWER = 120


def press(presses: int, seed: int = 0) -> tuple[int, list[str]]:
    """Press Ctrl-C so many times. Return how many were caught, and what else the child said."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", CHILD]
    draw, caught, others = random.Random(seed), 0, []
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        signal.signal(signal.SIGALRM, lambda *_: end(child))  # a lost one would wait for ever
        try:
            assert child.stdout.readline() == "ready\n"
            for _ in range(presses):
                time.sleep(draw.uniform(0.002, 0.06))
                child.send_signal(signal.SIGINT)
                signal.alarm(SECONDS_TO_ANSWER)
                answer = child.stdout.readline().strip()
                signal.alarm(0)
                if answer != "caught":
                    others.append(answer or "no answer: a press of Ctrl-C was lost, or the process ended")
                    break
                caught += 1
        finally:
            signal.alarm(0)
            child.kill()
            others += filter(None, child.stdout.read().splitlines())
    return caught, others


def end(child: subprocess.Popen) -> None:
    """Let the child print where its threads are, and kill it."""
    child.send_signal(signal.SIGUSR1)
    time.sleep(1)
    child.kill()


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs the signals of Unix")
def test_no_press_of_ctrl_c_is_lost_and_the_next_step_is_right():
    assert press(40) == (40, [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    caught, others = press(arguments.presses, arguments.seed)
    print(f"{caught} of {arguments.presses} caught in {time.monotonic() - began:.0f} s", *others, sep="\n")
    sys.exit(caught != arguments.presses or bool(others))
