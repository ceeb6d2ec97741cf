"""What a GPU cannot do is an error that says so, and the process goes on."""

import importlib

import numpy as np
import pytest

import minidl
from minidl import Tensor
from minidl.functional import conv2d, relu
from minidl.nn import BatchNorm2d


@pytest.fixture
def launch(kernels):
    return importlib.import_module("minidl.kernels.cuda._launch")


@pytest.fixture
def x(device):
    return Tensor(np.ones((2, 4, 4, 3), np.float32), device=device)


def test_tensors_of_two_devices_do_not_meet(x):
    with pytest.raises(TypeError, match=r"inputs of device cuda and cpu; convert one with \.to\('cuda'\)"):
        x + Tensor(np.ones((2, 4, 4, 3), np.float32))
    with pytest.raises(TypeError, match="conv2d: inputs of device cuda and cpu"):
        conv2d(x, Tensor(np.ones((3, 3, 3, 5), np.float32)))
    with pytest.raises(TypeError, match="batch_norm: inputs of device cuda and cpu"):
        BatchNorm2d(3)(x)
    assert relu(x).numpy().sum() == 96


def test_a_gpu_that_is_too_old_is_named(launch, x, monkeypatch):
    kernel = launch.CudaKernel("triple", 'extern "C" __global__ void triple(real* x) { x[0] *= 3; }')
    monkeypatch.setattr(kernel, "lowest_architecture", 999)
    with pytest.raises(
        RuntimeError, match=r"triple with float32: expected .* compute capability 99\.9 or more, got \d"
    ):
        kernel.launch(1, 1, (x.data,), np.float32)
    assert relu(x).numpy().sum() == 96
    launch.CudaKernel.every.remove(kernel)


def test_a_kernel_refuses_arrays_with_gaps(launch, x, kernels):
    kernel = launch.CudaKernel("halve", 'extern "C" __global__ void halve(real* x) { x[0] /= 2; }')
    with pytest.raises(ValueError, match="halve: expected contiguous arrays, got strides"):
        kernel.launch(1, 1, (x.data[..., ::2],), np.float32)
    launch.CudaKernel.every.remove(kernel)


def test_a_count_of_another_dtype_is_refused(kernels, to_device):
    """The kernel gets its address alone, and would count beyond its end."""
    ones, lr = [to_device(np.ones(3))], to_device(np.array(0.1))
    with pytest.raises(ValueError, match="adam_update: expected counts of int64, got int32"):
        kernels.adam_update(ones, ones, ones, ones, [to_device(np.array(0, np.int32))], lr, 0.9, 0.9, 1e-8, 0.0, False)


def test_what_moved_to_the_gpu_and_back_is_the_same(device, rng):
    model = BatchNorm2d(3)
    before = model.state_dict()
    after = model.to(device).to("cpu").state_dict()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    images = rng.standard_normal((2, 3))
    assert minidl.Tensor(images, device=device).to("cpu").numpy().tolist() == images.tolist()


def test_an_image_that_does_not_exist_is_nan_and_the_others_are_right(kernels, to_device, to_host):
    """Nobody asks the GPU for its numbers, which would take as long as a step; and it reads nothing but the images."""
    zeros, ones = np.zeros(4, np.int64), np.ones((2, 2, 3), np.float32)
    images, chosen = np.full((5, 2, 2, 3), 7, np.uint8), np.array([-1, 0, 4, 5])
    arrays = map(to_device, (images, chosen, zeros, zeros, zeros, ones, ones))
    y = to_host(kernels.crop_and_flip(*arrays, 0, False))
    assert np.isnan(y[[0, 3]]).all()
    assert (y[1:3] == 6).all()


def test_out_of_memory_says_what_was_asked_and_which_batch_would_fit(x, monkeypatch):
    import cupy

    class Small:
        """A device of 1 GiB, of which 3/4 are free before a step and 1/4 when it fails."""

        free = iter([768, 256])

        @property
        def mem_info(self):
            return next(self.free) * 2**20, 2**30

    def fail(*_):
        raise cupy.cuda.memory.OutOfMemoryError(512 * 2**20, 0)

    with monkeypatch.context() as patch:
        patch.setattr(cupy.cuda, "Device", Small)
        patch.setattr("minidl.functional.apply", fail)
        asked = r"asked for 0\.5 GiB more with 0\.2 GiB free of 1\.0 GiB"
        wanted = asked + "; 64 images need 1\\.0 GiB or more, so at most 48 fit"
        with pytest.raises(MemoryError, match=wanted), minidl.explain_out_of_memory(64):
            relu(x)
    assert relu(x).numpy().sum() == 96
