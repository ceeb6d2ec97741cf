"""benchmarks/grid.py: what it measures, that it goes on, and what it makes of the records."""

import json
import sys
from argparse import Namespace
from importlib.metadata import PackageNotFoundError

import grid
import pytest
from grid import Cell
from step_worker import MODELS

VERSIONS = {"python": "3", "numpy": "2", "torch": "2"}


def record_of(cell, **changes):
    """A record as train_step.py makes it: PyTorch needs 10 ms and 5 ms, and 100 MB."""
    milliseconds = 4.0 + cell.batch / cell.threads
    times = {"ours_ms": milliseconds, "torch_default_ms": 10.0, "torch_channels_last_ms": 5.0}
    ratios = {"ratio_default": milliseconds / 10, "ratio_channels_last": milliseconds / 5}
    memory = {"step_rss_ours_mb": 60.0, "step_rss_torch_mb": 100.0}
    return cell._asdict() | times | ratios | memory | {"machine": "a CPU", "versions": VERSIONS} | changes


@pytest.fixture
def measured(monkeypatch):
    """Nothing is measured; the cells that would be are in this list."""
    cells = []

    def measure(cell, seconds):
        cells.append(cell)
        return record_of(cell)

    monkeypatch.setattr(grid, "measure", measure)
    monkeypatch.setattr(grid, "machine", lambda: "a CPU")
    monkeypatch.setattr(grid, "versions", lambda args: VERSIONS)
    return cells


def run(monkeypatch, *options):
    monkeypatch.setattr("sys.argv", ["grid.py", *map(str, options)])
    grid.main()


def test_every_network_is_in_it_with_three_batches_twice():
    cells = grid.cells(MODELS, (1, 2))
    assert len(cells) == len(set(cells)) == len(MODELS) * 2 * 3 * 2
    assert {cell.batch for cell in cells if cell.model == "vgg16"} == {1, 4, 16}
    assert {cell.batch for cell in cells if cell.model == "resnet56"} == {1, 16, 128}


def test_a_cell_is_measured_once(measured, tmp_path, monkeypatch, capsys):
    options = "--out", tmp_path, "--models", "resnet20", "resnet20", "--threads", 1, 1
    run(monkeypatch, *options)
    assert measured == grid.cells(["resnet20"], [1])
    path = tmp_path / "cells.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:4]) + "\n")  # as if it had been interrupted after four of six
    run(monkeypatch, *options)
    assert measured[6:] == measured[4:6]
    assert path.read_text().splitlines() == lines
    assert (tmp_path / "heat_map.png").stat().st_size > 1000
    assert (
        "| resnet20, forward, batch 128, 1 thread | 132.0 | 10.0 / 5.0 | 13.20 | 26.40 | 0.60 |"
        in capsys.readouterr().out
    )


def test_records_of_another_machine_or_version_are_not_added_to(measured, tmp_path, monkeypatch):
    cell = Cell("resnet20", "train", 1, 1)
    for change in {"machine": "another CPU"}, {"versions": VERSIONS | {"torch": "1"}}:
        (tmp_path / "cells.jsonl").write_text(json.dumps(record_of(cell, **change)) + "\n")
        with pytest.raises(ValueError, match=r"cells.jsonl was measured on .*, this is .*; choose another --out"):
            run(monkeypatch, "--out", tmp_path)
    assert not measured


def test_without_pytorch_nothing_is_measured(tmp_path, monkeypatch):
    def versions(args):
        raise PackageNotFoundError("torch")

    monkeypatch.setattr(grid, "versions", versions)
    with pytest.raises(SystemExit, match="PyTorch is needed to compare with: pip install"):
        run(monkeypatch, "--out", tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


def test_there_is_nothing_to_show_before_something_is_measured(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has no cells yet"):
        run(monkeypatch, "--out", tmp_path, "--show")


@pytest.mark.parametrize("damage", ["{", "[1]", "{}", '{"model": "resnet20"}', "null"])
def test_a_damaged_line_is_named(damage, measured, tmp_path, monkeypatch):
    """As after a full disk or a loss of power."""
    whole = json.dumps(record_of(Cell("resnet20", "train", 1, 1)))
    (tmp_path / "cells.jsonl").write_text(f"{whole}\n{damage}\n")
    for option in ((), ("--show",)):
        with pytest.raises(ValueError, match=r"line 2 of .*cells.jsonl is not a record of a cell; delete it"):
            run(monkeypatch, "--out", tmp_path, *option)
    assert not measured


def test_ctrl_c_keeps_what_was_measured(measured, tmp_path, monkeypatch):
    measure = grid.measure

    def measure_two(cell, seconds):
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(cell, seconds)

    monkeypatch.setattr(grid, "measure", measure_two)
    with pytest.raises(SystemExit, match="the same command goes on"):
        run(monkeypatch, "--out", tmp_path, "--quick")
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--threads", 0), "--threads: expected a whole number >= 1, got 0"),
        (("--seconds", 0), "--seconds: expected a finite number > 0, got 0"),
        (("--seconds", "nan"), "--seconds: expected a finite number > 0, got nan"),
        (("--models", "alexnet"), "--models: invalid choice: 'alexnet'"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_measured(option, message, measured, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--out", tmp_path / "grid", *option)
    assert message in capsys.readouterr().err
    assert not measured and not (tmp_path / "grid").exists()


def test_without_matplotlib_there_are_the_tables_alone(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(monkeypatch, "--out", tmp_path, "--models", "resnet20")
    assert "| resnet20, train, batch 1, 1 thread |" in capsys.readouterr().out
    assert not (tmp_path / "heat_map.png").exists()


def test_a_place_of_the_heat_map_shows_one_number():
    """--quick has a small batch of its own, 8 images of ResNet-18, beside the 16 of the whole grid."""
    cells = [Cell("resnet18", "train", batch, 2) for batch in (1, 16, 8, 32)]
    records = [record_of(cell, ratio_default=cell.batch / 10) for cell in cells]
    for order in (records, records[::-1]):
        rows, columns, ratios = grid.heat(order, "default")
        assert (rows, columns) == ([("resnet18", "train")], [(0, 2), (1, 2), (2, 2)])
        assert ratios == [[0.1, 1.6, 3.2]]
    assert grid.heat(records[2:3], "default")[2][0][1] == 0.8


def test_fast_steps_are_timed_several_at_a_time_and_slow_ones_five_times_at_least(monkeypatch):
    """Within about as many seconds as a cell has."""
    turns = []
    for seconds_of_a_step, expected in (0.001, (25, 20)), (0.05, (17, 4)), (3.0, (5, 1)):
        sides = [Namespace(fastest=seconds_of_a_step)] * 3
        monkeypatch.setattr(grid, "start", lambda args, sides=sides: sides)
        monkeypatch.setattr(grid, "take_turns", lambda sides, rounds, steps: turns.append((rounds, steps)))
        monkeypatch.setattr(grid, "make_record", lambda args, sides: {"steps": args.steps})
        assert grid.measure(Cell("resnet20", "train", 1, 1), seconds=10) == {"steps": expected[1]}
        assert turns.pop() == expected


def test_the_summary_names_the_worst_cells():
    records = [record_of(Cell("resnet20", "train", batch, 1)) for batch in (1, 16)]
    assert grid.summary(records).splitlines() == [
        "above 1.0 of the default layout: 1 of 2 cells (resnet20, train, batch 16, 1 thread 2.00)",
        "above 1.0 of the better layout: 1 of 2 cells (resnet20, train, batch 16, 1 thread 4.00)",
    ]


def test_the_time_grows_along_a_line_through_the_smallest_and_the_largest_batch():
    records = [record_of(Cell("resnet20", "train", batch, 1)) for batch in (1, 16, 128)]
    assert grid.growth(records).splitlines()[-1] == "| resnet20, train, 1 thread | 4.00 | 1.00 | 5.00 | 0.00 |"
