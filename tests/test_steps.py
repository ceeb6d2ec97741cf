"""What a student steps through in a debugger: the functions that two short programs enter, and their files."""

import sys
from pathlib import Path

import numpy as np
import pytest

import minidl
from minidl import Tensor
from minidl.functional import conv2d

ROOT = str(Path(minidl.__file__).parent)


@pytest.fixture(autouse=True)
def one_thread():
    """A profile sees the functions of its own thread alone."""
    before = minidl.get_num_threads()
    minidl.set_num_threads(1)
    yield
    minidl.set_num_threads(before)


def entered(program):
    """(file, name) of every function of minidl, comprehensions too, that the program calls."""
    found = set()

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT):
            found.add((code.co_filename.removeprefix(ROOT), code.co_qualname))

    sys.setprofile(note)
    try:
        program()
    finally:
        sys.setprofile(None)
    return found


def square():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x * x).sum().backward()


def convolution():
    x = Tensor(np.ones((2, 8, 8, 3), np.float32), requires_grad=True)
    weight = Tensor(np.ones((3, 3, 3, 4), np.float32), requires_grad=True)
    y = conv2d(x, weight, padding=1)
    y.backward(y.detach())


@pytest.mark.parametrize(("program", "functions", "files"), [(square, 34, 7), (convolution, 66, 14)])
def test_few_functions_are_entered(program, functions, files):
    """DeZero enters 28 functions in 4 files for the square, and 36 in 5 for the convolution."""
    found = entered(program)
    listed = "\n".join(f"{file} {name}" for file, name in sorted(found))
    assert len(found) <= functions, listed
    assert len({file for file, _ in found}) <= files, listed


def test_functions_are_counted_once_and_inner_ones_too():
    def program():
        for _ in range(2):
            with minidl.no_grad():
                minidl.is_grad_enabled()

    names = [name for _, name in entered(program)]
    block = [
        f"set_grad_enabled.{name}" for name in ("__enter__", "__exit__", "__exit__.<locals>.<genexpr>", "__init__")
    ]
    assert sorted(names) == ["is_grad_enabled", "no_grad", *block]
