"""What a user's type checker reads: minidl/py.typed promises types of all public names."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minidl

ROOT = Path(__file__).parents[1]

# A program of a user, checked strictly. In its last part, each line is a mistake.
RIGHT = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import numpy as np

import minidl
import minidl.onnx
from minidl import Parameter, Tensor, data, nn, optim
from minidl.functional import conv2d, cross_entropy

x = Tensor([[1.0, 2.0]], requires_grad=True)
assert_type(x + 1, Tensor)
assert_type(2 * x @ x.T, Tensor)
assert_type(x > 0, Tensor)
assert_type(-x, Tensor)
assert_type(x[0], Tensor)
assert_type(x.sum().exp(), Tensor)
assert_type(x.reshape(1, 2).permute((1, 0)), Tensor)
assert_type(x.grad, Tensor | None)
assert_type(x.shape, tuple[int, ...])
assert_type(float(x.sum()), float)
assert_type(f"{x.sum():.3f}", str)
assert_type(iter(x), Iterator[Tensor])
assert_type(minidl.randn(2, 3), Tensor)
assert_type(minidl.where(x > 0, x, x * 0.1), Tensor)


class Net(nn.Module):
    def __init__(self) -> None:
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(nn.GlobalAvgPool()(self.conv(x).sigmoid()))
        return y


model = Net()
assert_type(model(x), Any)  # as in PyTorch: a module may return several tensors
assert_type(model.forward(x), Tensor)
assert_type(model.parameters(), list[Parameter])
assert_type(model.conv.weight, Parameter)
optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
assert_type(optimizer.lr, float)
assert_type(conv2d(x, x), Tensor)
loss = cross_entropy(model(x), np.array([1]))
loss.backward()
optimizer.step()
with minidl.no_grad():
    assert_type(loss.item(), float | int | bool)
loader = data.DataLoader(data.make_shapes(10), 5)
minidl.save_checkpoint(Path("file"), model)
minidl.onnx.export(model, x, "net.onnx")
"""
WRONG = [
    ('x + 1 + "text".nothing', "attr-defined"),
    ('nn.Conv2d(3, "8", 3)', "arg-type"),
    ("nn.Conv3d(3, 8, 3)", "attr-defined"),
    ('optim.SGD(model.parameters(), lr="fast")', "arg-type"),
    ("x.reshape(1.5)", "arg-type"),
    ('cross_entropy("logits", x)', "arg-type"),
    ("x.grad.numpy()", "union-attr"),
    ("minidl.onnx.export(x, x, 'file')", "arg-type"),
]


def mypy(folder, program):
    """What mypy --strict says about a program in a folder where minidl is installed as a user has it."""
    (folder / "program.py").write_text(program)
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "mypy.ini", "program.py"]
    (folder / "mypy.ini").write_text("[mypy]\n\n[mypy-minidl.*]\nfollow_imports = silent\n")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_a_users_type_checker_sees_the_types_and_finds_the_mistakes(tmp_path):
    mistakes = "".join(f"{line}\n" for line, _ in WRONG)
    said = mypy(tmp_path, RIGHT + mistakes)
    first = RIGHT.count("\n") + 1
    found = [line for line in said.stdout.splitlines() if "error:" in line]
    assert len(found) == len(WRONG), said.stdout + said.stderr
    for number, (line, (_, code)) in enumerate(zip(found, WRONG, strict=True), first):
        assert line.startswith(f"program.py:{number}: ") and line.endswith(f"[{code}]"), said.stdout


@pytest.mark.parametrize("name", ["__init__", "optim/__init__", "data/__init__", "onnx/__init__"])
def test_the_names_that_a_package_imports_are_marked_as_public(name):
    tree = ast.parse((ROOT / "minidl" / f"{name}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    listed = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    assert {*ast.literal_eval(listed)} == imported
    assert len(minidl.__all__) == len({*minidl.__all__})


PUBLIC = [
    "tensor.py",
    "functional.py",
    "creation.py",
    "random.py",
    "testing.py",
    "nn",
    "optim",
    "data",
    "training",
    "onnx",
]
PUBLIC_FILES = [
    path
    for name in PUBLIC
    for path in ([ROOT / "minidl" / name] if name.endswith(".py") else sorted((ROOT / "minidl" / name).rglob("*.py")))
]


def public_functions(body):
    """The public functions of a file, and the public methods of its public classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)


@pytest.mark.parametrize("path", PUBLIC_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_public_function_says_what_it_returns(path):
    functions = public_functions(ast.parse(path.read_text(encoding="utf-8")).body)
    assert [function.name for function in functions if function.returns is None] == []
