"""Error handling of the scripts: one-line messages, and no training lost because a plot or a terminal fails."""

import argparse
import contextlib
import io
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from minidl import explain_out_of_memory, tf32
from minidl.data import BrokenImageError


@contextlib.contextmanager
def one_line_errors(parser: argparse.ArgumentParser | None = None) -> Iterator[None]:
    """Print errors that the user can fix in one line, without a traceback, and warnings too. Ctrl-C exits with 130.

    With a `parser` (during set-up) the usage is printed first and the status is 2; otherwise it is 1. Other errors,
    such as RuntimeError, keep their traceback: they are bugs or GPU errors.
    """
    try:
        with _one_line_warnings():
            yield
    except (ValueError, OSError, ModuleNotFoundError) as problem:
        remedy = f": pip install {problem.name}" if isinstance(problem, ModuleNotFoundError) else ""
        remedy = " (--skip-broken)" if isinstance(problem, BrokenImageError) else remedy
        if parser is not None:
            parser.error(f"{problem}{remedy}")
        raise SystemExit(f"error: {problem}{remedy}") from None
    except KeyboardInterrupt:
        log("interrupted", sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print warnings above the progress bars. NumPy's about overflow and NaN are dropped: a run looks for both."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(overflow|invalid value|divide by zero) encountered", RuntimeWarning)
        warnings.showwarning = lambda message, *_, **__: log(f"warning: {message}", sys.stderr)
        yield


def precision(dtype: str) -> contextlib.AbstractContextManager:
    """A context that rounds the factors of float32 products to TF32 if dtype is 'tf32'."""
    return tf32() if dtype == "tf32" else contextlib.nullcontext()


@contextlib.contextmanager
def suggest_batch_size(images: int, option: str = "--batch-size") -> Iterator[None]:
    """On running out of GPU memory, print the number of images that fit and the option to change."""
    try:
        with explain_out_of_memory(images):
            yield
    except MemoryError as problem:
        raise SystemExit(f"error: {problem}; use a smaller {option}") from None


class Nowhere(io.TextIOBase):
    """Replaces the output to a terminal that is closed, and that of ranks other than 0."""

    def write(self, text: str) -> int:
        """Drop the text."""
        return len(text)


def log(line: str, file: TextIO | None = None) -> None:
    """Print a line above the progress bars. A closed terminal or pipe is ignored, so that training continues."""
    with contextlib.suppress(OSError):
        tqdm.write(line, file)


def drop_closed_output() -> None:
    """Replace stdout and stderr if they are closed: text left in their buffers makes Python exit with status 120."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            setattr(sys, name, Nowhere())


@contextlib.contextmanager
def warn_if_not_drawn(path: Path) -> Iterator[None]:
    """Turn a failure to draw into a warning, so that no training is lost. Without matplotlib nothing is drawn."""
    try:
        yield
    except ImportError:
        pass
    except Exception as problem:  # matplotlib and the disk raise many types
        log(f"warning: could not draw {path} ({problem})", sys.stderr)


def format_time(seconds: float) -> str:
    """Format as minutes:seconds: 1:05 for 65 seconds, 61:05 for 3,665."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"
