"""A report as text for a terminal."""

import shutil
import textwrap

from minidl.study.workbench.check import IN_USE, FileReport
from minidl.study.workbench.checker import Report
from minidl.study.workbench.exercises import Exercise

WIDEST = 100  # characters in a line
MOST_PRINTED = 5  # lines of what the student's file printed


def width() -> int:
    """The width of a line: that of the terminal, but at most WIDEST."""
    return min(WIDEST, shutil.get_terminal_size((80, 24)).columns)


def wrapped(text: str, indent: str = "") -> str:
    """Each line of a text wrapped; lines that begin with two blanks, code and maps, stay as they are."""
    lines = []
    for line in text.split("\n"):
        if line.startswith("  "):
            lines.append(indent + line)
        else:
            lines += textwrap.wrap(
                line, width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            ) or [""]
    return "\n".join(lines)


def report_text(report: FileReport, exercise: Exercise) -> str:
    """What a student reads."""
    parts = [wrapped(report.problem)] if report.problem else []
    for task in exercise.tasks:
        if task.name in report.problems:
            parts.append(f"{task.name}\n\n{wrapped(report.problems[task.name])}")
        parts += [_function(one) for one in report.reports if one.name == task.name]
    parts += [_in_use(one) for one in report.reports if one.name == IN_USE]
    if report.printed.strip():
        lines = report.printed.strip().split("\n")
        parts.append("\n  ".join(["It printed:", *lines[:MOST_PRINTED], *["..."] * (len(lines) > MOST_PRINTED)]))
    if report.is_right:
        parts.append(f"All of {exercise.name} is right.")
    return "\n\n".join(parts)


def _in_use(report: Report) -> str:
    """What right functions do in use: all steps, as they have figures."""
    lines = ["In use", ""]
    for rung in report.rungs:
        lines.append(f"  {'WRONG' if rung.problem else 'ok   '}  {rung.title}")
        lines += [wrapped(rung.problem, " " * 9)] if rung.problem else []
    return "\n".join(lines)


def _function(report: Report) -> str:
    """The ladder up to the first step that fails, the name of the mistake, and where it shows."""
    if report.is_right:
        return f"{report.name}: right, in all {len(report.rungs)} steps"
    failed = next(number for number, rung in enumerate(report.rungs) if rung.problem)
    if report.rungs[failed].problem.startswith(f"{report.name} is not written yet"):
        return f"{report.name}: not written yet"
    lines = [report.name, ""]
    lines += [f"  ok     {rung.title}" for rung in report.rungs[:failed]]
    lines += [f"  WRONG  {report.rungs[failed].title}", wrapped(report.rungs[failed].problem, " " * 9)]
    if report.mistakes:
        lines += ["", *(wrapped(f">>> {words}") for words in report.mistakes)]
    elif report.place:
        lines += ["", wrapped("This is none of the mistakes that the checker knows.")]
    if report.place:
        lines += ["", wrapped(report.place)]
    return "\n".join(lines)
