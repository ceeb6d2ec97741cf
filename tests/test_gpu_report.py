"""benchmarks/gpu_report.py: its parts are run, limited, continued and reported. (On the fake GPU: kernels/cuda.)"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gpu_report
import gpu_report_page
import gpu_test_log
import pytest
from gpu_report import Part

ROOT = Path(__file__).parents[1]


def python(code):
    return [[sys.executable, "-c", code]]


@pytest.fixture
def report(tmp_path, monkeypatch):
    """report(parts, options) runs these parts in place of the real ones; its exit status."""
    monkeypatch.setattr(gpu_report, "no_gpu", lambda device: None)

    def run(parts, *options):
        monkeypatch.setattr(gpu_report.Plan, "parts", lambda self: parts)
        return gpu_report.main(["--out", str(tmp_path), *map(str, options)])

    return run


@pytest.fixture
def limit_is_reached(monkeypatch):
    """limit_is_reached(when): the time of a process is over when `when()` is true, on a machine of any speed."""
    wait, now = subprocess.Popen.wait, [0.0]

    def is_reached(when):
        def wait_until(process, timeout=None):
            if timeout != gpu_report.LIMIT:
                return wait(process, timeout)
            while process.poll() is None:
                if when():
                    now[0] += timeout
                    raise subprocess.TimeoutExpired(process.args, timeout)
                time.sleep(0.01)
            return process.returncode

        monkeypatch.setattr(subprocess.Popen, "wait", wait_until)
        monkeypatch.setattr(gpu_report, "time", SimpleNamespace(monotonic=lambda: now[0]))

    return is_reached


def text_of(path):
    """The text of a file; none if there is no file yet."""
    return Path(path).read_text() if Path(path).exists() else ""


def result(folder, part):
    return json.loads((folder / "parts" / f"{part}.json").read_text())


# -- running parts -----------------------------------------------------------------------------------------------------


def test_a_part_that_fails_does_not_stop_the_others(report, tmp_path, capsys):
    parts = [
        Part("good", "A good part", python("print('fine')")),
        Part("bad", "A bad part", python("import sys; print('line 1'); sys.exit('this is why')")),
        Part("absent", "An absent part", python("1 / 0"), absent=lambda: "no such program"),
        Part("last", "The last part", python("print('also fine')")),
    ]
    assert report(parts) == 1
    assert [result(tmp_path, part.name)["status"] for part in parts] == ["passed", "failed", "absent", "passed"]
    page = (tmp_path / "REPORT.md").read_text()
    assert "| bad | A bad part | failed | 0.0 | exit status 1 |" in page
    assert "this is why" in page
    assert "no such program" in page
    assert "fine" in (tmp_path / "logs" / "good.log").read_text()
    assert "something failed" in capsys.readouterr().out


def test_the_page_is_there_before_the_first_part_ends(report, tmp_path):
    look = f"print(open({str(tmp_path / 'REPORT.md')!r}).read())"
    assert report([Part("first", "The first", python(look)), Part("second", "The second", python(""))]) == 0
    printed = (tmp_path / "logs" / "first.log").read_text()
    assert "| first | The first | unfinished |" in printed
    assert "| second | The second | not run |" in printed


def test_what_is_done_is_not_done_again_unless_asked(report, tmp_path):
    count = tmp_path / "count"
    parts = [Part("one", "One", python(f"open({str(count)!r}, 'a').write('x')"))]
    assert [report(parts), report(parts), report(parts, "--again")] == [0, 0, 0]
    assert count.read_text() == "xx"


def test_only_some_parts_run_if_asked(report, tmp_path, capsys):
    parts = [Part(name, name, python("")) for name in ("one", "two")]
    assert report(parts, "--only", "two") == 0
    assert not (tmp_path / "parts" / "one.json").exists()
    assert report(parts, "--list") == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["one", "not"],
        ["two", "passed"],
    ]
    with pytest.raises(SystemExit):
        report(parts, "--only", "three")
    assert "unknown part three; the parts are one, two" in capsys.readouterr().err


def test_a_part_goes_on_in_another_process(report, tmp_path):
    state = tmp_path / "state"
    code = f"""
import sys
with open({str(state)!r}, 'a+') as file:
    file.write('x'); file.seek(0)
    sys.exit(0 if len(file.read()) == 3 else 3)
"""
    assert report([Part("long", "Long", python(code), again=lambda status: status == 3)]) == 0
    assert state.read_text() == "xxx"
    assert report([Part("endless", "Endless", python("raise SystemExit(3)"), again=lambda status: status == 3)]) == 1
    assert result(tmp_path, "endless")["problems"] == ["not finished after 6 processes of at most 420 seconds"]


SAVES = """
import signal, sys, time
def save(number, frame):
    open({path!r}, 'a').write('saved ')
    sys.exit(128 + number)
signal.signal(signal.{signal}, save)
open({path!r}, 'a').write('began ')
time.sleep(60 if open({path!r}).read().count('began') == 1 else 0)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_process_that_takes_too_long_can_save_its_state(number, report, limit_is_reached, tmp_path):
    path = str(tmp_path / "state")
    sent = getattr(signal, number)
    part = Part("slow", "Slow", python(SAVES.format(path=path, signal=number)), stop=sent, at_limit=sent)
    limit_is_reached(lambda: text_of(path) == "began ")
    assert report([part]) == 0
    assert Path(path).read_text() == "began saved began "


def test_what_a_process_has_started_may_end_in_peace(report, limit_is_reached, tmp_path):
    """A compiler that Ctrl-C interrupts would be a failure of the test that needs it."""
    path = str(tmp_path / "state")
    child = f"import time; open({path!r}, 'w').write('began'); time.sleep(1); open({path!r}, 'w').write('compiled')"
    code = f"""
import signal, subprocess, sys
signal.signal(signal.SIGINT, lambda *_: None)
compiler = subprocess.Popen([sys.executable, '-c', {child!r}])
sys.exit(compiler.wait())
"""
    part = Part("compiles", "Compiles", python(code), at_limit=signal.SIGINT, most=1)
    limit_is_reached(lambda: text_of(path) == "began")
    assert report([part]) == 1
    assert Path(path).read_text() == "compiled"


def test_a_process_that_does_not_listen_is_killed_with_all_that_it_started(
    report, limit_is_reached, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_report, "GRACE", 0.2)
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    log = tmp_path / "logs" / "deaf.log"
    limit_is_reached(lambda: re.search(r"^\d+\n$", text_of(log), re.MULTILINE))
    assert report([Part("deaf", "Deaf", python(code), most=1)]) == 1
    assert result(tmp_path, "deaf")["problems"] == ["not finished after 1 processes of at most 420 seconds"]
    pid = int(log.read_text().splitlines()[-1])
    deadline = time.monotonic() + 300
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid):
    """Whether a process is there, and is no zombie that nobody has waited for."""
    path = Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_when_the_minutes_are_over_parts_are_left_for_the_next_call(report, limit_is_reached, tmp_path, capsys):
    path = str(tmp_path / "state")
    parts = [
        Part("slow", "Slow", python(SAVES.format(path=path, signal="SIGTERM"))),
        Part("next", "Next", python("")),
    ]
    limit_is_reached(lambda: text_of(path) == "began ")
    assert report(parts, "--minutes", 7.5) == 3
    assert result(tmp_path, "slow")["status"] == "unfinished"
    assert "run the same command again" in capsys.readouterr().out
    assert report(parts) == 0
    assert Path(path).read_text() == "began saved began "


def test_ctrl_c_keeps_what_is_there(report, tmp_path, monkeypatch):
    parts = [Part("done", "Done", python("")), Part("cut", "Cut", python("import time; time.sleep(60)"))]
    wait = subprocess.Popen.wait

    def interrupted(process, timeout=None):
        if timeout == gpu_report.LIMIT and (tmp_path / "parts" / "cut.json").exists():
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    assert report(parts) == 130
    assert [result(tmp_path, part.name)["status"] for part in parts] == ["passed", "unfinished"]
    assert "| cut | Cut | unfinished |" in (tmp_path / "REPORT.md").read_text()


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    """Whether CuPy is missing, or the GPU."""
    command = [sys.executable, "benchmarks/gpu_report.py", "--out", tmp_path / "report"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu_report.py: device 'cuda'")
    assert not (tmp_path / "report").exists()


def test_a_test_that_takes_too_long_is_named(report, limit_is_reached, tmp_path, monkeypatch):
    """It ignores Ctrl-C, as a test that tests Ctrl-C may; the tests after it run all the same."""
    monkeypatch.setattr(gpu_report, "GRACE", 0.5)
    code = f"""
import pathlib, signal, time

def test_slow():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pathlib.Path({str(tmp_path / "slow")!r}).touch()
    time.sleep(3600)

def test_next():
    pass
"""
    (tmp_path / "test_it.py").write_text(code)

    def is_slow():
        begun = (tmp_path / "slow").exists()
        (tmp_path / "slow").unlink(missing_ok=True)  # the next process runs it again
        return begun

    limit_is_reached(is_slow)
    args = gpu_report.parse(["--out", str(tmp_path), "--device", "fake"])
    options = ["--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path / "test_it.py")]
    part = gpu_report.Plan(args).test_part("tests-x", "Tests", options)
    part.commands[0] = [word for word in part.commands[0] if word not in ("--device", "fake")]
    assert report([part]) == 1
    assert len(result(tmp_path, "tests-x")["problems"]) == 1
    page = (tmp_path / "REPORT.md").read_text()
    assert "| tests-x | 1 | 1 | 0 | 0 |" in page
    assert "too slow, or it hangs" in page


# -- the real parts ----------------------------------------------------------------------------------------------------


def plan(tmp_path, *options):
    return gpu_report.Plan(gpu_report.parse(["--out", str(tmp_path), *options]))


def test_the_parts_name_scripts_and_tests_that_exist(tmp_path):
    parts = plan(tmp_path).parts()
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert names[0] == "facts"
    assert names[-1] == "torch-compile"
    for part in parts:
        for command in part.commands:
            for word in command[1:]:
                path = ROOT / word.removeprefix("--ignore=")
                if word.endswith(".py") or word.removeprefix("--ignore=").startswith("tests"):
                    assert path.exists(), word


@pytest.mark.parametrize("options", [[], ["--data", "data"]])
def test_the_scripts_know_the_options_that_they_are_given(options, tmp_path, monkeypatch):
    """Each parser takes the command of its part; nothing is run after that."""
    import gpu
    import gpu_model
    import train_cifar_resnet

    scripts = {"gpu.py": gpu, "gpu_model.py": gpu_model, "train_cifar_resnet.py": train_cifar_resnet}
    commands = {part.name: part.commands[-1] for part in plan(tmp_path, *options).parts()}
    parse_args, parsed = argparse.ArgumentParser.parse_args, []

    def parse_and_stop(parser, arguments=None, namespace=None):
        parse_args(parser, arguments, namespace)
        raise SystemExit("parsed")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    for name, command in commands.items():
        for place, word in enumerate(command):
            if Path(word).name in scripts:
                monkeypatch.setattr(sys, "argv", command[place:])
                with pytest.raises(SystemExit) as end:
                    scripts[Path(word).name].main()
                assert end.value.code == "parsed", name
                parsed.append(name)
    assert {"kernels", "steps", "torch-amp", "model", "training"} <= set(parsed)


def test_the_training_must_reach_its_accuracy(tmp_path):
    (part,) = (part for part in plan(tmp_path).parts() if part.name == "training")
    assert part.judge("") == ["no epoch has ended"]
    (tmp_path / "resnet20").mkdir()
    for error, problems in ((0.04, []), (0.5, ["test error 50.0%, expected at most 7.0%"])):
        (tmp_path / "resnet20" / "metrics.jsonl").write_text(json.dumps({"test_error": error}) + "\n")
        assert part.judge("") == problems


@pytest.mark.parametrize(
    ("log", "problems"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", []),
        ("========= ERROR SUMMARY: 3 errors\n", ["ERROR SUMMARY: 3 errors"]),
        ("=== RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", []),
        ("=== RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", ["RACECHECK SUMMARY: 1 hazard"]),
        ("", ["memcheck printed no summary"]),
    ],
)
def test_what_the_sanitizer_finds_is_a_failure(log, problems, tmp_path):
    (part,) = (part for part in plan(tmp_path).parts() if part.name == "sanitizer-memcheck")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "sanitizer-memcheck.jsonl").write_text('{"id": "a", "outcome": "passed"}\n')
    found = part.judge(log)
    assert len(found) == len(problems)
    assert all(text.startswith(start) for text, start in zip(found, problems, strict=True))


def test_the_sanitizer_is_found_on_the_path(tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (part,) = (part for part in plan(tmp_path).parts() if part.name == "sanitizer-racecheck")
    assert part.commands[-1][:3] == [str(program), "--tool", "racecheck"]
    assert part.absent() is None
    monkeypatch.setattr(gpu_report, "find_sanitizer", lambda: None)
    (part,) = (part for part in plan(tmp_path).parts() if part.name == "sanitizer-racecheck")
    assert part.absent() == "compute-sanitizer is not installed"


# -- the log of the tests ----------------------------------------------------------------------------------------------


@pytest.fixture
def run_tests(tmp_path):
    """Runs pytest with the plugin on a file of tests; its exit status and the log."""
    log = tmp_path / "tests.jsonl"

    def run(code, *options):
        (tmp_path / "test_it.py").write_text(code)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_test_log", "-p", "no:cacheprovider"]
        environment = os.environ | {"GPU_TEST_LOG": str(log), "PYTHONPATH": str(ROOT)}
        words = [*command, "--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path / "test_it.py"), *options]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        return done.returncode, gpu_test_log.read_log(log)

    return run


def outcomes(log):
    return {name.rpartition("::")[2]: test["outcome"] for name, test in log.items()}


def test_each_result_is_written_and_no_test_runs_twice(run_tests):
    code = "import pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2, 'why'\n"
    code += "@pytest.mark.skip\ndef test_skipped(): pass\n"
    code += (
        "@pytest.fixture\ndef broken():\n    yield\n    raise ValueError('afterwards')\ndef test_end(broken): pass\n"
    )
    status, log = run_tests(code)
    assert status == 1
    expected = {"test_good": "passed", "test_bad": "failed", "test_skipped": "skipped", "test_end": "failed"}
    assert outcomes(log) == expected
    messages = [test.get("message", "") for test in log.values()]
    assert "why" in messages[1]
    assert "afterwards" in messages[3]
    status, log = run_tests(code.replace("1 == 2", "1 == 1"))
    assert status == gpu_report.NOTHING_COLLECTED
    assert outcomes(log) == expected


def test_a_test_that_ends_the_process_is_known_and_the_others_run_next_time(run_tests):
    code = "import os\ndef test_one(): pass\ndef test_crash(): os.abort()\ndef test_two(): pass\n"
    status, log = run_tests(code)
    assert gpu_report.crashed(status)
    assert outcomes(log) == {"test_one": "passed", "test_crash": "begun"}
    status, log = run_tests(code)
    assert (status, outcomes(log)["test_two"]) == (0, "passed")


def test_an_interrupted_test_runs_again_but_not_for_ever(run_tests):
    code = "def test_one(): pass\ndef test_slow(): raise KeyboardInterrupt\ndef test_two(): pass\n"
    assert outcomes(run_tests(code)[1]) == {"test_one": "passed"}
    assert outcomes(run_tests(code)[1]) == {"test_one": "passed", "test_slow": "failed"}
    status, log = run_tests(code)
    assert (status, outcomes(log)["test_two"]) == (0, "passed")
    assert "interrupted twice" in next(test["message"] for name, test in log.items() if name.endswith("slow"))


def test_a_test_whose_process_was_stopped_runs_again(tmp_path):
    log = tmp_path / "log"
    gpu_test_log.mark_interrupted(log)
    assert not log.exists()
    ended = (
        '{"id": "crash", "outcome": "begun"}\n{"id": "one", "outcome": "begun"}\n{"id": "one", "outcome": "passed"}\n'
    )
    log.write_text(ended)
    gpu_test_log.mark_interrupted(log)
    assert log.read_text() == ended
    log.write_text(ended + '{"id": "two", "outcome": "begun"}\n')
    gpu_test_log.mark_interrupted(log)
    assert {name: test["outcome"] for name, test in gpu_test_log.read_log(log).items()} == {
        "crash": "begun",
        "one": "passed",
    }


def test_a_gpu_that_is_unusable_asks_for_a_new_process(run_tests):
    code = """
import sys, types
def test_breaks():
    def synchronize(): raise RuntimeError('an illegal memory access was encountered')
    runtime = types.SimpleNamespace(deviceSynchronize=synchronize)
    sys.modules['cupy'] = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    assert False
def test_next(): pass
"""
    status, log = run_tests(code)
    assert status == gpu_test_log.NEW_PROCESS
    assert outcomes(log) == {"test_breaks": "failed"}
    assert outcomes(run_tests(code)[1]) == {"test_breaks": "failed", "test_next": "passed"}


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_measured(tmp_path):
    facts = {"gpu": "NVIDIA H200", "capability": 90}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    sides = {
        "resnet20 b128/graph": {"ms": 2.0, "peak_mb": 900.4, "dtype": "bfloat16", "failures": []},
        "resnet20 b128/half": {"ms": 8.0, "relative": 4.0, "peak_mb": 900, "dtype": "bfloat16"},
        "resnet20 b128/torch_amp": {"ms": 6.1, "relative": 3.0, "peak_mb": 800, "failures": ["losses | differ"]},
        "resnet20 b128/torch_graph": {"failures": ["OutOfMemoryError: 1\nmore"]},
        "resnet20 b128/kernels": {
            "lines": [
                {"kernel": "add", "launches": 9, "ms": 0.1, "gb_per_s": 3012.3, "tflop_per_s": 0.0},
                {"kernel": "cupy's own", "launches": None, "ms": 0.1, "gb_per_s": None, "tflop_per_s": None},
            ],
            "sum_ms": 1.9,
            "graph_ms": 2.0,
        },
        "convolution 32x56x56x256": {"lines": [{"way": "bfloat16", "forward": 186.4}]},
    }
    (tmp_path / "gpu.json").write_text(json.dumps({"measurements": sides}))
    results = [{"part": "steps", "title": "Steps", "status": "failed", "seconds": 90, "problems": ["exit status 1"]}]
    gpu_report_page.write_page(tmp_path, results, gpu_report.parse(["--out", str(tmp_path)]))
    page = (tmp_path / "REPORT.md").read_text()
    assert page.startswith("# minidl on NVIDIA H200\n")
    assert "fake" not in page
    assert "| graph | bfloat16 | 2 | 64000 | 900 | 3 | 0 |" in page  # three times as fast as torch_amp
    assert "| half | bfloat16 | 8 | 16000 | 900 | 0.75 | 0 |" in page
    assert "- torch_graph: OutOfMemoryError: 1\n" in page
    assert "| add | 9 | 0.1 | 3012 | 0 |" in page
    assert "| bfloat16 | 186 |  |  |" in page
    assert "| steps | Steps | failed | 1.5 | exit status 1 |" in page


def test_a_damaged_file_costs_one_section_only(tmp_path):
    (tmp_path / "gpu.json").write_text('{"measurements": {"resnet20 b128/kernels": {"lines": [{}]}}}')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "x.jsonl").write_text('{"id": "a", "outcome": "passed"}\n{"id": "b", "outc')
    results = [{"part": "x", "title": "X", "status": "passed", "seconds": 1}]
    gpu_report_page.write_page(tmp_path, results, gpu_report.parse(["--out", str(tmp_path)]))
    page = (tmp_path / "REPORT.md").read_text()
    assert "The section 'kernels' could not be written: KeyError" in page
    assert "| x | 1 | 0 | 0 | 0 |" in page


def test_measuring_again_forgets_what_was_measured(tmp_path):
    names = ["a b1/graph", "a b1/kernels", "a b1/torch_amp", "a b1/float32", "convolution 1x4x4x8"]
    (tmp_path / "gpu.json").write_text(json.dumps({"device": {}, "measurements": {name: {} for name in names}}))
    parts = {part.name: part for part in plan(tmp_path).parts()}
    left = []
    for name in ("kernels", "torch-amp", "torch-float32", "steps"):
        gpu_report.forget(parts[name], tmp_path)
        left.append(list(gpu_report_page.measurements(tmp_path)))
    assert left == [[names[0], *names[2:4]], [names[0], names[3]], [names[0], names[3]], []]
