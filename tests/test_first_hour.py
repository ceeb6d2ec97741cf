"""docs/first-hour.md: each command prints what the page shows, after the changes that it asks for."""

import doctest
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
EXERCISE = Path("workbench", "conv2d_backward_x.py")


@pytest.fixture
def clone(tmp_path):
    """A folder like a clone, in which `python` is this Python."""
    for name in ("minidl", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    return tmp_path


def run(clone, command):
    """What a command prints."""
    environment = os.environ | {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(clone)}
    done = subprocess.run(command, shell=True, cwd=clone, env=environment, capture_output=True, text=True, timeout=900)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def write_body(path, body):
    """Everything below the docstring of the exercise's function becomes `body`."""
    source = path.read_text(encoding="utf-8")
    head = re.match(r'.*?\ndef \w+\(.*?\):\n    """.*?"""\n', source, re.DOTALL)[0]
    path.write_text(head + body, encoding="utf-8")


def is_as_shown(got, shown):
    """Equal but for what `...` stands for, and for spaces."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown, got, flags)


def test_each_command_prints_what_the_page_shows(clone):
    blocks = re.findall(r"^```(console|python)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks].count("console") == 6
    for kind, text in blocks:
        if kind == "python":
            write_body(clone / EXERCISE, text)
        else:
            command, shown = text.removeprefix("$ ").split("\n", 1)
            got = run(clone, command)
            assert is_as_shown(got, shown), got


def test_what_is_not_as_shown_is_found():
    assert is_as_shown("a\n  b 3\n", "a\n...3\n")
    assert not is_as_shown("a\n  b 4\n", "a\n...3\n")
