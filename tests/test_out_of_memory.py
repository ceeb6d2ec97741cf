"""explain_out_of_memory where there is CuPy and no GPU. With one: tests/kernels/cuda/test_bad_input.py."""

import sys

import minidl
from minidl.system import gpu


class CupyWithoutGpu:
    """What there is of CuPy on a machine without a GPU, once something has imported it."""

    ndarray = type("ndarray", (), {})

    class cuda:  # noqa: N801 - CuPy's name
        class runtime:  # noqa: N801
            CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})

            @classmethod
            def getDeviceCount(cls):  # noqa: N802
                raise cls.CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    @staticmethod
    def get_default_memory_pool():
        raise CupyWithoutGpu.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver")


def test_a_cupy_that_finds_no_gpu_does_not_stop_training_on_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", CupyWithoutGpu)
    gpu.require_cupy.cache_clear()
    with minidl.explain_out_of_memory(8):
        total = minidl.ones(2, 3).sum().item()
    gpu.require_cupy.cache_clear()
    assert total == 6
