"""REPORT.md, from the files that gpu_report.py has in its folder."""

import argparse
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gpu_test_log import read_log

from minidl.system.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
MOST_FAILED_TESTS = 40  # that are shown of a part


def write_page(out: Path, results: list[dict], args: argparse.Namespace) -> None:
    """Write REPORT.md anew. `results` has an entry for each part, in order."""
    writers = {
        "heading": lambda: heading(out, args),
        "summary": lambda: summary(out, results),
        "what failed": lambda: problems(results),
        "tests": lambda: tests(out, results),
        "training steps": lambda: steps(measurements(out)),
        "kernels": lambda: kernels(measurements(out)),
        "convolution": lambda: convolution(measurements(out)),
        "training": lambda: training(out),
        "model": lambda: model(out),
    }
    sections = [section(name, write) for name, write in writers.items()]
    write_whole(out / "REPORT.md", ("\n\n".join(filter(None, sections)) + "\n").encode())


def section(name: str, write: Callable[[], str]) -> str:
    """A part of the page. One that cannot be written, say because of a damaged file, does not cost the others."""
    try:
        return write()
    except Exception as error:
        return f"The section '{name}' could not be written: {type(error).__name__}: {error}"


def table(titles: list[str], rows: list[list]) -> str:
    """A table; numbers stand on the right."""
    numbers = [all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(titles))]

    def cell(value) -> str:
        return "" if value is None else f"{value:,.3g}" if isinstance(value, float) else str(value)

    lines = [titles, ["---:" if right else "---" for right in numbers], *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def read_json(path: Path) -> dict:
    """The content of a file, {} if it is not there."""
    return json.loads(path.read_text()) if path.exists() else {}


def measurements(out: Path) -> dict[str, dict]:
    """What gpu.py has measured."""
    return read_json(out / "gpu.json").get("measurements", {})


# -- what ran ----------------------------------------------------------------------------------------------------------


def heading(out: Path, args: argparse.Namespace) -> str:
    """The machine, the versions and the date."""
    facts = read_json(out / "facts.json")
    rows = [[name, str(value)] for name, value in facts.items()] + [["minidl", commit()]]
    what = facts.get("gpu", "a GPU")
    warning = "**This is the fake GPU: no figure here means anything.**\n\n" if args.device == "fake" else ""
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"# minidl on {what}\n\n{warning}Written {written} by benchmarks/gpu_report.py.\n\n{table(['', ''], rows)}"


def commit() -> str:
    """The version of the source, and whether it has been changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--tags"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"


def summary(out: Path, results: list[dict]) -> str:
    """A line for each part."""
    rows = []
    for part in results:
        minutes = f"{part['seconds'] / 60:.1f}" if "seconds" in part else ""
        remarks = [first_problem(part), remark(out, part["part"])]
        rows.append([part["part"], part["title"], part["status"], minutes, "; ".join(filter(None, remarks))])
    return "## Summary\n\n" + table(["part", "what", "result", "minutes", "remark"], rows)


def remark(out: Path, name: str) -> str:
    """What is known of a part in a few words: how many tests passed, or the last epoch's error."""
    if log := read_log(out / "tests" / f"{name}.jsonl"):
        counts = Counter(test["outcome"] for test in log.values())
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    records = epochs(out) if name == "training" else []
    return f"test error {records[-1]['test_error']:.1%} after {len(records)} epochs" if records else ""


def epochs(out: Path) -> list[dict]:
    """The lines of the training's metrics."""
    path = out / "resnet20" / "metrics.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def first_problem(part: dict) -> str:
    """Why it failed or is absent, in a few words."""
    found = part.get("problems", [])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0].splitlines()[0][:150]}{more}".replace("|", "/") if found else ""


def problems(results: list[dict]) -> str:
    """What failed, with the last lines that it printed."""
    sections = []
    for part in results:
        if part["status"] == "failed":
            lines = [f"- {problem.splitlines()[0]}" for problem in part["problems"]]
            tail = "\n".join(part.get("tail", []))
            sections.append(f"### {part['part']}\n\n" + "\n".join(lines) + f"\n\n```text\n{tail}\n```")
    return "## What failed\n\n" + "\n\n".join(sections) if sections else ""


def tests(out: Path, results: list[dict]) -> str:
    """How many tests of each part passed; and which did not, with their messages."""
    rows, failures = [], []
    for part in results:
        log = read_log(out / "tests" / f"{part['part']}.jsonl")
        if not log:
            continue
        counts = Counter(test["outcome"] for test in log.values())
        rows.append([part["part"], *(counts[outcome] for outcome in ("passed", "failed", "skipped", "begun"))])
        bad = [test for test in log.values() if test["outcome"] in ("failed", "begun")]
        for test in bad[:MOST_FAILED_TESTS]:
            message = test.get("message", "it did not end: the process crashed")
            failures.append(f"- `{test['id']}`\n  `{' '.join(message.split())[:300]}`")
    if not rows:
        return ""
    counted = table(["part", "passed", "failed", "skipped", "did not end"], rows)
    return "## Tests\n\n" + counted + ("\n\n" + "\n".join(failures) if failures else "")


# -- measurements ------------------------------------------------------------------------------------------------------


def steps(found: dict[str, dict]) -> str:
    """Time and memory of a training step of each side, and ours against PyTorch's."""
    sections = []
    workloads = dict.fromkeys(name.partition("/")[0] for name in found if "/" in name)
    for workload in workloads:
        sides = {name.partition("/")[2]: side for name, side in found.items() if name.startswith(f"{workload}/")}
        sides.pop("kernels", None)
        if not sides:
            continue
        images, speed = int(workload.rpartition(" b")[2]), relative_times(sides)
        theirs = [kind for kind in speed if kind.startswith("torch")]
        rows = []
        for kind, side in sides.items():
            numbers = [side.get("ms"), images / side["ms"] * 1000 if "ms" in side else None, side.get("peak_mb")]
            against = [speed[one] / speed[kind] if kind in speed else None for one in theirs]
            rows.append([kind, side.get("dtype", ""), *map(rounded, numbers), *against, len(side.get("failures", ()))])
        titles = ["side", "dtype", "ms", "images/s", "MB", *(f"speed / {one}" for one in theirs), "failures"]
        sections.append(f"### {workload}\n\n" + table(titles, rows) + failures_of(sides))
    return "## Training steps\n\n" + "\n\n".join(sections) if sections else ""


def relative_times(sides: dict[str, dict]) -> dict[str, float]:
    """The time of each side relative to that of the side 'graph'."""
    times = {kind: side["relative"] for kind, side in sides.items() if "relative" in side}
    return ({"graph": 1.0} if "ms" in sides.get("graph", {}) or times else {}) | times


def failures_of(sides: dict[str, dict]) -> str:
    """The messages of what failed."""
    messages = [f"- {kind}: {text}" for kind, side in sides.items() for text in side.get("failures", ())]
    return "\n\n" + "\n".join(message.splitlines()[0][:500] for message in messages) if messages else ""


def rounded(number: float | None) -> float | None:
    """To about four digits."""
    return None if number is None else round(number) if number >= 1000 else float(f"{number:.4g}")


def kernels(found: dict[str, dict]) -> str:
    """The kernels of a step."""
    sections = []
    for name, table_of in found.items():
        if not name.endswith("/kernels"):
            continue
        rows = [
            [line["kernel"], line["launches"], *(rounded(line[key]) for key in ("ms", "gb_per_s", "tflop_per_s"))]
            for line in table_of.get("lines", ())
        ]
        text = table(["kernel", "launches", "ms", "GB/s", "TFLOP/s"], rows) if rows else ""
        if "graph_ms" in table_of:
            text += f"\n\nAll lines: {table_of['sum_ms']:.3f} ms. The step as a graph: {table_of['graph_ms']:.3f} ms."
        sections.append(f"### {name.removesuffix('/kernels')}\n\n{text}" + failures_of({name: table_of}))
    return "## Kernels of a step\n\n" + "\n\n".join(sections) if sections else ""


def convolution(found: dict[str, dict]) -> str:
    """One convolution in every way."""
    sections = []
    for name, table_of in found.items():
        if name.startswith("convolution"):
            ways = ("forward", "backward_x", "backward_weight")
            rows = [[line["way"], *(rounded(line.get(way)) for way in ways)] for line in table_of.get("lines", ())]
            text = table(["way", *ways], rows) if rows else ""
            sections.append(f"## A 3x3 {name}, TFLOP/s\n\n{text}" + failures_of({name: table_of}))
    return "\n\n".join(sections)


def training(out: Path) -> str:
    """The epochs of the run."""
    records = epochs(out)
    if not records:
        return ""
    names = [key for key, value in records[-1].items() if isinstance(value, int | float)]
    rows = [[rounded(record.get(name)) for name in names] for record in records]
    return "## Training\n\n" + table(names, rows)


def model(out: Path) -> str:
    """What gpu_model.py prints."""
    log = out / "logs" / "model.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    text = "\n".join(lines[starts[-1] + 1 :] if starts else lines)
    return f"## Modelled\n\n```text\n{text}\n```" if text.strip() else ""
