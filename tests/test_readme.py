"""What README shows is what happens."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
*PROGRAMS, (TRACE, _) = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README, re.DOTALL)


@pytest.mark.parametrize(("program", "expected"), PROGRAMS, ids=["example", "own operation"])
def test_the_programs_run_and_print_what_readme_says(program, expected, tmp_path):
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    numbers, words = split(done.stdout)
    expected_numbers, expected_words = split(expected)
    assert words == expected_words
    assert numbers == pytest.approx(expected_numbers, abs=5)  # per cent; another CPU adds in another order


def test_a_step_of_the_example_is_traced(tmp_path):
    program = PROGRAMS[0][0].replace("range(6)", "range(1)") + TRACE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "CrossEntropy" in done.stdout
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def split(text):
    """The numbers of a text, and the text without them."""
    return [float(number) for number in re.findall(r"\d+", text)], re.sub(r"\d+", "#", text)


def test_the_reading_list_names_files_and_their_lengths():
    rows = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \|", README, re.MULTILINE)
    assert len(rows) > 5
    for name, lines in rows:
        files = [ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py"))
        count = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        assert int(lines.replace(",", "")) == count, name


@pytest.mark.parametrize("heading", ["### Train a ResNet", "### Pass the tests"])
def test_a_set_up_command_is_one_line(heading):
    section = README.split(heading)[1].split("\n#")[0]
    (command,) = re.findall(r"```sh\n(.*?)\n```", section, re.DOTALL)
    assert "\n" not in command
    assert "pip install" in command
