"""Layers: each hands its parameters and arguments to its operation, and starts as it says."""

import numpy as np
import pytest

import minidl
from minidl import Tensor, nn
from minidl.random import rows_from
from tests.kernels.compare import assert_close, nchw, nhwc

# name: our layer, PyTorch's, and the shape of x
TWINS = {
    "conv": (nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0)), lambda t: t.Conv2d(3, 4, (3, 2), (2, 1), (1, 0)), (2, 6, 5, 3)),
    "conv of stride and padding 1": (nn.Conv2d(3, 4, 3, 1, 1), lambda t: t.Conv2d(3, 4, 3, 1, 1), (2, 6, 5, 3)),
    "conv without bias": (nn.Conv2d(3, 4, 1, bias=False), lambda t: t.Conv2d(3, 4, 1, bias=False), (2, 6, 5, 3)),
    "linear": (nn.Linear(6, 4), lambda t: t.Linear(6, 4), (3, 6)),
    "linear without bias": (nn.Linear(6, 4, bias=False), lambda t: t.Linear(6, 4, bias=False), (3, 6)),
    "batch-norm": (nn.BatchNorm2d(3), lambda t: t.BatchNorm2d(3), (2, 4, 5, 3)),
    "batch-norm with arguments": (nn.BatchNorm2d(3, 0.1, 0.3), lambda t: t.BatchNorm2d(3, 0.1, 0.3), (2, 4, 5, 3)),
    "relu": (nn.ReLU(), lambda t: t.ReLU(), (2, 3)),
    "gelu": (nn.GELU(), lambda t: t.GELU(), (2, 3)),
    "gelu by tanh": (nn.GELU("tanh"), lambda t: t.GELU("tanh"), (2, 3)),
    "max-pool": (nn.MaxPool2d(2), lambda t: t.MaxPool2d(2), (2, 6, 5, 3)),
    "max-pool with arguments": (
        nn.MaxPool2d((3, 2), 2, (1, 0), True),
        lambda t: t.MaxPool2d((3, 2), 2, (1, 0), ceil_mode=True),
        (2, 6, 5, 3),
    ),
    "avg-pool": (nn.AvgPool2d(2), lambda t: t.AvgPool2d(2), (2, 6, 5, 3)),
    "avg-pool with arguments": (
        nn.AvgPool2d(3, 2, 1, True, False),
        lambda t: t.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        (2, 6, 6, 3),
    ),
    "avg-pool in ceil mode": (nn.AvgPool2d(3, 2, 1, True), lambda t: t.AvgPool2d(3, 2, 1, True), (2, 6, 6, 3)),
    "global avg-pool": (
        nn.GlobalAvgPool(),
        lambda t: t.Sequential(t.AdaptiveAvgPool2d(1), t.Flatten()),
        (2, 4, 5, 3),
    ),
    "upsample": (
        nn.Upsample(scale_factor=2.5, mode="bilinear"),
        lambda t: t.Upsample(scale_factor=2.5, mode="bilinear"),
        (2, 3, 5, 4),
    ),
    "upsample to a size": (
        nn.Upsample((5, 7), mode="bilinear"),
        lambda t: t.Upsample((5, 7), mode="bilinear"),
        (2, 3, 5, 4),
    ),
    "local response norm": (
        nn.LocalResponseNorm(3, 0.2, 0.6, 1.5),
        lambda t: t.LocalResponseNorm(3, alpha=0.6, beta=0.6, k=1.5),  # PyTorch divides alpha by the size
        (2, 4, 5, 6),
    ),
    "local response norm of the paper": (
        nn.LocalResponseNorm(),
        lambda t: t.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2),
        (2, 4, 5, 6),
    ),
    "channels of zeros": (nn.PadChannels(1, 2), lambda t: t.ConstantPad3d((0, 0, 0, 0, 1, 2), 0), (2, 4, 5, 3)),
    "softmax": (nn.Softmax(), lambda t: t.Softmax(-1), (4, 5)),
    "softmax over the batch": (nn.Softmax(0), lambda t: t.Softmax(0), (4, 5)),
    "log-softmax": (nn.LogSoftmax(), lambda t: t.LogSoftmax(-1), (4, 5)),
    "log-softmax over the batch": (nn.LogSoftmax(0), lambda t: t.LogSoftmax(0), (4, 5)),
    "dropout of nothing": (nn.Dropout(0.0), lambda t: t.Dropout(0.0), (4, 5)),
}


def to_torch(torch, state):
    return {name: torch.tensor(array) for name, array in state.items()}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("ours", "make_theirs", "shape"), TWINS.values(), ids=TWINS)
def test_a_layer_computes_what_pytorch_computes(ours, make_theirs, shape, training, device, rng, torch):
    state = {name: rng.random(array.shape, np.float32) + 0.5 for name, array in ours.state_dict().items()}
    theirs = make_theirs(torch.nn).train(training)
    theirs.load_state_dict(to_torch(torch, state), strict=True)
    ours.to(device).train(training).load_state_dict(state)
    x = 3 * rng.standard_normal(shape, np.float32)
    expected = nhwc(theirs(nchw(torch.from_numpy(x))))
    assert_close(ours(Tensor(x, device=device)).numpy(), expected.detach().numpy(), 1e-5)
    for name, array in ours.state_dict().items():
        assert_close(array, theirs.state_dict()[name].numpy(), 1e-5)


@pytest.mark.parametrize("arguments", [(), (0.2,)], ids=["plain", "smoothed"])
def test_the_cross_entropy_loss_is_that_of_pytorch(arguments, device, rng, torch):
    logits, labels = rng.standard_normal((4, 5), np.float32), rng.integers(0, 5, 4)
    ours = nn.CrossEntropyLoss(*arguments)(Tensor(logits, device=device), labels)
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=sum(arguments))(torch.tensor(logits), torch.tensor(labels))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_squared_error_loss_is_the_mean(device):
    x, target = Tensor([1.0, 2.0], device=device), Tensor([3.0, 5.0], device=device)
    assert nn.MSELoss()(x, target).item() == 6.5


def test_flatten_keeps_the_batch(device):
    x = np.arange(24, dtype=np.float32).reshape(2, 2, 3, 2)
    assert np.array_equal(nn.Flatten()(Tensor(x, device=device)).numpy(), x.reshape(2, 12))


def test_biases_start_at_0_and_batch_norm_as_the_identity():
    assert not nn.Conv2d(2, 3, 1).bias.numpy().any() and not nn.Linear(2, 3).bias.numpy().any()
    started = {name: set(array.tolist()) for name, array in nn.BatchNorm2d(3).state_dict().items()}
    assert started == {"weight": {1.0}, "bias": {0.0}, "running_mean": {0.0}, "running_var": {1.0}}


def test_weights_start_with_the_variances_of_he_and_of_xavier():
    with minidl.fork_rng(0):
        conv, linear = nn.Conv2d(32, 128, 3).weight.numpy(), nn.Linear(300, 100).weight.numpy()
    assert conv.var() == pytest.approx(2 / (32 * 9), rel=0.03)  # the deviation of the variance of 36,864 is 0.0074
    assert linear.var() == pytest.approx(2 / 400, rel=0.03)


NAN = float("nan")
WRONG = {
    "a kernel of 0": (lambda: nn.Conv2d(1, 1, 0), "Conv2d: expected kernel_size"),
    "a stride of 0": (lambda: nn.Conv2d(1, 1, 3, stride=0), "Conv2d: expected stride"),
    "a negative padding": (lambda: nn.Conv2d(1, 1, 3, padding=(0, -1)), "Conv2d: expected padding"),
    "a convolution to 0 channels": (lambda: nn.Conv2d(3, 0, 3), "Conv2d: expected out_channels .* >= 1, got 0"),
    "a convolution of -3 channels": (lambda: nn.Conv2d(-3, 4, 3), "Conv2d: expected in_channels .* >= 1, got -3"),
    "a convolution of half a channel": (lambda: nn.Conv2d(0.5, 4, 3), "Conv2d: expected in_channels .* got 0.5"),
    "a linear layer of 0 features": (lambda: nn.Linear(0, 4), "Linear: expected in_features .* >= 1, got 0"),
    "a linear layer to 0 features": (lambda: nn.Linear(4, 0), "Linear: expected out_features .* >= 1, got 0"),
    "batch-norm of 0 channels": (lambda: nn.BatchNorm2d(0), "BatchNorm2d: expected num_features .* >= 1, got 0"),
    "a negative eps": (lambda: nn.BatchNorm2d(3, eps=-1e-5), r"BatchNorm2d: expected eps in \[0, inf\), got -1e-05"),
    "an eps of NaN": (lambda: nn.BatchNorm2d(3, eps=NAN), r"expected eps in \[0, inf\), got nan"),
    "an infinite eps": (lambda: nn.BatchNorm2d(3, eps=float("inf")), r"expected eps in \[0, inf\), got inf"),
    "a momentum of NaN": (lambda: nn.BatchNorm2d(3, momentum=NAN), r"expected momentum in \[0, 1\], got nan"),
    "a momentum above 1": (lambda: nn.BatchNorm2d(3, momentum=1.5), r"expected momentum in \[0, 1\], got 1.5"),
    "a negative momentum": (lambda: nn.BatchNorm2d(3, momentum=-0.1), r"expected momentum in \[0, 1\], got -0.1"),
    "no momentum": (lambda: nn.BatchNorm2d(3, momentum=None), r"expected momentum in \[0, 1\], got None"),
    "a dropout in words": (lambda: nn.Dropout("0.5"), r"Dropout: expected probability in \[0, 1\), got '0.5'"),
    "a max-pool of 0": (lambda: nn.MaxPool2d(0), "MaxPool2d: expected kernel_size"),
    "a max-pool of stride 0": (lambda: nn.MaxPool2d(2, 0), "MaxPool2d: expected stride"),
    "a max-pool with much padding": (lambda: nn.MaxPool2d(2, 2, 2), "MaxPool2d: expected padding of at most half"),
    "an avg-pool of -1": (lambda: nn.AvgPool2d((2, -1)), "AvgPool2d: expected kernel_size"),
    "an avg-pool of negative padding": (lambda: nn.AvgPool2d(2, padding=-1), "AvgPool2d: expected padding"),
    "dropout of more than all": (lambda: nn.Dropout(1.5), r"Dropout: expected probability in \[0, 1\), got 1.5"),
    "dropout of all": (lambda: nn.Dropout(1.0), r"Dropout: expected probability in \[0, 1\), got 1.0"),
    "a negative dropout": (lambda: nn.Dropout(-0.1), r"Dropout: expected probability in \[0, 1\), got -0.1"),
    "a dropout of NaN": (lambda: nn.Dropout(NAN), r"Dropout: expected probability in \[0, 1\), got nan"),
    "a norm over 0 channels": (lambda: nn.LocalResponseNorm(0), "LocalResponseNorm: expected size .* >= 1, got 0"),
    "-1 channels of zeros": (lambda: nn.PadChannels(2, -1), "PadChannels: expected after .* >= 0, got -1"),
    "an upsampling to no size": (
        lambda: nn.Upsample(mode="bilinear"),
        "Upsample: expected either size or scale_factor, got size=None and scale_factor=None",
    ),
    "an upsampling by copies": (lambda: nn.Upsample(2, mode="nearest"), "expected mode='bilinear', got 'nearest'"),
    "an upsampling by 0": (
        lambda: nn.Upsample(scale_factor=0, mode="bilinear"),
        "Upsample: expected scale_factor to be a number > 0 or a pair of them, got 0",
    ),
    "a GELU by erf": (lambda: nn.GELU("erf"), "GELU: expected approximate='none' or 'tanh', got 'erf'"),
    "smoothing above 1": (lambda: nn.CrossEntropyLoss(1.2), r"CrossEntropyLoss: expected label_smoothing in \[0, 1\]"),
    "a flatten of another size": (
        lambda: nn.Linear(10, 2, flattened_from=(2, 2, 3)),
        r"Linear: expected flattened_from of 10 elements in all, got \(2, 2, 3\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_impossible_arguments_are_refused_where_the_layer_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


REPRS = [
    (nn.Conv2d(1, 2, (3, 5), 2, 1, bias=False), "Conv2d(1 -> 2, 3x5, stride=(2, 2), padding=(1, 1), bias=False)"),
    (nn.Linear(3, 2, bias=False), "Linear(3 -> 2, bias=False)"),
    (nn.BatchNorm2d(4, 1e-3, 0.2), "BatchNorm2d(4, eps=0.001, momentum=0.2)"),
    (nn.MaxPool2d(3, 2, 1), "MaxPool2d(3, stride=2, padding=1)"),
    (nn.AvgPool2d(3), "AvgPool2d(3, stride=3, padding=0)"),
    (nn.Dropout(0.3), "Dropout(0.3)"),
    (nn.LocalResponseNorm(3), "LocalResponseNorm(3, alpha=0.0001, beta=0.75, k=2.0)"),
    (nn.PadChannels(1, 2), "PadChannels(1, 2)"),
    (nn.GlobalAvgPool(), "GlobalAvgPool()"),
    (nn.Upsample(scale_factor=2, mode="bilinear"), "Upsample(scale_factor=2, mode='bilinear')"),
    (nn.Upsample((5, 7), mode="bilinear"), "Upsample(size=(5, 7), mode='bilinear')"),
    (nn.GELU(), "GELU(approximate='none')"),
]


@pytest.mark.parametrize(("layer", "text"), REPRS, ids=[text for _, text in REPRS])
def test_a_layer_prints_its_arguments(layer, text):
    assert repr(layer).partition("  #")[0] == text


# -- dropout -----------------------------------------------------------------------------------------------------------


def masks(layer, steps=3, device="cpu"):
    """What the layer lets through of ones, at each step."""
    return [layer(Tensor(np.ones((8, 50), np.float32), device=device)).numpy() for _ in range(steps)]


def test_dropout_scales_what_it_keeps_and_keeps_as_many_as_it_says(device):
    (mask,) = masks(nn.Dropout(0.2).to(device), 1, device)
    assert set(mask.ravel().tolist()) == {0.0, 1.25}
    assert abs((mask == 0).mean() - 0.2) < 0.1  # five deviations of the mean of 400


def test_dropout_counts_its_training_steps_and_draws_a_new_mask_in_each(device):
    layer = nn.Dropout(0.5).to(device)
    first, second, third = masks(layer, 3, device)
    assert Tensor(layer.key).numpy()[2] == 3
    assert not np.array_equal(first, second) and not np.array_equal(second, third)
    layer.eval()
    masks(layer, 2, device)
    assert Tensor(layer.key).numpy()[2] == 3


def test_the_same_seed_gives_the_same_masks_and_another_layer_or_seed_others():
    def two_layers(seed):
        with minidl.fork_rng(seed):
            return masks(nn.Dropout()), masks(nn.Dropout())

    first, second = two_layers(7)
    assert np.array_equal(two_layers(7), (first, second))
    assert not np.array_equal(first, second)
    for high_and_low in (8, 7 + 2**32):
        assert not np.array_equal(two_layers(high_and_low)[0], first)


def test_the_rows_of_a_larger_batch_are_dropped_as_there(device):
    """Rows of 7 numbers, which no word of four divides."""

    def mask(first, stop):
        with minidl.fork_rng(7), rows_from(first):
            return nn.Dropout().to(device)(Tensor(np.ones((stop - first, 7), np.float32), device=device)).numpy()

    whole = mask(0, 6)
    for first, stop in [(0, 2), (2, 3), (3, 6)]:
        np.testing.assert_array_equal(mask(first, stop), whole[first:stop])


def test_a_recomputed_part_remembers_its_rows():
    """Backward runs outside of the block, and must not draw the masks of other rows."""
    layer, x = nn.Dropout(), Tensor(np.ones((5, 7), np.float32), requires_grad=True)
    with rows_from(3):
        y = minidl.recompute(layer, x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())


def test_rows_are_counted_from_0():
    for first in (-1, 0.5):
        with pytest.raises(ValueError, match=f"rows_from: expected the number of a row >= 0, got {first}"):
            rows_from(first).__enter__()


def test_a_key_that_is_put_back_brings_the_masks_back():
    layer = nn.Dropout()
    masks(layer)
    key = layer.key.data.copy()
    expected = masks(layer)
    layer.key.data[...] = key
    assert np.array_equal(masks(layer), expected)


def test_the_gradient_of_dropout_has_the_mask_of_its_own_step(device):
    layer = nn.Dropout().to(device)
    x = Tensor(np.ones((8, 50), np.float32), device=device, requires_grad=True)
    y = layer(x)
    layer(x)
    y.sum().backward()
    assert np.array_equal(x.grad.numpy(), y.numpy())


def test_dropout_in_evaluation_is_the_identity():
    x = Tensor([1.0, 2.0])
    assert nn.Dropout(0.9).eval()(x) is x
