"""The checker never calls a right answer wrong, and names the mistake of a wrong one."""

import numpy as np
import pytest

from minidl import Function
from minidl.kernels import reference
from minidl.ops.arithmetic import sum_to_shape
from minidl.study.calls import kernels, ops
from minidl.study.cases import has_cases
from minidl.study.mistakes import MISTAKES, find, mistakes_of
from minidl.study.workbench.checker import Runs, judge
from minidl.study.workbench.exercises import PARTS, task
from minidl.study.workbench.observe import observe
from minidl.study.workbench.recognise import recognise, suspects
from minidl.study.workbench.tasks import in_float32
from minidl.study.workbench.where import where
from tests.study.right_answers import RIGHT_ANSWERS

# The tables of mistakes, their names and the recogniser were made with the shapes and numbers of seed 0.
OTHER_SEEDS = (2024, 2025, 2026)


def report_of(name, function, seed=0):
    """What the checker says of a function, or of the class of an op."""
    one = task(name)
    trials = one.trials(seed)

    def seen(convert):
        return [observe(function, convert(trial.arguments), one.kind, one.written) for trial in trials]

    return judge(Runs(one, trials, seen(dict), seen(in_float32)))


def first_problem(name, function):
    return next(rung for rung in report_of(name, function).rungs if rung.problem)


# -- right answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, *OTHER_SEEDS])
@pytest.mark.parametrize(("name", "function"), RIGHT_ANSWERS, ids=lambda value: getattr(value, "__name__", value))
def test_a_right_answer_written_in_another_way_is_right(name, function, seed):
    report = report_of(name, function, seed)
    assert report.is_right, [rung for rung in report.rungs if rung.problem]
    assert report.mistakes == [] and report.place == ""


def test_there_are_twenty_of_them_and_more():
    assert len({function for _, function in RIGHT_ANSWERS}) >= 20


@pytest.mark.parametrize("seed", [0, *OTHER_SEEDS])
@pytest.mark.parametrize("name", kernels())
def test_the_plain_loops_are_right(name, seed):
    report = report_of(name, kernels()[name], seed)
    assert report.is_right, [rung for rung in report.rungs if rung.problem]


@pytest.mark.parametrize("seed", [0, *OTHER_SEEDS])
@pytest.mark.parametrize("name", ops())
def test_each_op_is_right(name, seed):
    report = report_of(name, ops()[name], seed)
    assert report.is_right, [rung for rung in report.rungs if rung.problem]


# -- the known mistakes ------------------------------------------------------------------------------------------------


def recognised(seed):
    """(mistake, whether it is recognised as itself and as nothing else) of all of the list, with a seed's trials."""
    for name in dict.fromkeys(mistake.target for mistake in MISTAKES):
        one = task(name)
        trials = one.trials(seed)
        known = suspects(one, trials)
        shown = {suspect.mistake.name: suspect for suspect in known}
        for mistake in mistakes_of(name):
            verdicts = recognise(one, trials, shown[mistake.name].results, known) if mistake.name in shown else []
            yield mistake, len(verdicts) == 1 and verdicts[0].mistakes == [mistake]


@pytest.mark.parametrize("seed", OTHER_SEEDS)
def test_the_known_mistakes_are_recognised_uniquely(seed):
    """On other shapes and numbers than those that the list was made with: at least 95 of 100."""
    found = dict(recognised(seed))
    assert len(found) == len(MISTAKES) > 800
    missed = [str(mistake) for mistake, is_recognised in found.items() if not is_recognised]
    assert len(missed) <= 0.05 * len(found), missed


@pytest.mark.parametrize("name", [*kernels(), *ops()])
def test_there_are_cases_of_each_kernel_and_op(name):
    assert has_cases(name), f"add cases of {name} to minidl/study/cases.py, so that its exercise can be checked"


@pytest.mark.parametrize("name", kernels())
def test_each_kernel_has_mistakes_to_recognise(name):
    assert len(mistakes_of(name)) >= 5


def test_no_two_mistakes_of_a_kernel_have_the_same_name():
    names = [str(mistake) for mistake in MISTAKES]
    assert len(set(names)) == len(names)


def test_an_unknown_mistake_is_an_error_that_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no mistake 'x' of 'add' is known; it has .*a - b"):
        find("add", "x")


# -- mistakes as people write them -------------------------------------------------------------------------------------


def conv2d_backward_x_not_turned(grad, x, weight, stride, padding):
    result = np.zeros_like(x)
    kh, kw = weight.shape[:2]
    for i, j, u, v in np.ndindex(*grad.shape[1:3], kh, kw):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
            result[:, h, w] += grad[:, i, j] @ weight[kh - 1 - u, kw - 1 - v].T
    return result


def conv2d_backward_x_assigned(grad, x, weight, stride, padding):
    result = np.zeros_like(x)
    for i, j, u, v in np.ndindex(*grad.shape[1:3], *weight.shape[:2]):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
            result[:, h, w] = grad[:, i, j] @ weight[u, v].T
    return result


def conv2d_backward_weight_of_a_mean(grad, x, weight, stride, padding):
    return reference.conv2d_backward(grad, x, weight, stride, padding, False, True)[1] / len(x)


def conv2d_forward_with_stride_1(x, weight, bias, stride, padding):
    return reference.conv2d_forward(x, weight, bias, (1, 1), padding)


def relu_backward_with_ge(grad, y):
    return grad * (y >= 0)


def linear_backward_x_without_t(grad, weight):
    return grad @ weight


def softmax_backward_diagonal(grad, y):
    return grad * y * (1 - y)


def cross_entropy_backward_summed(grad, probabilities, labels, label_smoothing):
    onehot = np.eye(probabilities.shape[1])[labels]
    targets = onehot * (1 - label_smoothing) + label_smoothing / probabilities.shape[1]
    return (grad * (probabilities - targets)).astype(probabilities.dtype)


def batch_norm_backward_as_constants(grad, x, mean, variance, weight, eps, through_statistics):
    axes = tuple(range(x.ndim - 1))
    std = np.sqrt(variance + eps)
    return grad * weight / std, (grad * (x - mean) / std).sum(axis=axes), grad.sum(axis=axes)


def max_pool2d_backward_to_all(grad, best_tap, x_shape, kernel_size, stride, padding):
    result = np.zeros(x_shape, grad.dtype)
    for i, j, u, v in np.ndindex(*grad.shape[1:3], *kernel_size):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if 0 <= h < x_shape[1] and 0 <= w < x_shape[2]:
            result[:, h, w] += grad[:, i, j]
    return result


def max_pool2d_forward_padded_with_zeros(x, kernel_size, stride, padding, ceil_mode):
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    return reference.max_pool2d_forward(padded, kernel_size, stride, (0, 0), ceil_mode)


def softmax_forward_naive(x):
    e = np.exp(x)
    return e / e.sum(axis=1, keepdims=True)


def global_avg_pool_backward_not_divided(grad, x_shape):
    return np.ones(x_shape, grad.dtype) * grad[:, None, None]


def residual_end_backward_unmasked_shortcut(grad, y, z, mean, variance, weight, eps):
    masked = grad * (y > 0)
    grad_z, grad_weight, grad_bias = reference.batch_norm_backward(masked, z, mean, variance, weight, eps, True)
    return grad_z, grad, grad_weight, grad_bias


def conv2d_forward_without_a_lower_bound(x, weight, bias, stride, padding):
    """Python takes a negative index for one from the end."""
    kh, kw, _, o = weight.shape
    oh, ow = ((x.shape[1 + i] + 2 * padding[i] - weight.shape[i]) // stride[i] + 1 for i in (0, 1))
    y = np.zeros((len(x), oh, ow, o), x.dtype)
    for i, j, u, v in np.ndindex(oh, ow, kh, kw):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if h < x.shape[1] and w < x.shape[2]:
            y[:, i, j] += x[:, h, w] @ weight[u, v]
    return y if bias is None else y + bias


def conv2d_forward_in_seven_loops(x, weight, bias, stride, padding):
    """With = in the place of +=."""
    kh, kw, c, o = weight.shape
    oh, ow = ((x.shape[1 + i] + 2 * padding[i] - weight.shape[i]) // stride[i] + 1 for i in (0, 1))
    y = np.zeros((len(x), oh, ow, o), x.dtype)
    for n, i, j, k, u, v, m in np.ndindex(*y.shape, kh, kw, c):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
            y[n, i, j, k] = x[n, h, w, m] * weight[u, v, m, k]
    return y if bias is None else y + bias


def max_pool2d_forward_by_slices(x, kernel_size, stride, padding, ceil_mode):
    """argmax of a slice counts from the first pixel of the slice, not of the window."""
    y = reference.max_pool2d_forward(x, kernel_size, stride, padding, ceil_mode)[0]
    best_tap = np.zeros(y.shape, int)
    for i, j in np.ndindex(*y.shape[1:3]):
        h, w = i * stride[0] - padding[0], j * stride[1] - padding[1]
        window = x[:, max(h, 0) : h + kernel_size[0], max(w, 0) : w + kernel_size[1]]
        best_tap[:, i, j] = window.reshape(len(x), -1, x.shape[3]).argmax(axis=1)
    return y, best_tap


def max_pool2d_forward_from_zero(x, kernel_size, stride, padding, ceil_mode):
    y, best_tap = (
        np.zeros_like(one) for one in reference.max_pool2d_forward(x, kernel_size, stride, padding, ceil_mode)
    )
    for i, j, u, v in np.ndindex(*y.shape[1:3], *kernel_size):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
            wins = x[:, h, w] > y[:, i, j]
            y[:, i, j] = np.where(wins, x[:, h, w], y[:, i, j])
            best_tap[:, i, j] = np.where(wins, u * kernel_size[1] + v, best_tap[:, i, j])
    return y, best_tap


def max_pool2d_backward_assigned(grad, best_tap, x_shape, kernel_size, stride, padding):
    result = np.zeros(x_shape, grad.dtype)
    for i, j, u, v in np.ndindex(*grad.shape[1:3], *kernel_size):
        h, w = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if 0 <= h < x_shape[1] and 0 <= w < x_shape[2]:
            result[:, h, w] = grad[:, i, j] * (best_tap[:, i, j] == u * kernel_size[1] + v)
    return result


def avg_pool2d_forward_without_stride(x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    near = reference.avg_pool2d_forward(x, kernel_size, (1, 1), padding, ceil_mode, count_include_pad)
    _, oh, ow, _ = reference.avg_pool2d_forward(x, kernel_size, stride, padding, ceil_mode, count_include_pad).shape
    return near[:, :oh, :ow]


def padded_and_size(x, kernel_size, stride, padding):
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    return padded, [(padded.shape[1 + i] - kernel_size[i]) // stride[i] + 1 for i in (0, 1)]


def im2col_without_stride(x, kernel_size, stride, padding):
    padded, (oh, ow) = padded_and_size(x, kernel_size, stride, padding)
    taps = [padded[:, u : u + oh, v : v + ow] for u, v in np.ndindex(*kernel_size)]
    return np.stack(taps, axis=3).reshape(len(x) * oh * ow, -1)


def im2col_without_transpose(x, kernel_size, stride, padding):
    padded, (oh, ow) = padded_and_size(x, kernel_size, stride, padding)
    sh, sw = stride
    taps = [padded[:, u : u + sh * oh : sh, v : v + sw * ow : sw] for u, v in np.ndindex(*kernel_size)]
    return np.stack(taps).reshape(len(x) * oh * ow, -1)


def sum_to_shape_of_the_first_axes(grad, shape):
    return grad.sum(axis=tuple(range(grad.ndim - len(shape))))


def sgd_update_without_decay(parameters, grads, velocities, lr, momentum, weight_decay, nesterov):
    reference.sgd_update(parameters, grads, velocities, lr, momentum, 0.0, nesterov)


WRITTEN_BY_PEOPLE = [
    ("conv2d_backward_x", conv2d_backward_x_not_turned, "dL/dx with the kernel not turned by 180 degrees"),
    ("conv2d_backward_x", conv2d_backward_x_assigned, "it is assigned where it should be added"),
    ("conv2d_backward_weight", conv2d_backward_weight_of_a_mean, "dL/dweight divided by N"),
    ("conv2d_forward", conv2d_forward_with_stride_1, "y with a stride of 1, whatever the stride"),
    ("relu_backward", relu_backward_with_ge, "one of y >= 0, which is always true"),
    ("linear_backward_x", linear_backward_x_without_t, "dL/dx with the weight not transposed"),
    ("softmax_backward", softmax_backward_diagonal, "the diagonal of the Jacobian alone"),
    ("cross_entropy_backward", cross_entropy_backward_summed, "dL/dlogits not divided by N"),
    ("batch_norm_backward", batch_norm_backward_as_constants, "without the terms of mean and variance"),
    ("max_pool2d_backward", max_pool2d_backward_to_all, "dL/dx to all pixels of the window"),
    ("max_pool2d_forward", max_pool2d_forward_padded_with_zeros, "zeros as padding, which win over negative numbers"),
    ("softmax_forward", softmax_forward_naive, "exp overflows"),
    ("global_avg_pool_backward", global_avg_pool_backward_not_divided, "dL/dx not divided"),
    ("residual_end_backward", residual_end_backward_unmasked_shortcut, "dL/dshortcut of dL/dy: not masked"),
    ("conv2d_forward", conv2d_forward_without_a_lower_bound, "a negative index counts from there"),
    ("conv2d_forward", conv2d_forward_in_seven_loops, "y of the last tap and channel alone"),
    ("max_pool2d_forward", max_pool2d_forward_by_slices, "in the part of the window that is inside the image"),
    ("max_pool2d_forward", max_pool2d_forward_from_zero, "with best_tap 0 there: the maximum starts from 0"),
    ("max_pool2d_backward", max_pool2d_backward_assigned, "dL/dx of the last window that sees a pixel"),
    ("avg_pool2d_forward", avg_pool2d_forward_without_stride, "i and j not times the stride"),
    ("im2col", im2col_without_stride, "i and j not times the stride"),
    ("im2col", im2col_without_transpose, "reshaped without a transpose"),
    ("sum_to_shape", sum_to_shape_of_the_first_axes, "those of length 1 are not summed"),
    ("sgd_update", sgd_update_without_decay, "weight decay left out"),
]


@pytest.mark.parametrize(("name", "function", "words"), WRITTEN_BY_PEOPLE, ids=lambda v: getattr(v, "__name__", ""))
def test_a_mistake_in_a_students_code_is_named(name, function, words):
    report = report_of(name, function)
    assert not report.is_right
    assert len(report.mistakes) == 1 and words in report.mistakes[0], report.mistakes


# -- up to a factor, in another arrangement, two at once ---------------------------------------------------------------


def relu_times_three(grad, y):
    return 3 * np.where(y > 0, grad, 0)


def relu_negative_everywhere(grad, y):
    return -2 * grad


def global_times_n(x):
    return x.mean(axis=(1, 2)) * len(x)


def cross_entropy_backward_of_a_lecture(grad, probabilities, labels, label_smoothing):
    result = probabilities.copy()
    result[np.arange(len(labels)), labels] -= 1
    return result / len(labels)


def batch_norm_backward_with_two_mistakes(grad, x, mean, variance, weight, eps, through_statistics):
    grad_x, grad_weight, grad_bias = reference.batch_norm_backward(grad, x, mean, variance, weight, eps, True)
    return grad_x, 10 * grad_weight, -grad_bias


def weight_permuted(grad, x, weight, stride, padding):
    return reference.conv2d_backward(grad, x, weight, stride, padding, False, True)[1].transpose(3, 2, 0, 1)


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        ("relu_backward", relu_times_three, ["This is dL/dx, but 3 times as large."]),
        (
            "relu_backward",
            relu_negative_everywhere,
            [
                "This is dL/dx everywhere: no mask, or one of y >= 0, which is always true, "
                "and 2 times as large and with the other sign."
            ],
        ),
        (
            "global_avg_pool_forward",
            global_times_n,
            ["This is y, but times N (the first axis of x): a division is missing."],
        ),
        (
            "cross_entropy_backward",
            cross_entropy_backward_of_a_lecture,
            ["This is dL/dlogits with the labels not smoothed, and not multiplied by grad."],
        ),
        (
            "conv2d_backward_weight",
            weight_permuted,
            ["This is dL/dweight with its axes in the order (3, 2, 0, 1)."],
        ),
    ],
    ids=["factor", "factor of a mistake", "factor of N", "factor of grad", "axes"],
)
def test_what_is_no_known_mistake_is_recognised_by_its_relation_to_one(name, function, expected):
    assert report_of(name, function).mistakes == expected


def batch_norm_backward_without_variance(grad, x, mean, variance, weight, eps, through_statistics):
    """In evaluation, where the term of the mean should be left out too, this is no mistake of the list."""
    std, axes = np.sqrt(variance + eps), tuple(range(x.ndim - 1))
    grad_weight = (grad * (x - mean) / std).sum(axis=axes)
    return weight * (grad - grad.mean(axis=axes)) / std, grad_weight, grad.sum(axis=axes)


def test_a_mistake_in_some_of_the_wrong_cases_is_named_with_these():
    (mistake,) = report_of("batch_norm_backward", batch_norm_backward_without_variance).mistakes
    assert mistake == (
        "In 2 of the 3 wrong cases (through_statistics=True) this is dL/dx without the term of the variance. "
        "The others are wrong in another way."
    )


def batch_norm_backward_by_images(grad, x, mean, variance, weight, eps, through_statistics):
    """M is the number of images, and the terms of training are there in evaluation too."""
    std, axes = np.sqrt(variance + eps), tuple(range(x.ndim - 1))
    x_hat = (x - mean) / std
    grad_weight, grad_bias = (grad * x_hat).sum(axis=axes), grad.sum(axis=axes)
    return weight / std * (grad - (grad_bias + x_hat * grad_weight) / len(x)), grad_weight, grad_bias


def test_a_mistake_in_one_of_the_wrong_cases_is_named_if_no_other_accounts_for_it():
    (mistake,) = report_of("batch_norm_backward", batch_norm_backward_by_images).mistakes
    assert mistake == (
        "In 1 of the 2 wrong cases (through_statistics=True) this is dL/dx with M the number of images instead of "
        "the elements of a channel. The others are wrong in another way."
    )


def test_in_all_wrong_cases_there_are_no_others():
    """With a kernel that is not square it is right: so it is not the known mistake, which would be wrong there."""

    def exchanged(grad, x, weight, stride, padding):
        weight = weight.swapaxes(0, 1) if weight.shape[0] == weight.shape[1] else weight
        return reference.conv2d_backward(grad, x, weight, stride, padding, True, False)[0]

    (mistake,) = report_of("conv2d_backward_x", exchanged).mistakes
    assert mistake == "In 2 of the 2 wrong cases this is dL/dx with the kernel's height and width exchanged."


def test_two_mistakes_are_both_named():
    mistakes = " ".join(report_of("batch_norm_backward", batch_norm_backward_with_two_mistakes).mistakes)
    assert "dL/dweight ten times too large" in mistakes and "dL/dbias with the other sign" in mistakes


def test_two_mistakes_in_one_result_are_both_named_if_they_show_in_different_cases():
    """One shows where labels are smoothed, the other where a probability is rounded to 0."""

    def loss(logits, labels, label_smoothing):
        probabilities = reference.softmax_forward(logits)
        with np.errstate(divide="ignore"):
            return -np.log(probabilities[np.arange(len(labels)), labels]).mean(), probabilities

    (words,) = report_of("cross_entropy_forward", loss).mistakes
    assert words.startswith("This looks like two mistakes. It is the loss by log(probabilities)")
    assert words.endswith("It is also the loss with the labels not smoothed.")


def test_a_result_whose_mistake_is_named_is_not_named_again_with_another_one():
    """Where all numbers are negative, zeros as padding give the same y: that is no second mistake."""

    def forward(*arguments):
        y, best_tap = reference.max_pool2d_forward(*arguments)
        return np.maximum(y, 0), np.where(y < -1, 0, best_tap)

    assert report_of("max_pool2d_forward", forward).mistakes == ["This is y never below 0: the maximum starts from 0."]


def test_a_single_number_is_not_counted():
    report = report_of("mse_loss_forward", lambda x, target: np.asarray(np.inf, x.dtype))
    assert next(rung for rung in report.rungs if rung.problem).problem.startswith("y is inf.\nWrong in 2 of 2 cases")
    assert report.place == "y is wrong."


def test_a_wrong_array_in_a_list_has_its_own_name():
    def doubles_the_second(parameters, *others):
        reference.sgd_update(parameters, *others)
        parameters[1] *= 2

    assert report_of("sgd_update", doubles_the_second).mistakes == ["This is parameters[1], but 2 times as large."]


def conv2d_backward_weight_of_a_mean_over_taps(grad, x, weight, stride, padding):
    right = reference.conv2d_backward(grad, x, weight, stride, padding, False, True)[1]
    return right / (weight.shape[0] * weight.shape[1])


def test_the_size_of_the_kernel_is_that_of_the_weight():
    words = report_of("conv2d_backward_weight", conv2d_backward_weight_of_a_mean_over_taps).mistakes
    assert words == ["This is dL/dweight, but divided by KH*KW."]


def softmax_without_the_maximum_of_all(x):
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def running_statistics_always_unbiased(running_mean, running_variance, mean, variance, momentum, count):
    running_mean[...] = (1 - momentum) * running_mean + momentum * mean
    running_variance[...] = (1 - momentum) * running_variance + momentum * variance * np.divide(count, count - 1)


class ProductNotSummedOverTheBatch(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        grad_b = a.swapaxes(-1, -2) @ grad
        return grad @ b.swapaxes(-1, -2), grad_b.sum(0) if grad_b.ndim > b.ndim else grad_b


class PowerWithoutTheCaseOfZero(Function):
    @staticmethod
    def forward(ctx, x, *, exponent):
        ctx.save(x, exponent)
        return x**exponent

    @staticmethod
    def backward(ctx, grad):
        x, exponent = ctx.saved
        return grad * exponent * x ** (exponent - 1.0)


class ClipOfBothBounds(Function):
    @staticmethod
    def forward(ctx, x, *, low, high):
        ctx.save((x > (low or 0)) & (x < (high or 10)))
        return np.clip(x, low, high)

    @staticmethod
    def backward(ctx, grad):
        return np.where(ctx.saved[0], grad, 0)


class MaximumOfTheFirst(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return np.maximum(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        return sum_to_shape(np.where(a >= b, grad, 0), a.shape), sum_to_shape(np.where(a < b, grad, 0), b.shape)


@pytest.mark.parametrize("seed", [0, *OTHER_SEEDS])
@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("softmax_forward", softmax_without_the_maximum_of_all, "nan"),
        ("update_running_statistics", running_statistics_always_unbiased, "inf"),
        ("MatMul", ProductNotSummedOverTheBatch, "shape"),
        ("Pow", PowerWithoutTheCaseOfZero, "nan"),
        ("Clip", ClipOfBothBounds, "are wrong"),
        ("Maximum", MaximumOfTheFirst, "are wrong"),
    ],
)
def test_what_is_right_but_for_a_special_case_is_wrong(name, function, words, seed):
    report = report_of(name, function, seed)
    problems = [rung.problem for rung in report.rungs if rung.problem]
    assert problems and words in (problems[0] + report.place).lower()


def test_what_nobody_knows_has_no_name():
    report = report_of("relu_backward", lambda grad, y: np.where(y > 0, grad, 0) + np.sin(grad) * y**3)
    assert not report.is_right and report.mistakes == []
    assert report.place.startswith(("1", "2", "3", "4", "5", "6", "7", "8", "9"))


# -- where -------------------------------------------------------------------------------------------------------------


def wrong_at(index, shape):
    """What `where` says of a result that is wrong there."""
    actual = np.zeros(shape)
    actual[index] = 1
    return where("y", actual, np.zeros(shape))


IMAGES = (2, 6, 7, 3)


@pytest.mark.parametrize(
    ("index", "shape", "words"),
    [
        ((slice(None), 0), IMAGES, "at the borders only, which is where the padding counts, in row 0 alone"),
        ((slice(None), 0), (2, 2, 5, 3), "in row 0 alone"),  # there is nothing but a border
        ((slice(None), slice(1, 5), slice(1, 7)), IMAGES, "everywhere but at some places of the borders"),
        ((slice(None), slice(1, None, 2)), IMAGES, "in every second row, from 1 on"),
        ((slice(None), [1, 3, 4]), IMAGES, "in the rows 1, 3, 4 of 6"),
        ((slice(None), slice(1, 4)), IMAGES, "in the rows 1 to 3 of 6"),
        ((1,), IMAGES, "in image 1 alone"),
        ((..., 1), IMAGES, "in channel 1 alone"),
        ((..., [0, -1]), (4, 9), "in the first and the last column only"),
        (([0, 2, 3, 5, 7, 8, 9],), (120, 4), "in 7 of 120 rows"),
    ],
)
def test_the_checker_says_where_it_is_wrong(index, shape, words):
    sentence, _ = wrong_at(index, shape)
    assert sentence.partition("wrong: ")[2].startswith(words)


def test_the_map_has_the_rows_and_columns_that_fit():
    title, *rows = wrong_at((0, 2), (30, 70))[1].splitlines()
    assert title == "The rows and columns of it (# wrong, . right):"
    assert rows == ["  ..#" + "." * 61, *["  " + "." * 64] * 23, "  ..."]
    assert wrong_at((..., 0), (2, 3, 4, 5))[1] == "" and wrong_at(0, (3,))[1] == ""  # all, and no second axis


def test_the_place_is_one_of_the_case_that_was_named():
    """In the first case the shape is wrong. Where the numbers of another case are wrong would not belong to it."""

    def without_padding(x, weight, bias, stride, padding):
        return reference.conv2d_forward(x, weight, bias, stride, (0, 0)) + 1

    report = report_of("conv2d_forward", without_padding)
    assert "has the shape" in next(rung for rung in report.rungs if rung.problem).problem and report.place == ""


def test_one_tap_is_shown_on_the_map():
    def without_the_middle(grad, x, weight, stride, padding):
        result = reference.conv2d_backward(grad, x, weight, stride, padding, False, True)[1]
        result[1, 1] = np.sin(result[1, 1])
        return result

    place = report_of("conv2d_backward_weight", without_the_middle).place
    assert "in tap row 1 alone, in tap column 1 alone" in place
    assert "  ...\n  .#.\n  ..." in place


# -- the steps of the ladder -------------------------------------------------------------------------------------------


def into_its_arguments(grad, y):
    grad[y <= 0] = 0
    return grad


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda grad, y: None, "It returned None, expected one array, dL/dx. Is the `return` missing?"),
        (lambda grad, y: (grad, y), "It returned a tuple of 2, expected one array, dL/dx."),
        (lambda grad, y: grad.tolist(), "It returned a list of"),
        (lambda grad, y: "grad", "It returned a str, expected one array, dL/dx."),
        (lambda grad, y: grad + 0j, "It returned an array of complex128, expected one array, dL/dx."),
        (lambda grad, y: (yield grad), "It returned a generator, expected one array, dL/dx."),
        (lambda grad, y: grad.T, "dL/dx has the shape (7, 3), expected (3, 7), the shape of grad."),
        (lambda grad, y: np.where(y > 0, grad, 0).astype(np.float16), "dL/dx is float16, expected float64"),
        (lambda grad, y: grad / y, "numbers of"),
        (lambda grad, y: grad @ y.T @ y.T, "ValueError in line"),
        (into_its_arguments, "It wrote into grad, which others still need."),
        (
            lambda grad, y: np.where(y > 0, grad, 0).astype(np.float64),
            "dL/dx is float64 for float32 arguments, expected float32. Results have the dtype of the",
        ),
        (lambda grad, y: exit(), "It ends Python by exit()"),
        (lambda grad, y: np.load("grad.npy"), "FileNotFoundError"),
    ],
    ids=[
        "None",
        "tuple",
        "list",
        "str",
        "complex",
        "yield",
        "shape",
        "dtype",
        "NaN",
        "raises",
        "writes",
        "float32",
        "exit",
        "no file",
    ],
)
def test_each_step_says_what_is_wrong(function, words):
    assert words in first_problem("relu_backward", function).problem


def test_float32_results_may_be_rounded_as_float32_is_and_no_more():
    def rounds(grad, y):
        right = np.where(y > 0, grad, 0)
        return right.astype(np.float16).astype(np.float32) if grad.dtype == np.float32 else right

    rung = first_problem("relu_backward", rounds)
    assert rung.title == "float32 arguments give float32 results that agree" and "are wrong." in rung.problem


def test_zeros_are_said_to_be_zeros():
    class Tanh(Function):
        forward = staticmethod(ops()["Tanh"].forward)

        @staticmethod
        def backward(ctx, grad):
            return 0 * grad

    assert report_of("Tanh", Tanh).mistakes == ["This is dL/d(input 0), but 0 everywhere."]


def test_of_several_results_the_one_that_is_no_array_is_named():
    problem = first_problem("max_pool2d_forward", lambda x, *options: (x, "best_tap")).problem
    assert problem.startswith("best_tap is no array of numbers; expected a tuple of 2: (y, best_tap).")


def test_the_shape_of_a_gradient_is_that_of_its_argument():
    right = reference.batch_norm_backward

    def of_a_wrong_shape(*arguments):
        grad_x, grad_weight, grad_bias = right(*arguments)
        return grad_x, grad_weight[:, None], grad_bias

    problem = first_problem("batch_norm_backward", of_a_wrong_shape).problem
    shape, case = problem.splitlines()
    assert shape == "dL/dweight has the shape (6, 1), expected (6,), the shape of weight."
    assert case.startswith("Wrong in 3 of 3 cases, first in this one: grad (4, 6), x (4, 6), mean (6,), variance")
    # x has the shape of y here by chance: it says nothing of the mistake
    no_padding = first_problem(
        "conv2d_forward", lambda x, weight, *_: reference.conv2d_forward(x, weight, None, (1, 1), (0, 0))
    )
    assert no_padding.problem.splitlines()[0] == "y has the shape (4, 3, 4, 2), expected (4, 5, 6, 2)."


def test_a_file_that_it_reads_is_named(tmp_path):
    path = tmp_path / "answer.npy"
    np.save(path, np.zeros(3))

    def reads(grad, y):
        np.load(path)
        return np.where(y > 0, grad, 0)

    assert f"It opened the file {path}" in first_problem("relu_backward", reads).problem


def test_a_wrong_transpose_is_said_in_words():
    rung = first_problem("conv2d_backward_x", conv2d_backward_x_not_turned)
    assert rung.title.startswith("it is the transpose of forward")
    assert "For a random v, sum(forward(v) * grad) is" in rung.problem


def test_an_update_has_to_write_into_its_arguments():
    report = report_of("sgd_update", lambda *arguments: None)
    assert report.mistakes == ["This is new arrays instead of the given ones: nothing is written."]
    returning = first_problem("sgd_update", lambda *arguments: arguments[0])
    assert "it should write into parameters, velocities and return nothing" in returning.problem


def test_new_arrays_in_the_lists_are_no_update():
    """Those that the parameters have stay as they were."""

    def rebinds(parameters, grads, velocities, lr, momentum, weight_decay, nesterov):
        for i, (p, v) in enumerate(zip(*(map(np.copy, some) for some in (parameters, velocities)), strict=True)):
            reference.sgd_update([p], [grads[i]], [v], lr, momentum, weight_decay, nesterov)
            parameters[i], velocities[i] = p, v

    report = report_of("sgd_update", rebinds)
    assert report.mistakes == ["This is new arrays instead of the given ones: nothing is written."]


def write_zeros(grads):
    for grad in grads:
        grad *= 0


def take_one_out(grads):
    grads.pop()


def put_others_in(grads):
    grads[:] = [grad.copy() for grad in grads]


@pytest.mark.parametrize("change", [write_zeros, take_one_out, put_others_in])
def test_an_update_may_write_into_nothing_else(change):
    def eager(parameters, grads, *others):
        reference.sgd_update(parameters, grads, *others)
        change(grads)

    assert "It wrote into grads" in first_problem("sgd_update", eager).problem


@pytest.mark.parametrize("name", [*kernels(), *PARTS, *ops()])
def test_what_is_not_written_yet_is_no_mistake(name):
    def nothing(*arguments, **options):
        raise NotImplementedError

    function = type(name, (), {"forward": staticmethod(nothing)}) if name in ops() else nothing
    report = report_of(name, function)
    assert report.mistakes == [] and f"{name} is not written yet." in report.rungs[0].problem
