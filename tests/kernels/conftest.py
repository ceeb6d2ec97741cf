"""Two ways to ask a kernel: `run` it and look at the result, or ask whether it `agrees` with the plain loops."""

import functools

import pytest

from minidl.kernels import reference
from tests.kernels.compare import Runner, assert_agrees


@pytest.fixture(params=["reference", "device"])
def run(request, kernels, to_device, to_host):
    """run(name, *args) -> NumPy arrays: once by the plain loops, and once by the kernel of the device under test."""
    return Runner(reference) if request.param == "reference" else Runner(kernels, to_device, to_host)


@pytest.fixture
def agrees(kernels, to_device, to_host):
    """agrees(name, *args) fails unless the kernel of the device under test does what the plain loops do."""
    return functools.partial(assert_agrees, Runner(kernels, to_device, to_host))
