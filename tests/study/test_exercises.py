"""The files of the exercises, and `python -m minidl.study exercise` on whatever a student's file may hold."""

import ast
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minidl
from minidl.study.__main__ import COMMANDS, main
from minidl.study.calls import kernels, ops
from minidl.study.workbench import process, worker
from minidl.study.workbench.check import check_file, problem_of_file
from minidl.study.workbench.course import COURSE, STATED_ACCURACY
from minidl.study.workbench.exercises import PARTS, exercises
from minidl.study.workbench.process import Limits
from minidl.study.workbench.show import report_text
from tests.study.test_checker import report_of

RELU = """
import numpy as np


def relu_forward(x):
    return np.maximum(x, 0)


def relu_backward(grad, y):
    return np.where(y > 0, grad, 0)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def command(folder, capsys):
    """Runs `exercise` with options: (exit code, what it printed)."""

    def run(*options):
        code = main(["exercise", *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def written(folder, text, name="relu"):
    """The file of an exercise with this text."""
    path = folder / "workbench" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# -- what there is -----------------------------------------------------------------------------------------------------


def test_there_is_an_exercise_for_every_kernel_and_every_op():
    functions = {(task.kind, task.name) for exercise in exercises().values() for task in exercise.tasks}
    assert {("function", name) for name in kernels()} <= functions
    assert {("op", name) for name in ops()} <= functions
    assert {("function", name) for name in PARTS} <= functions


def test_a_new_kernel_has_an_exercise_without_a_line_of_code(monkeypatch, tmp_path):
    from minidl.kernels import reference

    def cube(x):
        """y = x^3."""
        return x**3

    monkeypatch.setattr(reference, "cube", cube, raising=False)
    kernels.cache_clear()
    exercises.cache_clear()
    try:
        text = exercises()["cube"].text()
        path = tmp_path / "cube.py"
        path.write_text(text)
        assert check_file(path, exercises()["cube"]).problem == (
            "cube cannot be checked yet: minidl/study/cases.py has no cases of it."
        )
    finally:
        monkeypatch.undo()
        kernels.cache_clear()
        exercises.cache_clear()
    assert "def cube(x):" in text and "y = x^3." in text and "x**3" not in text


def test_the_course_has_twelve_in_the_order_of_the_reading_room():
    names = [lesson.name for lesson in COURSE]
    assert names == [
        "relu",
        "linear",
        "broadcast_sum",
        "cross_entropy",
        "max_pool2d",
        "avg_pool2d",
        "conv2d_forward",
        "conv2d_backward_weight",
        "conv2d_backward_x",
        "batch_norm_backward",
        "residual_end",
        "im2col",
    ]
    assert list(exercises())[:12] == names
    assert all(len(lesson.hints) >= 3 for lesson in COURSE)
    assert all(10 <= lesson.minutes <= 40 for lesson in COURSE)


def test_no_two_files_have_the_same_name_on_a_file_system_without_case():
    assert len({name.lower() for name in exercises()}) == len(exercises())


@pytest.mark.parametrize("name", exercises())
def test_the_file_has_signature_and_docstring_of_the_source_and_no_body(name):
    exercise = exercises()[name]
    tree = ast.parse(exercise.text())
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for task in exercise.tasks:
        node = defined[task.name]
        assert (inspect.getdoc(task.right if task.kind == "function" else ops()[task.name]) or "") in inspect.cleandoc(
            ast.get_docstring(node) or ""
        )
        bodies = [node] if task.kind == "function" else [n for n in node.body if isinstance(n, ast.FunctionDef)]
        for body in bodies:
            assert isinstance(body.body[-1], ast.Raise) and len(body.body) <= 2
        if task.kind == "function":
            assert [argument.arg for argument in node.args.args] == task.parameters


@pytest.mark.parametrize("name", exercises())
def test_the_file_can_be_imported_as_it_is(name):
    module = {}
    exec(exercises()[name].text(), module)
    assert all(callable(module[task.name]) for task in exercises()[name].tasks)


@pytest.mark.parametrize("name", exercises())
def test_the_solution_in_the_file_would_be_right(name):
    """What the solution uses is imported, so that a student can write it."""
    exercise = exercises()[name]
    module = {}
    exec("\n".join([*exercise.imports(), *(task.solution() for task in exercise.tasks)]), module)
    for task in exercise.tasks:
        if task.name not in PARTS:
            report = report_of(task.name, module[task.name], seed=1)
            assert report.is_right, [rung for rung in report.rungs if rung.problem]


def test_each_command_is_a_module_of_its_own():
    for command in COMMANDS:
        assert command.NAME and command.HELP and callable(command.add_arguments) and callable(command.run)


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 0
    assert "exercise" in capsys.readouterr().out


# -- a first file ------------------------------------------------------------------------------------------------------


def test_the_list_begins_with_the_course(command):
    code, text = command()
    assert code == 0
    lines = text.splitlines()
    assert lines[2].split()[:2] == ["1", "relu"] and "about 10 min" in lines[2]
    assert all(name in text for name in exercises())


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_list_fits_the_terminal(columns, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = command()[1]
    assert max(map(len, text.splitlines())) <= columns
    assert all(name in text for name in exercises())


def test_the_list_marks_what_has_a_file(command, folder):
    written(folder, RELU)
    assert "* 1  relu" in command()[1]


def test_from_an_empty_file_to_a_right_answer(command, folder):
    code, text = command("relu")
    path = folder / "workbench" / "relu.py"
    assert code == 0 and path.exists() and "relu_forward, relu_backward" in text
    assert command("relu") == (1, "relu_forward: not written yet\n\nrelu_backward: not written yet\n")
    path.write_text(RELU)
    code, text = command("relu")
    assert code == 0 and "All of relu is right." in text and "exercise linear" in text


def test_a_command_that_is_suggested_has_the_folder_that_was_given(command, folder):
    place = folder / "my work"
    assert f"exercise relu --folder '{place}'" in command("relu", "--folder", str(place))[1]
    (place / "relu.py").write_text(RELU)
    assert f"exercise linear --folder '{place}'" in command("relu", "--folder", str(place))[1]


def test_the_file_describes_the_helpers_that_may_be_used():
    text = exercises()["conv2d_backward_x"].text()
    assert "_taps(size, output_size, kernel_size, stride, padding)" in text and "Yield every (i, j, u, v, h, w)" in text
    assert "it is always needed" in text


def test_a_students_work_is_not_overwritten(command, folder):
    path = written(folder, RELU)
    command("relu")
    assert path.read_text() == RELU
    code, _ = command("relu", "--force")
    assert code == 0 and "NotImplementedError" in path.read_text()


def test_a_mistake_is_named(command, folder):
    written(folder, RELU.replace("y > 0", "y >= 0"))
    code, text = command("relu")
    assert code == 1
    assert ">>> This is dL/dx everywhere: no mask, or one of y >= 0, which is always true." in text
    assert "relu_forward: right" in text


@pytest.mark.parametrize(
    ("name", "like_it"),
    [("conv2d_backwards_x", "conv2d_backward_x"), ("workbench/relu.py", "relu"), ("pool", "max_pool2d")],
)
def test_an_unknown_name_is_answered_with_those_like_it(name, like_it, command):
    code, text = command(name)
    assert code == 2 and f"Did you mean {like_it}" in " ".join(text.split())


def test_hints_come_one_at_a_time_and_end(command, folder):
    count = len(exercises()["relu"].hints)
    texts = [command("relu", "--hint")[1] for _ in range(count + 1)]
    assert [text.split(":")[0] for text in texts[:count]] == [f"Hint {i + 1} of {count}" for i in range(count)]
    assert f"These were all {count} hints." in texts[count]
    assert json.loads((folder / "workbench" / ".hints.json").read_text()) == {"relu": count}


def test_a_damaged_file_of_hints_begins_them_again(command, folder):
    command("relu", "--hint")
    (folder / "workbench" / ".hints.json").write_text("[1")
    assert command("relu", "--hint")[1].startswith("Hint 1 of")


def test_the_solution_is_the_source(command):
    code, text = command("relu", "--show")
    assert (
        code == 0
        and text.strip()
        == "\n\n".join(inspect.getsource(kernels()[name]) for name in ("relu_forward", "relu_backward")).strip()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["relu", "linear"], "one NAME at a time"),
        (["relu", "--seconds", "0"], "--seconds and --memory of at least 1"),
        (["relu", "--seed", "-1"], "--seed of at least 0"),
        (["--grade", "nowhere"], "--grade expected a folder, got nowhere"),
        (["--grade", "empty"], "empty and its subfolders have no file of an exercise, such as relu.py"),
        (["relu", "--grade", "empty"], "empty and its subfolders have no file of an exercise"),
        (["--watch"], "--watch goes with the NAME of one exercise"),
        (["relu", "--hint", "--grade", "empty"], "--hint goes with the NAME of one exercise"),
        (["relu", "--json"], "--json goes with --grade DIR"),
        (["relu", "--folder", "file"], "cannot write in file (File exists); choose another --folder"),
        (["relu", "--hint", "--folder", "file/folder"], "cannot write in file/folder (Not a directory)"),
    ],
)
def test_misuse_is_a_sentence(command, folder, options, words):
    (folder / "empty").mkdir()
    (folder / "file").touch()
    code, text = command(*options)
    assert code == 2 and words in " ".join(text.split())


# -- watch -------------------------------------------------------------------------------------------------------------


def wait_for(path, words, seconds=600):
    """Until a file has the words."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if words in path.read_text(encoding="utf-8"):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {words!r} in {path.read_text(encoding='utf-8')!r}")


def test_watch_checks_at_each_save_and_ends_quietly(folder):
    path = written(folder, RELU.replace("y > 0", "y >= 0"))
    log = folder / "log.txt"
    root = os.path.dirname(os.path.dirname(minidl.__file__))  # noqa: PTH120
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "minidl.study", "exercise", "relu", "--watch"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            wait_for(log, "which is always true.")
            path.write_text(RELU)
            wait_for(log, "All of relu is right.")
            process.send_signal(subprocess.signal.SIGINT)
            assert process.wait(600) == 0
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text() and "KeyboardInterrupt" not in log.read_text()


# -- bad input ---------------------------------------------------------------------------------------------------------


def said(path, name="relu", **limits):
    """What the checker says of a file, as one line without a traceback."""
    text = report_text(check_file(path, exercises()[name], limits=Limits(**limits)), exercises()[name])
    assert "Traceback" not in text and len(text) < 4000
    return " ".join(text.split())


def with_backward(body):
    return RELU.replace("    return np.where(y > 0, grad, 0)", f"    {body}")


SENTENCES = {
    "no function": (RELU.replace("relu_backward", "relu_back"), "The file has no function relu_backward."),
    "a number": (
        RELU.replace("def relu_backward(grad, y):\n    return np.where(y > 0, grad, 0)", "relu_backward = 3"),
        "relu_backward is a int, expected a function.",
    ),
    "another order": (RELU.replace("(grad, y)", "(y, grad)"), "Its arguments are in another order"),
    "too few arguments": (
        RELU.replace("(grad, y)", "(grad)"),
        "It is called as relu_backward(grad, y), but it is written as relu_backward(grad).",
    ),
    "imported": ("from minidl.kernels.reference import relu_forward, relu_backward", "is minidl's own. Write yours."),
    "the solution called": (
        "from minidl.kernels import reference\n" + with_backward("return reference.relu_backward(grad, y)"),
        "minidl's relu_backward is the solution of this exercise",
    ),
    "the solution by another name": (
        "from minidl.kernels.reference import relu_backward as solution\n" + with_backward("return solution(grad, y)"),
        "minidl's relu_backward is the solution of this exercise",
    ),
    "None": (with_backward("np.where(y > 0, grad, 0)"), "It returned None, expected one array, dL/dx."),
    "a tuple": (with_backward("return grad, y"), "It returned a tuple of 2, expected one array"),
    "a list": (with_backward("return list(grad)"), "It returned a list of"),
    "NaN": (with_backward("return np.where(y > 0, grad, np.nan)"), "that are NaN or infinite, the first at [0"),
    "an error": (
        with_backward("return grad / undefined"),
        "NameError in line 10, `return grad / undefined`: name 'undefined' is not defined",
    ),
    "an error without a message": (
        with_backward("assert False"),
        "AssertionError in line 10, `assert False` Wrong in 4",
    ),
    "an error without a message at once": ("assert False", "cannot be imported: AssertionError in line 1"),
    "a wrong import": ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError in line 1"),
    "changed arguments": (with_backward("grad[y <= 0] = 0; return grad"), "It wrote into grad"),
    "reading a file": (with_backward("return np.load('grad.npy')"), "No such file or directory: 'grad.npy'"),
    "reading this file": (
        with_backward("open('/proc/self/stat').read(); return np.where(y > 0, grad, 0)"),
        "It opened the file /proc/self/stat. All that it needs are its arguments.",
    ),
    "keyboard": (with_backward("return input()"), "It asks for keyboard input in line 10, `return input()`"),
    "keyboard at once": ("input()\n" + RELU, "The file asks for keyboard input in line 1."),
    "exit": (with_backward("raise SystemExit"), "It ends Python by exit() in line 10"),
    "exit at once": ("exit()\n" + RELU, "The file ends Python by exit() in line 1."),
    "os._exit": (
        with_backward("import os; os._exit(0)"),
        "It ended Python itself (exit code 0), while relu_backward ran",
    ),
    "interrupted": (with_backward("raise KeyboardInterrupt"), "KeyboardInterrupt in line 10"),
    "killed": (
        with_backward("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        "Its process was ended by SIGKILL, while relu_backward ran in case 1 of 2, in float64. The limit of memory is",
    ),
    "too much of the CPU's time": (
        with_backward("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)"),
        "It was stopped after 20 s of CPU time, while relu_backward ran in case 1 of 2, in float64. Is there an "
        "endless loop?",
    ),
    "too much memory": (with_backward("return np.ones(10**11)"), "MemoryError in line 10"),
    "deep recursion": (with_backward("return relu_backward(grad, y)"), "RecursionError in line 10"),
    "return outside": (RELU.replace("def relu_backward(grad, y)", "if True"), "'return' outside function"),
    "a long chain": ("x = " + "+".join("1" * 10**5), "relu.py cannot be compiled (RecursionError)."),
    "printing": (with_backward("print('dL/dy', grad.shape); return np.where(y > 0, grad, 0)"), "It printed: dL/dy ("),
    "printing many lines": (
        with_backward("print('1\\n2\\n3\\n4\\n5\\n6'); return np.where(y > 0, grad, 0)"),
        "It printed: 1 2 3 4 5 ... All of relu is right.",
    ),
    "printing without end": (
        with_backward("print('much ' * 10**6); return np.where(y > 0, grad, 0)"),
        "All of relu is right.",
    ),
    "empty": ("", "The file has no function relu_forward."),
}


@pytest.mark.parametrize(("text", "words"), SENTENCES.values(), ids=SENTENCES)
def test_whatever_the_file_holds_is_answered_by_a_sentence(text, words, folder):
    assert words in said(written(folder, text))


def test_a_result_that_is_too_much_to_store_is_answered_by_a_sentence(folder):
    """256 MB are written before the limit of the file is reached: beside other programs that takes more than 20 s."""
    text = with_backward("return np.broadcast_to(np.float64(0), (2**26,))")
    words = "Its process failed, while relu_backward ran in case 2 of 2, in float32"
    assert words in said(written(folder, text), seconds=600)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broadcast_sum", "import minidl.ops.arithmetic as a\ndef sum_to_shape(*args):\n    return a.{}(*args)"),
        ("residual_end_forward", "import minidl.study.residual as r\ndef {0}(*args):\n    return r.{0}(*args)"),
        ("op_ReLU", "from minidl.ops.activation import ReLU as A\nclass ReLU(A):\n    pass"),
    ],
    ids=["a function of an op's file", "a function of the course", "a class"],
)
def test_solutions_beside_the_kernels_are_hidden_too(name, text, folder):
    solution = exercises()[name].tasks[0].target
    said_of_it = said(written(folder, text.format(solution), name), name)
    assert f"minidl's {solution} is the solution of this exercise: write it yourself" in said_of_it


def test_a_syntax_error_is_shown_with_its_line_and_a_caret(folder):
    path = written(folder, RELU.replace("y > 0", "y >"))
    text = check_file(path, exercises()["relu"]).problem
    first, _, line, caret = text.splitlines()
    assert first == "relu.py, line 10, is not valid Python: invalid syntax."
    assert line.strip() == "return np.where(y >, grad, 0)"
    assert line[caret.index("^")] == ","


def test_a_warning_of_pythons_is_no_problem_of_the_file(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert problem_of_file(written(folder, RELU + "'\\d'")) == ""


def test_an_endless_loop_is_stopped(folder, monkeypatch):
    monkeypatch.setattr(process, "PATIENCE", 600)  # the machine may be busy
    path = written(folder, with_backward("\n    while True: pass"))
    words = said(path, seconds=1)
    assert "It was stopped after 1 s of CPU time, while relu_backward ran in case 1 of 2, in float64." in words


def test_a_file_that_waits_is_stopped_by_the_clock(folder):
    words = said(written(folder, with_backward("import time; time.sleep(10**6)")), seconds=1)
    assert re.search(r"It was stopped after 6 s, while .*\. Does it wait for something, or", words)


def test_a_right_file_is_not_stopped_on_a_busy_machine(folder, monkeypatch):
    """The process gets no CPU for longer than its limit of CPU time: it stops itself, and is continued after that."""
    monkeypatch.setattr(process, "PATIENCE", 100)
    number = folder / "number"
    stop = (
        f"import os, signal\nopen({str(number)!r}, 'w').write(str(os.getpid()))\nos.kill(os.getpid(), signal.SIGSTOP)\n"
    )

    def be_busy():
        while not (number.exists() and number.read_text() and is_stopped(number.read_text())):
            time.sleep(0.05)
        time.sleep(limit + 0.5)
        os.kill(int(number.read_text()), signal.SIGCONT)

    limit, thread = 5, threading.Thread(target=be_busy, daemon=True)
    thread.start()
    assert "All of relu is right." in said(written(folder, stop + RELU), seconds=limit)
    thread.join()


def is_stopped(process):
    return "(stopped)" in Path("/proc", process, "status").read_text()


def test_a_limit_that_cannot_be_set_is_left_out(monkeypatch):
    """Where a lower one is set already, and on systems that refuse some."""
    tried = []

    def refuse(kind, limit):
        tried.append(kind)
        raise ValueError("not allowed to raise maximum limit")

    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "setrlimit", refuse)
    worker._limit(1, 1)
    assert len(tried) == 4


def is_running(process):
    """A zombie is not: it waits to be counted by its parent, which may be the container's first process."""
    try:
        return "(zombie)" not in Path("/proc", process, "status").read_text()
    except OSError:
        return False


def test_a_process_that_it_leaves_behind_is_ended(folder):
    number = folder / "number"
    body = "import os, time; child = os.fork() or time.sleep(60); "
    body += f"open({str(number)!r}, 'w').write(str(child)); return grad"
    said(written(folder, with_backward(body)))
    end = time.monotonic() + 300  # it is sent a signal, and nobody waits for it
    while is_running(number.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    assert time.monotonic() < end


def test_a_file_may_use_another_one_of_its_folder(folder):
    written(folder, RELU, "solutions_of_mine")
    assert "All of relu is right." in said(written(folder, "from solutions_of_mine import *"))


def test_a_file_that_is_no_text_is_answered_by_a_sentence(folder):
    path = written(folder, "")
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert "relu.py is not a text file in UTF-8" in check_file(path, exercises()["relu"]).problem
    path.write_bytes(b"x = 1\x00")
    assert (
        check_file(path, exercises()["relu"]).problem
        == "relu.py is not valid Python: source code string cannot contain null bytes."
    )


# -- in use ------------------------------------------------------------------------------------------------------------


def im2col_file(body_of_im2col=None):
    """The solution of the last exercise, or with another im2col."""
    exercise = exercises()["im2col"]
    solution = exercise.solution()
    if body_of_im2col:
        solution = body_of_im2col + solution[solution.index("def conv2d_forward_by_im2col") :]
    return "\n".join([*exercise.imports(), "", solution])


IN_LOOPS = """
def im2col(x, kernel_size, stride, padding):
    (n, *size, c), (kh, kw) = x.shape, kernel_size
    oh, ow = _output_size(size, kernel_size, stride, padding)
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    patches = np.empty((n, oh, ow, kh, kw, c), x.dtype)
    for m, i, j, u, v in np.ndindex(n, oh, ow, kh, kw):
        patches[m, i, j, u, v] = padded[m, i * stride[0] + u, j * stride[1] + v]
    return patches.reshape(n * oh * ow, kh * kw * c)


"""


def test_an_im2col_of_ones_own_is_fast_and_a_network_learns_with_it(command, folder):
    written(folder, im2col_file(), "im2col")
    code, text = command("im2col")
    assert code == 0, text
    assert "ok     its convolution is faster than the loops, at least 5 times: " in text
    assert "ok     a network trained on it recognises four shapes, at least 80%: " in text


def test_an_im2col_in_loops_is_right_but_not_fast_enough(folder):
    report = check_file(written(folder, im2col_file(IN_LOOPS), "im2col"), exercises()["im2col"])
    *functions, in_use = report.reports
    assert all(one.is_right for one in functions) and not report.is_right
    assert "Copy a tap of all windows at once" in in_use.rungs[0].problem
    assert in_use.rungs[1].problem == "It did not get so far."


def test_an_error_in_training_is_said_there_and_not_of_the_speed(folder):
    solution = im2col_file().replace("    rows, matrix", "    assert len(x) < 20, 'so many images'\n    rows, matrix")
    assert "so many images" in solution
    speed, training = check_file(written(folder, solution, "im2col"), exercises()["im2col"]).reports[-1].rungs
    assert not speed.problem and training.problem == "AssertionError: so many images"


def test_a_network_does_not_learn_by_another_convolution():
    """The accuracy is that of the functions of the file: with a wrong gradient of the weight it stays a guess."""
    from minidl.kernels import reference
    from minidl.study.workbench.practice import accuracy

    def backward(grad, x, weight, stride, padding):
        return np.zeros_like(x), -np.ones_like(weight)

    wrong = SimpleNamespace(
        conv2d_forward_by_im2col=reference.conv2d_forward_by_im2col, conv2d_backward_by_im2col=backward
    )
    assert accuracy(wrong) < STATED_ACCURACY


# -- grades ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def a_class(folder):
    """Two students: one is right, one has mistakes of all kinds."""
    for student in ("ada", "ben", ".git", "__pycache__"):
        (folder / "class" / student).mkdir(parents=True)
    files = {
        "ada/relu.py": RELU,
        "ben/relu.py": RELU.replace("y > 0", "y >= 0"),
        "ben/add.py": "def add(a, b):\n    while True: pass",
        "ben/matmul.py": "import os\ndef matmul(a, b):\n    os._exit(0)",
        "ben/mse_loss_forward.py": "def mse_loss_forward(x, target):\n    return ((x - target) ** 2).mean(",
        "ben/notes.txt": "",
    }
    for name, text in files.items():
        (folder / "class" / name).write_text(text)
    return folder / "class"


def test_a_class_is_graded_and_a_loop_costs_its_exercise_alone(a_class, command):
    code, text = command("--grade", a_class, "--json", "--seed", 5, "--seconds", 3)
    assert code == 0
    grades = json.loads(text)
    ada, ben = grades["students"]
    assert grades["seed"] == 5 and (ada["student"], ben["student"]) == ("ada", "ben")
    assert ada["points"] == ada["out_of"] > 0
    by_name = {one["exercise"]: one for one in ben["exercises"]}
    assert by_name.keys() == {"relu", "add", "matmul", "mse_loss_forward"}
    assert "endless loop" in by_name["add"]["problem"]
    assert "ended Python itself" in by_name["matmul"]["problem"]
    assert "is not valid Python" in by_name["mse_loss_forward"]["problem"]
    assert [by_name[name]["points"] for name in ("add", "matmul", "mse_loss_forward")] == [0, 0, 0]
    assert 0 < by_name["relu"]["points"] < by_name["relu"]["out_of"] == ada["out_of"]
    wrong = by_name["relu"]["functions"][1]
    assert wrong["mistakes"] == ["This is dL/dx everywhere: no mask, or one of y >= 0, which is always true."]
    assert sum(step["points"] for step in wrong["steps"]) == wrong["points"]


def test_the_shapes_and_numbers_of_grades_are_hidden(a_class, command):
    seeds = {json.loads(command("--grade", a_class / "ada", "--json")[1])["seed"] for _ in range(2)}
    assert len(seeds) == 2 and 0 not in seeds


def test_an_answer_that_knows_the_shapes_of_the_exercise_gets_no_points_for_the_numbers(folder, command):
    """It returns what the reference gave for the shapes of seed 0, and zeros for all others."""
    from minidl.study.workbench.exercises import task

    known = {str(trial.arguments["y"].shape): trial.right[0].tolist() for trial in task("relu_backward").trials(0)}
    body = f"return np.array({known!r}.get(str(y.shape), 0 * y), dtype=grad.dtype)"
    written(folder, with_backward(body))
    assert command("relu")[0] == 0
    grades = json.loads(command("--grade", folder / "workbench", "--json", "--seed", "77")[1])
    assert grades["students"][0]["points"] < grades["students"][0]["out_of"]


def test_numbers_that_are_right_in_half_of_the_cases_have_half_of_their_points(folder, command):
    """All other steps have their point only if they are right in all cases."""
    written(folder, with_backward("return np.where(y > 0, grad, 0) if y.ndim == 2 else 2 * grad"))
    (student,) = json.loads(command("relu", "--grade", folder / "workbench", "--json", "--seed", "3")[1])["students"]
    points = {step["step"]: step["points"] for step in student["exercises"][0]["functions"][1]["steps"]}
    assert points.pop("the numbers agree with the plain loops in float64") == 2
    assert points.pop("float32 arguments give float32 results that agree") == 0
    assert set(points.values()) == {1}


def test_a_missing_file_has_no_points(a_class, command):
    grades = json.loads(command("relu", "linear", "--grade", a_class / "ada", "--json")[1])
    (ada,) = grades["students"]
    linear = next(one for one in ada["exercises"] if one["exercise"] == "linear")
    assert linear["points"] == 0 < linear["out_of"] and "There is no file" in linear["problem"]


def test_grades_for_people_are_a_table(a_class, command):
    code, text = command("--grade", a_class / "ada", "--seed", 1)
    assert code == 0
    assert text.splitlines() == [
        "ada: 22.0 of 22 points",
        "  relu                          22.0 of 22",
        "(--seed 1 repeats it)",
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return grad / undefined", "NameError in line 10, `return grad / undefined`: name 'undefined' is not defined"),
        ("return 2 * np.where(y > 0, grad, 0)", "This is dL/dx, but 2 times as large."),
    ],
)
def test_a_line_of_the_table_says_what_is_wrong(body, words, folder, command):
    written(folder, with_backward(body))
    assert command("--grade", folder / "workbench", "--seed", 1)[1].splitlines()[1].endswith(f" of 22   {words}")


def test_the_mistakes_are_listed(capsys):
    assert main(["mistakes", "relu_backward"]) == 0
    assert "dL/dx as dL/dy times y" in capsys.readouterr().out
    assert main(["mistakes", "nothing"]) == 2
