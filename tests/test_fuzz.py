"""A few hundred cases of `tests/fuzz.py`, and whether it notices what it looks for."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import fuzz


@pytest.mark.filterwarnings("ignore")
def test_no_file_is_let_in_that_lies(tmp_path):
    kinds = list(fuzz.KINDS)
    jobs = [(kinds[i % len(kinds)], 0, i // len(kinds)) for i in range(60 * len(kinds))]
    counts, failures = fuzz.run(jobs, tmp_path)
    assert failures == {}
    assert sum(counts.values()) == len(jobs)
    for kind in kinds:
        assert counts[kind, "refused"] > 20, kind
    assert all(counts[kind, "accepted"] for kind in ("pickle", "image", "metrics")), "the changes leave nothing whole"


def test_a_case_depends_on_seed_kind_and_number_alone():
    for kind in fuzz.KINDS:
        same = [fuzz.content_of(kind, 3, 5) for _ in range(2)]
        assert same[0] == same[1] and len({fuzz.content_of(kind, 3, number) for number in range(9)}) > 4


def forget_the_name(path):
    raise ValueError("damaged")


def compute_for_ever(path):
    while True:
        pass


FAULTS = {  # how the message begins that the fuzzer stores: what a reader does
    "the file is not named": forget_the_name,
    "ZeroDivisionError": lambda path: 1 / 0,
    "more than 1 s": lambda path: time.sleep(60),
    "more than 1 ": compute_for_ever,
    "MemoryError": lambda path: bytearray(2 * fuzz.MEMORY),
    f"the process ended with status -{int(signal.SIGKILL)}": lambda path: os.kill(os.getpid(), signal.SIGKILL),
    "code was run": lambda path: pickle.loads(path.read_bytes()),
}


def check_that_it_is_found(fault, folder):
    """Give a reader with this fault to the fuzzer."""
    fuzz.SECONDS, fuzz.PATIENCE = 1, 3
    fuzz.KINDS["faulty"] = fuzz.Kind(lambda rng: pickle.dumps(fuzz.RunsCode()), FAULTS[fault])
    counts, failures = fuzz.run([("faulty", 0, 0), ("faulty", 0, 1)], Path(folder))
    assert counts == {("faulty", "failure"): 2}
    assert [path.name for path in failures] == ["faulty-0-0", "faulty-0-1"]
    assert all(path.exists() and what.startswith(fault) for path, what in failures.items()), failures


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reader_with_a_fault_is_found_and_its_input_is_kept(fault, tmp_path):
    """In a new process: the limit of memory counts from what a process holds, and one that ran tests holds much."""
    program = "import sys; from tests.test_fuzz import check_that_it_is_found; check_that_it_is_found(*sys.argv[1:])"
    command = [sys.executable, "-c", program, fault, str(tmp_path / "failed")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
