"""Feed damaged and hostile files to everything that reads files: `python tests/fuzz.py --cases 20000 --seed 1`.

A case is a valid file with random changes, or a file built to lie. Each reader must return a result, or raise one of
its documented errors with a message that names the file. Anything else is a failure: another exception, a message
without the name, more memory or time than stated, or code that was run. The input of a failure is stored, and
`--replay FILE` runs it again. The cases depend on the seed, the kind and the number of the case only.

The cases run in a worker, a forked process with limits of memory (RLIMIT_AS) and of time per case (SIGPROF, SIGALRM,
and RLIMIT_CPU as a last resort). If it dies, a new worker continues with the next case.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import pickle
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from minidl.data import cifar, image_statistics  # noqa: E402
from minidl.data.images import BrokenImageError, read_image  # noqa: E402
from minidl.training.checkpoint import read_checkpoint  # noqa: E402

SECONDS = 5  # of CPU time per case
PATIENCE = 12  # on the clock, so many times as long: the machine may be busy
MEMORY = 2**30  # bytes that a case may allocate on top of what the worker holds at its start


# ---- Changes of valid files ------------------------------------------------------------------------------------------

# Numbers at the limits of their types: what a length or an offset should not be.
LIMITS = [struct.pack(form, number) for form, number in (("<Q", 2**62), ("<I", 2**32 - 1), ("<i", -1), ("<I", 2**28))]


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Apply one to four random changes to a valid file; half of them in its first 300 bytes, where the headers are."""
    for _ in range(rng.integers(1, 5)):
        if not content:
            return content
        end = len(content) if rng.random() < 0.5 else min(300, len(content))
        at, length = int(rng.integers(end)), int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + content[at + length :]
        elif kind == 2:
            content = content[:at] + content[max(0, at - length) :]
        elif kind == 3:
            content = content[:at] + rng.bytes(length) + content[at + length :]
        elif kind == 4:
            limit = LIMITS[rng.integers(len(LIMITS))]
            content = content[:at] + limit + content[at + len(limit) :]
        elif kind == 5:
            content = content[:at] + bytes(length) + content[at + length :]
        else:
            content = content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
    return content


def choice(rng: np.random.Generator, options: list):
    """One of the options, which may be of any type."""
    return options[int(rng.integers(len(options)))]


def nonsense(rng: np.random.Generator, depth: int = 3):
    """A random JSON value: wrong types, NaN, infinity, huge numbers, nested lists and objects."""
    leaves = [None, True, -1, 0, 3, 2**63, 10**300, 1.5, float("nan"), float("inf"), "", "x", "\ud800", "é" * 50]
    kind = rng.integers(4) if depth else 0
    if kind == 1:
        return [nonsense(rng, depth - 1) for _ in range(rng.integers(4))]
    if kind == 2:
        return {str(nonsense(rng, 0)): nonsense(rng, depth - 1) for _ in range(rng.integers(4))}
    return choice(rng, leaves)


def replaced_somewhere(value, rng: np.random.Generator):
    """A copy of a JSON value in which one part, at any depth, is nonsense or missing."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return nonsense(rng)
    key = choice(rng, list(value) if isinstance(value, dict) else list(range(len(value))))
    copy = value.copy()
    if rng.random() < 0.2:
        del copy[key]
    else:
        copy[key] = replaced_somewhere(value[key], rng)
    return copy


# ---- Kinds: valid files, lying files, and the reader -----------------------------------------------------------------


@dataclass
class Kind:
    """How to make cases of one kind of file, and what reads them.

    Attributes:
        make: `make(rng) -> bytes`.
        read: `read(path)`.
        errors: the documented errors.
    """

    make: Callable[[np.random.Generator], bytes]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (ValueError,)


def official_pickle(rows: int = 2, row: int = 3072) -> bytes:
    """A batch as Python 2 and NumPy 1 pickled it: the format of the official CIFAR files."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = struct.pack("<cicic", b"J", rows, b"J", row, b"\x86")
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"(K\x01" + shape + dtype + b"\x89" + struct.pack("<ci", b"T", rows * row) + bytes(rows * row) + b"tb"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + b"K\x00" * rows + b"eU\x0blabel_names](U\x03cateu."


class RunsCode:
    """Unpickles as a call that leaves a file behind."""

    marker = ""

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


PICKLE_PIECES = [
    bytes([code]) for code in b"(.)]}tNabcdeghjqrsuRKJMUTXCB\x80\x81\x82\x85\x86\x87\x88\x8c\x8e\x93\x94\x95"
]
PICKLE_PIECES += [b"K\x00", b"U\x04data", b"q\x00", b"h\x00", b"cnumpy\ndtype\n", b"cos\nsystem\n", b"j\x01\0\0\0"]
PICKLE_PIECES += [b"r\xff\xff\xff\xff", b"\x85" * 1000, b"(" * 1000, b"]" * 1000, b"h\x00h\x00\x86q\x00" * 100]


def make_pickle(rng: np.random.Generator) -> bytes:
    """A changed batch, a random program of opcodes, or a pickle that runs code."""
    kind = rng.random()
    if kind < 0.1:
        return pickle.dumps({b"data": RunsCode()}, protocol=int(rng.integers(5)))
    if kind < 0.4:
        return b"\x80\x02}" + b"".join(choice(rng, PICKLE_PIECES) for _ in range(rng.integers(1, 60))) + b"."
    modern = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 0], b"label_names": [b"a"]}, 4)
    return mutate(choice(rng, [official_pickle(), official_pickle(1, 12), modern]), rng)


def toy_archive(sha256: str | None = None, **md5: str) -> cifar.Archive:
    """A data set of one file with these md5 sums. It is the packed archive if it has a SHA-256 checksum, too."""
    name = "archive" if sha256 is None else "case"
    return replace(
        cifar.CIFAR10,
        packed=replace(cifar.CIFAR10.packed, name=name, sha256=sha256 or ""),
        folder="f",
        train=("case",),
        test=("case",),
        meta="case",
        md5=md5,
    )


def md5_of(path: Path) -> str:
    """The md5 sum that makes the loader trust a hostile file."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def read_pickle(path: Path) -> object:
    """Load the file as a batch of CIFAR-10, behind a right md5 sum."""
    return cifar.load_archive(toy_archive(case=md5_of(path)), path.parent, train=True, download=False)


TAR_NAMES = ["f/batch", "f/batch", "../batch", "/tmp/batch", "f/../../batch", "f/other", "batch", "f/" + "x" * 200]


def make_tar(rng: np.random.Generator) -> bytes:
    """Members with odd names, types and sizes; changed before or after it is compressed."""
    file = io.BytesIO()
    kinds = [tarfile.REGTYPE] * 4 + [bytes([kind]) for kind in b"1234567SLKxgX"]
    for _ in range(rng.integers(1, 5)):
        member = tarfile.TarInfo(choice(rng, TAR_NAMES))
        content = official_pickle()[: rng.integers(1, 6500)]
        member.type, member.linkname = choice(rng, kinds), "/etc/passwd"
        member.size = len(content) if rng.random() < 0.7 else choice(rng, [0, 2**28, 2**40, 2**62, -512])
        if rng.random() < 0.2:
            member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 12}
        form = tarfile.PAX_FORMAT if rng.random() < 0.5 else tarfile.GNU_FORMAT
        file.write(member.tobuf(form) + content + bytes(-len(content) % 512))
    if rng.random() < 0.05:
        file.write(tarfile.TarInfo("zeros").tobuf() + bytes(2**24))
    plain = file.getvalue() + bytes(1024)
    if rng.random() < 0.5:
        return gzip.compress(mutate(plain, rng) if rng.random() < 0.5 else plain, 1, mtime=0)
    return mutate(gzip.compress(plain, 1, mtime=0), rng)


def read_tar(path: Path) -> object:
    """Unpack the file, behind a right md5 sum. Nothing but the expected file may appear."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    archive = toy_archive(sha256, case=md5_of(path), batch="")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        cifar._unpack(archive, path, Path(folder, "f"))
        written = {found.name for found in Path(folder).rglob("*")}
        assert written <= {"f", "batch", "case"}, f"wrote {written}"


def safetensors_file(header: object, data: bytes = bytes(64)) -> bytes:
    """A safetensors file: the length of the header, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + data


def make_safetensors(rng: np.random.Generator) -> bytes:
    """Changed bytes, a changed header, a huge header length, or a doubled name."""
    tensor = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
    other = {"dtype": "BF16", "shape": [16], "data_offsets": [32, 64]}
    header = {"__metadata__": {"counters": '{"step": 3}'}, "a.weight": tensor, "extra/mean": other}
    kind = rng.random()
    if kind < 0.4:
        return mutate(safetensors_file(header), rng)
    if kind < 0.8:
        return safetensors_file(replaced_somewhere(header, rng))
    if kind < 0.85:
        return struct.pack("<Q", choice(rng, [0, 1, 2**27, 2**40, 2**63, 2**64 - 1])) + b"{}"
    if kind < 0.9:
        return safetensors_file(b'{"a": %s, "a": %s}' % (json.dumps(tensor).encode(), json.dumps(other).encode()))
    if kind < 0.95:
        return safetensors_file(b'{"a":' * 5000 + b"1" + b"}" * 5000)
    values = [[0, 2**62], [32, 0], [16, 48], [-1, 31], [float("nan"), 32], [0, 1e300], [0, 33]]
    return safetensors_file(header | {"a.weight": tensor | {"data_offsets": choice(rng, values)}})


def png_of_any_size(rng: np.random.Generator) -> bytes:
    """A valid PNG header with a size that its few bytes of pixels do not have."""
    sides = [0, 1, 7, 600, 8192, 8193, 60_000, 2**31 - 1]
    numbers = choice(rng, sides), choice(rng, sides), choice(rng, [1, 8, 16]), choice(rng, [0, 2, 3, 4, 6]), 0, 0, 0
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", *numbers), b"IDAT" + zlib.compress(bytes(2**20), 1), b"IEND"]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def images() -> list[bytes]:
    """Valid files of all formats and modes, with all EXIF orientations, and animated ones."""
    from PIL import Image

    base = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    kinds = [("JPEG", mode) for mode in ("RGB", "L", "CMYK")] + [("PNG", m) for m in ("RGBA", "P", "LA", "1", "I;16")]
    kinds += [("WEBP", "RGBA"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "CMYK"), ("PPM", "RGB")]
    found = []
    for number, (kind, mode) in enumerate(kinds + [("JPEG", "RGB")] * 8):
        exif = Image.Exif()
        exif[0x0112] = number % 8 + 1
        image = (
            Image.fromarray(np.asarray(base)[..., 0].astype(np.uint16) * 256) if mode == "I;16" else base.convert(mode)
        )
        file = io.BytesIO()
        more = {"save_all": True, "append_images": [image] * 2} if kind in ("GIF", "WEBP") else {}
        image.save(file, kind, **more, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
        found.append(file.getvalue())
    return [*found, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"]


def make_image(rng: np.random.Generator) -> bytes:
    """A changed image, or a PNG that lies about its size."""
    if not VALID_IMAGES:
        VALID_IMAGES.extend(images())
    return png_of_any_size(rng) if rng.random() < 0.2 else mutate(choice(rng, VALID_IMAGES), rng)


VALID_IMAGES: list[bytes] = []


def read_photograph(path: Path) -> object:
    """Read it as for training (a crop) and as for a test."""
    read_image(path, 32, lambda size: (0, 0, 32, 32))
    return read_image(path, 32)


def make_statistics(rng: np.random.Generator) -> bytes:
    """A changed cache, or one whose arrays declare any size and type."""
    arrays = {"fingerprint": "f", "mean_image": np.zeros((4, 4, 3), np.float32), "covariance": np.eye(3)}
    file = io.BytesIO()
    (np.savez_compressed if rng.random() < 0.5 else np.savez)(file, **arrays)
    if rng.random() < 0.7:
        return mutate(file.getvalue(), rng)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in arrays:
            descr = choice(rng, ["<f4", "<f8", "|O", "|V99999", "<U1", "<c16", "x"])
            shape = choice(
                rng, ["()", "(3, 3)", "(4, 4, 3)", "(10**9,)", "(-1,)", "(2**70,)", "1000000000000", "(9999999999,)"]
            )
            header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(400))
    return file.getvalue()


RECORD = {"epoch": 1, "step": 8, "lr": 0.1, "train_loss": 2.3, "train_error": 0.5, "test_error": 0.5, "split": "test"}
NETWORK = {
    "name": "resnet8",
    "builder": "cifar_resnet",
    "arguments": {"depth": 8, "num_classes": 2},
    "names": ["cat", "dog"],
    "classes": None,
    "shorter_side": 32,
    "size": 32,
}


def make_metrics(rng: np.random.Generator) -> bytes:
    """The lines of metrics.jsonl, changed as bytes or as values."""
    kind = rng.random()
    if kind < 0.1:
        return choice(rng, [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"\xff\xfe{}", b"NaN", b"\0" * 100])
    if kind < 0.5:
        return mutate(json.dumps(RECORD).encode() * 2 + b"\n", rng)
    return json.dumps(replaced_somewhere(RECORD, rng)).encode() + b"\n"


def read_run(path: Path) -> object:
    """Read the metrics of a run as `--resume` does."""
    from common.folder import read_metrics

    records = read_metrics(path)
    for record in records:
        numbers = [record[name] for name in ("train_error", "test_error")]
        assert all(type(number) in (int, float) for number in numbers), f"accepted {record}"
        assert type(record["step"]) is int and type(record["split"]) is str, f"accepted {record}"
    return records


def make_network(rng: np.random.Generator) -> bytes:
    """A checkpoint whose description of the network is changed."""
    counters = {"network": replaced_somewhere(NETWORK, rng)}
    text = json.dumps(counters)
    if rng.random() < 0.2:
        text = mutate(text.encode(), rng).decode("latin-1")
    array = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    other = array | {"data_offsets": [12, 24]}
    header = {"__metadata__": {"counters": text}, "extra/mean": array, "extra/std": other}
    return safetensors_file(header, bytes(24))


def read_network(path: Path) -> object:
    """Read the description of the network as the scripts do."""
    from models.config import read_config
    from models.weights import load_network

    config = read_config(path)
    if config is not None:
        config.view()
        with contextlib.suppress(ValueError):  # the file has no weights; a TypeError would be a failure
            load_network(path)
        assert all(isinstance(name, str) for name in (config.name, *config.names)), "accepted names that are not text"
    return config


KINDS = {
    "pickle": Kind(make_pickle, read_pickle),
    "tar": Kind(make_tar, read_tar),
    "safetensors": Kind(make_safetensors, read_checkpoint),
    "image": Kind(make_image, read_photograph, (BrokenImageError,)),
    "statistics": Kind(make_statistics, lambda path: image_statistics._load(path, "f", 4)),
    "metrics": Kind(make_metrics, read_run),
    "network": Kind(make_network, read_network),
}


# ---- Running the cases -----------------------------------------------------------------------------------------------


class TooSlowError(BaseException):
    """Raised by the alarm; not an Exception, so that no reader catches it."""


def content_of(kind: str, seed: int, number: int) -> bytes:
    """The file of one case."""
    return KINDS[kind].make(np.random.default_rng([seed, number, *kind.encode()]))


def outcome(kind: str, path: Path) -> str:
    """Read one file: "accepted", "refused", or what went wrong."""
    RunsCode.marker = str(path.parent / "harm")
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * SECONDS)
    try:
        KINDS[kind].read(path)
        found = "accepted"
    except KINDS[kind].errors as error:
        found = "refused" if path.name in str(error) else f"the file is not named: {type(error).__name__}: {error}"
        found = found if len(str(error)) < 5000 else f"a message of {len(str(error))} characters"
    except TooSlowError:
        found = f"more than {SECONDS} s"
    except BaseException as error:
        found = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "code was run" if Path(RunsCode.marker).exists() else found[:500]


def too_slow(*_: object) -> None:
    """The handler of the alarm."""
    raise TooSlowError


def work(connection, folder: str, jobs: list[tuple[str, int, int]]) -> None:
    """Run the cases (kind, seed, number) and send their outcomes, within the limits."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_slow)
    signal.signal(signal.SIGPROF, too_slow)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = Path(folder, "case")
    for kind, seed, number in jobs:
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 4 * SECONDS, -1))
        RunsCode.marker = str(path.parent / "harm")
        path.write_bytes(content_of(kind, seed, number))
        connection.send(outcome(kind, path))


def run(jobs: list[tuple[str, int, int]], failed: Path) -> tuple[Counter, dict[Path, str]]:
    """Run all cases. Return the counts of (kind, outcome), and the failures: stored file -> what went wrong."""
    counts, failures, context, done = Counter(), {}, multiprocessing.get_context("fork"), 0
    with tempfile.TemporaryDirectory() as folder:
        while done < len(jobs):
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(theirs, folder, jobs[done:]))
            worker.start()
            theirs.close()
            while done < len(jobs):
                kind, seed, number = jobs[done]
                try:
                    found = ours.recv()
                except EOFError:  # killed by a limit, or crashed
                    worker.join()
                    found = f"the process ended with status {worker.exitcode}"
                done += 1
                result = found if found in ("accepted", "refused") else "failure"
                counts[kind, result] += 1
                if result == "failure":
                    failed.mkdir(parents=True, exist_ok=True)
                    path = failed / f"{kind}-{seed}-{number}"
                    path.write_bytes(content_of(kind, seed, number))
                    failures[path] = found
                if found.startswith("the process ended"):
                    break
            ours.close()
            worker.join()
    return counts, failures


def table(counts: Counter, kinds: list[str]) -> str:
    """The counts as a Markdown table."""
    lines = ["| kind | cases | accepted | refused with a named error | failures |", "|---|---:|---:|---:|---:|"]
    for kind in [*kinds, "all"]:
        each = [
            sum(counts[k, result] for k in kinds if kind in (k, "all")) for result in ("accepted", "refused", "failure")
        ]
        lines.append(f"| {kind} | {sum(each):,} | " + " | ".join(f"{number:,}" for number in each) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the cases, print the table and the failures; the exit status is 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=400, help="in all (400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="only this kind")
    parser.add_argument("--failed", type=Path, default=Path("build/fuzz"), help="where to store the inputs of failures")
    parser.add_argument("--replay", type=Path, help="run a stored input, KIND-SEED-NUMBER, without limits")
    args = parser.parse_args()
    if args.replay:
        print(KINDS[args.replay.name.split("-")[0]].read(args.replay))
        return 0
    kinds, start = [args.kind] if args.kind else list(KINDS), time.perf_counter()
    jobs = [(kinds[i % len(kinds)], args.seed, i // len(kinds)) for i in range(args.cases)]
    counts, failures = run(jobs, args.failed)
    print(table(counts, kinds))
    print(f"{time.perf_counter() - start:.0f} s")
    for path, what in list(failures.items())[:50]:
        print(f"{path}: {what}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
