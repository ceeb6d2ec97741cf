"""What a captured step computes together: the same bits as one by one, in fewer launches."""

from collections import Counter

import ml_dtypes
import numpy as np
import pytest

import minidl
from minidl import Tensor, nn
from minidl.functional import relu
from minidl.kernels import device_of

DTYPES = ["float32", "float64", "bfloat16", "float16"]


@pytest.fixture
def launches(kernels, monkeypatch):
    """Counts the launches of each kernel."""
    from minidl.kernels.cuda._launch import CudaKernel

    counts, launch = Counter(), CudaKernel.launch

    def count(kernel, *arguments, **options):
        counts[kernel.name] += 1
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(CudaKernel, "launch", count)
    return counts


@pytest.fixture
def fusion(kernels):
    from minidl.kernels.cuda import _fusion

    return _fusion


class Block(nn.Module):
    """The end of a residual block, whose shortcut is the input itself or a batch norm of another array."""

    def __init__(self, channels, projects):
        self.bn, self.projection = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels) if projects else None
        for bn in (self.bn, self.projection) if projects else (self.bn,):
            bn.weight.data[...] = np.linspace(0.5, 2, channels)
            bn.bias.data[...] = np.linspace(-1, 1, channels)

    def forward(self, x, shortcut):
        return relu(self.bn(x) + (self.projection(shortcut) if self.projection else shortcut))


def arguments(shape, dtype, device):
    rng = np.random.default_rng(0)
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return [Tensor(rng.standard_normal(shape).astype(dtype), device=device) for _ in range(3)]


def step_of(block):
    """(y, dL/dx, dL/dshortcut), where the shortcut receives a second gradient, and that passes another ReLU."""

    def step(x, shortcut, grad):
        x, shortcut = (Tensor(tensor, requires_grad=True) for tensor in (x, shortcut))
        before = relu(shortcut)
        y = block(x, before)
        (y + before).backward(grad)
        return y, x.grad, shortcut.grad

    return step


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 3])
@pytest.mark.parametrize("projects", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_captured_block_has_the_bits_of_an_eager_one(training, projects, channels, dtype, device, launches):
    block = Block(channels, projects).train(training)
    if dtype == "float64":
        block.to("float64")
    block.to(device)
    size = 128 if channels == 16 else 300  # large enough for the kernel that adds: see kernels.add
    values = arguments((2, size, size, channels), dtype, device)
    eager = [tensor.numpy() for tensor in step_of(block)(*values)]
    launches.clear()
    step = minidl.cuda_graph(step_of(block))
    for _ in range(2):
        step(*values)
    assert launches["fused_sum"] == 0  # before the capture nothing is fused
    launches.clear()
    for _ in range(2):
        for ours, theirs in zip(step(*values), eager, strict=True):
            assert ours.numpy().tobytes() == theirs.tobytes()
    # relu(bn + shortcut), and the sum of the two gradients with the backward of the first ReLU. y + before is not read.
    assert launches["fused_sum"] == 2
    assert launches["batch_norm_apply"] == launches["add"] == 0
    assert launches["relu_forward"] == 1 and launches["relu_backward"] == 1


def test_a_batch_norm_and_its_relu_are_one_launch(device, launches):
    bn = nn.BatchNorm2d(8).to(device)
    x = Tensor(np.random.default_rng(0).standard_normal((4, 5, 5, 8)).astype(np.float32), device=device)
    step = minidl.cuda_graph(lambda x: relu(bn(x)))
    expected = relu(bn(x)).numpy()
    for _ in range(2):
        step(x)
    launches.clear()
    np.testing.assert_array_equal(step(x).numpy(), expected)
    assert launches["fused_sum"] == 1 and launches["batch_norm_apply"] == launches["relu_forward"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.0])
def test_nan_infinities_and_zeros_are_as_one_by_one(bad, device):
    bn = nn.BatchNorm2d(4).to(device).eval()
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 4)).astype(np.float32)
    x[0, 1, 2] = bad
    bn.running_mean.data[...] = 0
    x = Tensor(x, device=device)
    step = minidl.cuda_graph(lambda x: relu(bn(x)))
    for _ in range(4):
        assert step(x).numpy().tobytes() == relu(bn(x)).numpy().tobytes()


def test_what_is_returned_or_kept_is_computed_inside_the_graph(device):
    """Also if nothing takes it before the parameters change."""
    bn = nn.BatchNorm2d(4).to(device)
    optimizer = minidl.optim.SGD(bn.parameters(), 0.5)

    def train(x):
        y = bn(x)
        (y * y * y).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return y

    def kept(x):
        y = bn(x)
        bn.weight.grad = Tensor(np.ones_like(bn.weight.data))
        optimizer.step()
        return y

    x = Tensor(np.random.default_rng(0).standard_normal((3, 2, 2, 4)).astype(np.float32), device=device)
    for function in (train, kept):
        state = bn.state_dict()
        eager = []
        for _ in range(5):
            eager.append(function(x).numpy())
        bn.load_state_dict(state)
        bn.zero_grad()
        step = minidl.cuda_graph(function)
        for expected in eager:
            np.testing.assert_array_equal(step(x).numpy(), expected)
        bn.zero_grad()


def test_a_deferred_sum_behaves_as_the_array_that_it_will_be(fusion, device):
    import cupy

    a, b = cupy.asarray(np.arange(6.0).reshape(2, 3)), cupy.asarray(np.ones((2, 3)))
    expected = np.arange(6.0).reshape(2, 3) + 1
    uses = {
        "+": lambda x: x + 1,
        "from the right": lambda x: b - x,
        "two of them": lambda x: x * x,
        "a power": lambda x: x**2,
        "-": lambda x: -x,
        "comparison": lambda x: x > 2,
        "@": lambda x: x @ x.T,
        "index": lambda x: x[1],
        "method": lambda x: x.sum(axis=0),
        "astype": lambda x: x.astype(np.float32),
        "NumPy's function": lambda x: np.exp(x),
        "NumPy's function of arrays": lambda x: np.where(x > 2, x, b),
        "a list": lambda x: cupy.asarray([float(row.sum()) for row in x]),
        "reshape": lambda x: x.reshape(3, 2),
    }
    host = {"from the right": lambda x: 1 - x, "NumPy's function of arrays": lambda x: np.where(x > 2, x, 1)}
    host |= {"a list": lambda x: x.sum(axis=1)}
    for name, use in uses.items():
        with fusion.fusing():
            x = fusion.Deferred(fusion.Term(a), fusion.Term(b))
            assert x.is_pending and device_of(x) == "cuda" and x.shape == (2, 3) and x.dtype == np.float64
            result = use(x)
        assert not x.is_pending, name
        np.testing.assert_allclose(cupy.asnumpy(result), host.get(name, use)(expected), err_msg=name)
    with fusion.fusing(), pytest.raises(TypeError):  # CuPy's own functions take nothing else for an array
        cupy.ascontiguousarray(fusion.Deferred(fusion.Term(a), fusion.Term(b)))


def test_what_nobody_reads_is_never_computed(fusion, launches, device):
    import cupy

    a = cupy.asarray(np.ones((2, 3)))
    with fusion.fusing():
        fusion.Deferred(fusion.Term(a), fusion.Term(a))
    assert not launches
    assert not fusion.is_fusing()


def test_after_an_error_nothing_is_deferred(fusion, device):
    import cupy

    a = cupy.asarray(np.ones((2, 3)))
    with pytest.raises(ZeroDivisionError), fusion.fusing():
        x = fusion.Deferred(fusion.Term(a), fusion.Term(a))
        raise ZeroDivisionError
    assert not fusion.is_fusing()
    assert float(x.sum()) == 12
