"""The process that a student's file runs in: `python -m minidl.study.workbench.worker check FILE EXERCISE ...`.

It runs each function on the trials of the seed, and writes what it observed to FOLDER, as JSON and arrays. Its caller
compares them with the right results.

What is guarded: the file cannot change the checker, which runs in the caller's process; it cannot call the solution by
its name in minidl; and a loop or an exit ends this process alone. What is not: the file runs with all rights of the
user, can compute the right results as minidl does, and can write to FOLDER. The limits protect from accidents, not from
a program that means harm.
"""

import contextlib
import functools
import importlib.util
import inspect
import io
import json
import math
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np

from minidl.kernels import cpu
from minidl.study.calls import ops
from minidl.study.workbench.exercises import exercises
from minidl.study.workbench.observe import Observation, observe
from minidl.study.workbench.practice import practise
from minidl.study.workbench.process import NOTES
from minidl.study.workbench.tasks import Task, in_float32

MOST_PRINTED = 2000  # characters


class FirstCharacters(io.StringIO):
    """Keeps the first MOST_PRINTED characters that are printed, and drops the rest."""

    def write(self, text: str) -> int:
        """Keep what still fits."""
        return super().write(text[: max(0, MOST_PRINTED - self.tell())])


def main(arguments: list[str]) -> None:
    """Run a student's file under limits of CPU time (seconds) and memory (megabytes), and write what it did."""
    what, file, name, seed, folder, seconds, megabytes = arguments
    _limit(int(seconds), int(megabytes))
    tasks = exercises()[name].tasks
    if what == "practise":
        _write_notes(Path(folder, NOTES[what]), _practise(Path(file), Path(folder)))
        return
    trials = {task.name: [trial.arguments for trial in task.trials(int(seed))] for task in tasks}
    printed = FirstCharacters()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        notes = _run_file(Path(file), tasks, trials, Path(folder))
    notes["printed"] = printed.getvalue()
    _write_notes(Path(folder, NOTES[what]), notes)


def _write_notes(path: Path, notes: dict) -> None:
    """All at once: the process may be stopped at any time."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(notes), encoding="utf-8")
    half.replace(path)


def _limit(seconds: int, megabytes: int) -> None:
    """Limits of the process, where the system has them and those that are set already allow it."""
    with contextlib.suppress(ImportError):
        import resource

        seconds += math.ceil(time.process_time())  # those of the imports, before the file, do not count
        limits = {"CPU": (seconds, seconds + 1), "AS": (megabytes * 2**20,) * 2, "FSIZE": (2**28,) * 2, "CORE": (0, 0)}
        for name, limit in limits.items():
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), limit)


def _run_file(file: Path, tasks: tuple[Task, ...], trials: dict, folder: Path) -> dict:
    _say(folder, "the file was read")
    _hide_solutions(tasks)
    try:
        module = _load(file)
    except BaseException as raised:
        return {"import_error": _import_error(raised, file)}
    return {"functions": {task.name: _run_task(module, task, trials[task.name], folder) for task in tasks}}


def _practise(file: Path, folder: Path) -> dict:
    """What the functions do in use; and the error that they raise there."""
    notes = {}
    with contextlib.redirect_stdout(FirstCharacters()), contextlib.redirect_stderr(FirstCharacters()):
        module = _load(file)
        _say(folder, "its convolution was in use: timed, and training a network")
        try:
            for name, figure in practise(module):
                notes[name] = figure
        except Exception as raised:
            notes["error"] = f"{type(raised).__name__}: {raised}"
    return notes


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("workbench_file", file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))  # a file may use another one of the same folder
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    return module


def _import_error(raised: BaseException, file: Path) -> list:
    """(type, message, line) of an error outside of the functions."""
    lines = [frame.lineno for frame in inspect.getinnerframes(raised.__traceback__) if frame.filename == str(file)]
    return [type(raised).__name__, str(raised), lines[-1] if lines else 0]


def _hide_solutions(tasks: tuple[Task, ...]) -> None:
    """The solutions of the exercise raise an error if the student's file calls them."""

    def refusing(target, solution):
        @functools.wraps(solution)
        def refuse(*args, **kwargs):
            raise RuntimeError(f"minidl's {target} is the solution of this exercise: write it yourself")

        return refuse

    for task in tasks:
        if task.kind == "op":
            places = [(ops()[task.target], "forward"), (ops()[task.target], "backward")]
        else:
            places = [(inspect.getmodule(task.right), task.target), (cpu, task.target)]
        for place, name in places:
            if hasattr(place, name):
                setattr(place, name, refusing(task.target, getattr(place, name)))


def _run_task(module: ModuleType, task: Task, arguments: list[dict], folder: Path) -> dict:
    function = getattr(module, task.name, None)
    problem = _problem_of(function, task)
    if problem:
        return {"problem": problem}
    seen = []
    for dtype, convert in (("float64", dict), ("float32", in_float32)):
        for number, some in enumerate(arguments):
            _say(folder, f"{task.name} ran in case {number + 1} of {len(arguments)}, in {dtype}")
            seen.append(observe(function, convert(some), task.kind, task.written))
    _save(folder / f"{task.name}.npz", seen)
    return {"observations": [one._replace(arrays=[array is not None for array in one.arrays]) for one in seen]}


def _problem_of(function, task: Task) -> str:
    """Why the function cannot be tried, in a sentence; '' if it can."""
    kind = "class" if task.kind == "op" else "function"
    if function is None:
        return f"The file has no {kind} {task.name}. Was it renamed?"
    if not callable(function):
        return f"{task.name} is a {type(function).__name__}, expected a {kind}."
    if str(getattr(function, "__module__", "")).startswith("minidl."):
        return f"{task.name} is minidl's own. Write yours."
    if task.kind == "op":
        missing = [method for method in ("forward", "backward") if not callable(getattr(function, method, None))]
        return f"The class {task.name} has no {missing[0]}." if missing else ""
    return _problem_of_signature(function, task)


def _problem_of_signature(function, task: Task) -> str:
    expected = f"{task.name}({', '.join(task.parameters)})"
    try:
        signature = inspect.signature(function)
        signature.bind(*task.parameters)
    except (TypeError, ValueError):
        return f"It is called as {expected}, but it is written as {task.name}{_signature(function)}."
    names = list(signature.parameters)
    if names != task.parameters and sorted(names) == sorted(task.parameters):
        return f"Its arguments are in another order: it is called as {expected}."
    return ""


def _signature(function) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"


def _save(path: Path, seen: list[Observation]) -> None:
    arrays = {
        f"{number}_{part}": array
        for number, observation in enumerate(seen)
        for part, array in enumerate(observation.arrays)
        if array is not None
    }
    np.savez(path, **arrays)


def _say(folder: Path, what: str) -> None:
    """What the process is doing, for the case that it does not come to its end."""
    (folder / "doing").write_text(what, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
