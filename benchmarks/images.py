"""How many photographs a second become training views: ImageLoader against a plain loop over Pillow.

    python benchmarks/images.py --data imagenet/train --limit 500 --threads 1 2 --json FILE

All do ResNet's views: shorter side drawn from [256, 480], a 224 crop or its mirror image, batches of bytes. The plain
loop opens, converts to RGB, scales, crops and stacks, on one thread, and cares for nothing else. The sides take turns,
after a pass that is not timed and leaves the files in the system's memory; the median of the turns counts.

Images per second of the clock depend on what else runs; those per second of a core (the time that all threads of the
process have used) hardly do, and fall where threads get in each other's way. How many cores other programs leave free
is measured by hashing on as many threads, in turn with the sides: two threads cannot be faster than that.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import new_file, positive, run_main
from train_step import machine, versions

from minidl.data import RESNET_SIDES, ImageFolder, ImageLoader, TrainingView

SIZE = 224


def plain_loop(folder: ImageFolder, batch: int) -> int:
    """What a script would do without a framework; the number of images."""
    rng, count = np.random.default_rng(0), 0
    for start in range(0, len(folder), batch):
        views = [plain_view(path, rng) for path in folder.paths[start : start + batch]]
        count += len(np.stack(views))
    return count


def plain_view(path: str, rng: np.random.Generator) -> np.ndarray:
    """A photograph scaled, cropped and mirrored at random: (224, 224, 3) uint8."""
    image = Image.open(path).convert("RGB")
    shorter_side = int(rng.integers(RESNET_SIDES[0], RESNET_SIDES[1] + 1))
    sides = [side * shorter_side // min(image.size) for side in image.size]
    image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = (int(rng.integers(0, side - SIZE + 1)) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def loader_epoch(loader: ImageLoader) -> int:
    """An epoch of the loader; the number of images."""
    return sum(len(images) for images, _ in loader)


def free_cores(threads: int) -> float:
    """The part of the machine that so many threads get just now, in cores."""
    clock, core = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: hashlib.sha256(bytes(50_000_000)), range(4 * threads)))
    return (time.process_time() - core) / (time.perf_counter() - clock)


def images_per_second(run: Callable[[], int]) -> tuple[float, float]:
    """Of the clock, and of a core."""
    clock, core = time.perf_counter(), time.process_time()
    count = run()
    return count / (time.perf_counter() - clock), count / (time.process_time() - core)


def measure(args: argparse.Namespace) -> tuple[dict[str, dict[str, float]], float]:
    """The medians of all sides over the rounds, and that of the free cores."""
    folder = ImageFolder(args.data)
    folder.paths, folder.labels = folder[: args.limit]
    view = TrainingView(RESNET_SIDES, SIZE)
    loaders = {f"ImageLoader, threads={n}": ImageLoader(folder, args.batch, view, threads=n) for n in args.threads}
    sides = {"plain loop": lambda: plain_loop(folder, args.batch)}
    sides |= {name: (lambda loader=loader: loader_epoch(loader)) for name, loader in loaders.items()}
    for run in sides.values():
        run()
    turns, cores = {name: [] for name in sides}, []
    for _ in range(args.rounds):
        cores.append(free_cores(max(args.threads)))
        for name, run in sides.items():
            turns[name].append(images_per_second(run))
    medians = {name: [statistics.median(rates) for rates in zip(*pairs, strict=True)] for name, pairs in turns.items()}
    names = "per_second", "per_core_second"
    return {name: dict(zip(names, pair, strict=True)) for name, pair in medians.items()}, statistics.median(cores)


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one folder of photographs per class")
    parser.add_argument("--limit", type=positive, help="use the first photographs only")
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=positive, default=50)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--json", type=new_file)
    args = parser.parse_args()
    results, cores = measure(args)
    for name, rates in results.items():
        print(f"{name:24} {rates['per_second']:6.0f} images/s {rates['per_core_second']:6.0f} images/s of a core")
    print(f"free cores: {cores:.1f}")
    if args.json:
        record = {"machine": machine(), "free_cores": cores, "rounds": args.rounds, "results": results}
        args.json.write_text(json.dumps(record | versions(argparse.Namespace(against=None)), indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
