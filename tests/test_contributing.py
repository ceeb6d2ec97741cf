"""CONTRIBUTING's worked example, carried out in a copy of the repository: it works, and what one forgets is noticed."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = GUIDE.split("## Worked through: leaky ReLU")[1]
COPIED = "minidl", "tests", "examples", "docs/derivations"


class Step(NamedTuple):
    """A block of code in the guide, and where it goes: below a definition, into lines of a file, or a new file."""

    below: str | None
    path: str
    kind: str
    text: str


STEPS = [
    Step(*match)
    for match in re.findall(
        r"(?:Below `(\w+)` in|In|The new file) `([\w./]+)`:\n\n```(python|diff|md)\n(.*?)^```$",
        EXAMPLE,
        re.DOTALL | re.MULTILINE,
    )
]
FORGOTTEN = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", EXAMPLE, re.MULTILINE)


def take(step, root):
    """Make the change of a step in the repository at `root`."""
    path = root / step.path
    if step.kind == "md":
        path.write_text(step.text, encoding="utf-8")
    elif step.kind == "python":
        path.write_text(inserted(path.read_text(encoding="utf-8"), step.below, step.text), encoding="utf-8")
    else:
        path.write_text(patched(path.read_text(encoding="utf-8"), step.text), encoding="utf-8")


def inserted(source, name, text):
    """The source with a definition below that of `name`."""
    (node,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == name)
    lines = source.splitlines(keepends=True)
    return "".join([*lines[: node.end_lineno], "\n\n", text, *lines[node.end_lineno :]])


def patched(source, diff):
    """The source after the changes of a diff. Each begins with a line that is there exactly once."""
    for old, new in hunks(diff.splitlines(keepends=True)):
        assert source.count(old) == 1, f"{source.count(old)} times: {old}"
        source = source.replace(old, new)
    return source


def hunks(lines):
    """(old lines, new lines) of each change: what stays or goes, then what comes."""
    old, new, is_complete = "", "", False
    for line in lines:
        if is_complete and line[0] != "+":
            yield old, new
            old, new, is_complete = "", "", False
        if line[0] in " -":
            old += line[1:]
        if line[0] in " +":
            new += line[1:]
        is_complete |= line[0] == "+"
    yield old, new


def copy_with(steps, folder):
    """A copy of the repository with these changes."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder / name)
    for step in steps:
        take(step, folder)
    return folder


def run(folder, *command):
    """A Python module, run in the copy."""
    command = [sys.executable, "-m", *command]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=environment(folder))


def environment(folder):
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The repository with leaky ReLU."""
    return copy_with(STEPS, tmp_path_factory.mktemp("whole"))


def test_the_guide_has_all_steps():
    assert len(STEPS) == EXAMPLE.count("```") // 2 == 20
    assert {path for path, _ in FORGOTTEN} <= {step.path for step in STEPS}
    assert len(FORGOTTEN) == 11
    listed = re.findall(r"^ +\d\. `(minidl/[\w/]+\.py)`", GUIDE, re.MULTILINE)
    assert [Path(path).parent for path in listed] == list(
        dict.fromkeys(Path(path).parent for _, path, *_ in STEPS if re.match(r"minidl/(?!study|onnx)", path))
    )


@pytest.mark.parametrize(
    ("files", "chosen", "least"),
    [
        (["tests/ops/test_every_op.py"], "leaky or has_a_case", 6),
        (["tests/kernels/test_activation.py", "tests/kernels/test_contract.py"], "leaky or contract", 10),
        (["tests/kernels/test_threads.py"], "leaky or workload_here", 1),
        (["tests/test_functional.py"], "leaky or asked or true", 8),
        (["tests/nn/test_layers.py", "tests/test_architecture.py"], "leaky or activation or layers or six_files", 8),
        (["tests/test_docs.py"], "derivation_and", 1),
        (["tests/study/test_checker.py"], "leaky or LeakyReLU or uniquely", 10),
        (["tests/test_testing.py"], "leaky or that_is_every", 2),
        (["tests/onnx/test_operations.py"], "leaky or has_a_converter", 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_the_guide_adds_passes_its_tests(whole, files, chosen, least):
    done = run(whole, "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least, done.stdout


def test_what_the_guide_adds_is_clean(whole):
    files = sorted({step.path for step in STEPS if step.path.endswith(".py")})
    for check in (["check"], ["format", "--check"]):
        done = run(whole, "ruff", *check, "--no-cache", *files)
        assert done.returncode == 0, done.stdout


def test_the_cuda_kernel_of_the_guide_agrees_with_the_plain_loops(whole):
    """On the fake GPU: compiled by g++ and run on the CPU."""
    pytest.importorskip("cupy", reason='needs `pip install ".[fake-gpu]"`')
    options = "--device", "fake", "-q", "-p", "no:cacheprovider"
    done = run(whole, "pytest", *options, "tests/kernels/test_activation.py", "tests/ops", "-k", "leaky")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 8, done.stdout


@pytest.mark.parametrize(("forgotten", "test"), FORGOTTEN)
def test_what_is_forgotten_is_noticed(forgotten, test, tmp_path):
    folder = copy_with([step for step in STEPS if step.path != forgotten], tmp_path)
    done = run(folder, "pytest", "-q", "-p", "no:cacheprovider", test)
    assert re.search(r"[1-9]\d* failed", done.stdout), done.stdout + done.stderr
