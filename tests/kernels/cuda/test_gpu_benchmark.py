"""benchmarks/gpu.py makes its own steps on the device under test; what it makes of PyTorch needs a GPU."""

import json
import sys

import gpu


def test_our_step_is_measured(kernels, tmp_path, monkeypatch, capsys):
    path = tmp_path / "record.json"
    options = ["--models", "resnet20", "--batch", "2", "--rounds", "1", "--steps", "1", "--warmup", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options, "--json", str(path)])
    gpu.main()
    record = json.loads(path.read_text())
    (workload,) = record["records"]
    assert (workload["model"], workload["batch"]) == ("resnet20", 2)
    assert workload["ours_ms"] > 0
    assert len(workload["losses"]["ours"]) == 3
    assert set(record["device"]) >= {"gpu", "driver", "numpy", "torch"}
    assert "ours" in capsys.readouterr().out
