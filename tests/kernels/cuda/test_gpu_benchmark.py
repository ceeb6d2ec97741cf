"""benchmarks/gpu.py measures our steps on the device under test, writes as it goes, and continues what it has begun.

Of PyTorch's sides the eager ones are built on the CPU; its graphs and torch.compile need a GPU.
"""

import json
import sys

import gpu
import gpu_kernels
import gpu_sides
import numpy as np
import pytest
import step_worker

WORKLOAD = "resnet8 b2"
CONVOLUTION = "convolution 1x4x4x8"


@pytest.fixture
def run(kernels, tmp_path, monkeypatch):
    """Runs gpu.py with a small network; returns its exit status and its record."""
    monkeypatch.setitem(step_worker.MODELS, "resnet8", ("cifar_resnet", (8, "A"), 8, 10))
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)  # pytest's own handlers stay

    def run(*options):
        path = tmp_path / "record.json"
        small = ["--models", "resnet8", "--batch", "2", "--rounds", "2", "--steps", "1", "--warmup", "1"]
        small += ["--convolution", "1", "4", "4", "8", "--json", str(path)]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *small, *options])
        try:
            gpu.main()
        except SystemExit as end:
            return end.code, json.loads(path.read_text())
        return 0, json.loads(path.read_text())

    return run


def test_our_steps_and_kernels_are_measured(run, capsys):
    status, record = run()
    assert status == 0
    found = record["measurements"]
    assert found.keys() == {f"{WORKLOAD}/{kind}" for kind in (*gpu.OUR_SIDES, "kernels")} | {CONVOLUTION}
    sides = {kind: found[f"{WORKLOAD}/{kind}"] for kind in gpu.OUR_SIDES}
    assert all(side["ms"] > 0 and side["failures"] == [] for side in sides.values())
    assert all(side["relative"] > 0 for kind, side in sides.items() if kind != "graph")
    assert sides["graph"]["losses"] == sides["half"]["losses"]
    assert sides["half"]["losses"] == pytest.approx(sides["float32"]["losses"], rel=0.05)
    launches = {line["kernel"]: line["launches"] for line in found[f"{WORKLOAD}/kernels"]["lines"]}
    assert launches["conv_forward"] == launches["conv_backward_weight"] == 8  # seven convolutions, and the last layer
    assert launches["conv_backward_x"] == 7  # the images need no gradient
    assert list(launches)[-1] == "cupy's own"
    ways = [line["way"] for line in found[CONVOLUTION]["lines"]]
    assert ways == ["bfloat16", "bfloat16 by mma", "tf32", "float32", "float32, cuBLAS, columns given"]
    assert set(record["device"]) >= {"gpu", "capability", "numpy", "torch"}
    assert "the step as a graph" in capsys.readouterr().out


def test_what_is_measured_is_not_measured_again(run, monkeypatch):
    run("--what", "convolution")
    monkeypatch.setattr(gpu_kernels, "measure_convolution", lambda shape: pytest.fail("measured again"))
    status, record = run("--what", "convolution")
    assert (status, record["measurements"][CONVOLUTION].get("failures")) == (0, None)


def test_a_failure_is_recorded_and_the_others_go_on(run, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no kernels today")

    with monkeypatch.context() as patch:
        patch.setattr(gpu_kernels, "measure_kernels", fail)
        status, record = run("--what", "kernels", "convolution")
        assert status == gpu.FAILED
        assert record["measurements"][f"{WORKLOAD}/kernels"]["failures"] == ["RuntimeError: no kernels today"]
        assert record["measurements"][CONVOLUTION]["lines"]
    assert run("--what", "kernels")[0] == gpu.FAILED  # it is not tried again ...
    status, record = run("--what", "kernels", "--retry")  # ... unless asked
    assert status == 0
    assert record["measurements"][f"{WORKLOAD}/kernels"]["lines"]


def test_it_stops_in_time_and_says_what_is_left(run, capsys):
    status, record = run("--minutes", "1e-6")
    assert status == gpu.UNFINISHED
    assert record["measurements"].keys() == {f"{WORKLOAD}/graph"}  # one, so that each call gets on
    assert f"left: {WORKLOAD}/half" in capsys.readouterr().out


def test_pytorchs_sides_need_its_gpu(run, monkeypatch, capsys):
    run("--what", "convolution")
    monkeypatch.setattr(gpu, "torch_has_gpu", lambda: False)
    assert run("--against", "torch")[0] == 2
    assert "PyTorch for CUDA" in capsys.readouterr().err


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), None], ids=repr)
def test_a_measurement_that_ends_the_process_is_not_tried_again(kernels, end, tmp_path):
    """Unless Ctrl-C or SIGTERM has ended it."""
    path = tmp_path / "record.json"
    record = gpu.Record(path, {"gpu": "any"})
    seen = []

    def measure():
        seen.append(json.loads(path.read_text()))  # what stays in the file if the process is killed here
        if end is not None:
            raise end
        return {"ms": 1.0}

    if end is None:
        assert gpu.attempt(record, "x", measure) == {"ms": 1.0}
    else:
        with pytest.raises(type(end)):
            gpu.attempt(record, "x", measure)
        assert json.loads(path.read_text())["measurements"] == {}
    assert "did not end" in seen[0]["measurements"]["x"]["failures"][0]


def test_a_record_of_another_gpu_is_refused(run, tmp_path, capsys):
    (tmp_path / "record.json").write_text(json.dumps({"device": {"gpu": "another"}, "measurements": {}}))
    status, record = run()
    assert (status, record["measurements"]) == (2, {})
    assert "choose another --json" in capsys.readouterr().err


def test_pytorchs_eager_sides_begin_as_ours(run, torch, monkeypatch, capsys):
    monkeypatch.setattr(gpu_sides, "TORCH_DEVICE", "cpu")
    _, record = run("--what", "steps", "--sides", *gpu.OUR_SIDES, "torch_float32", "torch_amp")
    found = record["measurements"]
    assert found[f"{WORKLOAD}/torch_float32"].get("failures") == []
    assert found[f"{WORKLOAD}/torch_amp"]["relative"] > 0
    assert found[f"{WORKLOAD}/torch_amp"]["losses"] == pytest.approx(found[f"{WORKLOAD}/half"]["losses"], rel=0.05)
    assert f"{WORKLOAD}: graph has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"float32": [2.0, 1.9], "torch_float32": [2.0, 1.91]}, "float32 and torch_float32 differ by 5"),
        ({"graph": [2.0], "half": [2.0000001]}, "graph and half differ by 5"),
        ({"tf32": [float("nan")]}, "the losses of tf32 are"),
    ],
)
def test_losses_that_disagree_are_failures(losses, message, kernels):
    (failure,) = gpu_sides.loss_failures(next(iter(losses)), losses)
    assert message in failure
    assert gpu_sides.loss_failures("half", {"half": [2.0], "graph": [2.0], "float32": [2.1]}) == []


def test_copies_are_more_than_the_cache_holds(to_device, monkeypatch):
    import cupy

    properties = {"name": b"any", "l2CacheSize": 50 * 2**20}
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceProperties", lambda device: properties)
    arrays = [to_device(np.zeros(size, np.uint8)) for size in (3 * 2**20, 2**20)]
    assert gpu_kernels.copies_needed(arrays) == 25
    assert gpu_kernels.copies_needed([to_device(np.zeros(1, np.float32))]) == gpu_kernels.MOST_COPIES
    assert gpu_kernels.copies_needed([]) == gpu_kernels.MOST_COPIES


def test_a_copy_of_the_arguments_has_other_arrays_and_the_same_numbers(to_device, to_host):
    x = to_device(np.arange(3.0))
    blocks, _, (first, second, number), dtype = gpu_kernels.with_copies((4, 256, (x, x, 7), x.dtype))
    assert (blocks, number, dtype) == (4, 7, x.dtype)
    assert first.data.ptr == second.data.ptr != x.data.ptr
    np.testing.assert_array_equal(to_host(first), [0, 1, 2])
