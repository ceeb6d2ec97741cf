"""Points for the exercises of a folder, for a teacher: hidden shapes and seeds, each file in a process of its own."""

import json
import secrets
from pathlib import Path
from typing import NamedTuple

from minidl.study.workbench.check import IN_USE, PRACTICE_STEPS, FileReport, check_file
from minidl.study.workbench.checker import Report, Rung, ladder
from minidl.study.workbench.exercises import Exercise, exercises
from minidl.study.workbench.process import Limits
from minidl.study.workbench.tasks import Task

# A step of the ladder is worth a point, the numbers themselves four, in proportion to the trials that are right.
MORE_POINTS = {"the numbers agree with the plain loops in float64": 4}


class Grade(NamedTuple):
    """The points of one file."""

    exercise: str
    points: float
    out_of: int
    functions: list[dict]  # of each one: its name, its points, the steps with theirs, the mistakes
    problem: str

    def line(self) -> str:
        """The grade in one line of a table, with what is wrong: the mistakes, or the first step that fails."""
        mistakes = "; ".join(words for function in self.functions for words in function["mistakes"])
        problems = [step["problem"] for function in self.functions for step in function["steps"] if step["problem"]]
        said = next(filter(None, [self.problem, mistakes, *problems]), "").partition("\n")[0]
        return f"{self.exercise:28} {self.points:5.1f} of {self.out_of:2}   {said}".rstrip()


def grade_folder(folder: Path, names: list[str], seed: int | None, limits: Limits) -> dict:
    """The grades of all students: of each subfolder, or of the folder itself if it has files of exercises.

    Graded are the exercises of these names, where a missing file has no points; without names, those that have a file.
    """
    seed = secrets.randbelow(2**31) if seed is None else seed
    students = [folder] if _files(folder) else _subfolders(folder)
    return {"seed": seed, "students": [_student(student, names, seed, limits) for student in students]}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))


def _files(folder: Path) -> list[str]:
    """The names of the exercises that have a file in the folder, in the order of the list."""
    return [name for name in exercises() if (folder / f"{name}.py").exists()]


def _student(folder: Path, names: list[str], seed: int, limits: Limits) -> dict:
    grades = [grade_file(folder / f"{name}.py", exercises()[name], seed, limits) for name in names or _files(folder)]
    return {
        "student": folder.resolve().name,
        "points": round(sum(grade.points for grade in grades), 2),
        "out_of": sum(grade.out_of for grade in grades),
        "exercises": [grade._asdict() for grade in grades],
    }


def grade_file(path: Path, exercise: Exercise, seed: int, limits: Limits) -> Grade:
    """The grade of one file."""
    report = check_file(path, exercise, seed, limits)
    names = [task.name for task in exercise.tasks] + [IN_USE] * exercise.is_practised
    functions = [_function(name, report) for name in names]
    out_of = sum(_points_of(title) for task in exercise.tasks for title in _titles(task))
    out_of += len(PRACTICE_STEPS) * exercise.is_practised
    points = round(sum(function["points"] for function in functions), 2)
    problem = report.problem or "; ".join(f"{name}: {words}" for name, words in report.problems.items())
    return Grade(exercise.name, points, out_of, functions, problem)


def _titles(task: Task) -> list[str]:
    """The titles of the steps of a task."""
    return [title for title, _ in ladder(task)]


def _points_of(title: str) -> int:
    return MORE_POINTS.get(title, 1)


def _points(rung: Rung) -> float:
    share = rung.share if rung.title in MORE_POINTS else float(not rung.problem)
    return round(_points_of(rung.title) * share, 2)


def _function(name: str, report: FileReport) -> dict:
    found = [one for one in report.reports if one.name == name]
    if not found:
        return {"function": name, "points": 0, "steps": [], "mistakes": []}
    return _steps(found[0])


def _steps(report: Report) -> dict:
    steps = [
        {
            "step": rung.title,
            "points": _points(rung),
            "out_of": _points_of(rung.title),
            "problem": rung.problem,
        }
        for rung in report.rungs
    ]
    points = round(sum(step["points"] for step in steps), 2)
    return {"function": report.name, "points": points, "steps": steps, "mistakes": report.mistakes}


def grades_text(grades: dict, as_json: bool) -> str:
    """The grades as JSON, or as a table."""
    if as_json:
        return json.dumps(grades, indent=2)
    lines = []
    for student in grades["students"]:
        lines.append(f"{student['student']}: {student['points']:.1f} of {student['out_of']} points")
        lines += [f"  {Grade(**grade).line()}" for grade in student["exercises"]]
    return "\n".join([*lines, f"(--seed {grades['seed']} repeats it)"])
