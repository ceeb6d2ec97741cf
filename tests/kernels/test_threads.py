"""The same bits, whatever the number of threads: shapes decide where chunks begin and in which order they are added."""

import inspect

import numpy as np
import pytest
from models.resnet import cifar_resnet

import minidl
from minidl import Tensor
from minidl.functional import cross_entropy
from minidl.kernels import cpu, reference
from minidl.kernels.cpu import conv
from minidl.optim import SGD
from tests.kernels.compare import Runner, arrays_in

SHAPE = (40, 20, 12, 64)  # 600,000 numbers: several chunks for every kernel
POOLED = (40, 10, 6, 64)
ROWS, FEATURES, CLASSES = 300, 700, 1000
EPS, LR = 1e-5, np.array(0.1, np.float32)
KEY = np.array([1, 2, 3, 4], np.uint32)
rng = np.random.default_rng(0)


def draw(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


# x, kernel size, output channels, stride, padding. Strides of 1 and 2, kernels of 3x3 and 1x1, and each algorithm.
CONVOLUTIONS = [
    (SHAPE, 3, 32, 1, 1),
    (SHAPE, 3, 32, 2, 1),
    (SHAPE, 1, 32, 1, 0),
    (SHAPE, 1, 32, 2, 0),
    (SHAPE, 3, 64, 1, 1),
    (SHAPE, 3, 16, 1, 1),
    ((1, 7, 7, 256), 3, 256, 1, 1),
    ((4, 7, 7, 512), 1, 512, 1, 0),
]


def conv_workloads():
    for x_shape, kernel_size, out_channels, stride, padding in CONVOLUTIONS:
        n, h, w, channels = x_shape
        x, weight = draw(*x_shape), draw(kernel_size, kernel_size, channels, out_channels)
        grad = draw(n, -(-h // stride), -(-w // stride), out_channels)
        window = (stride, stride), (padding, padding)
        yield "conv2d_forward", x, weight, draw(out_channels), *window
        for needs in ((True, True), (True, False), (False, True)):
            yield "conv2d_backward", grad, x, weight, *window, *needs


def linear_workloads():
    x, weight, bias, grad = draw(ROWS, FEATURES), draw(FEATURES, CLASSES), draw(CLASSES), draw(ROWS, CLASSES)
    yield "linear_forward", x, weight, bias
    yield "linear_backward_x", grad, weight
    yield "linear_backward_weight", grad, x
    yield "bias_backward", draw(*SHAPE)
    yield "matmul", draw(4, ROWS, FEATURES), weight


def pool_workloads():
    x, grad, window = draw(*SHAPE), draw(*POOLED), ((3, 3), (2, 2), (1, 1))
    best_tap = reference.max_pool2d_forward(x, *window, False)[1]
    yield "max_pool2d_forward", x, *window, False
    yield "max_pool2d_backward", grad, best_tap, x.shape, *window
    yield "avg_pool2d_forward", x, *window, False, True
    yield "avg_pool2d_backward", grad, x.shape, *window, False, True
    yield "global_avg_pool_forward", x
    yield "global_avg_pool_backward", draw(40, 64), x.shape
    yield "upsample_bilinear2d_forward", grad, SHAPE[1:3], (0.5, 0.5)
    yield "upsample_bilinear2d_backward", x, POOLED, (0.5, 0.5)


def batch_norm_workloads():
    x, grad = draw(2, *SHAPE)
    mean, weight, bias = draw(3, 64)
    variance = 1 + draw(64) ** 2
    yield "batch_statistics", x
    yield "batch_norm_apply", x, mean, variance, weight, bias, EPS
    yield "batch_norm_backward", grad, x, mean, variance, weight, EPS, True
    yield "update_running_statistics", mean, variance, *draw(2, 64), 0.1, 9600


def activation_workloads():
    x, y, grad = draw(3, *SHAPE)
    yield "add", x, y
    yield "relu_forward", x
    yield "relu_backward", grad, y
    for approximate in ("none", "tanh"):
        yield "gelu_forward", x, approximate, True
    yield "gelu_backward", grad, y
    yield "dropout_forward", x, 0.4, KEY
    yield "dropout_backward", grad, 0.4, KEY
    yield "local_response_norm_forward", x, 5, 0.1, 0.75, 2.0
    yield "local_response_norm_backward", grad, x, y, 1 + x**2, 5, 0.1, 0.75
    yield "pad_channels_forward", x, 32, 32
    yield "scatter_add", x, np.arange(x.size).reshape(x.shape) // 3, x.shape
    yield "pad_channels_backward", grad, 16, 16


def augment_workloads():
    images, chosen = rng.integers(0, 256, (50, *SHAPE[1:]), np.uint8), rng.integers(0, 50, 40)
    tops, lefts = rng.integers(0, 9, (2, 40))
    mean, std = draw(*SHAPE[1:]), 1 + draw(*SHAPE[1:]) ** 2
    yield "crop_and_flip", images, chosen, tops, lefts, rng.random(40) < 0.5, mean, std, 4, True


def loss_workloads():
    logits, grad = draw(2, ROWS, CLASSES)
    labels = rng.integers(0, CLASSES, ROWS)
    probabilities = reference.softmax_forward(logits)
    yield "softmax_forward", logits
    yield "softmax_backward", grad, probabilities
    yield "log_softmax_forward", logits
    yield "log_softmax_backward", grad, np.log(probabilities)
    yield "cross_entropy_forward", logits, labels, 0.1
    yield "cross_entropy_backward", LR, probabilities, labels, 0.1
    yield "mse_loss_forward", logits, probabilities
    yield "mse_loss_backward", LR, logits, probabilities


def update_workloads():
    parameters, grads, means, squares = ([draw(*SHAPE), draw(64)] for _ in range(4))
    squares = [square**2 for square in squares]
    yield "sgd_update", parameters, grads, means, LR, 0.9, 0.01, True
    counts = [np.array(3), np.array(0)]
    yield "adam_update", parameters, grads, means, squares, counts, LR, 0.9, 0.999, 1e-8, 0.01, True


FAMILIES = [
    conv_workloads,
    linear_workloads,
    pool_workloads,
    batch_norm_workloads,
    activation_workloads,
    augment_workloads,
    loss_workloads,
    update_workloads,
]
WORKLOADS = [workload for family in FAMILIES for workload in family()]


@pytest.fixture(autouse=True)
def restore_the_number_of_threads():
    before = minidl.get_num_threads()
    yield
    minidl.set_num_threads(before)


def results(threads, name, args):
    minidl.set_num_threads(threads)
    return [array.tobytes() for array in arrays_in(Runner(cpu)(name, *args))]


@pytest.mark.parametrize("workload", WORKLOADS, ids=[name for name, *_ in WORKLOADS])
def test_the_number_of_threads_changes_no_bit(workload):
    name, *args = workload
    alone = results(1, name, args)
    for threads in (2, 3, 8):
        assert results(threads, name, args) == alone


def test_every_algorithm_of_a_convolution_is_among_them():
    used = {"conv2d_forward": set(), "conv2d_backward": set()}
    for name, *args in conv_workloads():
        x, weight, stride, padding = (args[0], args[1], *args[3:]) if "forward" in name else args[1:5]
        used[name].add(conv.algorithm_for(x.shape, weight.shape, stride, padding, "backward" in name))
    assert used == {
        "conv2d_forward": {"im2col", "pairs", "taps", "winograd"},
        "conv2d_backward": {"im2col", "taps", "winograd"},
    }


def test_every_kernel_has_a_workload_here():
    assert {name for name, *_ in WORKLOADS} == {name for name, value in vars(cpu).items() if inspect.isfunction(value)}


def test_a_network_learns_the_same_bits_on_any_number_of_threads():
    """Forward, backward and two updates of ResNet-20, on enough images for several chunks."""
    images, labels = rng.standard_normal((48, 32, 32, 3), np.float32), rng.integers(0, 10, 48)

    def train(threads):
        minidl.set_num_threads(threads)
        model = cifar_resnet(20)
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(2):
            cross_entropy(model(Tensor(images)), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return {name: array.tobytes() for name, array in model.state_dict().items()}

    alone = train(1)
    for threads in (2, 3, 8):
        assert train(threads) == alone
