"""Where a function, a class or an assigned name stands in a source file, read from its syntax tree."""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "minidl"
KERNELS = PACKAGE / "kernels"


class Place(NamedTuple):
    """The lines of a definition, from `first` to `last`. `is_code` is False for an assigned name."""

    path: Path
    name: str
    first: int
    last: int
    is_code: bool

    @property
    def file(self) -> str:
        """The path of the file as seen from the repository."""
        return self.path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def names_of(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top level of a file, or of a class, defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [
            node.id
            for target in statement.targets
            for node in ast.walk(target)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
    return []


def definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The statement that defines each name of a file or a class, in their order."""
    return {name: statement for statement in body for name in names_of(statement)}


def find(path: Path, name: str) -> Place:
    """The place of `name` in a file; `Class.method` too. LookupError if it is not there: the build fails."""
    body, statement = tree_of(path).body, None
    for part in name.split("."):
        statement = definitions(body).get(part)
        if statement is None:
            raise LookupError(f"{path.relative_to(ROOT)} does not define {name}")
        body = getattr(statement, "body", [])
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
    return Place(path, name, first, statement.end_lineno, isinstance(statement, ast.FunctionDef | ast.ClassDef))


def used_names(node: ast.AST) -> set[str]:
    """All names and attributes in a piece of code."""
    return {getattr(part, "id", getattr(part, "attr", None)) for part in ast.walk(node)} - {None}


def used_with(path: Path, name: str, keep: Callable[[ast.stmt], bool]) -> list[str]:
    """The names of the same file that `name` uses, and those that these use, for which keep(statement) is true."""
    defined = definitions(tree_of(path).body)
    found, waiting = {name}, [name]
    while waiting:
        for used in used_names(defined[waiting.pop()]) & defined.keys() - found:
            if keep(defined[used]):
                found.add(used)
                waiting.append(used)
    return [other for other in defined if other in found and other != name]


def files_of(folder: Path) -> Iterator[Path]:
    """The public source files of a folder."""
    return (path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_"))


def file_that_defines(folder: Path, name: str) -> Path:
    """The file of a folder that defines `name`."""
    for path in files_of(folder):
        if name in definitions(tree_of(path).body):
            return path
    raise LookupError(f"no file of {folder.relative_to(ROOT)} defines {name}")


def kernels() -> set[str]:
    """The names of all kernels: the public functions of reference.py."""
    defined = definitions(tree_of(KERNELS / "reference.py").body)
    return {name for name, node in defined.items() if isinstance(node, ast.FunctionDef) and not name.startswith("_")}
