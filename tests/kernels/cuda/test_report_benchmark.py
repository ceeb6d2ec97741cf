"""benchmarks/gpu_report.py on the fake GPU: real processes, the real CuPy, tiny sizes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fake_gpu

ROOT = Path(__file__).parents[3]

SANITIZER = """#!/bin/sh
shift 4
"$@"; status=$?
echo "========= ERROR SUMMARY: 0 errors"
exit $status
"""


@pytest.fixture
def report(kernels, tmp_path, monkeypatch):
    """Runs the parts that are named, with a compute-sanitizer that checks nothing; its exit status and REPORT.md."""
    if not fake_gpu.DRIVER:
        pytest.skip("needs the fake GPU: pytest --device fake")
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text(SANITIZER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    def run(*parts):
        script = ROOT / "benchmarks" / "gpu_report.py"
        command = [sys.executable, script, "--out", tmp_path / "out", "--device", "fake", "--only", *parts]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert not done.stderr
        return done.returncode, (tmp_path / "out" / "REPORT.md").read_text()

    return run


def test_its_parts_run_and_are_reported(report, tmp_path):
    status, page = report("facts", "tests-ops", "sanitizer-memcheck", "kernels", "torch-amp")
    logs = "".join(path.read_text() for path in sorted((tmp_path / "out" / "logs").iterdir()))
    assert status == 0, logs[-4000:]
    assert page.startswith("# minidl on fake GPU\n\n**This is the fake GPU: no figure here means anything.**")
    assert "| facts | Machine and versions | passed |" in page
    assert "| torch-amp | Training steps, PyTorch: torch_amp | absent |" in page
    for part in ("tests-ops", "sanitizer-memcheck"):
        ((passed, failed, unfinished),) = re.findall(rf"^\| {part} \| (\d+) \| (\d+) \| \d+ \| (\d+) \|$", page, re.M)
        assert int(passed) > 0
        assert (failed, unfinished) == ("0", "0")
    assert "| cupy's own |" in page
    assert "float32, cuBLAS, columns given" in page
    measured = json.loads((tmp_path / "out" / "gpu.json").read_text())["measurements"]
    assert set(measured) == {"resnet20 b1/kernels", "convolution 1x4x4x8"}
