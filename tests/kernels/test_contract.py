"""What the devices have in common: the names and signatures of their kernels, read from the source."""

import ast
import inspect
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "minidl" / "kernels"
DEVICES = [name for name in ("cpu", "cuda") if (KERNELS / name / "__init__.py").exists()]
# These two speak of every kernel by design, so a mention in them proves nothing.
NOT_ABOUT_ONE_KERNEL = {"test_contract.py", "test_threads.py"}


# Of reference.py: convolution once more, between the loops and the fast kernels. No device has these.
MIDDLE_RUNG = {"im2col", "col2im", "conv2d_forward_by_im2col", "conv2d_backward_by_im2col"}


def signatures(path):
    """{name: parameters with their defaults, without their types} of the functions at the top level of a file."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for argument in ast.walk(function.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
    return {function.name: ast.unparse(function.args) for function in functions}


def public_functions(package):
    """{function: signature} of the public files of a device."""
    files = [path for path in (KERNELS / package).glob("*.py") if not path.name.startswith("_")]
    return {name: arguments for path in files for name, arguments in signatures(path).items()}


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
def test_a_device_defines_what_the_reference_specifies(package):
    defined = public_functions(package)
    assert {name: arguments for name, arguments in defined.items() if name in specified()} == specified()


@pytest.mark.parametrize("package", DEVICES)
def test_a_device_defines_no_kernel_that_the_reference_lacks(package):
    """Other public functions, helpers of a kernel and settings, have none of these words in their names."""
    kinds = "_forward", "_backward", "_update", "_apply", "_statistics"
    kernels = {name for name in public_functions(package) if not name.startswith("_") and any(k in name for k in kinds)}
    assert kernels - set(specified()) == set()


def test_what_is_collected_are_the_functions_of_the_devices_public_files(kernels):
    collected = {name: value for name, value in vars(kernels).items() if inspect.isfunction(value)}
    assert collected.keys() == specified().keys()
    for name, function in collected.items():
        path = Path(inspect.getsourcefile(function))
        assert path.parent == Path(kernels.__file__).parent and not path.name.startswith("_"), name


@pytest.mark.parametrize("package", DEVICES)
def test_a_kernel_is_defined_once(package):
    names = [name for path in (KERNELS / package).glob("*.py") for name in signatures(path)]
    assert [name for name in specified() if names.count(name) != 1] == []


def test_every_kernel_is_tested_by_name():
    tests = [path for path in Path(__file__).parent.glob("test_*.py") if path.name not in NOT_ABOUT_ONE_KERNEL]
    nodes = [node for path in tests for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    mentioned = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert set(specified()) - mentioned == set()
