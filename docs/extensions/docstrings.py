"""The docstrings of the package, which are plain text, as reStructuredText for the API reference.

A formula such as `dL/dx = weight * x_hat` would be markup by accident. Indented lines become literal blocks, `names` in
backticks code, the list below "Args:" a list of bullets; in all other text each character stands for itself.
"""

import re
from collections.abc import Iterator

from sphinx.application import Sphinx

CODE = re.compile(r"`([^`]+)`")
SPECIAL = re.compile(r"([\\*_|`])")
ARGUMENT = re.compile(r"    (\w+): (.*)")


def to_rst(lines: list[str]) -> list[str]:
    """A docstring, cleaned of its indentation, as reStructuredText."""
    result, previous = [], "blank"
    for kind, line in zip(kinds(lines), lines, strict=True):
        if kind != previous and result and result[-1] and line.strip():
            result.append("")
        if kind == "literal" and previous != "literal":
            result += [".. code-block:: none", ""]
        result.append(convert(kind, line))
        previous = kind
    return result


def kinds(lines: list[str]) -> Iterator[str]:
    """What each line is: blank, text, bullet (or its continuation), literal, doctest, heading or argument."""
    kind = "blank"
    for line in lines:
        kind = kind_of(line, kind)
        yield kind


def kind_of(line: str, before: str) -> str:
    """What a line is, given what the line before it is. Blank lines do not end a literal block or a list."""
    if line.startswith(">>>") or (before == "doctest" and line.strip()):
        return "doctest"
    if not line.strip():
        return before if before in ("literal", "argument", "heading") else "blank"
    if line.strip() == "Args:":
        return "heading"
    if line.startswith("- ") or (before == "bullet" and line.startswith("  ")):
        return "bullet"
    if before in ("heading", "argument") and line.startswith("    "):
        return "argument"
    return "literal" if line.startswith("    ") else "text"


def convert(kind: str, line: str) -> str:
    """A line of this kind in reStructuredText."""
    if kind in ("doctest", "literal") or not line.strip():
        return line
    if kind == "heading":
        return "**Arguments**"
    argument = ARGUMENT.fullmatch(line) if kind == "argument" else None
    if argument:
        return f"- ``{argument[1]}``: {escaped(argument[2])}"
    return f"  {escaped(line.strip())}" if kind == "argument" else escaped(line)


def escaped(text: str) -> str:
    """Text in which only the parts in backticks are markup."""
    parts = CODE.split(re.sub("::$", ":", text))  # text, code, text, code, ..., text
    return "".join(f"``{part}``" if i % 2 else SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))


def process(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Autodoc calls this with each docstring."""
    lines[:] = to_rst(lines)


def setup(app: Sphinx) -> dict:
    """Listen to autodoc."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
