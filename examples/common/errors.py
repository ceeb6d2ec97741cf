"""How scripts end: errors in one line, and no training lost for a picture or for a terminal that is gone."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from minidl import explain_out_of_memory, tf32
from minidl.data import BrokenImageError


@contextlib.contextmanager
def one_line_errors(parser: argparse.ArgumentParser | None = None) -> Iterator[None]:
    """An error that the user can put right is one line, without a traceback; Ctrl-C ends the script with status 130.

    With a `parser`, while a script is set up, the usage comes before the line, and the status is 2; else it is 1. Other
    errors, such as RuntimeError, keep their traceback: they are a bug, or the GPU's.
    """
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as problem:
        remedy = f": pip install {problem.name}" if isinstance(problem, ModuleNotFoundError) else ""
        remedy = ", which --skip-broken does" if isinstance(problem, BrokenImageError) else remedy
        if parser is not None:
            parser.error(f"{problem}{remedy}")
        raise SystemExit(f"error: {problem}{remedy}") from None
    except KeyboardInterrupt:
        tell("stopped at once", sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def precision(dtype: str) -> contextlib.AbstractContextManager:
    """Within it, products are rounded as --dtype says."""
    return tf32() if dtype == "tf32" else contextlib.nullcontext()


@contextlib.contextmanager
def fitting_memory(images: int, option: str = "--batch-size") -> Iterator[None]:
    """If the GPU's memory is too small for these images, say how many fit, and which option to change."""
    try:
        with explain_out_of_memory(images):
            yield
    except MemoryError as problem:
        raise SystemExit(f"error: {problem}; give a smaller {option}") from None


def tell(line: str, file: TextIO | None = None) -> None:
    """Print a line above the progress bars. A terminal or a pipe that is gone is no reason to end a training."""
    with contextlib.suppress(OSError):
        tqdm.write(line, file)


@contextlib.contextmanager
def drawing(path: Path) -> Iterator[None]:
    """A picture that cannot be drawn is a warning, and none without matplotlib: no training is lost for a picture."""
    try:
        yield
    except ImportError:
        pass
    except Exception as problem:  # matplotlib and the disk raise many kinds
        tell(f"warning: {path} was not drawn ({problem})", sys.stderr)


def clock(seconds: float) -> str:
    """1:05 for 65 seconds, and 61:05 for an hour more."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"
