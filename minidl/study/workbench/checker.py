"""The checker: a ladder of questions about what a student's function did, and the name of its mistake."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minidl.kernels import reference
from minidl.study.workbench.compare import TOLERANCE, different, same
from minidl.study.workbench.observe import Observation
from minidl.study.workbench.recognise import Results, recognise
from minidl.study.workbench.tasks import Task, Trial
from minidl.study.workbench.where import where

NOT_SO_FAR = "It did not get so far."


class Rung(NamedTuple):
    """One step of the ladder. `problem` says what is wrong; '' if nothing is. `share` of the trials passed."""

    title: str
    problem: str
    share: float


class Report(NamedTuple):
    """What the checker found out about one function. `mistakes` are sentences; `place` says where it is wrong."""

    name: str
    rungs: list[Rung]
    mistakes: list[str]
    place: str

    @property
    def is_right(self) -> bool:
        """True if the function passed every step."""
        return not any(rung.problem for rung in self.rungs)


class Runs(NamedTuple):
    """The observations of all trials: with float64 and with float32 arguments."""

    task: Task
    trials: list[Trial]
    double: list[Observation]
    single: list[Observation]

    def names(self) -> list[str]:
        """The names of the results."""
        return self.task.names_in(self.trials[0])


def judge(runs: Runs) -> Report:
    """Climb the ladder. The mistake is named if a step about the results fails."""
    rungs = [Rung(title, *_first_problem(question, runs)) for title, question in ladder(runs.task)]
    failed = {rung.title for rung in rungs if rung.problem}
    if not failed or _is_not_written(runs):
        return Report(runs.task.name, rungs, [], "")
    student: list[Results] = [None if seen.error else list(seen.arrays) for seen in runs.double]
    verdicts = recognise(runs.task, runs.trials, student)
    mistakes = [verdict.words for verdict in verdicts]
    return Report(runs.task.name, rungs, mistakes, _place(runs))


def _is_not_written(runs: Runs) -> bool:
    return any(seen.error and seen.error[0] == "NotImplementedError" for seen in runs.double)


def _first_problem(question: Callable, runs: Runs) -> tuple[str, float]:
    """(the problem of the first trial that has one, the share of the trials that have none)."""
    problems = question(runs)
    bad = [number for number, problem in enumerate(problems) if problem]
    if not bad:
        return "", 1.0
    case = runs.trials[bad[0] % len(runs.trials)].shapes()
    words = f"{problems[bad[0]]}\nWrong in {len(bad)} of {len(problems)} cases, first in this one: {case}"
    return words, 1 - len(bad) / len(problems)


# -- the steps: each returns for each trial what is wrong, or '' -------------------------------------------------------


def ladder(task: Task) -> list[tuple[str, Callable]]:
    """(what a step is about, its question), from the bottom to the top."""
    steps = [
        ("it runs without an error", _runs),
        ("it writes into its arguments" if task.written else "it returns what it should", _returns),
        ("the shapes and dtypes are right", _shapes),
        ("the arguments are left as they were", _leaves_arguments),
        ("it needs nothing but its arguments", _needs_nothing_else),
        ("there is no NaN and no infinity", _finite),
    ]
    if (task.target, task.part) in ADJOINTS:
        steps.append(("it is the transpose of forward: sum(forward(v) * g) = sum(v * backward(g))", _adjoint))
    return [
        *steps,
        ("the numbers agree with the plain loops in float64", _numbers),
        ("float32 arguments give float32 results that agree", _numbers_in_float32),
    ]


def _runs(runs: Runs) -> list[str]:
    return [_error_in_words(seen, runs.task) for seen in runs.double + runs.single]


def _error_in_words(seen: Observation, task: Task) -> str:
    if seen.error is None:
        return ""
    kind, message, line, text = seen.error
    if kind == "NotImplementedError":
        return f"{task.name} is not written yet."
    if kind == "SystemExit":
        return f"It ends Python by exit() in line {line}; a function returns its result instead."
    if kind == "EOFError":
        return f"It asks for keyboard input in line {line}, `{text}`; all that it needs are its arguments."
    place = f" in line {line}, `{text}`" if line else ""
    return f"{kind}{place}: {message}".removesuffix(": ")


def _returns(runs: Runs) -> list[str]:
    names = runs.names()
    expected = f"one array, {names[0]}" if len(names) == 1 else f"a tuple of {len(names)}: ({', '.join(names)})"
    return [_return_in_words(seen, names, expected, runs.task) for seen in runs.double]


def _return_in_words(seen: Observation, names: list[str], expected: str, task: Task) -> str:
    if seen.error:
        return NOT_SO_FAR
    if task.written and seen.returned != "nothing":
        return f"It returned {seen.returned}; it should write into {', '.join(task.written)} and return nothing."
    if seen.returned == "None":
        return f"It returned None, expected {expected}. Is the `return` missing?"
    bad = [name for name, array in zip(names, seen.arrays, strict=False) if array is None]
    if len(seen.arrays) != len(names) or (bad and len(names) == 1):
        return f"It returned {seen.returned}, expected {expected}."
    return f"{bad[0]} is no array of numbers; expected {expected}." if bad else ""


def _shapes(runs: Runs) -> list[str]:
    return [_each_result(runs, seen, trial, _shape) for seen, trial in zip(runs.double, runs.trials, strict=True)]


def _shape(name: str, actual: np.ndarray, expected: np.ndarray, trial: Trial) -> str:
    if actual.shape == expected.shape:
        return _dtype(name, actual, expected)
    like = [other for other, value in trial.arguments.items() if getattr(value, "shape", None) == expected.shape]
    own = name.removeprefix("dL/d")
    hint = f", the shape of {own if own in like else like[0]}" if like and own != name else ""
    return f"{name} has the shape {actual.shape}, expected {expected.shape}{hint}."


def _dtype(name: str, actual: np.ndarray, expected: np.ndarray) -> str:
    """Integers of any length are right where integers are expected."""
    kinds = "iu" if expected.dtype.kind in "iu" else expected.dtype.kind
    if actual.dtype.kind in kinds and (actual.dtype == expected.dtype or kinds == "iu"):
        return ""
    return f"{name} is {actual.dtype}, expected {expected.dtype}: results have the dtype of the arguments."


def _each_result(runs: Runs, seen: Observation, trial: Trial, question: Callable) -> str:
    """The first problem that a question finds in the results of one trial."""
    if seen.error or len(seen.arrays) != len(trial.right):
        return NOT_SO_FAR
    for name, actual, expected in zip(runs.names(), seen.arrays, trial.right, strict=True):
        problem = NOT_SO_FAR if actual is None else question(name, actual, expected, trial)
        if problem:
            return problem
    return ""


def _leaves_arguments(runs: Runs) -> list[str]:
    return [
        f"It wrote into {' and '.join(seen.written)}, which others still need. Work on a copy, or on a new array."
        if seen.written
        else _if_it_failed(seen)
        for seen in runs.double + runs.single
    ]


def _if_it_failed(seen: Observation) -> str:
    """What ended in an error has shown nothing."""
    return NOT_SO_FAR if seen.error else ""


def _needs_nothing_else(runs: Runs) -> list[str]:
    return [
        f"It opened the file {seen.opened[0]}. All that it needs are its arguments."
        if seen.opened
        else _if_it_failed(seen)
        for seen in runs.double + runs.single
    ]


def _finite(runs: Runs) -> list[str]:
    return [_each_result(runs, seen, trial, _no_nan) for seen, trial in zip(runs.double, runs.trials, strict=True)]


def _no_nan(name: str, actual: np.ndarray, expected: np.ndarray, trial: Trial) -> str:
    if actual.shape != expected.shape:
        return ""
    bad = ~np.isfinite(actual)
    if not bad.any():
        return ""
    if bad.size == 1:
        return f"{name} is {float(actual):g}."
    index = tuple(np.argwhere(bad)[0].tolist())
    return f"{name} has {bad.sum()} numbers of {bad.size} that are NaN or infinite, the first at {list(index)}."


def _adjoint(runs: Runs) -> list[str]:
    rng = np.random.default_rng(0)

    def question(name, actual, expected, trial):
        return _identity(name, actual, expected, trial, *ADJOINTS[runs.task.target, runs.task.part], rng)

    return [_each_result(runs, seen, trial, question) for seen, trial in zip(runs.double, runs.trials, strict=True)]


def _identity(name, actual, expected, trial: Trial, forward: Callable, gradient: str, rng) -> str:
    if actual.shape != expected.shape:
        return f"{name} has another shape than v."
    v = rng.standard_normal(expected.shape)
    products = forward(trial.call, v) * trial.arguments[gradient]
    left, right = float(products.sum()), float((v * actual).sum())
    if abs(left - right) <= 1e-5 * float(np.sqrt((products**2).sum()) + np.sqrt(((v * expected) ** 2).sum())):
        return ""
    return f"For a random v, sum(forward(v) * {gradient}) is {left:.6g}, but sum(v * {name}) is {right:.6g}."


def _numbers(runs: Runs) -> list[str]:
    return [_each_result(runs, seen, trial, _agrees) for seen, trial in zip(runs.double, runs.trials, strict=True)]


def _agrees(name: str, actual: np.ndarray, expected: np.ndarray, trial: Trial, tolerance=TOLERANCE["float64"]) -> str:
    if same(actual, expected, tolerance):
        return ""
    if actual.shape != expected.shape:
        return f"{name} has the shape {actual.shape}, expected {expected.shape}."
    wrong = different(actual, expected, tolerance)
    index = tuple(np.argwhere(wrong)[0].tolist())
    place = f"{name}{list(index)}" if index else name
    return f"{place} is {actual[index]:.6g}, expected {expected[index]:.6g}. {wrong.sum()} of {wrong.size} are wrong."


def _numbers_in_float32(runs: Runs) -> list[str]:
    return [_each_result(runs, seen, trial, _agrees32) for seen, trial in zip(runs.single, runs.trials, strict=True)]


def _agrees32(name: str, actual: np.ndarray, expected: np.ndarray, trial: Trial) -> str:
    if expected.dtype.kind == "f" and trial.is_in_float32(name) and actual.dtype != np.float32:
        hint = "Results have the dtype of the arguments; np.zeros(shape) makes float64."
        return f"{name} is {actual.dtype} for float32 arguments, expected float32. {hint}"
    return _agrees(name, actual, expected, trial, TOLERANCE["float32"])


# -- where it is wrong -------------------------------------------------------------------------------------------------


def _place(runs: Runs) -> str:
    """Where the first wrong result of the first wrong trial is wrong; '' if there is no such array."""
    for seen, trial in zip(runs.double, runs.trials, strict=True):
        for name, actual, expected in zip(runs.names(), seen.arrays, trial.right, strict=False):
            if not same(actual, expected):
                is_comparable = actual is not None and actual.shape == expected.shape
                return "\n".join(filter(None, where(name, actual, expected))) if is_comparable else ""
    return ""


# -- linear ops: (kernel, which of its results): (the forward that it transposes, the argument that is dL/dy) ----------

ADJOINTS: dict[tuple[str, int | None], tuple[Callable, str]] = {
    ("conv2d_backward", 0): (
        lambda call, v: reference.conv2d_forward(v, call.weight, None, call.stride, call.padding),
        "grad",
    ),
    ("conv2d_backward", 1): (
        lambda call, v: reference.conv2d_forward(call.x, v, None, call.stride, call.padding),
        "grad",
    ),
    ("bias_backward", None): (lambda call, v: v * np.ones(call.grad.shape), "grad"),
    ("linear_backward_x", None): (lambda call, v: v @ call.weight, "grad"),
    ("linear_backward_weight", None): (lambda call, v: call.x @ v, "grad"),
    ("col2im", None): (
        lambda call, v: reference.im2col(v, call.kernel_size, call.stride, call.padding),
        "columns",
    ),
    ("avg_pool2d_backward", None): (
        lambda call, v: reference.avg_pool2d_forward(
            v, call.kernel_size, call.stride, call.padding, call.ceil_mode, call.count_include_pad
        ),
        "grad",
    ),
    ("global_avg_pool_backward", None): (lambda call, v: v.mean(axis=(1, 2)), "grad"),
    ("upsample_bilinear2d_backward", None): (
        lambda call, v: reference.upsample_bilinear2d_forward(v, call.grad.shape[1:3], call.step),
        "grad",
    ),
    ("pad_channels_backward", None): (
        lambda call, v: reference.pad_channels_forward(v, call.before, call.after),
        "grad",
    ),
    ("scatter_add", None): (lambda call, v: v.ravel()[call.positions], "grad"),
    ("sum_to_shape", None): (lambda call, v: np.broadcast_to(v, call.grad.shape), "grad"),
    ("dropout_backward", None): (
        lambda call, v: reference.dropout_forward(v, call.probability, call.key),
        "grad",
    ),
}
