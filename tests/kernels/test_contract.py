"""What the devices have in common: the names and signatures of their kernels, read from the source, never run."""

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "minidl" / "kernels"
DEVICES = [name for name in ("cpu", "cuda") if (KERNELS / name / "__init__.py").exists()]
# These two speak of every kernel by design, so a mention in them proves nothing.
NOT_ABOUT_ONE_KERNEL = {"test_contract.py", "test_threads.py"}


# Of reference.py: convolution once more, between the loops and the fast kernels. No device has these.
MIDDLE_RUNG = {"im2col", "col2im", "conv2d_forward_by_im2col", "conv2d_backward_by_im2col"}


def exported(path):
    """The names that a package imports into its own namespace."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return [alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]


def signatures(path):
    """{name: parameters with their defaults, without their types} of the functions at the top level of a file."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for argument in ast.walk(function.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
    return {function.name: ast.unparse(function.args) for function in functions}


def interface(names, paths):
    """{kernel: signature}; a name that no file defines is an error."""
    defined = {}
    for path in paths:
        defined |= signatures(path)
    return {name: defined[name] for name in names}


def specified():
    """The public functions of reference.py."""
    found = signatures(KERNELS / "reference.py")
    return {
        name: arguments for name, arguments in found.items() if not name.startswith("_") and name not in MIDDLE_RUNG
    }


def test_there_are_kernels_to_compare():
    assert len(specified()) >= 36
    assert "cpu" in DEVICES


@pytest.mark.parametrize("package", DEVICES)
def test_a_device_exports_what_the_reference_specifies(package):
    files = sorted(path for path in (KERNELS / package).glob("*.py") if not path.name.startswith("_"))
    assert interface(exported(KERNELS / package / "__init__.py"), files) == specified()


@pytest.mark.parametrize("package", DEVICES)
def test_a_kernel_is_defined_once(package):
    names = [name for path in (KERNELS / package).glob("*.py") for name in signatures(path)]
    assert [name for name in specified() if names.count(name) != 1] == []


def test_every_kernel_is_tested_by_name():
    tests = [path for path in Path(__file__).parent.glob("test_*.py") if path.name not in NOT_ABOUT_ONE_KERNEL]
    nodes = [node for path in tests for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    mentioned = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert set(specified()) - mentioned == set()
