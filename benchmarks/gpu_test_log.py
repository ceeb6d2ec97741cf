"""A pytest plugin for gpu_report.py: the result of each test is written as soon as it is known.

    GPU_TEST_LOG=tests.jsonl python -m pytest -p benchmarks.gpu_test_log --device cuda tests/kernels

The file has a line when a test begins and one when it ends. Tests that are in it are not run again. So a run that is
cut off can be continued, and a test that ended the process, which has no second line, is known and left out. When a
test leaves the GPU unusable (after a wrong address every call fails), pytest ends with exit status NEW_PROCESS.

With GPU_TEST_POOL=none CuPy allocates each array by itself, so that compute-sanitizer sees a kernel that reads or
writes beside an array: in a pool's memory it would find a neighbour.
"""

import contextlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

NEW_PROCESS = 30  # exit status: run the same command again

RUNNING: list[str] = []  # the test that runs now
FAILED: dict[str, str] = {}  # test: message
SKIPPED: set[str] = set()


def lines_of(path: Path) -> list[dict]:
    """The lines of a log. The last one may be half a line, if the process was killed: it is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def read_log(path: Path) -> dict[str, dict]:
    """The last line of each test: {"id", "outcome"} and, if it failed, "message"; outcome "begun" if it never ended.

    A test that was interrupted is left out, as it is to run again; after the second time it has failed.
    """
    results: dict[str, dict] = {}
    interrupted = Counter()
    for line in lines_of(path):
        results[line["id"]] = line
        if line["outcome"] == "interrupted":
            interrupted[line["id"]] += 1
            del results[line["id"]]
    too_slow = {"outcome": "failed", "message": "interrupted twice: too slow, or it hangs"}
    return results | {test: {"id": test} | too_slow for test, times in interrupted.items() if times > 1}


def mark_interrupted(path: Path) -> None:
    """Write that the test that ran last did not end because its process was stopped from outside."""
    *_, last = [{"outcome": "none"}, *lines_of(path)]
    if last["outcome"] == "begun":
        with path.open("a") as file:
            file.write("\n" + json.dumps({"id": last["id"], "outcome": "interrupted"}) + "\n")


def write(line: dict) -> None:
    """Append a line to the log."""
    with Path(os.environ["GPU_TEST_LOG"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_sessionstart(session) -> None:
    """Switch the pool off, if asked to."""
    if os.environ.get("GPU_TEST_POOL") == "none":
        import cupy

        cupy.cuda.set_allocator(None)


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out what is in the log."""
    done = read_log(Path(os.environ["GPU_TEST_LOG"]))
    known = [item for item in items if item.nodeid in done]
    config.hook.pytest_deselected(items=known)
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_runtest_logstart(nodeid, location) -> None:
    """A test begins."""
    RUNNING[:] = [nodeid]
    write({"id": nodeid, "outcome": "begun"})


def pytest_keyboard_interrupt(excinfo) -> None:
    """The test is to run again."""
    for test in RUNNING:
        write({"id": test, "outcome": "interrupted"})


def pytest_runtest_logreport(report) -> None:
    """Set-up, the test itself or its end has a result. The first failure is written at once."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        FAILED[report.nodeid] = str(crash or report.longrepr)[-1000:]
    elif report.skipped:
        SKIPPED.add(report.nodeid)
    if report.failed or report.when == "teardown":
        outcome = "failed" if report.nodeid in FAILED else "skipped" if report.nodeid in SKIPPED else "passed"
        message = {"message": FAILED[report.nodeid]} if outcome == "failed" else {}
        write({"id": report.nodeid, "outcome": outcome} | message)
        RUNNING.clear()


def pytest_runtest_teardown(item) -> None:
    """Stop if nothing can be computed any more."""
    if item.nodeid in FAILED and not device_is_well():
        pytest.exit("the GPU is unusable in this process", NEW_PROCESS)


def device_is_well() -> bool:
    """False if every call of this process will fail; True also where CuPy is not in use."""
    cupy = sys.modules.get("cupy")
    try:
        if cupy is not None:
            cupy.cuda.runtime.deviceSynchronize()
    except Exception:
        return False
    return True
