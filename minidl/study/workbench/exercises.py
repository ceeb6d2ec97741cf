"""The exercises: one for every kernel and every op, made from their source, and the twelve of the course."""

import ast
import functools
import importlib
import inspect
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from minidl.study.calls import kernels, ops
from minidl.study.workbench.course import COURSE
from minidl.study.workbench.tasks import OpTask, PartTask, Task, import_lines

# One gradient alone, of a kernel that returns two.
PARTS = {
    "conv2d_backward_x": ("conv2d_backward", 0, {"needs_x": True, "needs_weight": False}),
    "conv2d_backward_weight": ("conv2d_backward", 1, {"needs_x": False, "needs_weight": True}),
}


class Exercise(NamedTuple):
    """A file to write: one or more functions."""

    name: str
    title: str
    tasks: tuple[Task, ...]
    hints: tuple[str, ...]
    minutes: int = 0  # of the course; 0 for the others
    number: int = 0  # its place in the course
    is_practised: bool = False  # right functions are put to use: see practice.py

    def text(self) -> str:
        """The file that a student gets."""
        words = _how_to(self.name) + "".join(map(_described, self.helpers()))
        head = f'"""{self.title}.\n\n{words}"""\n\n' + "\n".join(self.imports())
        return "\n\n\n".join([head, *(task.source() for task in self.tasks)]) + "\n"

    def imports(self) -> list[str]:
        """The import statements for what the solution uses, but for what the file itself defines."""
        return import_lines(self._used())

    def helpers(self) -> list[Callable]:
        """The private functions among them, which stand in no documentation."""
        private = sorted(use for use in self._used() if use[1].startswith("_"))
        return [getattr(importlib.import_module(module), name) for module, name in private]

    def _used(self) -> set[tuple[str, str]]:
        own = {task.name for task in self.tasks} | {task.target for task in self.tasks}
        return {use for task in self.tasks for use in task.uses() if use[1] not in own}

    def solution(self) -> str:
        """The source of the right functions."""
        return "\n\n".join(task.solution() for task in self.tasks)


def _how_to(name: str) -> str:
    return textwrap.dedent(f"""\
        Write the missing body, then ask what is wrong with it:

            python -m minidl.study exercise {name}             check it
            python -m minidl.study exercise {name} --watch     check it whenever this file is saved
            python -m minidl.study exercise {name} --hint      one hint at a time
            python -m minidl.study exercise {name} --show      the solution

        What is imported here may be used.
        """)


def _described(helper: Callable) -> str:
    """Signature and docstring of a helper."""
    described = f"{helper.__name__}{inspect.signature(helper)}\n\n{inspect.getdoc(helper) or ''}".strip()
    return "\n" + textwrap.indent(described, " " * 4) + "\n"


def task(name: str) -> Task:
    """The task of one function, or of one op."""
    if name in PARTS:
        return PartTask(name, *PARTS[name])
    return OpTask(name) if name in ops() else Task(name, kernels()[name])


@functools.cache
def exercises() -> dict[str, Exercise]:
    """All exercises by name: the course in its order, then the kernels in that of their file, then the ops."""
    found = {}
    for number, lesson in enumerate(COURSE, start=1):
        tasks = tuple(task(name) for name in lesson.functions)
        found[lesson.name] = Exercise(
            lesson.name, lesson.title, tasks, lesson.hints, lesson.minutes, number, lesson.is_practised
        )
    for name in [*kernels(), *PARTS, *ops()]:
        one = _alone(name)
        found.setdefault(one.name, one)
    return found


def _alone(name: str) -> Exercise:
    """The exercise of one function or op. Its hints come from its source."""
    one = task(name)
    if one.kind == "op":  # op_ReLU: a file system may take ReLU.py and relu.py for one file
        return Exercise(f"op_{name}", f"The op {name}", (one,), _hints_of(one))
    return Exercise(name, f"The kernel {name}", (one,), _hints_of(one))


def _hints_of(one: Task) -> tuple[str, ...]:
    """From the source: the formula, the functions that the solution calls, its last line."""
    node = ast.parse(textwrap.dedent(one.solution())).body[0]
    formula = " ".join((ast.get_docstring(node) or "").split())
    uses = sorted(
        {call.func.attr for call in ast.walk(node) if isinstance(call, ast.Call) and hasattr(call.func, "attr")}
    )
    body = [line for line in one.solution().splitlines() if line.strip()]
    hints = [f"The formula: {formula}"]
    if uses:
        hints.append(f"The solution calls {', '.join(uses)}.")
    return (*hints, f"Its last line is: {body[-1].strip()}")
