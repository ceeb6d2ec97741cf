"""detect_anomaly: it names the first operation that computes a NaN or inf, and arrays that change before backward."""

import re
import threading

import numpy as np
import pytest

import minidl
from minidl import AnomalyError, Function, Parameter, Tensor, apply, detect_anomaly
from minidl.functional import cross_entropy
from minidl.nn import BatchNorm2d, Conv2d, GlobalAvgPool, Linear, Module, ReLU, Sequential
from minidl.optim import SGD


@pytest.fixture(autouse=True)
def _without_the_warnings_of_numpy():
    with np.errstate(all="ignore"):
        yield


class Broken(Function):
    """y = x, whose backward returns NaN for the first number."""

    @staticmethod
    def forward(ctx, x):
        return x.copy()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.copy()
        grad.reshape(-1)[0] = np.nan
        return grad


class BrokenLayer(Module):
    """A layer with the operation above."""

    def forward(self, x):
        return apply(Broken, x)


def network(device, *others):
    return Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), ReLU(), GlobalAvgPool(), Linear(4, 2), *others).to(device)


def images(device, count=5):
    return Tensor(np.random.default_rng(0).standard_normal((count, 6, 6, 3)).astype(np.float32), device=device)


def step(model, x):
    cross_entropy(model(x), Tensor(np.arange(len(x)) % 2, device=x.device)).backward()


def test_a_healthy_step_has_the_same_gradients_as_without(device):
    model, x = network(device), images(device)
    model.eval()  # so that the running statistics stay as they are
    step(model, x)
    expected = [p.grad.numpy() for p in model.parameters()]
    model.zero_grad()
    with detect_anomaly(model):
        step(model, x)
    for p, grad in zip(model.parameters(), expected, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), grad)


def test_the_operation_that_makes_a_nan_is_named(device):
    x = Tensor([1.0, -1.0, 0.0], device=device, requires_grad=True)
    with (
        detect_anomaly(),
        pytest.raises(AnomalyError, match=r"^Sqrt, forward: the output has 1 NaN among 3 numbers, and"),
    ):
        (x.sqrt() + 1).log()
    with detect_anomaly(), pytest.raises(AnomalyError, match=r"^Div, forward: the output has 1 NaN and 2 inf among 3"):
        x / (x * 0)


def test_the_layer_and_the_line_are_named_in_forward_and_in_backward(device):
    model, x = network(device, BrokenLayer()), images(device)
    with detect_anomaly(model), pytest.raises(AnomalyError) as caught:
        step(model, x)
    line = re.escape("test_anomaly.py:") + r"\d+"
    assert re.match(
        rf"Broken, backward of 5 \(called in forward at {line}\): the gradient of input 0 has 1 NaN among 10 numbers, "
        "and dL/dy is finite",
        str(caught.value),
    )
    model = network(device)
    model.parameters()[0].data[...] = 1e38
    with detect_anomaly(model), pytest.raises(AnomalyError, match=r"^Conv2d, forward of 0: the output has"):
        step(model, x * 1e10)


def test_the_model_is_a_module():
    with pytest.raises(TypeError, match=r"^detect_anomaly: expected a Module, got int"), detect_anomaly(3):
        pass


def test_a_nan_in_the_images_is_not_blamed_on_the_first_layer(device):
    model, x = network(device), images(device)
    x.data[1, 2, 3, 0] = np.nan
    with (
        detect_anomaly(model),
        pytest.raises(AnomalyError, match=r"^Conv2d, forward of 0: input 0 has 1 NaN among 540"),
    ):
        step(model, x)


def test_a_nan_in_a_parameter_is_found(device):
    model, x = network(device), images(device)
    model.parameters()[-1].data[...] = np.inf
    with detect_anomaly(model), pytest.raises(AnomalyError, match=r"^Linear, forward of 4: input 2 has 2 inf among 2"):
        step(model, x)


def test_a_sum_of_gradients_that_overflows_is_found():
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    with detect_anomaly(), pytest.raises(AnomalyError, match=r"^Mul, backward .*dL/dy has 2"):
        y = x * 1
        (y + y).backward(Tensor(np.full(2, 3e38, np.float32)))


def test_an_array_that_changes_between_forward_and_backward_is_found():
    batch = np.ones((4, 3), np.float32)
    layer = Linear(3, 2)
    with detect_anomaly(layer):
        loss = layer(Tensor(batch)).sum()
        batch[...] = 2  # the buffer of a loop with its own loading
        with pytest.raises(
            AnomalyError, match=r"^Linear, backward of Linear .*an array that it saved was changed since"
        ):
            loss.backward()
    layer.zero_grad()
    loss = layer(Tensor(batch)).sum()
    batch[...] = 3
    loss.backward()  # outside the block nothing is checked


def test_a_step_of_the_optimiser_inside_the_block_is_no_anomaly(device):
    model, x = network(device), images(device)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with detect_anomaly(model):
        for _ in range(2):
            step(model, x)
            optimizer.step()
            optimizer.zero_grad()


def test_recomputed_parts_are_checked_in_both_runs(device):
    layer, x = BrokenLayer(), Tensor(np.ones((2, 3), np.float32), device=device, requires_grad=True)
    with detect_anomaly(), pytest.raises(AnomalyError, match=r"^Broken, backward"):
        minidl.recompute(layer, x).sum().backward()


def test_the_model_is_as_before_after_the_block_and_after_an_error(device):
    model, x = network(device), images(device)
    with pytest.raises(ZeroDivisionError), detect_anomaly(model):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for _, module in model.named_modules())
    x.data[...] = np.nan
    model(x)


def test_blocks_may_be_nested_and_leave_a_forward_that_the_user_has_set(device):
    model = network(device)
    own = model[4].forward = lambda x, forward=model[4].forward: 2 * forward(x)
    with (
        detect_anomaly(model),
        detect_anomaly(model),
        pytest.raises(AnomalyError, match=r"^Linear, forward of 4: input 2 has"),
    ):
        x = images(device)
        model[4].bias.data[...] = np.nan
        step(model, x)
    assert vars(model[4])["forward"] is own
    assert "forward" not in vars(model) and "forward" not in vars(model[0])


def test_it_checks_this_thread_only():
    results = []

    def compute():
        with np.errstate(all="ignore"):
            results.append(Tensor([-1.0]).sqrt().item())

    with detect_anomaly():
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    assert np.isnan(results).tolist() == [True]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_checked_too(dtype, device):
    if device == "cpu":
        return  # which computes in float32 and float64 only
    x = Parameter(Tensor(np.full(3, 200.0, np.float32), device=device))
    with detect_anomaly(), pytest.raises(AnomalyError, match=r"^Exp, forward: the output has 3 inf"):
        x.to(dtype).exp()


def test_a_captured_step_says_what_to_call(device):
    if not device.startswith("cuda"):
        return  # only a GPU captures
    model, x = network(device), images(device)
    captured = minidl.cuda_graph(lambda x: model(x).sum())
    with detect_anomaly(model), pytest.raises(RuntimeError, match=r"detect_anomaly: a captured step .* step\.function"):
        for _ in range(5):
            captured(x)


def test_a_step_that_was_captured_before_the_block_is_not_taken_for_checked(device):
    if not device.startswith("cuda"):
        return
    x = Tensor([-1.0], device=device)
    captured = minidl.cuda_graph(lambda x: x.sqrt())
    for _ in range(3):
        captured(x)
    with detect_anomaly(), pytest.raises(RuntimeError, match=r"detect_anomaly sees no operation .* step\.function"):
        captured(x)
    assert np.isnan(captured(x).item())
