"""Source code for the page, as it stands in the files: found by `inspect`, coloured by `tokenize`."""

import ast
import builtins
import functools
import html
import inspect
import io
import keyword
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from minidl.kernels import cpu, reference
from minidl.ops.function import Function

DEEPEST_HELPER = 2  # helpers of a kernel, and their helpers


def source_of(function: Callable) -> str | None:
    """Return the source of a function, without its indentation; None if it has no file."""
    try:
        return textwrap.dedent(inspect.getsource(plain_function(function))).rstrip()
    except (OSError, TypeError):
        return None


def _tree_of(function: Callable) -> ast.AST:
    """The syntax tree of a function; an empty one without source, or for a lambda that is part of a statement."""
    try:
        return ast.parse(source_of(function) or "")
    except SyntaxError:
        return ast.parse("")


def plain_function(function: Callable) -> Callable:
    """The function that a decorator or `functools.partial` wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def place_of(function: Callable) -> str:
    """Return the file and line of a function, such as 'minidl/ops/conv.py:28', without the folders above."""
    function = plain_function(function)
    folders = function.__module__.split(".")[:-1]
    return "/".join([*folders, Path(function.__code__.co_filename).name]) + f":{function.__code__.co_firstlineno}"


def kernels_called(function: Callable) -> list[str]:
    """Return the names of the kernels that an operation's forward or backward calls, in order.

    They are the attributes of `kernels_for(...)`, or of a variable that holds it, as in `kernels.bias_backward(grad)`.
    """
    tree = _tree_of(function)
    holders = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_kernels(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = [
        (node.lineno, node.col_offset, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (_is_kernels(node.value) or getattr(node.value, "id", None) in holders)
        and hasattr(reference, node.attr)
    ]
    return list(dict.fromkeys(name for _, _, name in sorted(found)))


def _is_kernels(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) == "kernels_for"


def helpers_of(functions: list[Callable]) -> list[Callable]:
    """Return the functions of the same package that these call, and those that they call, without the kernels."""
    found: dict[Callable, None] = {}
    layer = functions
    for _ in range(DEEPEST_HELPER):
        layer = [helper for function in layer for helper in _called(function) if helper not in (*found, *functions)]
        layer = list(dict.fromkeys(layer))
        found |= dict.fromkeys(layer)
    return list(found)


def _called(function: Callable) -> Iterator[Callable]:
    """Yield the functions of the function's own file and package that its source names."""
    function = plain_function(function)
    package = function.__module__.rpartition(".")[0] if hasattr(function, "__module__") else ""
    names = getattr(function, "__globals__", {})
    for node in ast.walk(_tree_of(function)):
        value = None
        if isinstance(node, ast.Name):
            value = names.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(names.get(getattr(node.value, "id", None)), ModuleType):
            value = getattr(names[node.value.id], node.attr, None)
        if inspect.isfunction(value):
            near = value.__module__ == function.__module__ or (package and value.__module__.startswith(f"{package}."))
            if near:
                yield inspect.unwrap(value)


def saved_names(function: type[Function]) -> list[str]:
    """Return what `ctx.save(...)` in forward is called with, such as ['x', 'weight', 'stride', 'padding'].

    Empty if forward has no such call, or more than one with different arguments.
    """
    calls = [
        [ast.unparse(argument) for argument in node.args]
        for node in ast.walk(_tree_of(function.forward))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "save"
    ]
    return calls[0] if calls and all(call == calls[0] for call in calls) else []


def input_names(function: type[Function]) -> list[str]:
    """Return the names of forward's arrays, such as ['x', 'weight', 'bias']; '*arrays' for a variable number."""
    parameters = list(inspect.signature(function.forward).parameters.values())[1:]
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    return names + [f"*{p.name}" for p in parameters if p.kind == inspect.Parameter.VAR_POSITIONAL]


def twins(name: str) -> tuple[Callable, Callable | None]:
    """Return the plain loops of a kernel, and the kernel of the CPU."""
    return getattr(reference, name), getattr(cpu, name, None)


# -- colours -----------------------------------------------------------------------------------------------------------

BUILTINS = frozenset(dir(builtins))


def coloured(source: str) -> str:
    """Return Python source as HTML: each line a <span class=line>, with spans for keywords, strings, comments, ...

    Source that Python cannot read is returned without colours.
    """
    lines = source.splitlines()
    marks: list[list[tuple[int, int, str]]] = [[] for _ in lines]
    for kind, (row, column), (last_row, last_column) in _kinds(source):
        for number in range(row, last_row + 1):
            start = column if number == row else 0
            end = last_column if number == last_row else len(lines[number - 1])
            marks[number - 1].append((start, end, kind))
    return "".join(_line(line, spans) for line, spans in zip(lines, marks, strict=True))


def _line(line: str, marks: list[tuple[int, int, str]]) -> str:
    """One line. The indentation goes to CSS, which sets it again where a long line continues."""
    indent, parts, position = len(line) - len(line.lstrip()), [], 0
    for start, end, kind in marks:
        parts += [html.escape(line[position:start]), f'<i class="{kind}">{html.escape(line[start:end])}</i>']
        position = end
    text = "".join([*parts, html.escape(line[position:])])
    return f'<span class="line" style="--in:{indent}">{text}\n</span>'


def _kinds(source: str) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Yield (class, start, end) of each part that has a colour."""
    before = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kind = _kind(token, before)
            if kind:
                yield kind, token.start, token.end
            if token.type not in (tokenize.NL, tokenize.COMMENT):
                before = token.string.strip() or before if token.type != tokenize.NEWLINE else "\n"
    except (tokenize.TokenError, SyntaxError):
        return


def _kind(token: tokenize.TokenInfo, before: str) -> str | None:
    if token.type == tokenize.NAME:
        if keyword.iskeyword(token.string):
            return "kw"
        if before in ("def", "class"):
            return "def"
        return "bi" if token.string in BUILTINS and before != "." else None
    kinds = {tokenize.COMMENT: "co", tokenize.NUMBER: "nu", tokenize.STRING: "st"}
    fstring = getattr(tokenize, "FSTRING_MIDDLE", None)  # Python 3.12 cuts f-strings into parts
    return "st" if fstring is not None and token.type == fstring else kinds.get(token.type)


@functools.cache
def quoted(function: Callable) -> dict:
    """Return {"name", "place", "html"} of a function; html is None if it has no file."""
    source = source_of(function)
    name = getattr(function, "__qualname__", repr(function))
    if source is None:
        return {"name": name, "place": "", "html": None}
    return {"name": name, "place": place_of(function), "html": coloured(source)}
