"""A page for each operation, written from the source before the site is built.

The table of the operations is `minidl/ops` itself: each class there has a page. What its forward and backward compute
is found by following the names of the kernels to `reference.py`, `cpu/` and `cuda/`, and to the tests. Only the
derivation is written by hand, in `docs/derivations/<operation>.md`; the build fails if it is missing. Nothing is
copied: a page quotes the source by line numbers or names that are looked up in its syntax tree.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sources import KERNELS, PACKAGE, ROOT, Place, definitions, file_that_defines, find, kernels, tree_of, used_with
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

DOCS = ROOT / "docs"
PAGES = DOCS / "operations"
DEVICES = {"The CPU kernel": KERNELS / "cpu", "The CUDA kernel": KERNELS / "cuda"}
EVERY_OP = ROOT / "tests" / "ops" / "test_every_op.py"
QUESTIONS = (
    "test_the_gradients_are_the_slopes",
    "test_backward_is_the_adjoint_of_forward",
    "test_values_and_gradients_are_those_of_pytorch",
)
# Kernels that a function of `functional` calls before the operation.
BEFORE_FORWARD = {"BatchNorm": ["batch_statistics", "update_running_statistics"]}


class Operation(NamedTuple):
    """A class of minidl/ops."""

    path: Path
    name: str

    @property
    def summary(self) -> str:
        """The first line of the docstring: the formula."""
        statement = definitions(tree_of(self.path).body)[self.name]
        return ast.get_docstring(statement).split("\n")[0]


def operations() -> list[Operation]:
    """All operations, in the order of the files and of the classes in them."""
    return [
        Operation(path, name)
        for path in sorted((PACKAGE / "ops").glob("*.py"))
        for name, node in definitions(tree_of(path).body).items()
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Function" for base in node.bases)
    ]


def method(operation: Operation, which: str) -> Place:
    """The place of forward or backward, in another class if it is assigned from there."""
    place = find(operation.path, f"{operation.name}.{which}")
    if place.is_code:
        return place
    body = definitions(tree_of(operation.path).body)[operation.name].body
    return find(operation.path, ast.unparse(definitions(body)[which].value))


def kernels_of(operation: Operation, which: str) -> list[str]:
    """The kernels that forward or backward calls, in the order of the calls."""
    place = method(operation, which)
    lines = range(place.first, place.last + 1)
    calls = [node.func for node in ast.walk(tree_of(place.path)) if isinstance(node, ast.Call) and node.lineno in lines]
    calls.sort(key=lambda function: (function.lineno, function.col_offset))
    names = [getattr(function, "attr", getattr(function, "id", "")) for function in calls]
    before = BEFORE_FORWARD.get(operation.name, []) if which == "forward" else []
    return list(dict.fromkeys([*before, *(name for name in names if name in kernels())]))


# -- what is quoted ----------------------------------------------------------------------------------------------------


def of_the_loops(kernel: str) -> list[Place]:
    """A kernel as plain loops, and the private functions that it uses."""
    path = KERNELS / "reference.py"
    private = used_with(path, kernel, lambda node: getattr(node, "name", "").startswith("_"))
    return [find(path, name) for name in (kernel, *private)]


def of_a_device(folder: Path, kernel: str) -> list[Place]:
    """A kernel of a device, the functions of the same file that it uses, and the CUDA sources that these launch."""
    path = file_that_defines(folder, kernel)
    used = used_with(
        path, kernel, lambda node: isinstance(node, ast.FunctionDef | ast.ClassDef) or is_cuda_source(node)
    )
    places = [find(path, name) for name in (kernel, *used)]
    return sorted(places, key=lambda place: place.first) if folder.name == "cuda" else places


def is_cuda_source(node: ast.stmt) -> bool:
    """True for an assignment such as RELU_FORWARD = CudaKernel(...), which holds the source of a kernel."""
    called = getattr(getattr(node, "value", None), "func", None)
    return getattr(called, "id", "") in ("CudaKernel", "product_kernels")


def of_the_kernel_tests(names: Iterable[str]) -> list[Place]:
    """The functions of tests/kernels that compare one of these kernels with the plain loops."""
    places = []
    for path in sorted((ROOT / "tests" / "kernels").glob("test_*.py")):
        for function in (node for node in tree_of(path).body if isinstance(node, ast.FunctionDef)):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            compared = {
                getattr(call.args[0], "value", None)
                for call in calls
                if call.args and getattr(call.func, "id", "") == "agrees"
            }
            if compared & set(names):
                places.append(find(path, function.name))
    return places


# -- the text of a page ------------------------------------------------------------------------------------------------


def quote(place: Place, with_caption: bool) -> str:
    """A literalinclude of the place: by its name if it is a function or a class, else by its lines."""
    which = f":pyobject: {place.name}" if place.is_code else f":lines: {place.first}-{place.last}"
    which += "\n:dedent: 4" if "." in place.name else ""  # a method
    which += f"\n:caption: {place.file}" if with_caption else ""
    return f"```{{literalinclude}} /../{place.file}\n{which}\n:lineno-match:\n```\n"


def quotes(places: list[Place]) -> str:
    """All places, with the name of the file where it changes."""
    before = [None, *(place.path for place in places)]
    return "\n".join(quote(place, place.path != last) for place, last in zip(places, before, strict=False))


def tab(title: str, sync: str, places: list[Place]) -> str:
    """A tab with quotes, or nothing if there are none."""
    if not places:
        return ""
    return f":::{{tab-item}} {title}\n:sync: {sync}\n\n{quotes(places)}\n:::\n"


def tabs(operation: Operation, which: str) -> str:
    """Forward or backward: the operation, the loops, the kernel of each device."""
    names = kernels_of(operation, which)
    parts = [tab("The operation", "op", [method(operation, which)])]
    parts.append(tab("The loops", "loops", unique(place for name in names for place in of_the_loops(name))))
    for title, folder in DEVICES.items():
        parts.append(tab(title, folder.name, unique(place for name in names for place in of_a_device(folder, name))))
    without = "" if names else "\nNumPy's functions compute this on the CPU, and CuPy's of the same names on a GPU.\n"
    return f"```{{rubric}} {which.capitalize()}\n```\n{without}\n::::{{tab-set}}\n" + "\n".join(parts) + "::::\n"


def unique(places: Iterable[Place]) -> list[Place]:
    """The places, each once."""
    return list(dict.fromkeys(places))


def test_tabs(operation: Operation) -> str:
    """The cases of the operation's file, what is asked of each, and the comparison of the kernels with the loops."""
    names = kernels_of(operation, "forward") + kernels_of(operation, "backward")
    cases = find(ROOT / "tests" / "ops" / f"test_{operation.path.stem}.py", "CASES")
    questions = [find(EVERY_OP, name) for name in QUESTIONS]
    parts = [
        tab("The cases", "cases", [cases]),
        tab("Asked of every case", "every", questions),
        tab("The kernels against the loops", "kernels", of_the_kernel_tests(names)),
    ]
    return "```{rubric} The test\n```\n\n::::{tab-set}\n" + "\n".join(parts) + "::::\n"


def page(operation: Operation) -> str:
    """The page of an operation: the derivation beside forward and backward, and the tests below."""
    derivation = DOCS / "derivations" / f"{operation.name}.md"
    if not derivation.exists():
        raise ExtensionError(f"{operation.name} has no derivation: write {derivation.relative_to(ROOT)}")
    code = tabs(operation, "forward") + "\n" + tabs(operation, "backward")
    return f"""---
hide-toc: true
---
# {operation.name}

:::::::{{grid}} 1 1 1 2
:gutter: 4
:class-container: operation

::::::{{grid-item}}
:columns: 12 12 12 5
:class: derivation

```{{rubric}} Derivation
```

```{{include}} ../derivations/{operation.name}.md
```
::::::

::::::{{grid-item}}
:columns: 12 12 12 7

{code}
::::::
:::::::

{test_tabs(operation)}"""


def index(all_of_them: list[Operation]) -> Iterator[str]:
    """The lines of the table of all operations."""
    yield "# The operations\n"
    yield "Each page has the derivation beside the code: forward and backward as the operation, as plain loops, and as"
    yield "the kernels of the CPU and of the GPU. `minidl/ops/function.py` explains what an operation is.\n"
    for path in dict.fromkeys(operation.path for operation in all_of_them):
        title = ast.get_docstring(tree_of(path)).split("\n")[0].rstrip(".")
        yield f"\n## {title}\n"
        yield "| | |\n|---|---|"
        for operation in all_of_them:
            if operation.path == path:
                yield f"| [](./{operation.name}.md) | `` {operation.summary.replace('|', chr(92) + '|')} `` |"
    yield "\n```{toctree}\n:hidden:\n"
    yield from (operation.name for operation in all_of_them)
    yield "```"


def write_pages(app: Sphinx) -> None:
    """Write all pages to docs/operations, where git ignores them."""
    tree_of.cache_clear()  # sphinx-autobuild keeps the process
    all_of_them = operations()
    texts = {f"{operation.name}.md": page(operation) for operation in all_of_them}
    texts["index.md"] = "\n".join(index(all_of_them)) + "\n"
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        file = PAGES / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
