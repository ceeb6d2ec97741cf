"""All that a GPU can tell about minidl, by one command, and a report that can be sent.

    pip install -e ".[test,cuda13]"       # and, if they fit: ".[nvrtc]" for the model, PyTorch for CUDA to compare with
    python benchmarks/gpu_report.py --out gpu-report                    # about an hour; REPORT.md grows from the start
    python benchmarks/gpu_report.py --out gpu-report --data data        # trains on CIFAR-10 instead of shapes
    python benchmarks/gpu_report.py --out gpu-report --minutes 10       # a piece of it; the next call goes on
    python benchmarks/gpu_report.py --out gpu-report --only kernels --again

The parts (--list names them) run one after the other, each in processes of its own of at most eight minutes: what takes
longer saves its state, stops, and goes on in the next process. A part that fails does not stop the others. Ctrl-C keeps
what is there. What is done is not done again, unless --again is given.

DIR holds REPORT.md, parts/NAME.json (the result of each part), logs/NAME.log (all that it printed), gpu.json (the
measurements of gpu.py) and tests/NAME.jsonl (each test). Exit status: 0 if all is done and nothing failed, 1 if
something failed, 2 without a GPU, 3 if parts are left (run the same command again), 130 after Ctrl-C.

`--device fake` runs everything, with tiny sizes, on the fake GPU of tests/fake_gpu: a test of this script.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import positive_number  # noqa: E402
from gpu_report_page import epochs, read_json, write_page  # noqa: E402
from gpu_test_log import NEW_PROCESS, mark_interrupted, read_log  # noqa: E402

from minidl.system.files import write_whole  # noqa: E402

LIMIT, GRACE = 420, 60  # seconds of a process; and that it then has to save its state: eight minutes together
UNFINISHED, STOPPED, NOTHING_COLLECTED = 3, 128 + signal.SIGTERM, 5  # exit statuses of gpu.py, examples and pytest
KERNELS, OUR_SIDES = ("kernels", "convolution"), ("graph", "half", "tf32", "float32")
TORCH_SIDES = ("torch_float32", "torch_amp", "torch_graph", "torch_compile")
# The largest test error that passes: what two CPU cores reach (12.6 % in 10 epochs, 4 % in 4), and some more.
LARGEST_ERROR = {"cifar10": 0.145, "shapes": 0.07}


@dataclass
class Part:
    """A step of the report: commands, run one after the other. The last one may need several processes.

    `stop` is the signal that lets it save its state, for the next call; `at_limit` the one for a process that took
    longer than it may. `again` says by the exit status whether there is more to do in another process, of which there
    are at most `most`. `absent` returns why it cannot run here, or None; `judge` what is wrong with its results.
    """

    name: str
    title: str
    commands: list[list[str]]
    stop: int = signal.SIGTERM
    at_limit: int = signal.SIGTERM
    again: Callable[[int], bool] = lambda status: False
    most: int = 6
    environment: dict[str, str] = field(default_factory=dict)
    absent: Callable[[], str | None] = lambda: None
    judge: Callable[[str], list[str]] = lambda log: []
    measures: tuple[str, ...] = ()  # parts of the names of its measurements in gpu.json


# -- the parts ---------------------------------------------------------------------------------------------------------


class Plan:
    """All parts, for the options of the command."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out, self.fake = args, args.out, args.device == "fake"

    def python(self, *words) -> list[str]:
        """The command that runs a script, or `-m module`, on the device."""
        launcher = ["-m", "tests.fake_gpu"] if self.fake else []
        return [sys.executable, *launcher, *map(str, words)]

    def parts(self) -> list[Part]:
        """In order. What has to be compiled for a long time stands last."""
        *eager, compiled = TORCH_SIDES
        return [
            self.facts(),
            *self.tests(),
            self.sanitizer("memcheck", {"GPU_TEST_POOL": "none"}),
            self.sanitizer("racecheck", {}),
            self.benchmark("kernels", "Time of each kernel", KERNELS, "--what", *KERNELS),
            self.model(),
            self.benchmark("steps", "Training steps", OUR_SIDES, "--what", "steps"),
            *map(self.against, eager),
            self.training(),
            self.against(compiled),
        ]

    def facts(self) -> Part:
        script = ROOT / "benchmarks" / "gpu_facts.py"
        commands = [self.python("-m", "minidl"), self.python(script, self.out / "facts.json")]
        if not self.fake and shutil.which("nvidia-smi"):
            commands.insert(0, ["nvidia-smi"])
        return Part("facts", "Machine and versions", commands)

    def tests(self) -> list[Part]:
        """The suite in parts."""
        first, second = ["tests/kernels"], ["tests/ops", "tests/nn", "tests/optim"]
        rest = ["tests", *(f"--ignore={folder}" for folder in (*first, *second))]
        if self.fake:
            first, second = ["tests/kernels/test_activation.py"], ["tests/ops/test_pad.py"]
            rest = ["tests/examples/test_on_a_device.py"]
        return [
            self.test_part("tests-kernels", "Tests of the kernels", first),
            self.test_part("tests-ops", "Tests of operations, layers and optimisers", second),
            self.test_part("tests-rest", "All other tests", rest),
        ]

    def test_part(self, name: str, title: str, selection: list[str], before=(), environment=None, judge=None) -> Part:
        """A part of the suite. Each test's result goes to tests/NAME.jsonl."""
        options = ["-q", "--device", self.args.device, "-p", "benchmarks.gpu_test_log", "-p", "no:cacheprovider"]
        log = self.out / "tests" / f"{name}.jsonl"

        def failed_tests(text: str) -> list[str]:
            results, words = read_log(log), {"failed": "failed", "begun": "did not end"}
            failures = [(name, test["outcome"]) for name, test in results.items() if test["outcome"] in words]
            problems = [f"{name}: {words[outcome]}" for name, outcome in failures]
            return problems or ([] if results else ["no test has run"])

        return Part(
            name,
            title,
            [[*before, sys.executable, "-m", "pytest", *options, *selection]],
            stop=signal.SIGINT,  # as Ctrl-C: pytest then ends in order
            at_limit=signal.SIGINT,
            again=lambda status: status == NEW_PROCESS or crashed(status),
            environment={"GPU_TEST_LOG": str(log)} | (environment or {}),
            absent=needs_modules("pytest", "hypothesis"),
            judge=lambda text: failed_tests(text) + (judge(text) if judge else []),
        )

    def sanitizer(self, tool: str, environment: dict[str, str]) -> Part:
        """The tests of convolution under NVIDIA's compute-sanitizer."""
        program = find_sanitizer()
        selection = ["tests/kernels/cuda/test_conv.py"]
        selection += ["-k", "bfloat16_agrees"] if self.fake else []

        def errors(text: str) -> list[str]:
            lines = [line for line in text.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
            bad = [line.strip("= ") for line in lines if " 0 errors" not in line and " 0 hazards" not in line]
            return bad if lines else [f"{tool} printed no summary"]

        before = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "99"]
        title = f"compute-sanitizer {tool} on the tests of convolution"
        part = self.test_part(f"sanitizer-{tool}", title, selection, before, environment, errors)
        part.most = 3  # it makes everything ten to a hundred times slower
        tests_absent = part.absent
        part.absent = lambda: tests_absent() or (None if program else "compute-sanitizer is not installed")
        return part

    def benchmark(self, name: str, title: str, measures: tuple[str, ...], *options: str, absent=lambda: None) -> Part:
        """A part of gpu.py. It stops by itself a minute and a half before its time is over."""
        small = ["--models", "resnet20", "--batch", "1", "--rounds", "1", "--steps", "1", "--warmup", "1"]
        small += ["--convolution", "1", "4", "4", "8"]
        sizes = small if self.fake else []
        minutes = ["--minutes", str(max(self.args.limit / 60 - 1.5, 0))]
        script = ROOT / "benchmarks" / "gpu.py"
        command = self.python(script, "--json", self.out / "gpu.json", *minutes, *sizes, *options)
        return Part(
            name,
            title,
            [command],
            at_limit=signal.SIGKILL,  # so that its record says which measurement never ended
            again=lambda status: status == UNFINISHED or crashed(status),
            absent=absent,
            measures=measures,
        )

    def against(self, side: str) -> Part:
        """One of PyTorch's sides."""
        name, title = side.replace("_", "-"), f"Training steps, PyTorch: {side}"
        return self.benchmark(name, title, (side,), "--what", "steps", "--sides", side, absent=self.torch_absent)

    def torch_absent(self) -> str | None:
        """Why PyTorch cannot be compared with."""
        if importlib.util.find_spec("torch") is None:
            return "PyTorch is not installed"
        question = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
        asked = subprocess.run([sys.executable, "-c", question], capture_output=True, check=False)
        return "PyTorch finds no GPU" if asked.returncode else None

    def model(self) -> Part:
        """The modelled times beside the measured ones."""
        sizes = ["--models", "resnet20", "--batch", "1"] if self.fake else []
        options = [ROOT / "benchmarks" / "gpu_model.py", "--measured", self.out / "gpu.json", *sizes]
        command = [sys.executable, *map(str, options)]  # it uses no device
        absent = needs_modules("nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm", remedy='pip install ".[nvrtc]"')
        return Part("model", "The modelled time of each kernel", [command], absent=absent)

    def training(self) -> Part:
        """ResNet-20 to its accuracy; stopped in time, it saves a checkpoint and is continued."""
        folder = self.out / "resnet20"
        dataset = "cifar10" if self.args.data else "shapes"
        options = ["--dataset", dataset, "--device", "cuda", "--out", folder]
        options += ["--data-dir", self.args.data] if self.args.data else ["--epochs", "4"]
        options += ["--dtype", self.half()]
        if self.fake:
            options += ["--depth", "8", "--limit-train", "64", "--batch-size", "16", "--dtype", "float32"]
            options += ["--epochs", "1"]
        command = self.python(ROOT / "examples" / "train_cifar_resnet.py", *options)

        def too_inaccurate(text: str) -> list[str]:
            records = epochs(self.out)
            if not records:
                return ["no epoch has ended"]
            error, most = records[-1]["test_error"], 1 if self.fake else LARGEST_ERROR[dataset]
            return [] if error <= most else [f"test error {error:.1%}, expected at most {most:.1%}"]

        part = Part("training", f"ResNet-20 on {dataset}", [command], most=12, judge=too_inaccurate)
        part.again = lambda status: status == STOPPED
        return part

    def half(self) -> str:
        """The dtype of half precision on this GPU, once the facts are known."""
        return read_json(self.out / "facts.json").get("half", "float32")


def crashed(status: int) -> bool:
    """Whether a process was ended by a signal, by its exit status or the one that another program passes on."""
    return status < 0 or status > 128


def needs_modules(*names: str, remedy: str = 'pip install ".[test]"') -> Callable[[], str | None]:
    """A function that returns which of these distributions is not installed, or None."""

    def absent() -> str | None:
        for name in names:
            try:
                importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                return f"{name} is not installed: {remedy}"
        return None

    return absent


def find_sanitizer() -> str | None:
    """The path of compute-sanitizer, which CUDA's toolkit installs without putting it on PATH."""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


# -- running them ------------------------------------------------------------------------------------------------------


class Report:
    """The parts and their results, in a folder."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, args.out
        self.started = time.monotonic()
        for folder in ("parts", "logs", "tests"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)

    def parts(self) -> list[Part]:
        """Anew each time, since the facts, the first part, decide what some of the others do."""
        return Plan(self.args).parts()

    def result(self, part: Part) -> dict:
        """What is known of a part."""
        path = self.out / "parts" / f"{part.name}.json"
        return json.loads(path.read_text()) if path.exists() else {"status": "not run"}

    def put(self, part: Part, result: dict) -> None:
        """Write a part's result, and the page."""
        content = {"part": part.name, "title": part.title} | result
        write_whole(self.out / "parts" / f"{part.name}.json", (json.dumps(content, indent=1) + "\n").encode())
        results = [{"part": each.name, "title": each.title} | self.result(each) for each in self.parts()]
        write_page(self.out, results, self.args)

    def seconds_left(self) -> float:
        """Until --minutes are over."""
        return 60 * self.args.minutes - (time.monotonic() - self.started)

    def run(self) -> int:
        """Run what is to be run; the exit status."""
        names = [part.name for part in self.parts() if self.args.only is None or part.name in self.args.only]
        for name in names:
            part = next(part for part in self.parts() if part.name == name)
            before = self.result(part)
            if before["status"] in ("passed", "failed") and not self.args.again:
                continue
            if self.args.again:
                forget(part, self.out)
                before = {}
            if self.seconds_left() < min(60, self.args.limit):
                break
            print(f"{part.name}: {part.title}", flush=True)
            result = self.run_part(part, before)
            self.put(part, result)
            print(f"  {result['status']}", *result.get("problems", [])[:3], sep="\n  ", flush=True)
        statuses = [self.result(part)["status"] for part in self.parts() if part.name in names]
        return 3 if {"unfinished", "not run"} & set(statuses) else 1 if "failed" in statuses else 0

    def run_part(self, part: Part, before: dict) -> dict:
        """A part's result. `before` is what was known of it, if it was begun earlier."""
        if reason := part.absent():
            return {"status": "absent", "problems": [reason]}
        result = {"status": "unfinished", "seconds": before.get("seconds", 0)}
        self.put(part, result)
        for _ in range(part.most):
            if self.seconds_left() < min(60, self.args.limit):
                return result
            began = time.monotonic()
            try:
                status, in_time = self.run_commands(part)
            except KeyboardInterrupt:
                mark_interrupted(self.tests(part))
                raise
            result["seconds"] = round(result["seconds"] + time.monotonic() - began, 1)
            if in_time and not part.again(status):
                return result | self.judged(part, status)
            if not in_time:
                mark_interrupted(self.tests(part))
            self.put(part, result)
        if self.seconds_left() <= 0:
            return result
        problem = f"not finished after {part.most} processes of at most {self.args.limit:.0f} seconds"
        return result | {"status": "failed", "problems": [problem, *part.judge(self.text(part))]} | self.tail(part)

    def run_commands(self, part: Part) -> tuple[int, bool]:
        """The exit status of the last command, or of the first that fails; and whether they ended by themselves."""
        for command in part.commands:
            if part.name == "training" and (self.out / "resnet20" / "checkpoint.safetensors").exists():
                command = [*command, "--resume"]
            limit, left = self.args.limit, max(self.seconds_left(), 1)
            number = part.at_limit if limit < left else part.stop
            status, in_time = run_command(command, min(limit, left), number, part, self.log(part))
            if status or not in_time:
                break
        return status, in_time

    def judged(self, part: Part, status: int) -> dict:
        """Passed or failed, and why."""
        problems = part.judge(self.text(part))
        if status not in (0, NOTHING_COLLECTED) and (status != 1 or not problems):  # 1: something failed, said above
            problems.append(f"exit status {status}")
        if not problems:
            return {"status": "passed"}
        return {"status": "failed", "problems": problems[:50]} | self.tail(part)

    def log(self, part: Part) -> Path:
        """The file of what a part prints."""
        return self.out / "logs" / f"{part.name}.log"

    def tests(self, part: Part) -> Path:
        """The results of its tests, if it is a part with tests."""
        return self.out / "tests" / f"{part.name}.jsonl"

    def text(self, part: Part) -> str:
        """What a part has printed."""
        return self.log(part).read_text(errors="replace") if self.log(part).exists() else ""

    def tail(self, part: Part) -> dict:
        """The last lines of it."""
        return {"tail": self.text(part).splitlines()[-40:]}


def run_command(command: list[str], limit: float, number: int, part: Part, log: Path) -> tuple[int, bool]:
    """Run a command, its output appended to the log; (exit status, whether it ended before the limit).

    At the limit it gets the signal `number`. It has a process group of its own, so that all it has started is stopped
    with it.
    """
    environment = with_source() | {"PYTHONUNBUFFERED": "1"} | part.environment
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        how = {"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, **how, start_new_session=True)
        try:
            return process.wait(limit), True
        except subprocess.TimeoutExpired:
            return stop(process, number), False
        except KeyboardInterrupt:
            stop(process, part.stop)
            raise


def with_source() -> dict[str, str]:
    """The environment, in which `import minidl` finds this source, installed or not."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def stop(process: subprocess.Popen, number: int) -> int:
    """Ask a process to end; kill what is there of it, and of all that it has started, after GRACE seconds.

    Only the process itself is asked: a compiler that it has started would fail, and so would the test that needs it.
    """
    try:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:  # also after a second Ctrl-C
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def forget(part: Part, out: Path) -> None:
    """Remove the results of a part, so that it begins anew."""
    for path in (out / "parts" / f"{part.name}.json", out / "logs" / f"{part.name}.log"):
        path.unlink(missing_ok=True)
    (out / "tests" / f"{part.name}.jsonl").unlink(missing_ok=True)
    if part.name == "training":
        shutil.rmtree(out / "resnet20", ignore_errors=True)
    record = read_json(out / "gpu.json")
    if part.measures and record:
        measured = record["measurements"].items()
        kept = {name: found for name, found in measured if not set(re.split("[/ ]", name)) & set(part.measures)}
        content = json.dumps(record | {"measurements": kept}, indent=1) + "\n"
        write_whole(out / "gpu.json", content.encode())


# -- the command -------------------------------------------------------------------------------------------------------


def no_gpu(device: str) -> str | None:
    """Why there is nothing to report on, asked in a process of its own; None if there is a GPU."""
    if device == "fake":
        return None
    question = "from minidl.system.gpu import require_cupy; require_cupy()"
    command = [sys.executable, "-c", question]
    asked = subprocess.run(command, cwd=ROOT, env=with_source(), capture_output=True, text=True, check=False)
    lines = asked.stderr.strip().splitlines()
    return lines[-1].removeprefix("RuntimeError: ") if asked.returncode else None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where all results go")
    parser.add_argument("--data", type=Path, metavar="DIR", help="of CIFAR-10; downloaded if absent; default: shapes")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts; default: all")
    parser.add_argument("--again", action="store_true", help="also what is done already")
    parser.add_argument("--list", action="store_true", help="show the parts and what is known of them")
    parser.add_argument(
        "--minutes", type=positive_number, default=1e9, help="stop after so many; default: when all is done"
    )
    parser.add_argument("--device", choices=("cuda", "fake"), default="cuda")
    parser.add_argument(
        "--limit", type=positive_number, default=LIMIT, metavar="SECONDS", help="of a process; default: 420"
    )
    args = parser.parse_args(arguments)
    args.out = args.out.resolve()
    args.data = args.data.resolve() if args.data else None
    names = [part.name for part in Plan(args).parts()]
    if unknown := set(args.only or ()) - set(names):
        parser.error(f"--only: unknown part {', '.join(sorted(unknown))}; the parts are {', '.join(names)}")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; the exit status."""
    args = parse(arguments)
    if args.list:
        report = Report(args)
        for part in report.parts():
            print(f"{part.name:20} {report.result(part)['status']:12} {part.title}")
        return 0
    if problem := no_gpu(args.device):
        print(f"gpu_report.py: {problem}", file=sys.stderr)
        return 2
    try:
        status = Report(args).run()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    ends = {1: "something failed", 3: "parts are left: run the same command again", 130: "interrupted"}
    print(f"{args.out / 'REPORT.md'}: {ends.get(status, 'all parts are done')}")
    return status


if __name__ == "__main__":
    sys.exit(main())
