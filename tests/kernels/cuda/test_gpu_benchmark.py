"""benchmarks/gpu.py makes its own steps on the device under test; what it makes of PyTorch needs a GPU."""

import json
import sys

import gpu
import pytest
import step_worker


def test_our_step_is_measured(kernels, tmp_path, monkeypatch, capsys):
    path = tmp_path / "record.json"
    monkeypatch.setitem(step_worker.MODELS, "resnet8", ("cifar_resnet", (8, "A"), 8, 10))
    options = ["--models", "resnet8", "--batch", "2", "--rounds", "1", "--steps", "1", "--warmup", "1"]
    options += ["--convolution", "1", "4", "4", "8"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options, "--json", str(path)])
    gpu.main()
    record = json.loads(path.read_text())
    (workload,) = record["records"]
    assert (workload["model"], workload["batch"]) == ("resnet8", 2)
    assert set(workload["ms"]) == set(gpu.OUR_SIDES)
    assert all(milliseconds > 0 for milliseconds in workload["ms"].values())
    assert workload["losses"]["graph"] == workload["losses"]["bfloat16"]
    assert workload["losses"]["bfloat16"] == pytest.approx(workload["losses"]["float32"], rel=0.05)
    launches = {line["kernel"]: line["launches"] for line in workload["kernels"]}
    assert launches["conv_forward"] == launches["conv_backward_weight"] == 8  # seven convolutions, and the last layer
    assert launches["conv_backward_x"] == 7  # the images need no gradient
    assert [line["way"] for line in record["convolution"]] == [
        "bfloat16",
        "tf32",
        "float32",
        "float32, cuBLAS, columns given",
    ]
    assert set(record["device"]) >= {"gpu", "driver", "numpy", "torch"}
    assert "kernels of a bfloat16 step" in capsys.readouterr().out
