"""The GPU that a process computes on."""

from types import SimpleNamespace

import pytest

from minidl.system import gpu, memory


class TwoGpus:
    """What `select_gpu` asks of CuPy, on a machine with two GPUs."""

    def __init__(self):
        self.current = 0
        self.runtime = SimpleNamespace(getDeviceCount=lambda: 2, getDevice=lambda: self.current)
        self.cuda = SimpleNamespace(runtime=self.runtime, Device=self.device)

    def device(self, number):
        return SimpleNamespace(use=lambda: setattr(self, "current", number))


@pytest.fixture
def cupy(monkeypatch):
    cupy = TwoGpus()
    monkeypatch.setattr(gpu, "require_cupy", lambda: cupy)
    monkeypatch.setattr(gpu, "_selected", [])
    return cupy


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((name, True) for name in ("cpu", "cuda", "cuda:0", "cuda:7", "cuda:12")),
        *((name, False) for name in ("gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "Cuda", "", None, 0, "float32")),
    ],
)
def test_names_of_devices(name, is_one):
    assert gpu.is_device(name) is is_one


def test_a_named_gpu_becomes_the_current_one_in_every_thread(cupy):
    assert gpu.select_gpu("cuda:1") is cupy
    assert cupy.current == 1
    cupy.current = 0  # as in a new thread
    gpu.select_gpu("cuda")
    assert cupy.current == 1


def test_without_a_number_it_is_the_current_one(cupy):
    gpu.select_gpu("cuda")
    gpu.select_gpu("cuda:0")
    assert cupy.current == 0


def test_a_process_uses_one_gpu(cupy):
    gpu.select_gpu("cuda")
    with pytest.raises(RuntimeError, match="device 'cuda:1': this process uses 'cuda:0'"):
        gpu.select_gpu("cuda:1")
    assert cupy.current == 0


def test_a_gpu_that_is_not_there_is_named_and_another_one_can_be_chosen(cupy):
    with pytest.raises(RuntimeError, match=r"device 'cuda:7': CuPy finds 2 GPU\(s\)"):
        gpu.select_gpu("cuda:7")
    gpu.select_gpu("cuda:1")
    assert cupy.current == 1


@pytest.mark.parametrize("fraction", [0, -1, 1.5, float("nan")])
def test_a_limit_of_memory_is_a_fraction(fraction):
    with pytest.raises(ValueError, match="set_per_process_memory_fraction: expected 0 < fraction <= 1"):
        memory.set_per_process_memory_fraction(fraction)
