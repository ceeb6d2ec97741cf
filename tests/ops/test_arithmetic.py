"""Element by element, and the matrix product. The operators with inputs of drawn shapes are in tests/test_tensor.py."""

import numpy as np
import pytest

import minidl
from minidl import Tensor
from minidl.ops.arithmetic import sum_to_shape
from tests.ops.case import Case, Constant, away_from_zero, distinct, gradients, positive, same_in_both

CONDITION = Constant([[True, False, True], [False, False, True]])


def where_ours(a, b):
    return minidl.where(CONDITION.on(a.device), a, b)


def where_theirs(torch, a, b):
    b = torch.tensor(b, dtype=a.dtype) if isinstance(b, float) else b
    return torch.where(torch.tensor(CONDITION.array), a, b)


CASES = [
    same_in_both("a + b", lambda a, b: a + b, (2, 3), (2, 3), is_linear=False),
    same_in_both("a + b, b broadcast", lambda a, b: a + b, (4, 2, 3), (2, 1)),
    same_in_both("a + b, a broadcast", lambda a, b: a + b, (1, 3), (4, 2, 3)),
    same_in_both("1 + a", lambda a: 1 + a, (2, 3)),
    same_in_both("a - b", lambda a, b: a - b, (2, 3), (2, 3)),
    same_in_both("a - b, a broadcast", lambda a, b: a - b, (3,), (2, 3)),
    same_in_both("1.5 - a", lambda a: 1.5 - a, (2, 3)),
    same_in_both("-a", lambda a: -a, (2, 3), is_linear=True),
    same_in_both("a * b", lambda a, b: a * b, (2, 3), (2, 3), is_linear=True),
    same_in_both("a * b, both broadcast", lambda a, b: a * b, (2, 1), (4, 1, 3), is_linear=True),
    same_in_both("a * b, b a scalar", lambda a, b: a * b, (2, 3), (), is_linear=True),
    same_in_both("a * a", lambda a: a * a, (2, 3)),
    same_in_both("a / b", lambda a, b: a / b, (2, 3), (2, 3), draw=away_from_zero),
    same_in_both("a / b, both broadcast", lambda a, b: a / b, (2, 1), (3,), draw=away_from_zero),
    same_in_both("2 / a", lambda a: 2 / a, (2, 3), draw=away_from_zero),
    same_in_both("0.5 * a", lambda a: 0.5 * a, (2, 3), is_linear=True),
    same_in_both("a + 1.0", lambda a: a + 1.0, (2, 3)),
    same_in_both("a / 4", lambda a: a / 4, (2, 3), is_linear=True),
    *(same_in_both(f"a ** {p}", lambda a, p=p: a**p, (2, 3), draw=away_from_zero) for p in (0, 1, 2, 3, -1, -2)),
    *(same_in_both(f"a ** {p}", lambda a, p=p: a**p, (2, 3), draw=positive) for p in (0.5, 1.7, -0.5)),
    same_in_both("a @ b", lambda a, b: a @ b, (2, 3), (3, 4), is_linear=True),
    same_in_both("a @ b of squares", lambda a, b: a @ b, (3, 3), (3, 3), is_linear=True),
    same_in_both("a @ b in batches", lambda a, b: a @ b, (2, 3, 4), (2, 4, 1), is_linear=True),
    same_in_both("a @ b, both broadcast", lambda a, b: a @ b, (2, 1, 3, 2), (4, 2, 3), is_linear=True),
    same_in_both("exp", lambda a: a.exp(), (2, 3)),
    same_in_both("log", lambda a: a.log(), (2, 3), draw=positive),
    same_in_both("sqrt", lambda a: a.sqrt(), (2, 3), draw=positive),
    same_in_both("sigmoid", lambda a: a.sigmoid(), (2, 3)),
    same_in_both("tanh", lambda a: a.tanh(), (2, 3)),
    same_in_both("clip", lambda a: a.clip(-1.4, 0.9), (4, 3), draw=distinct),
    same_in_both("clip from below", lambda a: a.clip(0.0), (4, 3), draw=distinct),
    same_in_both("clip from above", lambda a: a.clip(None, 0.0), (4, 3), draw=distinct),
    Case("maximum", minidl.maximum, lambda torch, a, b: torch.maximum(a, b), [(3, 4), (3, 4)], distinct),
    Case("maximum, both broadcast", minidl.maximum, lambda torch, a, b: torch.maximum(a, b), [(3, 1), (4,)], distinct),
    Case("where", where_ours, where_theirs, [(2, 3), (2, 3)]),
    Case("where, all broadcast", where_ours, where_theirs, [(3,), (4, 1, 1)]),
    Case("where, else 0.5", lambda a: where_ours(a, 0.5), lambda torch, a: where_theirs(torch, a, 0.5), [(2, 3)]),
    Case("maximum of 0.0", lambda a: minidl.maximum(a, 0.0), lambda torch, a: torch.relu(a), [(3, 4)], distinct),
]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (2, 1), (2, 3), (4, 1, 1), (1, 2, 3), (4, 2, 3)], ids=str)
def test_sum_to_shape_is_the_adjoint_of_broadcasting(shape, rng):
    x, grad = rng.integers(-9, 9, shape), rng.integers(-9, 9, (4, 2, 3))
    summed = sum_to_shape(grad, shape)
    assert summed.shape == shape
    assert (np.broadcast_to(x, grad.shape) * grad).sum() == (x * summed).sum()


def test_what_was_not_broadcast_is_not_copied():
    grad = np.ones((2, 3))
    assert sum_to_shape(grad, (2, 3)) is grad


def test_the_power_0_has_no_slope_even_at_0(device):
    x = Tensor([0.0, 2.0], device=device, requires_grad=True)
    (x**0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0])


def test_equal_numbers_share_the_gradient_of_their_maximum(device):
    a, b = (Tensor([1.0, 2.0], device=device, requires_grad=True) for _ in range(2))
    minidl.maximum(a, b).backward(Tensor([4.0, 6.0], device=device))
    np.testing.assert_array_equal(a.grad.numpy(), [2, 3])
    np.testing.assert_array_equal(b.grad.numpy(), [2, 3])


def test_the_bounds_of_clip_belong_to_the_inside(device):
    x = Tensor([-2.0, -1.0, 0.0, 1.0, 2.0], device=device, requires_grad=True)
    x.clip(-1, 1).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 1, 1, 1, 0])


@pytest.mark.parametrize(("x", "expected"), [(-1e4, 0), (-100, 0), (0, 0.5), (100, 1), (1e4, 1)])
def test_no_number_is_too_large_for_the_sigmoid(x, expected, device):
    assert Tensor(np.float32(x), device=device).sigmoid().item() == pytest.approx(expected, abs=1e-6)


def test_the_sigmoid_keeps_its_digits_on_both_sides(device):
    """e^-87 is about the smallest number that float32 holds with all its digits."""
    x = np.linspace(-87, 30, 2000, dtype=np.float32)
    with np.errstate(all="raise"):
        y = Tensor(x, device=device).sigmoid().numpy()
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=1e-6)


def test_the_slope_of_the_logarithm_of_a_sigmoid_is_right_where_the_sigmoid_is_small(device):
    """d log(sigmoid(x))/dx = sigmoid(-x), which is nearly 1 there."""
    x = Tensor(np.linspace(-80, 0, 50, dtype=np.float32), device=device, requires_grad=True)
    x.sigmoid().log().sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 1 / (1 + np.exp(x.numpy().astype(np.float64))), rtol=1e-6)


def test_an_infinite_gradient_does_not_spoil_the_side_that_was_not_taken(device):
    a, b = (Tensor(np.array(values), device=device, requires_grad=True) for values in ([1.0, 5.0], [2.0, 3.0]))
    infinite = Tensor(np.array([np.inf, 1.0]), device=device)
    for y in (minidl.maximum(a, b), minidl.where(a > b, a, b)):
        a.grad = b.grad = None
        y.backward(infinite)
        assert a.grad.numpy().tolist() == [0, 1]
        assert b.grad.numpy().tolist() == [np.inf, 0]
    a.grad = None
    a.clip(2.0, None).backward(infinite)
    assert a.grad.numpy().tolist() == [0, 1]


NAN = np.nan


@pytest.mark.parametrize(
    ("operation", "arrays"),
    [
        ("maximum", [[NAN, 1, NAN, 2, 3], [1, NAN, NAN, 2, 4]]),
        ("relu", [[NAN, -1, 2]]),
        ("clip", [[NAN, -2, 0.5]]),
        ("max", [[NAN, 3, NAN, 5]]),
    ],
)
def test_the_gradient_of_a_nan_goes_where_it_goes_in_pytorch(operation, arrays, device, torch):
    """Both sides of a maximum get all of it, relu lets it pass, clip does not, and the NaNs share that of max."""
    ours = {
        "maximum": minidl.maximum,
        "relu": minidl.functional.relu,
        "clip": lambda x: x.clip(-1, 1),
        "max": lambda x: x.max(),
    }[operation]
    theirs = getattr(torch, operation) if operation != "clip" else lambda x: x.clip(-1, 1)
    arrays = [np.array(array, np.float64) for array in arrays]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    grad = 1.0 + np.arange(theirs(*tensors).numel()).reshape(theirs(*tensors).shape)
    theirs(*tensors).backward(torch.tensor(grad))
    y, grads = gradients(ours, arrays, grad, device)
    assert np.isnan(y).any()
    for actual, expected in zip(grads, tensors, strict=True):
        np.testing.assert_array_equal(actual, expected.grad.numpy())
