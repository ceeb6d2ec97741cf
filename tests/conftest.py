"""What all tests share: `pytest --device cpu|cuda|all|fake` runs the same bodies on other devices.

On 'fake' the real CuPy runs on a CUDA driver for the CPU, and the CUDA kernels are compiled by g++ (tests/fake_gpu);
minidl takes it for 'cuda'.
"""

import functools
import gc
import os
import signal
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from minidl import kernels as dispatch
from tests import fake_gpu

DEVICES = {"cpu": ["cpu"], "cuda": ["cuda"], "all": ["cpu", "cuda"], "fake": ["cuda"]}

# The same examples at every run. A fixture may serve all examples of a test, as none here keeps any state.
hypothesis.settings.register_profile(
    "minidl",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("minidl")


def pytest_addoption(parser):
    parser.addoption("--device", choices=DEVICES, default="cpu", help="cpu (the default), cuda, all, fake")
    parser.addoption("--long", action="store_true", help="ten times as many random cases where a test has them")


def pytest_configure(config):
    """A run that asks for a GPU gets one or an error: skipped tests would look like passed ones."""
    if "MPLCONFIGDIR" not in os.environ:  # matplotlib's list of fonts, which can be broken in the user's own cache
        folder = tempfile.TemporaryDirectory(prefix="matplotlib-")
        config.add_cleanup(folder.cleanup)
        os.environ["MPLCONFIGDIR"] = folder.name
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in `pytest &`; some tests press Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    device = config.getoption("--device")
    if device == "fake":
        try:
            fake_gpu.install()
        except fake_gpu.UnavailableError as error:
            raise pytest.UsageError(f"--device fake: {error}") from error
    elif device != "cpu" and not _gpu_present():
        raise pytest.UsageError(f"--device {device} needs CuPy and a GPU")


def _gpu_present():
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:  # no CuPy, no driver, or no GPU: each has its own class
        return False


def pytest_ignore_collect(collection_path, config):
    """Folders named cuda hold tests of what only the GPU has: they are no part of a run on the CPU.

    The fake GPU's own tests need it.
    """
    device, folder = config.getoption("--device"), collection_path.name
    if (folder == "cuda" and device == "cpu") or (folder == "fake_gpu" and device != "fake"):
        return True
    return None  # ask the others


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES[metafunc.config.getoption("--device")], scope="session")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") in ("cuda", "fake"):
        alike = [item for item in items if not _differs_by_device(item)]
        config.hook.pytest_deselected(items=alike)
        items[:] = [item for item in items if _differs_by_device(item)]
    for item in items:
        if "torch" in item.fixturenames:
            item.add_marker("against_torch")
        if {"real_cifar10", "imagenet_sample"} & set(item.fixturenames):
            item.add_marker("real_data")


def _differs_by_device(item):
    """The other tests do on any device what they do on the CPU."""
    return "device" in item.fixturenames or not {"cuda", "fake_gpu"}.isdisjoint(item.path.parts)


@pytest.fixture(autouse=True)
def finish_work_on_the_fake_gpu():
    """What goes wrong there shows when somebody waits: in the test that began it."""
    yield
    fake_gpu.finish()


@pytest.fixture
def to_device(device):
    """A NumPy array -> the same on the device under test (on 'cpu' the array itself)."""
    return functools.partial(dispatch.to_device, device=device)


@pytest.fixture
def to_host():
    """An array of any device -> NumPy array."""
    return functools.partial(dispatch.to_device, device="cpu")


@pytest.fixture
def kernels(to_device):
    """The kernel module of the device under test."""
    return dispatch.kernels_for(to_device(np.zeros(1)))


@pytest.fixture
def rng(request):
    """A random generator of the test's own: its numbers change neither with the other tests nor with their order."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def no_garbage_collector():
    """What lives on, lives because something refers to it."""
    gc.collect()
    gc.freeze()  # or each of these tests would look through all of PyTorch and pytest again
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory):
    """A folder with the official CIFAR-10 batches. Tests that ask for it are skipped where they are not to be had."""
    unpack = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "unpack.py"
    if not unpack.exists():
        pytest.skip(f"needs the CIFAR-10 files beside {unpack}")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, unpack, folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def imagenet_sample():
    """A folder with photographs of ImageNet, one folder per class. Skipped where there is none."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"
    if not folder.exists():
        pytest.skip(f"needs the photographs in {folder}")
    return folder


@pytest.fixture
def torch():
    """PyTorch. The tests that ask for it are marked `against_torch`, and skipped where it is absent."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # two thread pools at once wait for each other, most of all on a busy machine
    return torch
