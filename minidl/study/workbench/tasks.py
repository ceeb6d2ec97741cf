"""A task: one function to write, made from the source of the right one. Its body is cut out by the syntax tree."""

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minidl.kernels import reference
from minidl.ops.function import Context
from minidl.study.calls import WRITTEN, Call, arrays_in, backward_of, map_arrays, ops, result_names, returning
from minidl.study.cases import cases, op_cases
from minidl.study.mistakes import Mistake, mistakes_of

NOT_WRITTEN = "raise NotImplementedError  # write this"


class Trial(NamedTuple):
    """One call to try a task with: the arguments that the student's function gets, and the right results."""

    arguments: dict
    right: list[np.ndarray]
    call: Call

    def is_in_float32(self, name: str) -> bool:
        """True if a result has to be float32 where the arguments are."""
        return name != "best_tap" and any(array.dtype == np.float64 for array in arrays_in(self.arguments))

    def shapes(self) -> str:
        """The arguments in words: arrays by their shapes, everything else by its value."""
        words = []
        for name, value in self.arguments.items():
            shown = map_arrays(lambda array: array.shape if array.ndim else float(array), value)
            words.append(f"{name} {shown}" if isinstance(value, np.ndarray) and value.ndim else f"{name}={shown}")
        return ", ".join(words)


class Task:
    """A function to write. `right` is the function to agree with, and `target` what its mistakes are listed under."""

    kind = "function"

    def __init__(self, name: str, right: Callable, target: str | None = None):
        self.name, self.right, self.target = name, right, target or name
        self.parameters = list(inspect.signature(right).parameters)
        self.written = WRITTEN.get(name, ())
        self.part: int | None = None

    def trials(self, seed: int) -> list[Trial]:
        """The trials of a seed."""
        return [self._trial(arguments) for arguments in cases(self.target, seed)]

    def result_names(self) -> tuple[str, ...]:
        """What the function returns, in words: ("dL/dx", "dL/dweight")."""
        return result_names(self.target)

    def names_in(self, trial: Trial) -> list[str]:
        """The name of each array in `trial.right`; of lists that are written into, "parameters[0]", ..."""
        names = list(self.result_names())
        if self.written:
            values = [(name, trial.arguments[name]) for name in names]
            lists = [[f"{name}[{i}]" for i in range(len(v))] if isinstance(v, list) else [name] for name, v in values]
            names = [name for some in lists for name in some]
        return (names + [f"result {i}" for i in range(len(names), len(trial.right))])[: len(trial.right)]

    def mistakes(self) -> list[Mistake]:
        """The mistakes that are known of it."""
        return mistakes_of(self.target)

    def results(self, returned) -> list[np.ndarray]:
        """What the right function, or a mistake, returned, as a list of arrays."""
        return [np.asarray(part) for part in (returned if isinstance(returned, tuple | list) else (returned,))]

    def source(self) -> str:
        """The function without its body: signature and docstring as they stand in the source."""
        return _without_body(self.right)

    def solution(self) -> str:
        """The source of the right function."""
        return inspect.getsource(self.right)

    def uses(self) -> set[tuple[str, str]]:
        """(module, name) of what the right function uses; of a module itself, ("", its import statement)."""
        return _used(self.solution(), vars(inspect.getmodule(self.right)))

    def _trial(self, arguments) -> Trial:
        call = Call(returning(self.name, self.right), arguments)
        return Trial(arguments, self.results(call()), call)


class PartTask(Task):
    """One result of a kernel that returns several: conv2d_backward's dL/dx alone."""

    def __init__(self, name: str, target: str, part: int, fixed: dict):
        kernel = getattr(reference, target)
        super().__init__(name, kernel, target)
        self.part, self.fixed = part, fixed
        self.parameters = [parameter for parameter in self.parameters if parameter not in fixed]

    def result_names(self) -> tuple[str, ...]:
        """The name of the one result."""
        return (result_names(self.target)[self.part],)

    def results(self, returned):
        """This task's one of the kernel's results, as a list of one array."""
        return super().results(returned[self.part])

    def source(self) -> str:
        """The kernel's docstring, with a first line and a signature of its own."""
        lines = _without_body(self.right).split("\n")
        indent, docstring = lines[1].split('"""', 1)
        result = self.result_names()[0].replace("dL/d", "grad_")
        lines[0] = f"def {self.name}({', '.join(self.parameters)}):"
        lines[1] = f'{indent}"""{result} alone; it is always needed. `{self.target}` is:\n\n{indent}{docstring}'
        return "\n".join(lines)

    def _trial(self, arguments):
        given = {name: value for name, value in arguments.items() if name not in self.fixed}
        call = Call(self.right, {**given, **self.fixed})
        return Trial(given, self.results(call()), Call(self.right, {**given, **dict.fromkeys(self.fixed, True)}))


class OpTask(Task):
    """An op: the class with forward and backward. The results are y and the gradient of each input."""

    kind = "op"

    def __init__(self, name: str):
        self.op = ops()[name]
        super().__init__(name, self.op.backward, name)
        self.parameters = []

    def trials(self, seed):
        """The trials of a seed, with random numbers for dL/dy."""
        rng = np.random.default_rng(seed)
        return [self._op_trial(case["inputs"], case["options"], rng) for case in op_cases(self.name, seed)]

    def result_names(self):
        """y, and the gradient of each input."""
        return "y", *(f"dL/d(input {number})" for number in range(8))

    def source(self):
        """The class without the bodies of forward and backward."""
        return _class_without_bodies(self.op)

    def solution(self):
        """The source of the class."""
        return inspect.getsource(self.op)

    def _op_trial(self, inputs, options, rng):
        y, ctx = forward(self.op, inputs, options)
        grad = rng.standard_normal(y.shape).astype(np.float32).astype(y.dtype)
        call = Call(backward_of(self.op), {"grad": grad, "saved": ctx.saved, "needs_grad": ctx.needs_grad})
        right = [np.asarray(y), *self.results(call())]
        return Trial({"inputs": inputs, "options": options, "grad": grad}, right, call)


def forward(op: type, inputs: tuple, options: dict) -> tuple[np.ndarray, Context]:
    """(y, ctx) of an op on arrays that all need their gradient."""
    ctx = Context((True,) * len(inputs))
    return op.forward(ctx, *inputs, **options), ctx


def wrong_results(task: Task, mistake: Mistake, trial: Trial) -> list[np.ndarray] | None:
    """What the mistake computes in this trial; None if it raises an error there."""
    try:
        with np.errstate(all="ignore"):
            returned = mistake.wrong(trial.call)
            if task.kind == "op":
                return [trial.right[0], *task.results(returned)]
            return task.results(returned)
    except (ValueError, IndexError, TypeError):
        return None


def in_float32(arguments: dict) -> dict:
    """The arguments with all float64 arrays as float32."""
    return map_arrays(lambda array: array.astype(np.float32) if array.dtype == np.float64 else array, arguments)


# -- the source --------------------------------------------------------------------------------------------------------


@functools.cache
def _tree(function: Callable) -> tuple[ast.AST, list[str]]:
    """The syntax tree of a function or class, and its lines."""
    source = textwrap.dedent(inspect.getsource(function))
    return ast.parse(source).body[0], source.splitlines()


def _without_body(function: Callable) -> str:
    node, lines = _tree(function)
    return "\n".join([*_head(node, lines), f"    {NOT_WRITTEN}"])


def _head(node, lines) -> list[str]:
    """From the first line, or decorator, to the end of the docstring."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    if ast.get_docstring(node) is not None:
        return lines[first - 1 : node.body[0].end_lineno]
    return lines[first - 1 : node.body[0].lineno - 1]


def _class_without_bodies(op: type) -> str:
    node, lines = _tree(op)
    text = _head(node, lines)
    for statement in node.body[1:]:
        text.append("")
        if isinstance(statement, ast.FunctionDef):
            text += [*_head(statement, lines), f"        {NOT_WRITTEN}"]
        else:
            text += lines[statement.lineno - 1 : statement.end_lineno]
    return "\n".join(text)


def _used(source: str, module: dict) -> set[tuple[str, str]]:
    """(module, name) of each name that the source uses from its module: see `Task.uses`."""
    found = {("", "import numpy as np")}
    names = {node.id for node in ast.walk(ast.parse(textwrap.dedent(source))) if isinstance(node, ast.Name)}
    for name in names & module.keys():
        value = module[name]
        if isinstance(value, types.ModuleType):
            found.add(("", f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")))
        else:
            found.add((getattr(value, "__module__", module["__name__"]), name))
    return found


def import_lines(used: set[tuple[str, str]]) -> list[str]:
    """The import statements of what tasks use: modules, a blank line, then names by their module."""
    modules = sorted(statement for place, statement in used if not place)
    places = sorted({place for place, _ in used if place})
    lines = [f"from {place} import {', '.join(sorted(name for at, name in used if at == place))}" for place in places]
    return [*modules, *([""] if lines else []), *lines]
