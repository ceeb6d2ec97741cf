"""The process that a student's file runs in, seen from outside: its limits, and how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import minidl.study
from minidl.study.workbench.exercises import Exercise

NOTES = {"check": "notes.json", "practise": "practice.json"}  # what the process writes last
OUT_OF_TIME = {-number for number in signal.Signals if number.name == "SIGXCPU"}  # exit codes
PATIENCE = 6 if os.name == "posix" else 1  # Windows has no limit of CPU time
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MINIDL_NUM_THREADS"), "1")


class Limits(NamedTuple):
    """The limits of a student's process: seconds of CPU time, and megabytes of memory.

    CPU time, because on a busy machine a right solution may take long on the clock. A process that waits uses none: it
    is stopped after `clock` seconds.
    """

    seconds: int = 20
    megabytes: int = 2048

    @property
    def clock(self) -> int:
        """Seconds on the clock."""
        return PATIENCE * self.seconds


def run_worker(what: str, path: Path, exercise: Exercise, seed: int, folder: Path, limits: Limits) -> str:
    """Run the worker. Returns why it did not come to its end; '' if it did."""
    command = [sys.executable, "-m", "minidl.study.workbench.worker", what, str(path.resolve()), exercise.name]
    command += [str(seed), str(folder), str(limits.seconds), str(limits.megabytes)]
    with (folder / "stderr").open("wb") as stderr:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": stderr}
        process = subprocess.Popen(command, cwd=folder, env=_environment(), start_new_session=True, **streams)
    try:
        code = process.wait(limits.clock)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(process)
    if (folder / NOTES[what]).exists():
        return ""
    if code in OUT_OF_TIME:
        return f"It was stopped after {limits.seconds} s of CPU time, while {_doing(folder)}. Is there an endless loop?"
    if code is None:
        why = "Does it wait for something, or is there an endless loop?"
        return f"It was stopped after {limits.clock} s, while {_doing(folder)}. {why}"
    if code < 0:
        limit = f"The limit of memory is {limits.megabytes} MB."
        return f"Its process was ended by {signal.Signals(-code).name}, while {_doing(folder)}. {limit}"
    words = _last_words(folder)
    if words:
        return f"Its process failed, while {_doing(folder)}: {words}"
    return f"It ended Python itself (exit code {code}), while {_doing(folder)}. A function returns its result instead."


def _last_words(folder: Path) -> str:
    """The last line of an error that nobody caught: that of an array which cannot be stored, for example."""
    lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _environment() -> dict[str, str]:
    """minidl can be imported, and one thread is used: the stack of each counts as memory."""
    package = str(Path(minidl.study.__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **ONE_THREAD}


def _end(process: subprocess.Popen) -> None:
    """End the process and all that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _doing(folder: Path) -> str:
    try:
        return (folder / "doing").read_text(encoding="utf-8")
    except OSError:
        return "it started"
