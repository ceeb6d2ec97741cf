"""What two ranks gain: images per second, waiting, and bytes, on the CPU; and the model of scaling_model.py beside it.

    python benchmarks/scaling.py --out benchmarks/results/scaling         # ten minutes, on an otherwise idle machine
    python benchmarks/scaling.py --out /tmp/scaling --quick               # one small network, half a minute
    python benchmarks/scaling.py --out benchmarks/results/scaling --show  # tables and plot of what was measured

Four sides, each with processes of its own, make training steps turn by turn, A B C D A B C D ...; a fifth ran before:

  1 rank, 1 thread     a plain step of `batch` images
  1 rank, 2 threads    a plain step of 2 `batch` images: what the same two cores do without ranks
  2 ranks              `batch` images each, one thread each, with `AveragedGradients`
  2 alone              the same two processes at the same time, without exchange: as if that took no time
  2 ranks by TCP       as 2 ranks, but through the loopback interface, which counts bytes; its time is not reported

Waiting is from the end of backward to the end of the last all-reduce. A part of it is for the other rank, which still
computes: from the end of this rank's backward to the end of the other's. Both are means over ranks and steps, as parts
of the step.

Bytes are of a rank and step. "Handed over" is what a rank passes to Allreduce. "Sent" is what the loopback interface
counts, divided by the ranks, headers of TCP/IP included. MPICH's usual way, shared memory, cannot be counted. "Least"
is 2 (n-1)/n times the bytes of the parameters (Patarasu and Yuan 2009).

The model is given the times of "2 alone" and those of single all-reduces, and predicts the step of "2 ranks".

`scaling.json` has all that was measured. The tables are written between the markers of README.md beside it, and those
of the model into docs/scale.md too. A measurement made while other programs ran is not written there.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from command_line import positive, run_main
from scaling_model import (
    CLUSTERS,
    GPUS,
    RESULTS,
    Profile,
    Step,
    alone,
    bucket_table,
    efficiency_table,
    gpu_profile,
    interpolate,
    predict,
    simulate,
)
from step_worker import MODELS
from train_step import NOT_PASSED_ON, machine

HERE = Path(__file__).resolve().parent
POINTS = [("resnet20", 128), ("resnet50", 8), ("resnet20", 16), ("resnet18", 2)]  # network, images of each rank
QUICK = [("resnet20", 4)]
SIZES = [2**power for power in range(10, 25, 2)]  # bytes of the all-reduces that are timed by themselves
LONGEST_START = 120  # seconds until all processes of a side have connected
LONGEST_END = 30  # seconds until they have ended
BUSY = 0.2  # cores that other programs keep busy, from which on a measurement is marked
BY_TCP = {"UCX_TLS": "tcp,self", "MPIR_CVAR_NOLOCAL": "1"}


# -- processes ---------------------------------------------------------------------------------------------------------


class Side:
    """Processes that make steps together. `turns` has the steps of each turn, a list for each process."""

    def __init__(self, name: str, options: list, ranks: int = 1, mpi: bool = False, environment: dict | None = None):
        self.name, self.turns, self._streams = name, [], []
        self._folder = tempfile.TemporaryDirectory()
        path = str(Path(self._folder.name) / "socket")
        threads = options[2]
        kept = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        kept |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MINIDL_NUM_THREADS")} | (environment or {})
        command = [sys.executable, HERE / "scaling_rank.py", path, *options]
        if mpi:
            command = [mpiexec(), "-n", ranks, *command]
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            command = list(map(str, command))
            # In sessions of their own, as those of mpiexec: Linux shares the CPU among sessions.
            self._processes = [
                subprocess.Popen(command, env=kept, start_new_session=True) for _ in range(1 if mpi else ranks)
            ]
            self._streams = self._connect(server, ranks)

    def _connect(self, server: socket.socket, ranks: int) -> list:
        connected = []
        for number in range(ranks):
            stream = self._accept(server).makefile("rw")
            hello = json.loads(stream.readline())
            self.parameter_bytes = hello["parameters"]
            connected.append((hello["rank"], number, stream))
        return [stream for _, _, stream in sorted(connected, key=lambda each: each[:2])]

    def _accept(self, server: socket.socket) -> socket.socket:
        """The next process that connects, while all of them run."""
        server.settimeout(0.2)
        deadline = time.monotonic() + LONGEST_START
        while time.monotonic() < deadline and all(process.poll() is None for process in self._processes):
            with contextlib.suppress(TimeoutError):
                return server.accept()[0]
        self.close()
        raise SystemExit(f"error: the side '{self.name}' did not start; its message stands above")

    def ask(self, request: dict) -> list[dict]:
        """The answer of each process."""
        for stream in self._streams:
            print(json.dumps(request), file=stream, flush=True)
        answers = [stream.readline() for stream in self._streams]
        if not all(answers):
            raise SystemExit(f"error: the side '{self.name}' failed; its message stands above")
        return [json.loads(answer) for answer in answers]

    def run(self, steps: int) -> list[list[dict]]:
        """Make steps; those of each process."""
        return [answer["steps"] for answer in self.ask({"steps": steps})]

    def take_turn(self, steps: int) -> None:
        """Make some steps, and keep their times."""
        self.turns.append(self.run(steps))

    def close(self) -> None:
        """End the processes."""
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        for process in self._processes:
            try:
                process.wait(LONGEST_END if self._streams else 0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()


def mpiexec() -> str:
    """The mpiexec beside this Python, or on the path."""
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise SystemExit('error: mpiexec is needed: pip install ".[mpi]"')
    return found


@contextlib.contextmanager
def started(sides: list) -> Iterator[list[Side]]:
    """The sides of these arguments, which end with the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Side(*arguments))) for arguments in sides]


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(model: str, batch: int, rounds: int, steps: int, environments: list[dict]) -> dict:
    """The record of a network with `batch` images on each rank."""
    sent, handed, least = measure_bytes(model, batch)
    averaged = [model, batch, 1, "--averaged"]
    wanted = [
        ("1 rank, 1 thread", [model, batch, 1]),
        ("1 rank, 2 threads", [model, 2 * batch, 2]),
        ("2 ranks", averaged, 2, True),
        ("2 alone", averaged, 2),
        *((words_of(environment), averaged, 2, True, environment) for environment in environments),
    ]
    with started(wanted) as sides:
        for side in sides:
            side.run(3)
        for _ in range(rounds):
            for side in sides:
                side.take_turn(steps)
        (answer, _) = sides[2].ask({"all_reduce": SIZES})
        images = batch, 2 * batch, *[2 * batch] * (len(sides) - 2)
        record = {"model": model, "batch": batch, "rounds": rounds, "steps": steps}
        record |= {"sent_bytes": sent, "handed_bytes": handed, "least_bytes": least}
        record["sides"] = {side.name: summary(side, count) for side, count in zip(sides, images, strict=True)}
        record |= {"all_reduce": answer["all_reduce"], "profile": profile(sides[3])}
    return record | {"model_ms": round(1000 * predicted(record).seconds, 3)}


def words_of(environment: dict) -> str:
    """The name of the side with these settings."""
    return "2 ranks, " + " ".join(f"{name}={value}" for name, value in environment.items())


def measure_bytes(model: str, batch: int, steps: int = 3) -> tuple[int, int, int]:
    """Bytes of a rank and step: sent by TCP, handed to Allreduce, and the least possible."""
    with started([("2 ranks by TCP", [model, batch, 1, "--averaged"], 2, True, BY_TCP)]) as (side,):
        side.run(1)  # connects
        before = sent_bytes()
        ranks = side.run(steps)
        sent = (sent_bytes() - before) / steps / len(ranks)
        handed = sum(size for _, _, size in ranks[0][0]["exchanges"])
        return round(sent), handed, round(2 * (len(ranks) - 1) / len(ranks) * side.parameter_bytes)


def busy_cores(seconds: float = 2.0) -> float:
    """How many cores are busy just now, while none of our processes runs: with other programs."""

    def ticks() -> tuple[int, int]:
        numbers = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))  # of all cores together
        return sum(numbers), sum(numbers[3:5])  # of these idle, and idle with a disk at work

    before = ticks()
    time.sleep(seconds)
    total, idle = (now - then for now, then in zip(ticks(), before, strict=True))
    return (1 - idle / total) * (os.cpu_count() or 1)


def sent_bytes() -> int:
    """What the loopback interface has sent since the machine started."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (fields,) = (line.split() for line in lines if line.strip().startswith("lo:"))
    return int(fields[9])


def summary(side: Side, images: int) -> dict:
    """Medians over the turns: milliseconds of a step, images per second, CPU seconds, and parts of waiting."""
    seconds = [statistics.median(map(length, steps_of(turn))) for turn in side.turns]
    median = statistics.median(seconds)
    cpu = statistics.median(sum(step["cpu"] for step in steps) for turn in side.turns for steps in steps_of(turn))
    result = {"ms": round(1000 * median, 3), "ms_spread": [round(1000 * f(seconds), 3) for f in (min, max)]}
    result |= {"images_per_second": round(images / median, 2), "cpu_ms": round(1000 * cpu, 3)}
    if side.name.startswith("2 ranks"):
        for name, part in (("waiting", waiting), ("for_the_other", for_the_other)):
            result[name] = round(statistics.median(statistics.mean(parts(turn, part)) for turn in side.turns), 5)
    return result


def steps_of(turn: list[list[dict]]) -> list[tuple[dict, ...]]:
    """The steps of a turn, each with the times of all its processes."""
    return list(zip(*turn, strict=True))


def length(step: tuple[dict, ...]) -> float:
    """Seconds of a step: those of the slowest process."""
    return max(times["end"] - times["begin"] for times in step)


def waiting(times: dict, step: tuple[dict, ...]) -> float:
    """From the end of backward to that of the last all-reduce."""
    return max(times["exchanges"][-1][1] - times["backward"], 0)


def for_the_other(times: dict, step: tuple[dict, ...]) -> float:
    """From the end of backward here to its end on the slowest rank."""
    return max(other["backward"] for other in step) - times["backward"]


def parts(turn: list[list[dict]], part) -> list[float]:
    """The part of each step of each rank."""
    return [part(times, step) / (times["end"] - times["begin"]) for step in steps_of(turn) for times in step]


def profile(side: Side) -> dict:
    """The median step of processes that exchange nothing, and by how much the slower of two exceeds their mean."""
    steps = [step for turn in side.turns for step in steps_of(turn)]
    each = [times for step in steps for times in step]

    def median(function) -> float:
        return round(statistics.median(function(times) for times in each), 7)

    count = len(each[0]["exchanges"])
    ready = [median(lambda times, i=i: times["exchanges"][i][0] - times["forward"]) for i in range(count)]
    return {
        "forward": median(lambda times: times["forward"] - times["begin"]),
        "backward": median(lambda times: times["backward"] - times["forward"]),
        "after": median(lambda times: times["end"] - times["backward"]),
        "ready": ready,
        "sizes": [size for _, _, size in each[0]["exchanges"]],
        "slower": round(statistics.median(length(step) - mean_length(step) for step in steps), 7),
    }


def mean_length(step: tuple[dict, ...]) -> float:
    """Seconds of a step, the mean of its processes."""
    return statistics.mean(times["end"] - times["begin"] for times in step)


# -- the model ---------------------------------------------------------------------------------------------------------


def predicted(record: dict, cores: int | None = None) -> Step:
    """The step of 2 ranks by the model, `slower` included: each step is as long as that of the slower rank."""
    times = dict(record["profile"])
    slower = times.pop("slower")
    ready = [min(time, times["backward"]) for time in times.pop("ready")]
    step_profile = Profile(**times, ready=tuple(sorted(ready)))
    # With a core for each rank, the thread that adds takes it from backward.
    lost = 1.0 if (cores or os.cpu_count() or 2) <= 2 else 0.0
    step = simulate(step_profile, interpolate(record["all_reduce"]), lost)
    return replace(step, seconds=step.seconds + slower, waiting=step.waiting + slower)


# -- what came out -----------------------------------------------------------------------------------------------------


def speed_table(records: list[dict]) -> str:
    """Images per second of each side, as Markdown."""
    names = list(dict.fromkeys(name for record in records for name in record["sides"]))
    rows = ["| images/s | " + " | ".join(names) + " | 2 ranks / 2 threads |", "|---|" + "---:|" * (len(names) + 1)]
    for record in records:
        sides = record["sides"]
        cells = [f"{sides[name]['images_per_second']:,.1f}" if name in sides else "" for name in names]
        ratio = sides["2 ranks"]["images_per_second"] / sides["1 rank, 2 threads"]["images_per_second"]
        rows.append(f"| {title(record)} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(rows)


def waiting_table(records: list[dict]) -> str:
    """Waiting and the model's prediction, as Markdown."""
    rows = [
        "| 2 ranks | step | waiting | of it for the other rank | CPU time more than alone | model | model / measured |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        ranks, lonely = record["sides"]["2 ranks"], record["sides"]["2 alone"]
        more = ranks["cpu_ms"] / lonely["cpu_ms"] - 1
        model = record["model_ms"]
        rows.append(
            f"| {title(record)} | {ranks['ms']:.1f} ms | {ranks['waiting']:.1%} | {ranks['for_the_other']:.1%} "
            f"| {more:+.1%} | {model:.1f} ms | {model / ranks['ms']:.2f} |"
        )
    return "\n".join(rows)


def bytes_table(records: list[dict]) -> str:
    """Bytes of a rank and step, as Markdown."""
    rows = ["| bytes of a rank and step | handed over | sent | least | sent / least |", "|---|---:|---:|---:|---:|"]
    for record in records:
        sent, handed, least = (record[f"{name}_bytes"] for name in ("sent", "handed", "least"))
        rows.append(f"| {title(record)} | {handed:,} | {sent:,} | {least:,} | {sent / least:.3f} |")
    return "\n".join(rows)


def title(record: dict) -> str:
    """The network and the batch."""
    return f"{record['model']}, {record['batch']} images a rank"


def marks(records: list[dict]) -> str:
    """Whether the marks are met: waiting of the two large steps, and the model's error."""
    large = [record for record in records if (record["model"], record["batch"]) in POINTS[:2]]
    waits = ", ".join(f"{title(record)} {record['sides']['2 ranks']['waiting']:.1%}" for record in large)
    errors = [abs(record["model_ms"] / record["sides"]["2 ranks"]["ms"] - 1) for record in records]
    return (
        f"- Waiting, which shall be at most 5 % of a large step: {waits or 'not measured'}.\n"
        f"- Largest error of the model, which shall be at most 10 %: {max(errors):.1%}."
    )


def describe(result: dict) -> str:
    """Where and when, in a line."""
    versions = (f"{name} {version}" for name, version in result["versions"].items())
    return ", ".join([result["machine"], *versions, result["date"]])


NOT_QUIET = "Not measured on a quiet machine yet."


def write_tables(result: dict | None, path: Path) -> None:
    """Put the tables between the markers of a page that has them."""
    records = result["records"] if result else []
    quiet = result is not None and result["busy"] <= BUSY
    measured = [describe(result), *(table(records) for table in TABLES), marks(records)] if quiet else [NOT_QUIET]
    text = path.read_text(encoding="utf-8")
    for name, content in (
        ("measured", "\n\n".join(measured)),
        ("model", efficiency_table()),
        ("buckets", bucket_table()),
    ):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if begin in text:
            before, rest = text.split(begin)
            text = f"{before}{begin}\n{content}\n\n{end}{rest.split(end)[1]}"
    path.write_text(text, encoding="utf-8")


TABLES = speed_table, waiting_table, bytes_table


def draw(result: dict | None, path: Path) -> None:
    """The measured speeds with the model's, the efficiency on many GPUs, and where the buckets of a step are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3 if result else 2, figsize=(15 if result else 10.5, 4.4), dpi=100)
    if result:
        draw_measured(panels[0], result)
    draw_efficiency(panels[-2])
    draw_buckets(panels[-1])
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def draw_measured(axes, result: dict) -> None:
    """Images per second of each point, relative to one rank of two threads."""
    records = result["records"]
    names = "1 rank, 1 thread", "2 ranks", "2 alone"
    for number, name in enumerate(names):
        heights = [
            record["sides"][name]["images_per_second"] / record["sides"]["1 rank, 2 threads"]["images_per_second"]
            for record in records
        ]
        axes.bar([place + 0.27 * number for place in range(len(records))], heights, 0.25, label=name)
    model = [2000 * r["batch"] / r["model_ms"] / r["sides"]["1 rank, 2 threads"]["images_per_second"] for r in records]
    axes.plot([place + 0.27 for place in range(len(records))], model, "k_", ms=14, mew=2, label="2 ranks, model")
    axes.axhline(1, color="grey", lw=0.8)
    labels = [f"{record['model']}\n{record['batch']} a rank" for record in records]
    axes.set_xticks([place + 0.27 for place in range(len(records))], labels, fontsize=8)
    quiet = "" if result["busy"] <= BUSY else " (PROVISIONAL: other programs ran)"
    axes.set_title(f"images/s, 1 rank of 2 threads = 1{quiet}", fontsize=9)
    axes.set_ylim(0, 1.8)  # room for the legend
    axes.legend(fontsize=7, loc="upper left", ncols=2)


def draw_efficiency(axes) -> None:
    """Of n GPUs' images per second, the part that is reached."""
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    for cluster, color in zip(CLUSTERS, ("tab:blue", "tab:red"), strict=True):
        for batch, style in ((256, "-"), (32, "--")):
            one = gpu_profile(batch)
            parts = [alone(one) / predict(cluster, count, one).seconds for count in counts]
            axes.plot(counts, parts, style, color=color, label=f"{cluster.name}, {batch} images a GPU")
        ring = [alone(gpu_profile(256)) / predict(cluster, count, gpu_profile(256), True).seconds for count in counts]
        axes.plot(counts, ring, ":", color=color, label=f"{cluster.name}, 256, ring alone")
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, *GPUS], ["1", *(f"{count:,}" for count in GPUS)])
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("GPUs")
    axes.set_title("ResNet-50 on H200s, modelled: efficiency", fontsize=9)
    axes.legend(fontsize=7, loc="lower left")


def draw_buckets(axes) -> None:
    """When backward completes each bucket, and when it travels, on 1,024 GPUs."""
    row, labels = 0, []
    for cluster in CLUSTERS:
        for batch in (256, 32):
            step = predict(cluster, 1024, gpu_profile(batch))
            axes.barh(row, 1000 * step.backward_end, 0.3, color="lightgrey")
            for number, (begin, end) in enumerate(step.exchanges):
                color = ("tab:blue", "tab:cyan")[number % 2]
                axes.barh(row + 0.32, 1000 * (end - begin), 0.3, left=1000 * begin, color=color)
            labels.append(f"{cluster.name}\n{batch} images")
            row += 1
    axes.set_yticks([number + 0.16 for number in range(row)], labels, fontsize=8)
    axes.set_xlabel("ms since backward began")
    axes.set_title("1,024 GPUs: backward (grey), all-reduces (blue)", fontsize=9)


def show(result: dict | None, out: Path) -> None:
    """Print the tables, draw the plot, and fill the tables of README.md if there is one."""
    if result:
        if result["busy"] > BUSY:
            print(f"PROVISIONAL: other programs kept {result['busy']:.1f} cores busy\n")
        print(describe(result), *(table(result["records"]) for table in TABLES), marks(result["records"]), sep="\n\n")
    print("", efficiency_table(), bucket_table(), sep="\n\n")
    for page in pages(out):
        write_tables(result, page)
    try:
        draw(result, out / "scaling.png")
        print(out / "scaling.png")
    except ModuleNotFoundError:
        print("no plot: pip install matplotlib, and --show")


def pages(out: Path) -> list[Path]:
    """The pages with tables: README.md of the folder, if there is one, and docs/scale.md for the repository's own."""
    page = out / "README.md"
    if out.resolve() == RESULTS:
        return [page, HERE.parent / "docs" / "scale.md"]
    return [page] if page.exists() else []


def read(path: Path) -> dict | None:
    """What was measured before."""
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        [result[name] for name in ("records", "busy", "machine", "versions", "date")]
    except (ValueError, LookupError, TypeError):
        raise SystemExit(f"error: {path} is not a record of scaling.py; delete it") from None
    return result


def versions() -> dict[str, str]:
    """Of what was measured."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"Python": platform.python_version()} | {name: version(name) for name in ("numpy", "mpi4py", "mpich")}
    except PackageNotFoundError as missing:
        raise SystemExit(f'error: {missing.name} is needed: pip install ".[mpi]"') from None


def measure_all(args: argparse.Namespace) -> dict:
    """Measure every point; the file is written after each."""
    points = QUICK if args.quick else [point for point in POINTS if point[0] in args.models]
    result = {
        "machine": machine(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "busy": 0.0,
        "records": [],
    }
    environments = [dict([setting.split("=", 1)]) for setting in args.environment]
    args.out.mkdir(parents=True, exist_ok=True)
    for model, batch in points:
        before = busy_cores()
        record = measure(model, batch, args.rounds, args.steps, environments)
        result["busy"] = round(max(result["busy"], before, busy_cores()), 2)
        result["records"].append(record)
        (args.out / "scaling.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(f"{title(record)}: {record['sides']['2 ranks']['ms']:.1f} ms", flush=True)
    return result


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of scaling.json and scaling.png")
    parser.add_argument("--quick", action="store_true", help="one small network")
    parser.add_argument("--models", nargs="+", choices=sorted({name for name, _ in POINTS} & MODELS.keys()))
    parser.add_argument("--rounds", type=positive, help="turns of each side; default: 11, or 2 if --quick")
    parser.add_argument("--steps", type=positive, help="steps in a turn; default: 4, or 2 if --quick")
    parser.add_argument(
        "--environment", nargs="+", default=[], metavar="NAME=VALUE", help="for each, a side of 2 ranks with it"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing")
    args = parser.parse_args()
    args.models = args.models or [name for name, _ in POINTS]
    args.rounds, args.steps = args.rounds or (2 if args.quick else 11), args.steps or (2 if args.quick else 4)
    if bad := [setting for setting in args.environment if "=" not in setting]:
        parser.error(f"argument --environment: expected NAME=VALUE, got {bad[0]}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"argument --out: expected a folder, got the file {args.out}")
    show(read(args.out / "scaling.json") if args.show else measure_all(args), args.out)


if __name__ == "__main__":
    run_main(main)
