"""Every network, training and forward, with small and large batches, on 1 and 2 threads, against PyTorch on the CPU.

    python benchmarks/grid.py --out benchmarks/results/cpu_grid         # two hours; stop it and go on at will
    python benchmarks/grid.py --out /tmp/grid --quick                   # five minutes
    python benchmarks/grid.py --out benchmarks/results/cpu_grid --show  # the tables and the heat map of what is there

Each cell is a measurement of train_step.py: ours, PyTorch's default layout and channels_last in turns, each in a
process of its own. The ratio is ours / theirs; lower is better. `cells.jsonl` has a line for each cell, and no cell is
measured twice.
"""

import argparse
import json
import math
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NamedTuple

from command_line import run_main
from step_worker import MODELS
from train_step import machine, make_record, start, take_turns, versions

from minidl.system.files import read_text

LAYOUTS = "default", "channels_last"


class Cell(NamedTuple):
    """What is measured."""

    model: str
    mode: str  # "train" or "forward"
    batch: int
    threads: int


def batches_of(model: str) -> tuple[int, int, int]:
    """A single image, a small and a large batch."""
    if model.startswith("vgg"):
        return 1, 4, 16
    if model == "speedrun":
        return 1, 16, 1024  # that of its recipe
    return (1, 16, 32) if MODELS[model][2] > 32 else (1, 16, 128)


def cells(models: Iterable[str], threads: Iterable[int]) -> list[Cell]:
    """All cells of these networks."""
    return [
        Cell(model, mode, batch, count)
        for model in models
        for mode in ("train", "forward")
        for batch in batches_of(model)
        for count in threads
    ]


# The same kinds of cells in a few minutes.
QUICK = [
    Cell(model, mode, batch, threads)
    for model, batches in (("resnet20", (1, 16, 128)), ("resnet18", (1, 8)), ("vgg16", (1,)))
    for mode in ("train", "forward")
    for batch in batches
    for threads in (1, 2)
]


# -- measuring ---------------------------------------------------------------------------------------------------------

LEAST_TURN = 0.2  # seconds: fast steps are timed several at a time
LEAST_ROUNDS, MOST_ROUNDS = 5, 25


def measure(cell: Cell, seconds: float) -> dict:
    """The record of a cell, measured for about so many seconds after the warm-up."""
    args = argparse.Namespace(**cell._asdict(), forward=cell.mode == "forward", against="torch", all=False, warmup=3)
    sides = start(args)
    args.steps = max(1, min(20, round(LEAST_TURN / min(side.fastest for side in sides))))
    turn = args.steps * sum(side.fastest for side in sides)
    args.rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, round(seconds / turn)))
    take_turns(sides, args.rounds, args.steps)
    return make_record(args, sides)


def measure_all(wanted: list[Cell], path: Path, seconds: float) -> list[dict]:
    """The records of the file, and those of the cells that it lacks, which are measured and added to it."""
    records, here = read(path), identity_here()
    for record in records:
        if identity(record) != here:
            raise ValueError(f"{path} was measured on {identity(record)}, this is {here}; choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(wanted, 1):
        if cell in map(cell_of, records):
            continue
        record = measure(cell, seconds)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        records.append(record)
        ratios = "  ".join(f"{layout} {record[f'ratio_{layout}']:.2f}" for layout in LAYOUTS)
        print(f"{number:3}/{len(wanted)}  {words(cell):44} {record['ours_ms']:9.1f} ms   {ratios}", flush=True)
    return records


def read(path: Path) -> list[dict]:
    """The records of a file, none if there is no file."""
    records = []
    for number, line in enumerate(read_text(path).splitlines() if path.exists() else [], start=1):
        try:
            record = json.loads(line)
            cell_of(record), identity(record)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"line {number} of {path} is not a record of a cell; delete it") from None
        records.append(record)
    return records


def identity(record: dict) -> str:
    """The machine and the versions of a record, which must not differ in one grid."""
    return ", ".join([record["machine"], *(f"{name} {version}" for name, version in record["versions"].items())])


def identity_here() -> str:
    """The machine and the versions that are measured now."""
    try:
        return identity({"machine": machine(), "versions": versions(argparse.Namespace(against="torch"))})
    except PackageNotFoundError:
        raise SystemExit('error: PyTorch is needed to compare with: pip install ".[bench]"') from None


def cell_of(record: dict) -> Cell:
    """What a record is of."""
    return Cell(*(record[field] for field in Cell._fields))


def words(cell: Cell) -> str:
    """The cell in words."""
    return f"{cell.model}, {cell.mode}, batch {cell.batch}, {cell.threads} thread{'s' * (cell.threads > 1)}"


# -- what came out -----------------------------------------------------------------------------------------------------


def better(record: dict) -> float:
    """The ratio to PyTorch's faster layout."""
    return max(record[f"ratio_{layout}"] for layout in LAYOUTS)


def memory(record: dict) -> float:
    """The memory of a step, ours / PyTorch's."""
    return record["step_rss_ours_mb"] / max(record["step_rss_torch_mb"], 1e-9)


def table(records: list[dict]) -> str:
    """Milliseconds and ratios, as Markdown."""
    rows = [
        "| | minidl, ms | PyTorch, ms (default / channels_last) | ratio to default | to channels_last | memory ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        theirs = " / ".join(f"{record[f'torch_{layout}_ms']:,.1f}" for layout in LAYOUTS)
        ratios = " | ".join(f"{record[f'ratio_{layout}']:.2f}" for layout in LAYOUTS)
        rows.append(
            f"| {words(cell_of(record))} | {record['ours_ms']:,.1f} | {theirs} | {ratios} | {memory(record):.2f} |"
        )
    return "\n".join(rows)


def summary(records: list[dict]) -> str:
    """How many cells are above 1.0, and the worst."""
    lines = []
    for name, value in (("the default layout", lambda r: r["ratio_default"]), ("the better layout", better)):
        above = sorted((record for record in records if value(record) > 1), key=value, reverse=True)
        worst = "; ".join(f"{words(cell_of(record))} {value(record):.2f}" for record in above[:5])
        lines.append(f"above 1.0 of {name}: {len(above)} of {len(records)} cells" + f" ({worst})" * bool(above))
    return "\n".join(lines)


def growth(records: list[dict]) -> str:
    """How the time grows: ms = fixed + per image * batch, through the smallest and the largest batch, as Markdown."""
    rows = ["| | minidl: fixed ms | ms per image | PyTorch: fixed ms | ms per image |", "|---|---:|---:|---:|---:|"]
    kinds = sorted({cell_of(record)._replace(batch=0) for record in records}, key=str)
    for kind in kinds:
        of_kind = [record for record in records if cell_of(record)._replace(batch=0) == kind]
        least, most = min(of_kind, key=lambda r: r["batch"]), max(of_kind, key=lambda r: r["batch"])
        if least is most:
            continue
        numbers = []
        for times in (lambda r: r["ours_ms"], lambda r: min(r[f"torch_{layout}_ms"] for layout in LAYOUTS)):
            per_image = (times(most) - times(least)) / (most["batch"] - least["batch"])
            numbers += [times(least) - per_image * least["batch"], per_image]
        cells_of_row = " | ".join(f"{number:.2f}" for number in numbers)
        rows.append(f"| {words(kind).replace(' batch 0,', '')} | {cells_of_row} |")
    return "\n".join(rows)


def heat(records: list[dict], layout: str) -> tuple[list, list, list[list[float]]]:
    """The heat map of a layout: its rows (model, mode), its columns (size of the batch: 0, 1, 2; threads), its ratios.

    A ratio that was not measured is NaN. Where --quick has a batch of its own, that of the whole grid is preferred.
    """
    rows = list(dict.fromkeys((record["model"], record["mode"]) for record in records))
    columns = [(size, threads) for size in range(3) for threads in sorted({record["threads"] for record in records})]
    ratios = [[math.nan] * len(columns) for _ in rows]
    for record in sorted(records, key=lambda record: record["batch"] in batches_of(record["model"])):
        row = rows.index((record["model"], record["mode"]))
        size = sum(batch < record["batch"] for batch in batches_of(record["model"]))
        ratios[row][columns.index((size, record["threads"]))] = record[f"ratio_{layout}"]
    return rows, columns, ratios


def draw(records: list[dict], path: Path) -> None:
    """The ratios as a heat map, for each of PyTorch's layouts: blue where minidl is faster, red where it is slower."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colors, pyplot

    maps = [heat(records, layout) for layout in LAYOUTS]
    rows, columns, _ = maps[0]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 1.6 + 0.34 * len(rows)), dpi=110, sharey=True)
    norm = colors.TwoSlopeNorm(1, vmin=0.4, vmax=1.6)
    for axes, layout, (_, _, ratios) in zip(panels, LAYOUTS, maps, strict=True):
        axes.imshow(ratios, cmap="RdBu_r", norm=norm, aspect="auto", alpha=0.75)
        for row, ratios_of_row in enumerate(ratios):
            for column, ratio in enumerate(ratios_of_row):
                if not math.isnan(ratio):
                    axes.text(column, row, f"{ratio:.2f}", ha="center", va="center", fontsize=8)
        labels = [f"{('one image', 'small', 'large')[size]}\n{threads} thr." for size, threads in columns]
        axes.set_xticks(range(len(columns)), labels, fontsize=7)
        axes.set_title(f"time of minidl / PyTorch, {layout}", fontsize=9)
    panels[0].set_yticks(range(len(rows)), [" ".join(row) for row in rows], fontsize=8)
    figure.suptitle("below 1, blue: minidl is faster. " + records[0]["machine"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def show(records: list[dict], out: Path) -> None:
    """Print the tables, draw the heat map."""
    order = {cell: number for number, cell in enumerate(cells(MODELS, (1, 2)))}
    records = sorted(records, key=lambda record: order.get(cell_of(record), len(order)))
    print(table(records), growth(records), summary(records), sep="\n\n")
    try:
        draw(records, out / "heat_map.png")
        print(out / "heat_map.png")
    except ModuleNotFoundError:
        print("no heat map: pip install matplotlib, and --show")


def main() -> None:
    """Measure what is missing, and show all."""
    from common.options import positive, positive_number  # found since step_worker was imported

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of cells.jsonl and heat_map.png")
    parser.add_argument("--quick", action="store_true", help="a few cells, five minutes")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--threads", nargs="+", type=positive, default=[1, 2])
    parser.add_argument(
        "--seconds", type=positive_number, help="for each cell, after its warm-up; default: 20, or 4 if --quick"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing")
    args = parser.parse_args()
    path = args.out / "cells.jsonl"
    if args.show:
        records = read(path)
    else:
        wanted = QUICK if args.quick else cells(args.models, args.threads)
        try:
            records = measure_all(wanted, path, args.seconds or (4 if args.quick else 20))
        except KeyboardInterrupt:
            raise SystemExit("stopped; the same command goes on") from None
    if not records:
        raise ValueError(f"{path} has no cells yet")
    show(records, args.out)


if __name__ == "__main__":
    run_main(main)
