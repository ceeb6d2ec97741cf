"""The tour: it runs, prints what it says, and its assertions can fail."""

import ast
import inspect
import re
import subprocess

import numpy as np
import pytest
import tour

from minidl.kernels import cpu
from tests.examples.tools import ROOT, command, run_main

TITLES = [step.__name__ for step in tour.STEPS]


def test_the_whole_tour_as_a_user_takes_it():
    done = subprocess.run(command("tour.py"), capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^Step (\d+): ", done.stdout, re.MULTILINE) == [str(number) for number in range(1, 11)]
    assert done.stdout.count("losses: 2.8801 ") == 2


def test_the_steps_are_all_functions_of_that_name_in_the_order_of_the_file():
    functions = [node.name for node in ast.parse(inspect.getsource(tour)).body if isinstance(node, ast.FunctionDef)]
    assert [name for name in functions if name.startswith("step_")] == TITLES
    assert [name.split("_")[1] for name in TITLES] == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("step", tour.STEPS, ids=TITLES)
def test_each_step_prints_and_asserts(step, capsys):
    step()
    assert capsys.readouterr().out.strip()
    assert re.search(r"\bassert", inspect.getsource(step))


def test_some_steps_can_be_chosen(capsys):
    status, output, _ = run_main(tour, [3, 1], capsys)
    assert status == 0
    assert re.findall(r"Step (\d+)", output) == ["3", "1"]


@pytest.mark.parametrize("number", [0, 11, -1])
def test_a_step_that_does_not_exist_is_an_error(number, capsys):
    status, _, error = run_main(tour, ["--", number], capsys)
    assert status == 2
    assert f"expected steps from 1 to 10, got {number}" in error


MISTAKES = {
    "conv2d_backward": (4, lambda right, *args: tuple(2 * grad for grad in right(*args))),
    "conv2d_forward": (3, lambda right, *args: right(*args)[:, ::-1].copy()),
    "max_pool2d_backward": (5, lambda right, *args: right(*args) + 1),
    "batch_norm_backward": (6, lambda right, *args: right(*args[:-1], False)),
    "relu_backward": (7, lambda right, grad, y: grad.copy()),
}


@pytest.mark.parametrize("kernel", MISTAKES)
def test_a_step_fails_if_its_kernel_is_wrong(kernel, monkeypatch):
    number, wrong = MISTAKES[kernel]
    right = getattr(cpu, kernel)
    monkeypatch.setattr(cpu, kernel, lambda *args: wrong(right, *args))
    with pytest.raises(AssertionError):
        tour.STEPS[number - 1]()


def test_two_results_that_differ_are_not_equal():
    tour.assert_equal(np.ones(3), np.ones(3) + 1e-14)
    with pytest.raises(AssertionError):
        tour.assert_equal(np.ones(3), np.ones(3) + 1e-9)
