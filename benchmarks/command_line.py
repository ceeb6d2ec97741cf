"""What the command lines of the benchmarks share: the types of their options, and errors of one line."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from common.errors import one_line_errors
from common.options import DTYPES, natural, positive, positive_number, rate  # noqa: F401 - for the benchmarks


def new_file(text: str) -> Path:
    """An argparse type: a file to write. Its folder is looked at first, as what was measured would be lost."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text}")
    return path


def run_main(main: Callable[[], None]) -> None:
    """Call `main`; an error that the user can mend is one line, with exit status 2."""
    with one_line_errors(argparse.ArgumentParser(usage=argparse.SUPPRESS)):
        try:
            main()
        except subprocess.CalledProcessError as problem:
            raise SystemExit(problem.returncode) from None  # of a side, which has printed its message
