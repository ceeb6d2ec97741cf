"""The time of a training step, ours against PyTorch's, on the CPU.

    python benchmarks/train_step.py --model resnet20 --batch 128 --against torch --json results/resnet20.json

A step is: forward, cross-entropy, backward for all parameters, SGD with momentum and weight decay (PyTorch's fused
one), gradients cleared. --forward: evaluation mode, no gradients. Each side runs in a process of its own, with equally
many threads, from the same weights and batch; the first three losses must agree to 1e-3. The processes take turns,
A B C A B C ..., since a machine's speed drifts; the ratio is taken turn by turn, and its median is what counts. Lower
is better.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from command_line import natural, new_file, positive, run_main
from safetensors.numpy import save_file
from step_worker import MODELS, make_ours

HERE = Path(__file__).resolve().parent
MARKED = ["default", "channels_last"]  # PyTorch's memory layouts, both with the fused SGD
ALSO_PRINTED = ["default_sgd", "compile"]

# OpenBLAS shall choose its kernels by what the CPU can do, as it does where nobody has set anything.
NOT_PASSED_ON = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}


class Side:
    """A worker process, and the times of its steps, turn by turn."""

    def __init__(self, name: str, args: argparse.Namespace, weights: Path):
        options = [args.model, args.batch, args.threads, weights] + ["--forward"] * args.forward
        command = [sys.executable, HERE / "step_worker.py", name, *options]
        environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        environment |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MINIDL_NUM_THREADS")}
        self.name, self.turns, self.losses, self.memory = name, [], [], {}
        self.fastest = float("nan")  # seconds of a step
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.blas = self.answer()["blas"]

    def answer(self) -> dict:
        """The next line that the worker writes."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the side '{self.name}' failed; its message stands above")
        return json.loads(line)

    def run(self, steps: int) -> dict:
        """Make steps; the worker's answer."""
        print(steps, file=self.process.stdin, flush=True)
        return self.answer()

    def warm_up(self, steps: int) -> None:
        """Steps that are not counted; the first three losses are kept, and the time of the fastest step."""
        result = self.run(max(3, steps))
        self.losses, self.fastest = result["losses"][:3], min(result["seconds"])

    def take_turn(self, steps: int) -> None:
        """Note the median time of some steps."""
        result = self.run(steps)
        self.turns.append(statistics.median(result["seconds"]))
        self.memory = {"peak_rss": result["rss_mb"], "step_rss": result["step_mb"]}

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def check_losses(sides: list[Side]) -> None:
    """Fail unless all sides compute the same thing."""
    for side in sides[1:]:
        pairs = zip(sides[0].losses, side.losses, strict=True)
        if not all(abs(a - b) <= 1e-3 * max(abs(b), 1) for a, b in pairs):
            raise SystemExit(f"error: the first losses differ: {sides[0].losses} and {side.name} {side.losses}")


def start(args: argparse.Namespace) -> list[Side]:
    """All sides, warmed up. They compute the same thing."""
    names = ["ours"] + (MARKED if args.against else []) + (ALSO_PRINTED if args.all else [])
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file(make_ours(args.model).state_dict(), weights)
        sides = [Side(name, args, weights) for name in names]
    for side in sides:
        side.warm_up(args.warmup)
    check_losses(sides)
    return sides


def take_turns(sides: list[Side], rounds: int, steps: int) -> None:
    """Measure the sides in turns of some steps each, and end their processes."""
    for _ in range(rounds):
        for side in sides:
            side.take_turn(steps)
    for side in sides:
        side.close()


def print_table(args: argparse.Namespace, sides: list[Side]) -> None:
    """A line for each side."""
    print(
        f"{args.model}, batch {args.batch}, {mode(args)}, {args.threads} threads, {args.rounds} turns of {args.steps}"
    )
    print("side             median ms    min    max   images/s   peak MB   of the step   ours / theirs")
    for side in sides:
        median, least, most = milliseconds(side)
        row = f"{side.name:15}  {median:9.1f} {least:6.1f} {most:6.1f} {args.batch * 1000 / median:10.1f}"
        row += f" {side.memory['peak_rss']:9.0f} {side.memory['step_rss']:13.0f}"
        print(row if side is sides[0] else f"{row} {ratio(sides[0], side):15.3f}")


def make_record(args: argparse.Namespace, sides: list[Side]) -> dict:
    """What was measured, for a file."""
    ours, *others = sides
    record = {"model": args.model, "batch": args.batch, "mode": mode(args), "threads": args.threads}
    record |= {"rounds": args.rounds, "machine": machine(), "versions": versions(args), "blas": ours.blas}
    for side in sides:
        who = "ours" if side is ours else f"torch_{side.name}"
        median, *spread = (round(number, 2) for number in milliseconds(side))
        record |= {f"{who}_ms": median, f"{who}_ms_spread": spread}
    record |= {f"ratio_{side.name}": round(ratio(ours, side), 4) for side in others}
    for kind in ("peak_rss", "step_rss"):
        record[f"{kind}_ours_mb"] = round(ours.memory[kind], 1)
        if others:
            record[f"{kind}_torch_mb"] = round(min(side.memory[kind] for side in others[:2]), 1)
    return record


def mode(args: argparse.Namespace) -> str:
    """What a step is."""
    return "forward" if args.forward else "train"


def milliseconds(side: Side) -> tuple[float, float, float]:
    """(median, least, most) of the turns."""
    turns = [1000 * seconds for seconds in side.turns]
    return statistics.median(turns), min(turns), max(turns)


def ratio(ours: Side, theirs: Side) -> float:
    """The median, over the turns, of our time divided by theirs."""
    return statistics.median(a / b for a, b in zip(ours.turns, theirs.turns, strict=True))


def machine() -> str:
    """The CPU's name, and how many of it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def versions(args: argparse.Namespace) -> dict[str, str]:
    """Of what was measured."""
    from importlib.metadata import version

    names = ["numpy"] + (["torch"] if args.against else [])
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--forward", action="store_true", help="evaluation instead of a training step")
    parser.add_argument("--against", choices=["torch"])
    parser.add_argument("--all", action="store_true", help="also PyTorch's default SGD, and torch.compile")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--rounds", type=positive, default=9, help="turns of each side; default: 9")
    parser.add_argument("--steps", type=positive, default=3, help="steps in a turn; default: 3")
    parser.add_argument("--warmup", type=natural, default=5, help="steps before, not counted; default: 5")
    parser.add_argument("--json", type=new_file, help="where to write the record")
    args = parser.parse_args()
    sides = start(args)
    take_turns(sides, args.rounds, args.steps)
    print_table(args, sides)
    if args.json:
        args.json.write_text(json.dumps(make_record(args, sides), indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
