"""The promises about the code itself: what imports what, how long it is, what it says. Read from the source."""

import ast
import io
import re
import statistics
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import minidl

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minidl"
FILES = sorted(PACKAGE.rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in [*FILES, *EXAMPLES]}

# What a part may import of the others: those above it in this table, and no more of them than it says.
MAY_IMPORT = {
    "dtypes": set(),
    "random": set(),
    "system": set(),
    "kernels": {"system"},
    "autograd": {"kernels"},  # adds gradients on all threads
    "ops": {"kernels"},
    "idioms": {"autograd"},
    "interchange": {"kernels", "system"},
    "tensor": {"idioms", "interchange", "kernels", "ops", "autograd", "dtypes"},
    "data": {"tensor", "kernels", "system"},
    "checks": {"tensor", "kernels", "dtypes"},
    "creation": {"tensor", "random", "dtypes"},
    "functional": {"tensor", "ops", "kernels", "checks", "random", "dtypes"},
    "nn": {"functional", "checks", "tensor", "random"},
    "testing": {"nn", "tensor", "autograd"},
    "optim": {"nn", "checks", "tensor", "autograd", "kernels"},
    "training": {"optim", "nn", "checks", "tensor", "autograd", "dtypes", "kernels", "random", "system"},
    "distributed": {"nn", "functional", "checks", "tensor", "ops", "kernels", "random", "system"},
    "__main__": {"system"},
    "study": {
        *("training", "optim", "nn", "data", "functional", "checks", "tensor"),
        *("ops", "autograd", "kernels", "random", "system"),
    },
    "onnx": {"study", "nn", "tensor", "ops", "autograd", "kernels", "system"},  # study.record sees the operations
}
# What a student reads, with all that it imports. The CUDA kernels, a second language, are read beside kernels/cpu.
READING_PATH = [
    "autograd.py",
    "tensor.py",
    "functional.py",
    "ops",
    "nn",
    "optim",
    "kernels/cpu",
    "kernels/reference.py",
]
BESIDE_THE_PATH = "kernels/cuda"
# Raising one of these needs a reason in the commit.
MOST_LINES_TO_READ = 3650
MOST_LINES_OF_A_FUNCTION = 40
MOST_LINES_OF_THE_MEDIAN_FUNCTION = 10
MOST_IMPORTS_OF_NUMPY = 4  # that `import minidl` may take in time, NumPy included


def name_of(path):
    return path.relative_to(ROOT).as_posix()


each_file = pytest.mark.parametrize("path", FILES, ids=name_of)
each_file_and_example = pytest.mark.parametrize("path", [*FILES, *EXAMPLES], ids=name_of)


# -- imports -----------------------------------------------------------------------------------------------------------


def imported(path):
    """The dotted names of all modules, and things in them, that a file imports, at its top or further down."""
    names = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: a relative import hides where it points"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def part_of(path):
    """'ops' for minidl/ops/conv.py, 'tensor' for minidl/tensor.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_there_are_files_to_look_at():
    assert len(FILES) > 50
    assert {part_of(path) for path in FILES} == MAY_IMPORT.keys() | {"__init__"}


def test_the_table_of_imports_points_up():
    parts = list(MAY_IMPORT)
    assert all(parts.index(used) < parts.index(part) for part in parts for used in MAY_IMPORT[part])


@each_file
def test_imports_point_down(path):
    if part_of(path) == "__init__":
        return
    # __main__ is a program: it uses the package as its users do.
    assert "minidl" not in imported(path) or part_of(path) == "__main__", "the package as a whole imports everything"
    used = {name.split(".")[1] for name in imported(path) if name.startswith("minidl.")}
    assert used - {part_of(path)} <= MAY_IMPORT[part_of(path)]


@pytest.mark.parametrize("package", ["cpu", "cuda"])
def test_the_kernels_of_a_device_stand_alone(package):
    for path in (PACKAGE / "kernels" / package).glob("*.py"):
        others = [name for name in imported(path) if name.startswith("minidl.kernels.")]
        ours = (
            f"minidl.kernels.{package}.",
            "minidl.system.precision.",
            "minidl.kernels.shapes.",
            "minidl.kernels.collect",
        )
        assert all(name.startswith(ours) for name in others), name_of(path)


def test_the_plain_loops_import_nothing_of_the_package():
    assert not any(name.startswith("minidl") for name in imported(PACKAGE / "kernels" / "reference.py"))


@each_file_and_example
def test_private_files_are_imported_by_their_neighbours_only_and_private_names_by_nobody(path):
    if path == PACKAGE / "__init__.py":
        return
    for name in imported(path):
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.startswith("_") and parts[0] == "minidl":
                assert Path(ROOT, *parts[:i]) in path.parents, f"{name_of(path)} imports {name}"


@each_file
def test_only_the_kernels_know_of_cupy(path):
    if part_of(path) in ("kernels", "system", "__main__"):  # __main__ tells which one is installed
        return
    identifiers = [getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(TREES[path])]
    assert not [name for name in [*identifiers, *imported(path)] if name.split(".")[0] == "cupy"]


@each_file
def test_the_package_imports_no_example_and_no_test(path):
    outside = {path.stem for path in EXAMPLES} | {"tests", "examples", "models", "benchmarks", "pytest", "torch"}
    assert not {name.split(".")[0] for name in imported(path)} & outside


@each_file_and_example
def test_nothing_is_imported_by_a_star_or_run_from_a_string(path):
    stars = [name for name in imported(path) if name.endswith(".*")]
    assert stars == (["minidl.nn.layers.*"] if path == PACKAGE / "nn" / "__init__.py" else [])
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, ast.Name) or node.id not in ("exec", "eval")


def test_nn_has_the_layers_and_nothing_that_their_file_imports():
    defined = {node.name for node in TREES[PACKAGE / "nn" / "layers.py"].body if isinstance(node, ast.ClassDef)}
    assert "Conv2d" in defined and all(getattr(minidl.nn, name).__name__ == name for name in defined)
    others = {"init", "layers", "layout", "module", "sequential", "Module", "Sequential", "Buffer", "Parameter"}
    assert {name for name in vars(minidl.nn) if not name.startswith("_")} == defined | others


def test_a_new_operation_takes_six_files_of_the_package():
    """CONTRIBUTING.md has the list, with this operation as the example."""
    six = [
        "ops/local_response_norm.py",
        "kernels/reference.py",
        "kernels/cpu/local_response_norm.py",
        "kernels/cuda/local_response_norm.py",
        "functional.py",
        "nn/layers.py",
    ]
    words = re.compile("local_?response_?norm", re.IGNORECASE)
    # What can be practised and got wrong, and what another format calls it, is no part of the operation.
    beside = {PACKAGE / "study", PACKAGE / "onnx"}
    naming = [
        path
        for path in FILES
        if beside.isdisjoint(path.parents) and words.search(path.stem + path.read_text(encoding="utf-8"))
    ]
    assert sorted(path.relative_to(PACKAGE).as_posix() for path in naming) == sorted(six)
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^ +\d\. `minidl/([\w/]+\.py)`", guide, re.MULTILINE) == six


# -- import minidl -----------------------------------------------------------------------------------------------------


def python(code):
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_minidl_loads_nothing_that_it_may_not_need():
    loaded = set(python("import sys, minidl; print(*sys.modules)").split())
    assert {"minidl.nn", "minidl.optim", "minidl.functional", "numpy"} <= loaded
    assert not loaded & {"torch", "cupy", "matplotlib", "PIL", "tqdm", "safetensors", "scipy", "pytest", "hypothesis"}


def test_importing_minidl_is_quick():
    """In seconds of the CPU: the fastest of seven times, as a busy machine only adds to them."""
    code = "from time import process_time as t; a = t(); import numpy; b = t(); import minidl; print(b - a, t() - a)"
    numpy, both = map(min, zip(*(map(float, python(code).split()) for _ in range(7)), strict=True))
    assert both < MOST_IMPORTS_OF_NUMPY * numpy


# -- length ------------------------------------------------------------------------------------------------------------


def docstring_lines(node):
    """The numbers of the lines that the docstring of a module, class or function takes."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return set(range(first.lineno, first.end_lineno + 1))
    return set()


def functions(path):
    """All functions and methods of a file, the inner ones too."""
    return [node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function):
    """Its lines from `def` to the last one, without its docstring."""
    return function.end_lineno - function.lineno + 1 - len(docstring_lines(function))


@each_file_and_example
def test_no_function_is_too_long(path):
    lengths = {function.name: length(function) for function in functions(path)}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


def test_most_functions_are_short():
    lengths = [length(function) for path in FILES for function in functions(path)]
    assert statistics.median(lengths) <= MOST_LINES_OF_THE_MEDIAN_FUNCTION


def lines_of_code(path):
    """How many lines hold code: not the blank ones, not those of comments alone, not those of docstrings."""
    source = path.read_text(encoding="utf-8")
    silent = tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
    documented = [
        node for node in ast.walk(TREES[path]) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines.difference(*(docstring_lines(node) for node in documented)))


COUNTED = '''"""Says

much."""

# why
x = (
    1,  # one

    2,
)


def f():
    """Nothing."""
    return """a
b"""
'''


def test_lines_are_counted_as_said(tmp_path, monkeypatch):
    path = tmp_path / "file.py"
    path.write_text(COUNTED)
    monkeypatch.setitem(TREES, path, ast.parse(COUNTED))
    assert lines_of_code(path) == 7
    assert [length(function) for function in functions(path)] == [3]


def files_of(name):
    """The file of 'minidl.ops.conv.Conv2d', or of the package that it is in."""
    for parts in (name.split("."), name.split(".")[:-1]):
        place = ROOT.joinpath(*parts)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path in TREES:
                return [path]
    return []


def reading_path():
    """The files of READING_PATH, and those that they import, and those that these import."""
    found, waiting = set(), []
    for place in READING_PATH:
        waiting += [PACKAGE / place] if place.endswith(".py") else sorted((PACKAGE / place).glob("*.py"))
    while waiting:
        path = waiting.pop()
        if path not in found and PACKAGE / BESIDE_THE_PATH not in path.parents:
            found.add(path)
            waiting += [file for name in imported(path) if name.startswith("minidl.") for file in files_of(name)]
    return found


def test_the_reading_path_has_all_that_it_imports():
    names = {path.relative_to(PACKAGE).as_posix() for path in reading_path()}
    assert {
        "checks.py",
        "random.py",
        "dtypes.py",
        "kernels/__init__.py",
        "kernels/shapes.py",
        "system/cpus.py",
    } <= names
    assert not [name for name in names if name.startswith(("data", "training", "kernels/cuda"))]


def test_the_reading_path_can_be_read_in_an_afternoon():
    assert sum(lines_of_code(path) for path in reading_path()) < MOST_LINES_TO_READ


# -- what it says ------------------------------------------------------------------------------------------------------


def public_parts(tree, prefix=""):
    """(dotted name, node) of the public classes and functions of a file, and of the classes' methods."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            decorators = node.decorator_list
            is_setter = any(isinstance(decorator, ast.Attribute) for decorator in decorators)
            is_overload = any(getattr(decorator, "id", "") == "overload" for decorator in decorators)
            if not is_setter and not is_overload:
                yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_parts(node, f"{node.name}.")


@each_file_and_example
def test_everything_public_has_a_docstring(path):
    parts = [("the file", TREES[path]), *public_parts(TREES[path])]
    if path.name.startswith("test_"):  # the names of tests are sentences
        parts = [(name, node) for name, node in parts if not isinstance(node, ast.FunctionDef)]
    # The class of an operation says what its two methods compute.
    inherited = {"forward", "backward"} if PACKAGE / "ops" in path.parents else set()
    assert [name for name, node in parts if not ast.get_docstring(node) and name.split(".")[-1] not in inherited] == []


@each_file_and_example
def test_no_name_means_nothing(path):
    names = {getattr(node, "id", getattr(node, "arg", None)) for node in ast.walk(TREES[path])}
    assert not names & {"xp", "tmp", "ret", "out2", "foo", "ksize"}
