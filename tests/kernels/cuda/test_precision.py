"""bfloat16 and float16 activations with float32 parameters, and TF32 products: layers, losses and whole networks."""

import contextlib
import importlib

import ml_dtypes
import numpy as np
import pytest

import minidl
from minidl import Function, Tensor, nn
from minidl.functional import cross_entropy, relu
from minidl.optim import SGD
from tests.kernels.compare import assert_close
from tests.kernels.test_matmul import SHAPES
from tests.ops.test_every_op import CASES

# Layers of which every kernel on activations is a part.
NETWORKS = {
    "convolution, batch-norm, pooling, dropout and linear": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.GlobalAvgPool(),
        nn.Linear(16, 4),
    ),
    "without batch-norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.LocalResponseNorm(),
        nn.AvgPool2d(2),
        nn.PadChannels(1, 3),
        nn.Flatten(),
        nn.Linear(4 * 4 * 12, 4),
    ),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def gradients(make, images, labels, device, dtype):
    """(loss, {name: dL/dparameter}) in that dtype of the images."""
    minidl.manual_seed(3)
    model = make().to(device)
    loss = cross_entropy(model(Tensor(images, device=device).to(dtype)), labels)
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}


@pytest.fixture
def batch(rng):
    return rng.standard_normal((6, 8, 8, 3)).astype(np.float32), rng.integers(0, 4, 6)


def assert_near(actual, expected, tolerance):
    """In the direction and in the length of all gradients together."""
    difference = sum(((actual[name] - expected[name]) ** 2).sum() for name in expected)
    length = sum((expected[name] ** 2).sum() for name in expected)
    assert difference**0.5 <= tolerance * length**0.5


# -- every operation ---------------------------------------------------------------------------------------------------

each_case = pytest.mark.parametrize("name, case", [pytest.param(*pair, id=f"{pair[0]}: {pair[1]}") for pair in CASES])
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
each_half = pytest.mark.parametrize("half", [BFLOAT16, np.dtype(np.float16)], ids=str)
RESULTS_IN_FLOAT32 = {"softmax", "loss"}  # sums of exponentials and of squares


def rounded_to(dtype, array):
    """The array as float32, after rounding to the dtype."""
    return array.astype(dtype).astype(np.float32)


def value_and_gradients(case, arrays, dtypes, device, half):
    """(y, dL/d(input)...), as tensors, for a random dL/dy that the dtype `half` can hold."""
    inputs = [Tensor(x, d, device, requires_grad=True) for x, d in zip(arrays, dtypes, strict=True)]
    y = case.ours(*inputs)
    grad = rounded_to(half, np.random.default_rng(1).standard_normal(y.shape))
    y.backward(Tensor(grad, y.dtype, device))
    return y, *(x.grad for x in inputs)


@each_half
@each_case
def test_an_operation_in_half_precision_has_nearly_the_values_of_float32_and_keeps_the_dtype(name, case, half, device):
    dtypes = case.dtypes(half)
    arrays = [rounded_to(dtype, x) for dtype, x in zip(dtypes, case.arrays(), strict=True)]
    exact = value_and_gradients(case, arrays, [np.float32] * len(arrays), "cpu", half)
    results = value_and_gradients(case, arrays, dtypes, device, half)
    kept = "float32" if name in RESULTS_IN_FLOAT32 else str(half)
    assert [str(result.dtype) for result in results] == [kept, *map(str, map(np.dtype, dtypes))]
    for result, expected in zip(results, exact, strict=True):
        assert result.data.flags.c_contiguous
        assert_close(result.to("float32").numpy(), expected.numpy(), 2**-7 if half == BFLOAT16 else 2**-10)


def test_what_is_no_operation_works_in_bfloat16_too(device):
    x = Tensor([[1.0, 3.0], [-2.0, 0.5]], device=device).to("bfloat16")
    assert x.argmax().item() == 1
    assert x.argmax(1).numpy().tolist() == [1, 1]
    for ours, theirs in ((x > 0.5, [[1, 1], [0, 0]]), (x <= x.T, [[1, 0], [1, 1]]), (x == 0.5, [[0, 0], [0, 1]])):
        assert ours.dtype == bool
        np.testing.assert_array_equal(ours.numpy(), theirs)
    assert repr(x) == "Tensor([[1, 3], [-2, 0.5]], shape=(2, 2), bfloat16, cuda)".replace("], [", "],\n        [")
    assert [float(row.sum()) for row in x] == [4, -1.5]
    x.requires_grad = True
    x.sum().backward()
    x.sum().backward()  # added up
    assert str(x.grad.dtype) == "bfloat16"
    assert (x.grad == 2).numpy().all()


class HalfSquare(Function):
    """x^2 / 2, with a Python float."""

    in_float32 = True

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return 0.5 * x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return 1.0 * x * grad


def test_an_operation_of_the_users_keeps_bfloat16_if_it_says_so(device):
    x = Tensor([1.0, 3.0], device=device).to("bfloat16").detach()
    x.requires_grad = True
    y = minidl.apply(HalfSquare, x)
    y.sum().backward()
    assert {str(tensor.dtype) for tensor in (y, x.grad)} == {"bfloat16"}
    assert y.to("float32").numpy().tolist() == [0.5, 4.5]
    assert x.grad.to("float32").numpy().tolist() == [1, 3]


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_rounded_products_of_factors_that_lie_in_any_way(shapes, precision, kernels, to_device, to_host, rng):
    """The factors are exact in bfloat16, so each product is exact too, and only their sum is rounded."""
    a, b = (rounded_to(BFLOAT16, rng.standard_normal(shape)) for shape in shapes)
    dtype = BFLOAT16 if precision == "bfloat16" else np.dtype(np.float32)
    factors = [to_device(x.astype(dtype)) for x in (a, b)]
    turned = [to_device(np.ascontiguousarray(x.swapaxes(-1, -2)).astype(dtype)).swapaxes(-1, -2) for x in (a, b)]
    for left in (factors[0], turned[0]):
        for right in (factors[1], turned[1]):
            with minidl.tf32() if precision == "tf32" else contextlib.nullcontext():
                y = to_host(kernels.matmul(left, right))
            assert y.dtype == dtype
            assert y.flags.c_contiguous
            assert_close(y.astype(np.float32), a @ b, 2**-8 if precision == "bfloat16" else 1e-5)


def test_a_product_in_tf32_rounds_its_factors(device, rng):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 70, 40), (2, 40, 30)))
    with minidl.tf32():
        y = (Tensor(a, device=device) @ Tensor(b, device=device)).numpy()
    assert_close(y, a @ b, 1e-2)
    assert (y != a @ b).any()
    assert abs(y - a @ b).max() > 1e-4


# -- layers, losses and whole networks ---------------------------------------------------------------------------------


@each_half
@networks
def test_a_network_in_half_precision_has_nearly_the_gradients_of_float32(name, half, device, batch):
    loss, exact = gradients(NETWORKS[name], *batch, "cpu", "float32")
    rounded_loss, rounded = gradients(NETWORKS[name], *batch, device, half)
    assert rounded_loss == pytest.approx(loss, rel=0.03 if half == BFLOAT16 else 0.004)
    assert_near(rounded, exact, 0.15 if half == BFLOAT16 else 0.03)
    assert all(grad.dtype == np.float32 for grad in rounded.values())


@networks
def test_a_network_in_tf32_has_nearly_the_gradients_of_float32(name, device, batch):
    loss, exact = gradients(NETWORKS[name], *batch, "cpu", "float32")
    with minidl.tf32():
        rounded_loss, rounded = gradients(NETWORKS[name], *batch, device, "float32")
    assert rounded_loss == pytest.approx(loss, rel=1e-3)
    assert_near(rounded, exact, 0.01)
    assert any((rounded[key] != exact[key]).any() for key in exact)


def test_a_residual_block_in_bfloat16_stores_bfloat16(device, rng):
    bn = nn.BatchNorm2d(4).to(device)
    x, shortcut = (Tensor(rng.standard_normal((2, 3, 3, 4)), np.float32, device).to("bfloat16") for _ in range(2))
    y = relu(bn(x) + shortcut)
    assert str(y.dtype) == "bfloat16"
    assert bn.running_mean.dtype == np.float32
    expected = relu(nn.BatchNorm2d(4)(x.to("cpu").to("float32")) + shortcut.to("cpu").to("float32"))
    np.testing.assert_allclose(y.to("float32").numpy(), expected.numpy(), rtol=2**-6, atol=2**-6)  # rounded twice


def losses_of_training(images, labels, device, dtype):
    """The losses of 12 steps with momentum."""
    minidl.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(8, 4))
    model.to(device)
    optimizer, scaler = SGD(model.parameters(), 0.3, momentum=0.9), minidl.GradScaler(enabled=dtype == np.float16)
    losses = []
    for _ in range(12):
        loss = cross_entropy(model(Tensor(images, device=device).to(dtype)), labels)
        scaler.scale(loss).backward()
        assert scaler.step(optimizer)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@each_half
def test_training_in_half_precision_learns_as_in_float32(half, device, batch):
    exact = losses_of_training(*batch, "cpu", np.dtype("float32"))
    assert exact[-1] < 0.8 * exact[0]
    np.testing.assert_allclose(losses_of_training(*batch, device, half), exact, rtol=0.05 if half == BFLOAT16 else 0.01)


def test_the_nearest_bfloat16_is_stored_and_of_two_the_even_one(kernels, to_device, to_host):
    """By the kernel that adds, of numbers whose sum has more digits than are kept."""
    numbers = np.array([1, 1, 1, 3.0, 3.0, -1, 0, np.inf, -np.inf, np.nan], np.float32)
    added = np.array([2**-8, 2**-7, 1.5 * 2**-8, 2**-7, 3 * 2**-7, -(2**-8), 0, 1, 0, 1], np.float32)
    a, b = (to_device(array.astype(ml_dtypes.bfloat16)) for array in (numbers, added))
    expected = (numbers + added).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(to_host(kernels.add(a, b)).astype(np.float32), expected)


def test_bfloat16_numbers_are_added_with_more_digits_than_they_have(device):
    """In bfloat16, 256 + 1 is 256."""
    ones = Tensor(np.ones((1024, 2), np.float32), device=device).to("bfloat16")
    for total in (ones.sum(0), ones.sum(0) * ones.mean(0)):
        assert str(total.dtype) == "bfloat16"
        assert total.to("float32").numpy().tolist() == [1024, 1024]
    shared = Tensor(np.zeros(2, np.float32), device=device).to("bfloat16").detach()
    shared.requires_grad = ones.requires_grad = True
    (ones + shared).backward(ones)
    assert shared.grad.to("float32").numpy().tolist() == [1024, 1024]
    ones.grad = None
    ones.amax(0).backward(shared.grad)
    assert (ones.grad.to("float32").numpy() == 1).all()  # 1024 in equal shares


@each_half
def test_half_precision_on_the_cpu_and_parameters_in_half_precision_are_refused(half):
    x = Tensor(np.ones((1, 2, 2, 3))).to(half)
    with pytest.raises(TypeError, match=f"{half} is supported on device 'cuda' only"):
        nn.ReLU()(x)
    with pytest.raises(ValueError, match=f"parameters stay float32; to compute in {half}, call model"):
        nn.ReLU().to(half)


def test_a_small_gradient_needs_the_scale_and_a_large_one_skips_the_step(device):
    """1e-8 is 0 in float16; 1e5 is infinite. The parameters' gradients are float32."""
    model = nn.Conv2d(1, 1, 1, bias=False).to(device)
    optimizer, x = SGD(model.parameters(), 1.0), Tensor(np.ones((1, 1, 1, 1)), "float16", device)

    def grad(scaler, factor):
        y = model(relu(model(x)) if factor > 1 else x)  # overflow needs a gradient of activations
        scaler.scale(y.to("float32").sum() * factor).backward()
        taken, value = scaler.step(optimizer), model.weight.grad.item()
        optimizer.zero_grad()
        model.weight.data[...] = 1
        return taken, value

    model.weight.data[...] = 1
    assert grad(minidl.GradScaler(enabled=False), 1e-8)[1] == 0
    taken, value = grad(minidl.GradScaler(), 1e-8)
    assert taken and value == pytest.approx(1e-8, rel=2e-3)
    taken, value = grad(minidl.GradScaler(), 1e5)
    assert not taken and not np.isfinite(value)


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
def test_a_gpu_without_such_tensor_cores_is_named(dtype, device, monkeypatch):
    import cupy

    x = Tensor(np.ones((1, 4, 4, 5), np.float32), device=device)
    conv = nn.Conv2d(5, 3, 3).to(device)
    launch = importlib.import_module("minidl.kernels.cuda._launch")
    launch.CudaKernel.compiled.cache_clear()

    class Turing:
        compute_capability = "75"

    with monkeypatch.context() as patch:
        patch.setattr(cupy.cuda, "Device", Turing)
        with pytest.raises(RuntimeError, match=r"compute capability 8\.0 or more, got 7\.5; use float16, or float32"):
            if dtype == "tf32":
                with minidl.tf32():
                    conv(x)
            else:
                conv(x.to("bfloat16"))
    assert np.isfinite(conv(x).numpy()).all()
