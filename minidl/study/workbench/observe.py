"""What a student's function did in each trial: what it returned, raised, wrote into, opened. It judges nothing."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minidl.ops.function import Context
from minidl.study.calls import arrays_in, map_arrays


class Observation(NamedTuple):
    """One call. `error` is (type, message, line, text of the line) or None; `returned` says in words what came back.

    `arrays` has None in the place of what is no array of numbers. `written` are the arguments that were changed,
    `opened` the files that were opened during the call.
    """

    error: tuple[str, str, int, str] | None
    returned: str
    arrays: list[np.ndarray | None]
    written: list[str]
    opened: list[str]


def observe(function: Callable, arguments: dict, kind: str = "function", written: tuple[str, ...] = ()) -> Observation:
    """Call a function, or run an op, on a copy of the arguments. `written` are those that it has to write into."""
    given = map_arrays(np.copy, arguments)
    own = _arrays_of(given)  # these arrays: a list may hold others after the call
    error, returned = None, None
    with _opened_files() as opened, np.errstate(all="ignore"):
        try:
            returned = _run_op(function, **given) if kind == "op" else function(*given.values())
        except BaseException as raised:  # SystemExit too
            error = _error(raised, function)
    before, after = _arrays_of(arguments), _arrays_of(given)
    changed = [
        name
        for name, arrays in own.items()
        if name not in written and not (_same(arrays, before[name]) and _same_objects(arrays, after[name]))
    ]
    if written:
        words = "nothing" if returned is None else _in_words(returned)
        results = [array for name in written for array in own[name]]
    else:
        words = _in_words(returned)
        results = [_array(part, own) for part in (returned if isinstance(returned, tuple) else (returned,))]
    return Observation(error, words, results, changed, list(opened))


def _run_op(op: type, inputs: tuple, options: dict, grad: np.ndarray) -> tuple:
    """(y, a gradient for each input)."""
    ctx = Context((True,) * len(inputs))
    y = op.forward(ctx, *inputs, **options)
    grads = op.backward(ctx, grad)
    return (y, *(grads if isinstance(grads, tuple) else (grads,)))


def _arrays_of(arguments: dict) -> dict[str, list[np.ndarray]]:
    """{argument: the arrays in it}."""
    return {name: arrays_in(value) for name, value in arguments.items()}


def _same(some: list, others: list) -> bool:
    return all(map(np.array_equal, some, others))


def _same_objects(some: list, others: list) -> bool:
    """True if both lists hold the very same arrays."""
    return list(map(id, some)) == list(map(id, others))


def _in_words(value) -> str:
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return f"a {kind} of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}" if value.dtype.kind not in "fiub" else "an array"
    return "None" if value is None else f"a {type(value).__name__}"


def _array(value, given: dict[str, list[np.ndarray]]) -> np.ndarray | None:
    """A copy of an array of numbers, or of a number; None for anything else. A list is no array.

    A number of Python's has no dtype: it gets that of the arrays that were given.
    """
    if type(value) is float:
        dtypes = (array.dtype for arrays in given.values() for array in arrays)
        return np.array(value, next((dtype for dtype in dtypes if dtype.kind == "f"), None))
    is_number = isinstance(value, np.ndarray | np.generic | int)
    return np.array(value) if is_number and np.asarray(value).dtype.kind in "fiub" else None


def _error(raised: BaseException, function: Callable) -> tuple[str, str, int, str]:
    """The error, and the last line of the student's file that it went through."""
    own = _file_of(function)
    frames = [frame for frame in traceback.extract_tb(raised.__traceback__) if frame.filename == own]
    line, text = (frames[-1].lineno, frames[-1].line) if frames else (0, "")
    return type(raised).__name__, str(raised), line or 0, text or ""


def _file_of(function: Callable) -> str:
    code = getattr(function, "__code__", None) or getattr(getattr(function, "backward", None), "__code__", None)
    return code.co_filename if code else ""


# -- files that are opened ---------------------------------------------------------------------------------------------

_listeners: list[list[str]] = []


def _hear(event: str, args: tuple) -> None:
    if event == "open" and _listeners and isinstance(args[0], str | bytes) and not _is_pythons_own(str(args[0])):
        _listeners[-1].append(str(args[0]))


def _is_pythons_own(path: str) -> bool:
    """True for what an import, or the display of an error, opens."""
    package = str(Path(__file__).parents[2])
    return path.endswith((".py", ".pyc", ".so")) or path.startswith((sys.prefix, sys.base_prefix, package))


@contextlib.contextmanager
def _opened_files() -> Iterator[list[str]]:
    """The files that are opened in the `with` block, as a list that grows."""
    if not getattr(_hear, "is_hooked", False):
        sys.addaudithook(_hear)  # there is no way to take a hook off again
        _hear.is_hooked = True
    _listeners.append([])
    try:
        yield _listeners[-1]
    finally:
        _listeners.pop()
