"""The gradient check has to fail: each wrong backward is one that somebody has written, or could."""

import contextlib
import re

import numpy as np
import pytest

import minidl
from minidl import Function, Tensor, functional, gradcheck
from minidl import tensor as tensor_module
from minidl.autograd import Leaf
from minidl.study.calls import ops
from minidl.study.mistakes import MISTAKES as KNOWN
from minidl.study.mistakes import Mistake, find, mistakes_of, planted
from minidl.testing import GradientError
from tests.ops import (
    test_activation,
    test_arithmetic,
    test_batch_norm,
    test_conv,
    test_dropout,
    test_linear,
    test_local_response_norm,
    test_loss,
    test_pad,
    test_pool,
    test_reduce,
    test_shape,
    test_softmax,
    test_upsample,
)


def case(module, name):
    return next(case for case in module.CASES if case.name == name)


def arithmetic(name):
    return case(test_arithmetic, name)


CONV, BATCH_NORM = case(test_conv, "3x3, padding"), case(test_batch_norm, "images")
POOL = case(test_pool, "max, the stem of a residual network")
SMOOTHED = case(test_loss, "cross-entropy, smoothed")
DROPOUT = case(test_dropout, "probability 0.5 on (3, 4, 5)")
WINDOW_OF_4 = case(test_local_response_norm, "4 of 6 channels, {'alpha': 0.5}")
SQUARE = case(test_linear, "a square weight")
GELU = case(test_activation, "gelu")
SOFTMAX = case(test_softmax, "softmax along -1 of (3, 4)")
LOG_SOFTMAX = case(test_softmax, "log_softmax along -1 of (3, 4)")

# Which case of an operation shows which of the known mistakes of `minidl.study`.
SHOWN_BY = [
    (CONV, "conv2d_backward", "dL/dx without the upper left tap"),
    (CONV, "conv2d_backward", "dL/dx with the kernel not turned by 180 degrees"),
    (CONV, "conv2d_backward", "dL/dx with the kernel turned upside down only"),
    (CONV, "conv2d_backward", "dL/dx 0.1 % too large"),
    (CONV, "conv2d_backward", "dL/dweight without the upper left tap"),
    (CONV, "conv2d_backward", "dL/dweight of the first image alone"),
    (CONV, "conv2d_backward", "dL/dweight 0.1 % too small"),
    (CONV, "bias_backward", "dL/dbias of the first image alone: not summed over the batch"),
    (CONV, "bias_backward", "dL/dbias of a wrong shape: summed over the batch with keepdims"),
    (SQUARE, "linear_backward_weight", "dL/dweight transposed: (O, C) instead of (C, O)"),
    (SQUARE, "bias_backward", "dL/dbias of a wrong shape: summed over the batch with keepdims"),
    (BATCH_NORM, "batch_norm_backward", "dL/dx without the term of the mean"),
    (BATCH_NORM, "batch_norm_backward", "dL/dx without the term of the variance"),
    (BATCH_NORM, "batch_norm_backward", "dL/dx without the terms of mean and variance: as in evaluation"),
    (BATCH_NORM, "batch_norm_backward", "dL/dx of 0"),
    (BATCH_NORM, "batch_norm_backward", "dL/dx with the other sign"),
    (BATCH_NORM, "batch_norm_backward", "dL/dx ten times too large"),
    (BATCH_NORM, "batch_norm_backward", "dL/dx 0.1 % too large"),
    (BATCH_NORM, "batch_norm_backward", "dL/dweight and dL/dbias in each other's place"),
    (
        case(test_batch_norm, "evaluation"),
        "batch_norm_backward",
        "dL/dx in evaluation with the terms of the mean and the variance: as in training",
    ),
    (SOFTMAX, "softmax_backward", "dL/dx without the sum: y * dL/dy"),
    (LOG_SOFTMAX, "log_softmax_backward", "dL/dx without the sum: dL/dy"),
    (LOG_SOFTMAX, "log_softmax_backward", "dL/dx with y in the place of softmax: exp(y) is missing"),
    (POOL, "max_pool2d_backward", "dL/dx to the last pixel of the window"),
    (POOL, "max_pool2d_backward", "dL/dx to all pixels of the window"),
    (case(test_pool, "average, 2"), "avg_pool2d_backward", "dL/dx as a sum: not divided"),
    (case(test_pool, "global"), "global_avg_pool_backward", "dL/dx not divided"),
    (
        test_upsample.CASES[0],
        "upsample_bilinear2d_backward",
        "dL/dx as dL/dy interpolated at the size of x: not the transpose of forward",
    ),
    (SMOOTHED, "cross_entropy_backward", "dL/dlogits not divided by N"),
    (SMOOTHED, "cross_entropy_backward", "dL/dlogits with the labels not smoothed"),
    (SMOOTHED, "cross_entropy_backward", "dL/dlogits of p instead of p - t: the targets are missing"),
    (case(test_loss, "mse"), "mse_loss_backward", "dL/dx without the 2"),
    (case(test_loss, "mse"), "MSELoss", "dL/dtarget with the sign of dL/dx"),
    (
        WINDOW_OF_4,
        "local_response_norm_backward",
        "dL/dx by the direct path alone: without the sum over the neighbours",
    ),
    (WINDOW_OF_4, "local_response_norm_backward", "dL/dx with the window not mirrored: right for odd sizes alone"),
    (DROPOUT, "dropout_backward", "dL/dx with the mask of the next step"),
    (DROPOUT, "dropout_backward", "dL/dx not divided by 1 - p"),
    (test_pad.CASES[0], "pad_channels_backward", "dL/dx one channel further"),
    (
        test_activation.CASES[0],
        "relu_backward",
        "dL/dx everywhere: no mask, or one of y >= 0, which is always true",
    ),
    (test_activation.CASES[0], "relu_backward", "dL/dx where y = 0 instead of where y > 0"),
    (GELU, "gelu_backward", "dL/dx as dL/dy: not multiplied by the slope"),
    (GELU, "gelu_backward", "dL/dx where the slope is positive alone"),
    (arithmetic("a + b, b broadcast"), "Add", "not summed over what was broadcast: dL/db of its first place"),
    (arithmetic("a - b"), "Sub", "dL/db with the sign of dL/da"),
    (arithmetic("a * b"), "Mul", "dL/da and dL/db in each other's place"),
    (arithmetic("a @ b of squares"), "MatMul", "dL/da and dL/db with the factors not transposed"),
    (arithmetic("a / b"), "Div", "dL/db without the sign"),
    (arithmetic("a ** 3"), "Pow", "dL/dx without the factor p"),
    (arithmetic("tanh"), "Tanh", "dL/dx with x in the place of y"),
    (arithmetic("maximum"), "Maximum", "dL/da and dL/db in each other's place"),
    (arithmetic("where"), "Where", "dL/da and dL/db in each other's place"),
    (case(test_reduce, "sum over -1 and 0"), "Sum", "dL/dx not spread: dL/dy as it is"),
    # of a shape that would broadcast
    (case(test_reduce, "sum over 2 and 1, kept"), "Sum", "dL/dx not spread: dL/dy as it is"),
    (case(test_reduce, "amax over 1, keepdim=False"), "Max", "dL/dx to all elements instead of the largest"),
    (case(test_shape, "x[a list with repeats]"), "GetItem", "dL/dx with repeats assigned instead of added"),
    (case(test_shape, "permute"), "Permute", "dL/dx permuted once more instead of back"),
    (case(test_shape, "cat along 1"), "Cat", "the gradients one element further along the last axis"),
]
mistakes = pytest.mark.parametrize(
    ("case", "mistake"),
    [(case, find(target, name)) for case, target, name in SHOWN_BY],
    ids=[f"{case}-{target}-{name}" for case, target, name in SHOWN_BY],
)


@mistakes
def test_a_wrong_backward_is_found(case, mistake):
    with planted(mistake), pytest.raises(GradientError):
        gradcheck(case.ours, case.tensors("cpu"))


@mistakes
def test_the_right_backward_in_its_place_is_accepted(case, mistake):
    with planted(mistake._replace(wrong=lambda call: call())):
        gradcheck(case.ours, case.tensors("cpu"))


@mistakes
def test_a_few_directions_are_enough_to_find_it(case, mistake):
    """Of tensors too large for an element by element check."""
    with planted(mistake), pytest.raises(GradientError, match=r"along a random direction|expected a gradient of"):
        gradcheck(case.ours, case.tensors("cpu"), max_elements=0)


@mistakes
def test_what_was_planted_is_taken_out_again(case, mistake):
    with contextlib.suppress(GradientError), planted(mistake):
        gradcheck(case.ours, case.tensors("cpu"))
    gradcheck(case.ours, case.tensors("cpu"))


# The file of tests/ops that has the cases of a kernel; those of an op are in the file of its own name.
CASES_OF_KERNELS = {
    "conv2d_backward": test_conv,
    "bias_backward": test_conv,
    "linear_backward_x": test_linear,
    "linear_backward_weight": test_linear,
    "max_pool2d_backward": test_pool,
    "avg_pool2d_backward": test_pool,
    "global_avg_pool_backward": test_pool,
    "batch_norm_backward": test_batch_norm,
    "relu_backward": test_activation,
    "gelu_backward": test_activation,
    "softmax_backward": test_softmax,
    "log_softmax_backward": test_softmax,
    "cross_entropy_backward": test_loss,
    "mse_loss_backward": test_loss,
    "dropout_backward": test_dropout,
    "local_response_norm_backward": test_local_response_norm,
    "pad_channels_backward": test_pad,
    "upsample_bilinear2d_backward": test_upsample,
}
FILES_OF_OPS = {module.__name__.split(".test_")[1]: module for module in CASES_OF_KERNELS.values()} | {
    "arithmetic": test_arithmetic,
    "reduce": test_reduce,
    "shape": test_shape,
}
# At equal numbers there is no derivative to compare with; tests/ops/test_reduce.py has what is right there.
AT_A_KINK = {"Max: dL/dx to each of equal elements in full: not shared"}
BACKWARDS = {name for name in dict.fromkeys(m.target for m in KNOWN) if name in CASES_OF_KERNELS or name in ops()}


def cases_of(target):
    if target in CASES_OF_KERNELS:
        return CASES_OF_KERNELS[target].CASES
    return FILES_OF_OPS[ops()[target].__module__.split(".")[-1]].CASES


def is_found(mistake):
    for case in cases_of(mistake.target):
        try:
            with planted(mistake):
                gradcheck(case.ours, case.tensors("cpu"), max_elements=0)
        except GradientError:
            return True
    return False


@pytest.mark.parametrize("target", sorted(BACKWARDS))
def test_every_known_wrong_backward_is_found_by_the_case_of_some_test(target):
    missed = [str(mistake) for mistake in mistakes_of(target) if not is_found(mistake)]
    assert set(missed) <= AT_A_KINK


def test_that_is_every_backward_of_the_list_that_a_network_can_run():
    others = {mistake.target for mistake in KNOWN if "backward" in mistake.target} - BACKWARDS
    assert others == {"conv2d_backward_by_im2col", "residual_end_backward"}  # they stand beside the kernels


@pytest.mark.parametrize("name", ["of 0", "with the other sign", "ten times too large"])
def test_ones_for_dl_dy_would_let_a_wrong_batch_norm_pass(name):
    """Why the check weighs the outputs with random numbers: their plain sum is constant, so its slope is 0."""
    x, weight, bias = BATCH_NORM.tensors("cpu")
    weight.requires_grad = bias.requires_grad = False
    with planted(find("batch_norm_backward", f"dL/dx {name}")):
        gradcheck(lambda x: BATCH_NORM.ours(x, weight, bias).sum(), [x])
        with pytest.raises(GradientError):
            gradcheck(lambda x: BATCH_NORM.ours(x, weight, bias), [x])


def overwriting_walk(place, grad, add=None):
    """The engine's own mistake, not an operation's: the second gradient of a tensor replaces the first."""
    if isinstance(place, Leaf):
        place.grad = grad
        return
    for source, part in zip(place.inputs, place.input_grads(grad), strict=True):
        overwriting_walk(source, part)


@pytest.mark.parametrize("skip", [lambda x: x.tanh() + x, lambda x: x + x.tanh(), lambda x: x * x])
def test_a_skip_gradient_overwritten_instead_of_added_is_found(skip, monkeypatch, x):
    gradcheck(skip, [x])
    monkeypatch.setattr(tensor_module, "backward", overwriting_walk)
    with pytest.raises(GradientError):
        gradcheck(skip, [x])


# -- mistakes in how an operation is written, and functions that are hard to difference --------------------------------


class Cube(Function):
    """y = x^3: right; the classes below each make one mistake."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return 3 * x**2 * grad


class DoublesItsGradientInPlace(Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        grad *= 2
        return grad


class InPlaceReLU(Function):
    """What is written first by everybody."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return np.maximum(x, 0)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        grad[x <= 0] = 0
        return grad


class ForwardOverwritesItsInput(Function):
    @staticmethod
    def forward(ctx, x):
        np.maximum(x, 0, out=x)
        ctx.save(x)
        return x.copy()

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return grad * (y > 0)


class BackwardOverwritesItsInput(Cube):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        np.multiply(x, x, out=x)
        return 3 * x * grad


class Float32InBackward(Cube):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return (3 * x.astype(np.float32) ** 2 * grad.astype(np.float32)).astype(np.float64)


class Float32Gradient(Cube):
    @staticmethod
    def backward(ctx, grad):
        return Cube.backward(ctx, grad).astype(np.float32)


class OneOf1e7And1IsWrong(Function):
    SLOPES, WRONG = np.array([[1e7, 1, 1e7], [1, 1, 1]]), np.array([[1e7, 1, 1e7], [1, 3, 1]])

    @staticmethod
    def forward(ctx, x):
        return OneOf1e7And1IsWrong.SLOPES * x

    @staticmethod
    def backward(ctx, grad):
        return OneOf1e7And1IsWrong.WRONG * grad


class ThreeTimesASmallSlope(Function):
    @staticmethod
    def forward(ctx, x):
        return 1e-9 * x

    @staticmethod
    def backward(ctx, grad):
        return 3e-9 * grad


class KeepsItsInputOnTheClass(Function):
    @staticmethod
    def forward(ctx, x):
        KeepsItsInputOnTheClass.x = x
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * KeepsItsInputOnTheClass.x**2 * grad


class CachesItsFirstMask(Function):
    masks: list = []  # noqa: RUF012 - the mistake

    @staticmethod
    def forward(ctx, x):
        CachesItsFirstMask.masks.append(x > 0)
        return np.maximum(x, 0)

    @staticmethod
    def backward(ctx, grad):
        return grad * CachesItsFirstMask.masks[0]


class AddsToItsGradient(Cube):
    """The gradient of a second call has that of the first in it."""

    total = 0

    @staticmethod
    def backward(ctx, grad):
        AddsToItsGradient.total = AddsToItsGradient.total + Cube.backward(ctx, grad)
        return AddsToItsGradient.total


class KeepsASumOnTheClass(Function):
    """Which is the same for shuffled inputs."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        KeepsASumOnTheClass.total = x.sum()
        return x * x.sum()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return grad * KeepsASumOnTheClass.total + (grad * x).sum()


class OverwritesItsOutput(Function):
    """dL/dx of exp is y dL/dy, computed in the place of y."""

    @staticmethod
    def forward(ctx, x):
        y = np.exp(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        y *= grad
        return y


def wrong_where_the_other_is_frozen(number):
    """a b, with a mistake in the gradient of that input which shows only where the other one is frozen."""

    class Product(Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save(a, b)
            return a * b

        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved
            grads = [grad * b, grad * a]
            if not ctx.needs_grad[1 - number]:
                grads[number] = 2 * grads[number]
            return tuple(grads)

    return applied(Product)


def applied(function):
    return lambda *inputs: minidl.apply(function, *inputs)


MIXED_SIGNS = np.array([[-1.0, 2.0, -0.5], [1.5, -2.0, 0.7]])

# what is wrong: (the function, what the message says)
MISTAKES = {
    "dL/dy doubled in place": (applied(DoublesItsGradientInPlace), "DoublesItsGradientInPlace.backward wrote into"),
    "an in-place ReLU": (applied(InPlaceReLU), "InPlaceReLU.backward wrote into the gradient"),
    "x + in-place ReLU": (lambda x: x + minidl.apply(InPlaceReLU, x), "InPlaceReLU.backward wrote into the gradient"),
    "an in-place ReLU inside": (
        lambda x: (3 * minidl.apply(InPlaceReLU, x * 2)).exp(),
        "InPlaceReLU.backward wrote into the gradient",
    ),
    "forward overwrites its input": (applied(ForwardOverwritesItsInput), "the function wrote into input 0"),
    "backward overwrites its input": (applied(BackwardOverwritesItsInput), "or its backward, wrote into input 0"),
    "float32 inside backward": (applied(Float32InBackward), "worst at index"),
    "a gradient of float32": (
        applied(Float32Gradient),
        "expected a gradient of .* float64 for input 0, got .* float32",
    ),
    "one slope beside 1e7": (applied(OneOf1e7And1IsWrong), r"worst at index \(1, 1\)"),
    "three times a slope of 1e-9": (applied(ThreeTimesASmallSlope), "worst at index"),
    "the input kept on the class": (applied(KeepsItsInputOnTheClass), "worst at index"),
    "the first mask kept on the class": (applied(CachesItsFirstMask), "worst at index"),
    "a sum kept on the class": (applied(KeepsASumOnTheClass), "worst at index"),
    "backward overwrites the output": (applied(OverwritesItsOutput), "backward wrote into the output of the function"),
    "a gradient that adds up": (applied(AddsToItsGradient), "in a second call"),
}


@pytest.mark.parametrize(("function", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_how_an_operation_is_written_is_found(function, message):
    x = Tensor(MIXED_SIGNS.copy(), requires_grad=True)
    with pytest.raises(GradientError, match=message):
        gradcheck(function, [x])
    np.testing.assert_array_equal(x.numpy(), MIXED_SIGNS)


@pytest.mark.parametrize("number", [0, 1])
def test_a_path_that_only_frozen_inputs_take_is_found(number):
    inputs = [Tensor(MIXED_SIGNS + k, requires_grad=True) for k in (0, 5)]
    message = rf"input {number} .* in a second call in which no other input requires grad"
    with pytest.raises(GradientError, match=message):
        gradcheck(wrong_where_the_other_is_frozen(number), inputs)


def numbers(*values):
    return Tensor(np.array(values), requires_grad=True)


def drawn(*shape, scale=1.0, shift=0.0):
    return Tensor(np.random.default_rng(0).standard_normal(shape) * scale + shift, requires_grad=True)


def batch_normed(x):
    return functional.batch_norm(x, Tensor(np.full(3, 1.5)), Tensor(np.full(3, 0.5)))


# Right gradients at which plain differences go wrong: (the function, its input).
HARD_BUT_RIGHT = {
    "batch-norm of inputs of 1e-3": (batch_normed, drawn(8, 3, scale=1e-3)),
    "batch-norm of inputs of 1e-6": (batch_normed, drawn(8, 3, scale=1e-6)),
    "batch-norm around 1e4": (batch_normed, drawn(8, 3, shift=1e4)),
    "the sum of a batch-norm": (lambda x: batch_normed(x).sum(), drawn(8, 3)),
    "log near 0": (lambda x: x.log(), numbers(1e-3, 1e-4, 1.0, 50.0)),
    "1/x near 0": (lambda x: 1 / x, numbers(0.01, -0.002, 1.0)),
    "x^-3 near 0": (lambda x: x**-3, numbers(0.05, -0.02, 2.0)),
    "sqrt at 0.01": (lambda x: x.sqrt(), numbers(0.01, 0.001, 4.0)),
    "x + 1e8": (lambda x: x + 1e8, numbers(1.0, -2.0, 0.5)),
    "x - x": (lambda x: x - x, numbers(1.0, -2.0, 0.5)),
    "0 x": (lambda x: x * 0, numbers(1.0, -2.0, 0.5)),
    "1e-12 x": (lambda x: x * 1e-12, numbers(1.0, -2.0, 0.5)),
    "1e12 x": (lambda x: x * 1e12, numbers(1.0, -2.0, 0.5)),
    "x of 1e8, squared": (lambda x: x * x, numbers(1e8, -2e7, 0.5)),
    "exp at 30": (lambda x: x.exp(), numbers(30.0, -30.0, 0.0)),
    "sigmoid, saturated": (lambda x: x.sigmoid(), numbers(30.0, -30.0, 0.1)),
    "tanh, saturated": (lambda x: x.tanh(), numbers(15.0, -15.0, 0.1)),
    "softmax of large logits": (functional.softmax, drawn(4, 5, scale=30)),
    "log_softmax of large logits": (functional.log_softmax, drawn(4, 5, scale=30)),
    "a confident cross-entropy": (lambda x: functional.cross_entropy(x, [0, 1, 2]), drawn(3, 3, scale=20)),
    "a norm near 0": (lambda x: (x * x).sum().sqrt(), drawn(4, scale=1e-3)),
    "a variance around 1e5": (lambda x: x.var(0), drawn(6, 3, shift=1e5)),
    "a ReLU 2e-4 from its kink": (functional.relu, numbers(2e-4, -2e-4, 1.0)),
    "a max-pool of close numbers": (
        lambda x: functional.max_pool2d(x.reshape(1, 2, 2, 1), 2),
        numbers(1.0, 1.0003, 1.0001, 0.9),
    ),
    "slopes of 1e7 and 1": (lambda x: x * Tensor(np.array([1e7, 1.0, 1e-7])), numbers(1.0, 2.0, 3.0)),
}


@pytest.mark.parametrize(("function", "x"), HARD_BUT_RIGHT.values(), ids=HARD_BUT_RIGHT)
def test_right_gradients_pass_where_differences_are_hard(function, x):
    gradcheck(function, [x])
    gradcheck(function, [x], max_elements=0)


@pytest.mark.parametrize(("function", "x"), HARD_BUT_RIGHT.values(), ids=HARD_BUT_RIGHT)
def test_there_an_error_of_one_in_a_hundred_is_found_all_the_same(function, x):
    class Scaled(Function):
        @staticmethod
        def forward(ctx, x):
            return x.copy()

        @staticmethod
        def backward(ctx, grad):
            return 1.01 * grad

    gradient_is_zero = {"x - x", "0 x", "the sum of a batch-norm"}
    if any(HARD_BUT_RIGHT[name][0] is function for name in gradient_is_zero):
        return
    with pytest.raises(GradientError):
        gradcheck(lambda x: function(minidl.apply(Scaled, x)), [x])


def test_a_function_that_is_random_is_refused():
    """Differences of it do not settle at any step, so there is nothing to compare with."""
    x, rng = drawn(4), np.random.default_rng(0)
    with pytest.raises(GradientError, match="another output for the same inputs; fix what is random"):
        gradcheck(lambda x: x * Tensor(1 + 0.1 * rng.standard_normal(4)), [x])


# -- what it says ------------------------------------------------------------------------------------------------------


class Triple(Function):
    """y = 3 x, with one wrong number in the gradient."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, grad):
        grad_x = 3 * grad
        grad_x[1, 2] = 7
        return grad_x


@pytest.fixture
def x(device):
    return Tensor(np.arange(1.0, 7).reshape(2, 3), device=device, requires_grad=True)


def test_the_message_names_the_input_the_index_and_both_values(x, device):
    class Watched(Triple):
        @staticmethod
        def backward(ctx, grad):
            slopes.append(3 * grad[1, 2])
            return Triple.backward(ctx, grad)

    slopes, first = [], Tensor(np.ones((2, 3)), device=device, requires_grad=True)
    message = r"input 1 \(2, 3\): worst at index \(1, 2\): backward computed 7, finite differences (\S+)$"
    with pytest.raises(GradientError, match=message) as error:
        gradcheck(lambda a, b: a + minidl.apply(Watched, b), [first, x])
    assert float(re.search(message, str(error.value))[1]) == pytest.approx(float(slopes[0]))


def test_the_message_on_a_large_tensor_names_the_input_and_both_values(device):
    x = Tensor(np.ones((20, 30)), device=device, requires_grad=True)
    with pytest.raises(
        GradientError, match=r"input 0 \(20, 30\): along a random direction backward computed .*, finite differences"
    ):
        gradcheck(lambda x: minidl.apply(Triple, x), [x])


def test_it_is_an_assertion_error():
    """So a test that uses it fails, rather than breaks."""
    assert issubclass(GradientError, AssertionError)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 2), (), (2, 3, 1)], ids=str)
def test_a_gradient_of_another_shape_is_found_though_its_numbers_may_be_right(shape, x):
    class Misshapen(Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return grad * np.ones_like(grad, shape=shape)

    with pytest.raises(
        GradientError,
        match=r"Misshapen.backward: expected a gradient of \(2, 3\) float64 for input 0, got",
    ):
        gradcheck(lambda x: minidl.apply(Misshapen, x), [x])


def test_no_gradient_at_all_is_found(x):
    class Forgotten(Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, grad):
            return grad, None

    other = Tensor(np.ones((2, 3)), device=x.device, requires_grad=True)
    with pytest.raises(GradientError, match=r"returned no gradient for input 1 of shape \(2, 3\)"):
        gradcheck(lambda a, b: minidl.apply(Forgotten, a, b), [x, other])


@pytest.mark.parametrize("max_elements", [0, 200])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_found(value, max_elements, x):
    class NotANumber(Triple):
        @staticmethod
        def backward(ctx, grad):
            grad_x = 3 * grad
            grad_x[1, 1] = value
            return grad_x

    where = r"worst at index \(1, 1\)" if max_elements else "along a random direction"
    with pytest.raises(GradientError, match=rf"{where}:? backward computed -?{value}"):
        gradcheck(lambda x: minidl.apply(NotANumber, x), [x], max_elements=max_elements)


# -- what it asks for, and what it leaves behind -----------------------------------------------------------------------


def test_float32_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"input 1 is float32; differences need float64: \.to\('float64'\)"):
        gradcheck(lambda a, b: a, [Tensor(np.ones(2), requires_grad=True), Tensor([1.0, 2.0], requires_grad=True)])


def test_a_function_that_leaves_float64_is_refused(x):
    with pytest.raises(TypeError, match="the function returned float32; differences need float64"):
        gradcheck(lambda x: x.to("float32"), [x])


def test_a_computed_input_is_an_error_with_the_remedy(x):
    with pytest.raises(ValueError, match=r"input 0 was computed by Mul; pass Tensor\(x\.numpy\(\), requires_grad=True"):
        gradcheck(lambda y: y.exp(), [2 * x])


def test_no_direction_is_an_error(x):
    with pytest.raises(ValueError, match="expected directions >= 1, got 0"):
        gradcheck(lambda x: x.exp(), [x], directions=0)


def test_an_input_that_is_not_used_is_named(x):
    with pytest.raises(GradientError, match=r"no gradient for input 1 .*; if the output does not depend on it, leave"):
        gradcheck(lambda x, other: x.exp(), [x, drawn(3)])


def test_nothing_to_check_is_an_error(x):
    with pytest.raises(ValueError, match="no input requires grad"):
        gradcheck(lambda x: x * 2, [x.detach()])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Tensor(np.ones(2), requires_grad=True), r"expected a list of tensors, got one Tensor; wrap it in \[...\]"),
        ([np.ones(2)], "expected a Tensor, got ndarray"),
    ],
)
def test_inputs_are_a_list_of_tensors(inputs, message):
    with pytest.raises(TypeError, match=f"gradcheck: {message}"):
        gradcheck(lambda x: x, inputs)


def test_the_function_returns_a_tensor(x):
    with pytest.raises(TypeError, match="gradcheck: expected a Tensor, got ndarray"):
        gradcheck(lambda x: x.numpy(), [x])


def test_inputs_of_any_dtype_may_stand_by_that_are_not_checked(x):
    index = Tensor([1, 0, 1], device=x.device)
    scale = Tensor([2.0], device=x.device)
    gradcheck(lambda x, index, scale: x[index] * scale.to("float64"), [x, index, scale])


def test_it_does_not_weigh_with_the_numbers_that_a_test_draws_first():
    """With dL/dy = x, x^T dL/dy is symmetric, and a transposed gradient passes."""
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3)), requires_grad=True)
    weights = []
    with planted(Mistake("Mul", "none: it keeps dL/dy", lambda call: weights.append(call.grad) or call())):
        gradcheck(lambda x: x * 1, [x])
    assert abs(weights[0] - x.numpy()).min() > 1e-3


@pytest.mark.parametrize("function", [lambda x: x * x, lambda x: minidl.apply(Triple, x)], ids=["right", "wrong"])
def test_inputs_and_their_gradients_are_as_before_afterwards(function, x):
    numbers, array = x.numpy().copy(), x.data
    x.grad = x.detach() * 5
    try:
        gradcheck(function, [x])
    except GradientError:
        assert function(x)._node.name == "Triple"
    assert x.data is array
    np.testing.assert_array_equal(x.numpy(), numbers)
    np.testing.assert_array_equal(x.grad.numpy(), 5 * numbers)


def test_inputs_are_put_back_though_the_function_fails_on_the_way(x):
    numbers = x.numpy().copy()

    def fails_nearby(x):
        if not np.array_equal(x.numpy(), numbers):
            raise KeyError
        return x * 2

    with pytest.raises(KeyError):
        gradcheck(fails_nearby, [x])
    np.testing.assert_array_equal(x.numpy(), numbers)


def test_a_scalar_input_is_checked_too(device):
    x = Tensor(np.float64(2), device=device, requires_grad=True)
    gradcheck(lambda x: x**3, [x])
    with pytest.raises(GradientError):
        gradcheck(lambda x: x.detach() ** 3 + x, [x])


def test_the_same_tensor_may_come_twice(x):
    gradcheck(lambda a, b: a * b, [x, x])
