"""The records of train_step.py as a table for README, and as a picture.

python benchmarks/show_results.py benchmarks/results/cpu_zen5_2cores
"""

import json
import sys
from pathlib import Path

LAYOUTS = {"default": "tab:gray", "channels_last": "tab:blue"}


def read(folder: Path) -> list[dict]:
    """The records of a folder, each network's training step before its forward pass."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda record: (record["model"], record["mode"] == "forward", record["threads"]))


def name(record: dict) -> str:
    """What was measured, in words."""
    what = "training step" if record["mode"] == "train" else "forward"
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    return f"{record['model']}, batch {record['batch']}, {what}, {threads}"


def table(records: list[dict]) -> str:
    """Milliseconds, ratios and the memory of a step, as Markdown."""
    rows = [
        "| | minidl, ms | PyTorch, ms (default / channels_last) | ratio to default | to channels_last | memory ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        theirs = f"{record['torch_default_ms']:,.0f} / {record['torch_channels_last_ms']:,.0f}"
        ratios = f"{record['ratio_default']:.2f} | {record['ratio_channels_last']:.2f}"
        memory = record["step_rss_ours_mb"] / record["step_rss_torch_mb"]
        rows.append(f"| {name(record)} | {record['ours_ms']:,.0f} | {theirs} | {ratios} | {memory:.2f} |")
    return "\n".join(rows)


def draw(records: list[dict], path: Path) -> None:
    """Bars of the ratios: below 1, minidl is faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.7 + 0.55 * len(records)), dpi=120)
    for offset, (layout, colour) in zip((-0.2, 0.2), LAYOUTS.items(), strict=True):
        ratios = [record[f"ratio_{layout}"] for record in records]
        bars = axes.barh([row + offset for row in range(len(records))], ratios, 0.38, color=colour, label=layout)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, bbox={"color": "white", "pad": 0.5})
    axes.axvline(1, color="black", linewidth=1, zorder=0)
    axes.set_yticks(range(len(records)), [name(record) for record in records], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time of minidl / time of PyTorch, on the same cores in the same run (lower is better)", fontsize=8)
    axes.margins(x=0.12)
    axes.legend(title="PyTorch's layout", fontsize=8, title_fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Print the table, draw the picture beside the records."""
    folder = Path(sys.argv[1])
    records = read(folder)
    print(table(records))
    draw(records, folder / "ratios.png")


if __name__ == "__main__":
    main()
