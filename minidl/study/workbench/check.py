"""Check a student's file: read it, run it in a process of its own, judge what it did."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

import minidl.study
from minidl.study.cases import has_cases
from minidl.study.workbench.checker import Report, Runs, judge
from minidl.study.workbench.exercises import Exercise
from minidl.study.workbench.observe import Observation
from minidl.study.workbench.tasks import Task


class Limits(NamedTuple):
    """Of a student's process: seconds, and megabytes of memory."""

    seconds: int = 20
    megabytes: int = 2048


class FileReport(NamedTuple):
    """What is to say of a file: a problem of the file itself, or a report for each of its functions."""

    problem: str
    reports: list[Report]
    problems: dict[str, str]  # of a function that could not be tried
    printed: str

    @property
    def is_right(self) -> bool:
        """True if all functions are."""
        return not self.problem and not self.problems and all(report.is_right for report in self.reports)


def check_file(path: Path, exercise: Exercise, seed: int = 0, limits: Limits | None = None) -> FileReport:
    """Judge the functions of a file. It never raises an error for anything that is in the file."""
    problem = problem_of_file(path) or _without_cases(exercise)
    if problem:
        return FileReport(problem, [], {}, "")
    limits = limits or Limits()
    with tempfile.TemporaryDirectory() as folder:
        problem = _run(path, exercise, seed, Path(folder), limits)
        if problem:
            return FileReport(problem, [], {}, "")
        try:
            return _read(exercise, seed, Path(folder))
        except (OSError, ValueError, KeyError, TypeError):
            return FileReport(
                "Its process left no results that can be read. Does the file write to other files?", [], {}, ""
            )


def _without_cases(exercise: Exercise) -> str:
    """A kernel that is new has an exercise, but nobody has said yet with which arguments to try it."""
    missing = [task.target for task in exercise.tasks if not has_cases(task.target)]
    return f"{missing[0]} cannot be checked yet: minidl/study/cases.py has no cases of it." if missing else ""


def problem_of_file(path: Path) -> str:
    """Why the file is no Python, in words; '' if it is."""
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"There is no file {path}."
    except UnicodeDecodeError as error:
        return f"{path.name} is not a text file in UTF-8: {error.reason} at byte {error.start}."
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" in a string, for example
            compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        return _syntax_error(error, path)
    except (ValueError, RecursionError, MemoryError) as error:
        return f"{path.name} is no Python that can be read: {error}."
    return ""


def _syntax_error(error: SyntaxError, path: Path) -> str:
    """The line, and a caret below the place."""
    if error.lineno is None:
        return f"{path.name} is not valid Python: {error.msg}."
    text = (error.text or "").rstrip("\n")
    caret = "".join("\t" if letter == "\t" else " " for letter in text[: max((error.offset or 1) - 1, 0)]) + "^"
    return f"{path.name}, line {error.lineno}, is not valid Python: {error.msg}.\n\n    {text}\n    {caret}"


# -- its process -------------------------------------------------------------------------------------------------------


def _run(path: Path, exercise: Exercise, seed: int, folder: Path, limits: Limits) -> str:
    """Run the worker. Returns why it did not come to its end; '' if it did."""
    command = [sys.executable, "-m", "minidl.study.workbench.worker", str(path.resolve()), exercise.name]
    command += [str(seed), str(folder), str(limits.seconds), str(limits.megabytes)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env=_environment(), start_new_session=True, **quiet)
    try:
        code = process.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(process)
    if (folder / "notes.json").exists():
        return ""
    if code is None or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"It was stopped after {limits.seconds} s, while {_doing(folder)}. Is there an endless loop?"
    if code < 0:
        limit = f"The limit of memory is {limits.megabytes} MB."
        return f"Its process was ended by signal {-code}, while {_doing(folder)}. {limit}"
    return f"It ended Python itself (exit code {code}), while {_doing(folder)}. A function returns its result instead."


def _environment() -> dict[str, str]:
    """minidl is importable, and NumPy uses one thread: its threads count as memory."""
    package = str(Path(minidl.study.__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


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


def _read(exercise: Exercise, seed: int, folder: Path) -> FileReport:
    notes = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
    printed = str(notes["printed"])
    if "import_error" in notes:
        return FileReport(_import_error(*notes["import_error"]), [], {}, printed)
    reports, problems = [], {}
    for task in exercise.tasks:
        about = notes["functions"][task.name]
        if "problem" in about:
            problems[task.name] = about["problem"]
        else:
            reports.append(_judge(task, seed, about["observations"], folder))
    return FileReport("", reports, problems, printed)


def _import_error(kind: str, message: str, line: int) -> str:
    """An error outside of the functions, in words."""
    place = f" in line {line}" if line else ""
    if kind == "SystemExit":
        return f"The file ends Python by exit(){place}. It should define its functions and no more."
    if kind == "EOFError":
        return f"The file asks for keyboard input{place}. All that its functions need are their arguments."
    return f"The file cannot be imported: {kind}{place}: {message}"


def _judge(task: Task, seed: int, observed: list, folder: Path) -> Report:
    trials = task.trials(seed)
    with np.load(folder / f"{task.name}.npz", allow_pickle=False) as arrays:
        seen = [_observation(number, fields, arrays) for number, fields in enumerate(observed)]
    if len(seen) != 2 * len(trials):
        raise ValueError("not all trials were observed")
    return judge(Runs(task, trials, seen[: len(trials)], seen[len(trials) :]))


def _observation(number: int, fields: list, arrays) -> Observation:
    error, returned, kept, written, opened = fields
    results = [arrays[f"{number}_{part}"] if is_array else None for part, is_array in enumerate(kept)]
    return Observation(tuple(error) if error else None, returned, results, written, opened)
