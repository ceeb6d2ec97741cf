"""Check a student's file: read it, run it in a process of its own, judge what it did."""

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from minidl.study.cases import has_cases
from minidl.study.workbench.checker import NOT_SO_FAR, Report, Rung, Runs, judge
from minidl.study.workbench.course import LEAST_SPEEDUP, STATED_ACCURACY
from minidl.study.workbench.exercises import Exercise
from minidl.study.workbench.observe import Observation
from minidl.study.workbench.process import NOTES, Limits, run_worker

IN_USE = "in use"  # the name of the report on functions that are right
PRACTICE_SECONDS = 120
PRACTICE_STEPS = (
    "its convolution is faster than the loops, at least",
    "a network trained on it recognises four shapes, at least",
)


class FileReport(NamedTuple):
    """What was found in a file: a problem of the file itself, or a report for each of its functions."""

    problem: str
    reports: tuple[Report, ...] = ()
    problems: Mapping[str, str] = MappingProxyType({})  # of a function that could not be tried
    printed: str = ""

    @property
    def is_right(self) -> bool:
        """True if all functions are right."""
        return not self.problem and not self.problems and all(report.is_right for report in self.reports)


def check_file(path: Path, exercise: Exercise, seed: int = 0, limits: Limits | None = None) -> FileReport:
    """Judge the functions of a file. It never raises an error for anything that is in the file."""
    problem = problem_of_file(path) or _without_cases(exercise)
    if problem:
        return FileReport(problem)
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        problem = run_worker("check", path, exercise, seed, Path(folder), limits)
        if problem:
            return FileReport(problem)
        report = _read(exercise, seed, Path(folder))
        return _put_to_use(report, path, exercise, Path(folder), limits)


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
        return f"{path.name} cannot be compiled ({type(error).__name__}). Is something nested very deeply?"
    return ""


def _syntax_error(error: SyntaxError, path: Path) -> str:
    """The line, and a caret below the place."""
    if error.lineno is None:
        return f"{path.name} is not valid Python: {error.msg}."
    text = (error.text or "").rstrip("\n")
    caret = "".join("\t" if letter == "\t" else " " for letter in text[: max((error.offset or 1) - 1, 0)]) + "^"
    return f"{path.name}, line {error.lineno}, is not valid Python: {error.msg}.\n\n    {text}\n    {caret}"


# -- in use ------------------------------------------------------------------------------------------------------------


def _put_to_use(report: FileReport, path: Path, exercise: Exercise, folder: Path, limits: Limits) -> FileReport:
    """With a report on how the functions do in use, if the exercise asks for it and they are right."""
    if not exercise.is_practised or not report.is_right:
        return report
    limits = limits._replace(seconds=max(limits.seconds, PRACTICE_SECONDS))
    problem = run_worker("practise", path, exercise, 0, folder, limits)
    notes = {} if problem else json.loads((folder / NOTES["practise"]).read_text(encoding="utf-8"))
    rungs = _practice_rungs(notes, problem or notes.get("error", ""))
    return report._replace(reports=(*report.reports, Report(IN_USE, rungs, [], "")))


def _practice_rungs(notes: dict, problem: str) -> list[Rung]:
    speedup, accuracy = notes.get("speedup", 0.0), notes.get("accuracy", 0.0)
    slow = problem or f"It is {speedup:.1f} times as fast. Copy a tap of all windows at once, not window by window."
    low = problem or f"It recognises {accuracy:.0%} of new images. Does it keep float32, and the order of the axes?"
    low = low if speedup >= LEAST_SPEEDUP else NOT_SO_FAR
    return [
        _figure(f"{PRACTICE_STEPS[0]} {LEAST_SPEEDUP} times", f"{speedup:.0f} times", speedup / LEAST_SPEEDUP, slow),
        _figure(f"{PRACTICE_STEPS[1]} {STATED_ACCURACY:.0%}", f"{accuracy:.0%}", accuracy / STATED_ACCURACY, low),
    ]


def _figure(title: str, figure: str, share: float, problem: str) -> Rung:
    """A step that is passed by a figure: with the figure if it is, else with the problem."""
    return Rung(f"{title}: {figure}", "", 1.0) if share >= 1 else Rung(title, problem, 0.0)


# -- what its process left ---------------------------------------------------------------------------------------------


def _read(exercise: Exercise, seed: int, folder: Path) -> FileReport:
    notes = json.loads((folder / NOTES["check"]).read_text(encoding="utf-8"))
    printed = str(notes["printed"])
    if "import_error" in notes:
        return FileReport(_import_error(*notes["import_error"]), printed=printed)
    reports, problems = [], {}
    for task in exercise.tasks:
        about = notes["functions"][task.name]
        if "problem" in about:
            problems[task.name] = about["problem"]
        else:
            seen = _observations(about["observations"], folder / f"{task.name}.npz")
            trials = task.trials(seed)
            reports.append(judge(Runs(task, trials, seen[: len(trials)], seen[len(trials) :])))
    return FileReport("", tuple(reports), problems, printed)


def _import_error(kind: str, message: str, line: int) -> str:
    """An error outside of the functions, in words."""
    place = f" in line {line}" if line else ""
    if kind == "SystemExit":
        return f"The file ends Python by exit(){place}. It should define its functions and no more."
    if kind == "EOFError":
        return f"The file asks for keyboard input{place}. All that its functions need are their arguments."
    return f"The file cannot be imported: {kind}{place}: {message}".removesuffix(": ")


def _observations(fields: list, path: Path) -> list[Observation]:
    """The observations that the worker noted, with the arrays from its file in their places."""
    observations = []
    with np.load(path, allow_pickle=False) as arrays:
        for number, (error, returned, kept, written, opened) in enumerate(fields):
            results = [arrays[f"{number}_{part}"] if is_array else None for part, is_array in enumerate(kept)]
            observations.append(Observation(tuple(error) if error else None, returned, results, written, opened))
    return observations
