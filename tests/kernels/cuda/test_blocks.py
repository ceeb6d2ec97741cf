"""What the threads of a block find out together can be asked twice: a barrier stands between reading and writing again.

Some threads run ahead of others on a GPU whenever they like. On the fake GPU two orders show it.
"""

import contextlib

import numpy as np
import pytest

from tests import fake_gpu


def threads_in(order):
    """The order of a block's threads within a context; a GPU has its own."""
    return fake_gpu.settings(order=order) if fake_gpu.DRIVER else contextlib.nullcontext()


orders = pytest.mark.parametrize("order", ["ascending", "descending"])


def kernel(name, prefix, source):
    """A kernel that no test but its own sees."""
    from minidl.kernels.cuda._launch import CudaKernel

    signature = f'extern "C" __global__ void {name}(const real* x, real* y) {{\n{source}\n}}\n'
    made = CudaKernel(name, prefix + signature, ("float32",))
    CudaKernel.every.remove(made)
    return made


def launch(order, made, threads, x, outputs, to_device, constants=None):
    import cupy

    y = cupy.empty(outputs, np.float32)
    with threads_in(order):
        made.launch(1, threads, (to_device(x), y), np.float32, constants or {})
    return y.get()


@orders
def test_the_sum_of_a_block_may_be_asked_twice(order, to_device, rng):
    made = kernel("sums", "", "y[threadIdx.x] = block_sum(x[threadIdx.x]) + 1000 * block_sum(1);")
    x = rng.integers(0, 9, 64).astype(np.float32)
    y = launch(order, made, 64, x, 64, to_device)
    np.testing.assert_array_equal(y, np.full(64, x.sum() + 64_000))


@orders
def test_the_maximum_of_a_block_may_be_asked_twice(order, to_device, rng):
    from minidl.kernels.cuda.softmax import ROWS

    made = kernel("maxima", ROWS, "y[threadIdx.x] = block_max(x[threadIdx.x]) + 1000 * block_max(7 - x[threadIdx.x]);")
    x = rng.integers(0, 9, 64).astype(np.float32)
    y = launch(order, made, 64, x, 64, to_device)
    np.testing.assert_array_equal(y, np.full(64, x.max() + 1000 * (7 - x).max()))


@orders
@pytest.mark.parametrize("height", [1, 2, 16])
def test_the_sums_of_a_blocks_columns_may_be_asked_twice(height, order, to_device, rng):
    from minidl.kernels.cuda._slabs import SLABS

    source = """
    Numbers sum = sum_over_rows(load(x, threadIdx.y * blockDim.x + threadIdx.x)), ones = sum_over_rows(Numbers(1));
    if (threadIdx.y == 0) store(y, threadIdx.x, sum + ones * 1000);
    """
    made = kernel("column_sums", SLABS, source)
    x = rng.integers(0, 9, (height, 8, 2)).astype(np.float32)
    y = launch(order, made, (8, height), x, (8, 2), to_device, {"VECTOR": 2})
    np.testing.assert_array_equal(y, x.sum(0) + 1000 * height)
