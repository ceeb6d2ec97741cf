"""The operations as users call them: what they refuse, and that they do as PyTorch for any shapes.

Their gradients, and the configurations of each, are in tests/ops.
"""

import doctest
import functools
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minidl
from minidl import Tensor, functional
from minidl.checks import as_pair
from minidl.functional import (
    avg_pool2d,
    batch_norm,
    cat,
    conv2d,
    cross_entropy,
    dropout,
    flatten,
    gelu,
    global_avg_pool,
    interpolate,
    linear,
    local_response_norm,
    log_softmax,
    max_pool2d,
    maximum,
    mse_loss,
    pad_channels,
    relu,
    softmax,
    stack,
    where,
)
from tests.kernels.compare import nchw, nhwc
from tests.test_tensor import assert_same_in_pytorch

PUBLIC = {
    name: function
    for name, function in vars(functional).items()
    if inspect.isfunction(function) and function.__module__ == functional.__name__ and not name.startswith("_")
}
SIDES = st.integers(1, 4)
KEY = np.zeros(4, np.uint32)


def tensor(*shape, dtype=np.float32):
    return Tensor(np.ones(shape, dtype))


# -- documentation -----------------------------------------------------------------------------------------------------


def test_the_examples_in_the_docstrings_are_true():
    results = doctest.testmod(functional)
    assert results.attempted >= len(PUBLIC)
    assert results.failed == 0


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_function_shows_an_example(name):
    assert ">>> " in PUBLIC[name].__doc__


# -- any shapes --------------------------------------------------------------------------------------------------------


@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
def test_maximum_of_any_shapes(shapes, device, torch):
    assert_same_in_pytorch(torch, maximum, shapes.input_shapes, device, torch.maximum)


@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3))
def test_where_of_any_shapes(shapes, device, torch):
    condition_shape, *others = shapes.input_shapes
    condition = np.random.default_rng(2).random(condition_shape) < 0.5
    assert_same_in_pytorch(
        torch,
        lambda a, b: where(Tensor(condition, device=a.device), a, b),
        others,
        device,
        lambda a, b: torch.where(torch.tensor(condition), a, b),
    )


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=3),
    sizes=st.lists(SIDES, min_size=1, max_size=4),
    data=st.data(),
)
def test_cat_along_any_dimension(shape, sizes, data, device, torch):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    shapes = [tuple(size if axis == dim % len(shape) else n for axis, n in enumerate(shape)) for size in sizes]
    assert_same_in_pytorch(torch, lambda *xs: cat(xs, dim), shapes, device, lambda *xs: torch.cat(xs, dim))


@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), count=st.integers(1, 3), data=st.data())
def test_stack_along_any_dimension(shape, count, data, device, torch):
    dim = data.draw(st.integers(-len(shape) - 1, len(shape)))
    assert_same_in_pytorch(torch, lambda *xs: stack(xs, dim), [shape] * count, device, lambda *xs: torch.stack(xs, dim))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), data=st.data())
def test_softmax_along_any_dimension(name, shape, data, device, torch):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    assert_same_in_pytorch(
        torch, lambda x: PUBLIC[name](x, dim), [shape], device, lambda x: getattr(torch, name)(x, dim)
    )


@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=3), data=st.data())
def test_flatten_from_any_dimension(shape, data, device, torch):
    start = data.draw(st.integers(-len(shape), len(shape) - 1))
    assert_same_in_pytorch(
        torch, lambda x: flatten(x, start), [shape], device, lambda x: torch.flatten(x, start_dim=start)
    )


@given(n=SIDES, inputs=SIDES, outputs=SIDES, bias=st.booleans())
@settings(max_examples=30)
def test_linear_layers_of_any_shape(n, inputs, outputs, bias, device, torch):
    shapes = [(n, inputs), (inputs, outputs), (outputs,)][: 2 + bias]
    assert_same_in_pytorch(torch, linear, shapes, device, lambda x, w, *b: torch.nn.functional.linear(x, w.T, *b))


@given(shape=hnp.array_shapes(min_dims=4, max_dims=4, max_side=4), is_image=st.booleans())
@settings(max_examples=30)
def test_batch_norm_of_any_shape(shape, is_image, device, torch):
    shape = (shape[0] + 1, *(shape[1:] if is_image else shape[3:]))  # two numbers per channel at least
    weight = shape[-1:]

    def theirs(x, weight, bias):
        return nhwc(torch.nn.functional.batch_norm(nchw(x), None, None, weight, bias, training=True, eps=0.1))

    assert_same_in_pytorch(torch, functools.partial(batch_norm, eps=0.1), [shape, weight, weight], device, theirs)


@given(n=SIDES, classes=SIDES, smoothing=st.sampled_from([0, 0.1, 0.5, 1]))
@settings(max_examples=50)
def test_cross_entropy_of_any_shape(n, classes, smoothing, device, torch):
    labels = np.random.default_rng(3).integers(0, classes, n)
    assert_same_in_pytorch(
        torch,
        lambda logits: cross_entropy(logits, labels, smoothing),
        [(n, classes)],
        device,
        lambda logits: torch.nn.functional.cross_entropy(logits, torch.tensor(labels), label_smoothing=smoothing),
    )


# -- bad input ---------------------------------------------------------------------------------------------------------

IMAGES = {
    "conv2d": lambda x: conv2d(x, tensor(3, 3, 2, 4)),
    "max_pool2d": lambda x: max_pool2d(x, 2),
    "avg_pool2d": lambda x: avg_pool2d(x, 2),
    "global_avg_pool": global_avg_pool,
    "local_response_norm": local_response_norm,
    "interpolate": lambda x: interpolate(x, 2, mode="bilinear"),
}
FLOATS = IMAGES | {
    "linear": lambda x: linear(x, tensor(2, 4)),
    "batch_norm": lambda x: batch_norm(x, tensor(2), tensor(2)),
    "softmax": softmax,
    "log_softmax": log_softmax,
    "gelu": gelu,
    "dropout": lambda x: dropout(x, 0.5, KEY),
    "cross_entropy": lambda x: cross_entropy(x, [0, 1]),
}
TENSORS = FLOATS | {
    "relu": relu,
    "flatten": flatten,
    "pad_channels": lambda x: pad_channels(x, 1, 1),
    "mse_loss": lambda x: mse_loss(x, x),
    "cat": lambda x: cat([tensor(2, 2), x]),
    "stack": lambda x: stack([tensor(2, 2), x]),
    "where": lambda x: where(x, tensor(2), tensor(2)),
    "maximum": lambda x: maximum(x, x),
}


def each(functions):
    return pytest.mark.parametrize(("name", "function"), functions.items(), ids=functions)


def test_every_function_is_asked_for_its_errors():
    assert TENSORS.keys() == PUBLIC.keys()


@each(TENSORS)
@pytest.mark.parametrize(
    "value", [np.ones((2, 2), np.float32), [[1.0]], 1.0, None], ids=["ndarray", "list", "float", "None"]
)
def test_what_is_no_tensor_is_refused(name, function, value):
    with pytest.raises(TypeError, match=rf"^{name}: expected a Tensor, got .*; wrap it in minidl.Tensor\(...\)"):
        function(value)


ARRAY = np.ones(2, np.float32)


@pytest.mark.parametrize(
    "use",
    [
        lambda: linear(tensor(1, 2), ARRAY.reshape(2, 1)),
        lambda: linear(tensor(1, 2), tensor(2, 2), ARRAY),
        lambda: conv2d(tensor(1, 1, 1, 1), ARRAY.reshape(1, 1, 1, 2)),
        lambda: conv2d(tensor(1, 1, 1, 1), tensor(1, 1, 1, 2), ARRAY),
        lambda: batch_norm(tensor(3, 2), ARRAY, tensor(2)),
        lambda: batch_norm(tensor(3, 2), tensor(2), ARRAY),
        lambda: batch_norm(tensor(3, 2), tensor(2), tensor(2), ARRAY, ARRAY),
        lambda: mse_loss(tensor(2), ARRAY),
        lambda: cat([tensor(2), ARRAY]),
    ],
)
def test_no_other_argument_may_be_an_array_either(use):
    with pytest.raises(TypeError, match=r"expected a Tensor, got ndarray; wrap it in minidl.Tensor\(...\)"):
        use()


@each(FLOATS)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_integers_are_refused(name, function, dtype):
    x = Tensor(np.ones((2, 4, 4, 2) if name in IMAGES else (2, 2), dtype))
    with pytest.raises(
        TypeError, match=rf"^{name}: expected floating-point x, got {dtype}; convert it with .to\('float32'\)"
    ):
        function(x)


@each(IMAGES)
@pytest.mark.parametrize("shape", [(4, 4, 2), (4, 4), (1, 2, 4, 4, 2), ()], ids=str)
def test_images_have_four_dimensions(name, function, shape):
    with pytest.raises(ValueError, match=rf"^{name}: expected x \(N, H, W, C\), got shape "):
        function(tensor(*shape))


@each(
    IMAGES | {"linear": FLOATS["linear"], "batch_norm": FLOATS["batch_norm"], "cross_entropy": FLOATS["cross_entropy"]}
)
def test_an_empty_batch_is_refused(name, function):
    shape = (0, 4, 4, 2) if name in IMAGES else (0, 2)
    with pytest.raises(ValueError, match=rf"^{name}: expected a batch that is not empty, got shape \(0, "):
        function(tensor(*shape))


ERRORS = {
    "conv2d, channels": (
        lambda: conv2d(tensor(8, 32, 32, 3), tensor(3, 3, 64, 64)),
        r"conv2d: x has 3 channels, weight expects 64 \(x \(8, 32, 32, 3\), weight \(3, 3, 64, 64\)\)$",
    ),
    "conv2d, NCHW": (
        lambda: conv2d(tensor(8, 3, 32, 32), tensor(3, 3, 3, 64)),
        r"conv2d: x has 32 channels, weight expects 3 .*looks like \(N, C, H, W\): use x\.permute\(0, 2, 3, 1\)",
    ),
    "conv2d, rank of the weight": (
        lambda: conv2d(tensor(1, 3, 3, 1), tensor(3, 3)),
        r"conv2d: .*weight \(KH, KW, C, O\), got shape \(3, 3\)",
    ),
    "conv2d, bias": (
        lambda: conv2d(tensor(1, 3, 3, 1), tensor(1, 1, 1, 2), tensor(3)),
        r"conv2d: expected bias of shape \(2,\), one number per channel, got \(3,\)",
    ),
    "conv2d, kernel too large": (
        lambda: conv2d(tensor(1, 2, 4, 1), tensor(5, 3, 1, 1), padding=1),
        r"conv2d: a kernel of \(5, 3\) is larger than the padded input, \(4, 6\); x is \(1, 2, 4, 1\)",
    ),
    "conv2d, stride": (
        lambda: conv2d(tensor(1, 2, 4, 1), tensor(1, 1, 1, 1), stride=0),
        r"conv2d: expected stride to be a whole number >= 1 or a pair of them, got 0",
    ),
    "conv2d, padding": (
        lambda: conv2d(tensor(1, 2, 4, 1), tensor(1, 1, 1, 1), padding=(1, -1)),
        r"conv2d: expected padding to be a whole number >= 0 or a pair of them, got \(1, -1\)",
    ),
    "linear, features": (
        lambda: linear(tensor(2, 5), tensor(4, 3)),
        r"linear: expected x \(N, in\) for weight \(in, out\) = \(4, 3\), got x \(2, 5\)",
    ),
    "linear, weight": (
        lambda: linear(tensor(2, 3), tensor(3)),
        r"linear: expected weight \(in, out\), got shape \(3,\)",
    ),
    "linear, images": (
        lambda: linear(tensor(2, 1, 1, 4), tensor(4, 3)),
        r"linear: expected x \(N, in\), got shape \(2, 1, 1, 4\)",
    ),
    "linear, bias": (
        lambda: linear(tensor(2, 4), tensor(4, 3), tensor(4)),
        r"linear: expected bias of shape \(3,\).*got \(4,\)",
    ),
    "max_pool2d, kernel too large": (
        lambda: max_pool2d(tensor(1, 2, 2, 1), 3),
        r"max_pool2d: a kernel of \(3, 3\) is larger than the padded input, \(2, 2\)",
    ),
    "max_pool2d, padding": (
        lambda: max_pool2d(tensor(1, 4, 4, 1), 2, padding=2),
        r"max_pool2d: expected padding of at most half the kernel \(2, 2\), got \(2, 2\)",
    ),
    "avg_pool2d, kernel": (
        lambda: avg_pool2d(tensor(1, 4, 4, 1), 2.5),
        r"avg_pool2d: expected kernel_size to be a whole number >= 1",
    ),
    "batch_norm, channels": (
        lambda: batch_norm(tensor(2, 4, 4, 3), tensor(5), tensor(5)),
        r"batch_norm: x has 3 channels, weight expects 5 \(x \(2, 4, 4, 3\)\)$",
    ),
    "batch_norm, NCHW": (
        lambda: batch_norm(tensor(2, 5, 4, 4), tensor(5), tensor(5)),
        r"batch_norm: x has 4 channels, weight expects 5 .*looks like \(N, C, H, W\)",
    ),
    "batch_norm, rank": (
        lambda: batch_norm(tensor(2, 4, 3), tensor(3), tensor(3)),
        r"batch_norm: expected x \(N, C\) or \(N, H, W, C\), got shape \(2, 4, 3\)",
    ),
    "batch_norm, weight": (
        lambda: batch_norm(tensor(2, 3), tensor(3, 1), tensor(3)),
        r"batch_norm: expected weight of shape \(3,\), one number per channel, got \(3, 1\)",
    ),
    "batch_norm, bias": (
        lambda: batch_norm(tensor(2, 3), tensor(3), tensor(4)),
        r"batch_norm: expected bias of shape \(3,\).*got \(4,\)",
    ),
    "batch_norm, running values": (
        lambda: batch_norm(tensor(2, 3), tensor(3), tensor(3), tensor(4), tensor(4)),
        r"batch_norm: expected running_mean of shape \(3,\).*got \(4,\)",
    ),
    "batch_norm, half the running values": (
        lambda: batch_norm(tensor(2, 3), tensor(3), tensor(3), tensor(3)),
        r"batch_norm: expected both running_mean and running_var, or neither",
    ),
    "batch_norm, evaluation": (
        lambda: batch_norm(tensor(2, 3), tensor(3), tensor(3), training=False),
        r"batch_norm: evaluation \(training=False\) needs running_mean and running_var",
    ),
    "batch_norm, one number": (
        lambda: batch_norm(tensor(1, 1, 1, 3), tensor(3), tensor(3)),
        r"batch_norm: expected more than one number per channel .*got x \(1, 1, 1, 3\)",
    ),
    "cross_entropy, too large a label": (
        lambda: cross_entropy(tensor(2, 10), [3, 10]),
        r"cross_entropy: expected labels in \[0, 10\), got labels from 3 to 10",
    ),
    "cross_entropy, a negative label": (
        lambda: cross_entropy(tensor(2, 10), [-1, 0]),
        r"cross_entropy: expected labels in \[0, 10\), got labels from -1 to 0",
    ),
    "cross_entropy, too few labels": (
        lambda: cross_entropy(tensor(2, 10), [1]),
        r"cross_entropy: expected 2 labels, one for each row of logits \(2, 10\), got shape \(1,\)",
    ),
    "cross_entropy, one-hot labels": (
        lambda: cross_entropy(tensor(2, 3), np.eye(3, dtype=int)[:2]),
        r"cross_entropy: expected 2 labels, .*got shape \(2, 3\)",
    ),
    "cross_entropy, rank": (
        lambda: cross_entropy(tensor(2, 1, 1, 3), [0, 1]),
        r"cross_entropy: expected x \(N, K\), got shape \(2, 1, 1, 3\)",
    ),
    "cross_entropy, smoothing": (
        lambda: cross_entropy(tensor(2, 3), [0, 1], 1.5),
        r"cross_entropy: expected label_smoothing in \[0, 1\], got 1.5",
    ),
    "mse_loss, shapes": (
        lambda: mse_loss(tensor(2, 1), tensor(2)),
        r"mse_loss: x \(2, 1\) and target \(2,\) differ in shape; reshape",
    ),
    "mse_loss, an empty batch": (
        lambda: mse_loss(tensor(0, 3), tensor(0, 3)),
        r"mse_loss: expected a batch that is not empty, got shape \(0, 3\)",
    ),
    "dropout, 1": (lambda: dropout(tensor(2), 1, KEY), r"dropout: expected probability in \[0, 1\), got 1"),
    "dropout, negative": (
        lambda: dropout(tensor(2), -0.1, KEY),
        r"dropout: expected probability in \[0, 1\), got -0.1",
    ),
    "dropout, key": (lambda: dropout(tensor(2), 0.5, KEY[:3]), r"dropout: expected a key of four uint32 numbers"),
    "dropout, dtype of the key": (
        lambda: dropout(tensor(2), 0.5, np.zeros(4)),
        r"dropout: expected a key of four uint32",
    ),
    "interpolate, mode": (
        lambda: interpolate(tensor(1, 2, 2, 1), 4, mode="nearest"),
        r"interpolate: expected mode='bilinear', got 'nearest'",
    ),
    "interpolate, neither": (
        lambda: interpolate(tensor(1, 2, 2, 1), mode="bilinear"),
        r"interpolate: expected either size or scale_factor, got size=None and scale_factor=None",
    ),
    "interpolate, both": (
        lambda: interpolate(tensor(1, 2, 2, 1), 4, 2, mode="bilinear"),
        r"interpolate: expected either size or scale_factor, got size=4 and scale_factor=2",
    ),
    "interpolate, size": (
        lambda: interpolate(tensor(1, 2, 2, 1), (4, 0), mode="bilinear"),
        r"interpolate: expected size to be a whole number >= 1 or a pair of them, got \(4, 0\)",
    ),
    "interpolate, factor": (
        lambda: interpolate(tensor(1, 2, 2, 1), scale_factor=(2, -1), mode="bilinear"),
        r"interpolate: expected scale_factor to be a number > 0 or a pair of them, got \(2, -1\)",
    ),
    "interpolate, three factors": (
        lambda: interpolate(tensor(1, 2, 2, 1), scale_factor=(2, 2, 2), mode="bilinear"),
        r"interpolate: expected scale_factor to be a number > 0 or a pair of them, got \(2, 2, 2\)",
    ),
    "interpolate, a factor of NaN": (
        lambda: interpolate(tensor(1, 2, 2, 1), scale_factor=float("nan"), mode="bilinear"),
        r"interpolate: expected scale_factor to be a number > 0 or a pair of them, got nan",
    ),
    "interpolate, nothing left": (
        lambda: interpolate(tensor(1, 2, 4, 1), scale_factor=0.4, mode="bilinear"),
        r"interpolate: expected an output of at least one pixel, got \(0, 1\) for x \(1, 2, 4, 1\)",
    ),
    "local_response_norm, size": (
        lambda: local_response_norm(tensor(1, 1, 1, 2), 0),
        r"local_response_norm: expected size to be a whole number >= 1, got 0",
    ),
    "pad_channels": (
        lambda: pad_channels(tensor(1, 2), -1, 0),
        r"pad_channels: expected before to be a whole number >= 0, got -1",
    ),
    "softmax, nothing": (
        lambda: softmax(tensor(2, 0)),
        r"softmax: expected at least one number along dim -1, got x \(2, 0\)",
    ),
    "log_softmax, nothing": (
        lambda: log_softmax(tensor(0, 3), 0),
        r"log_softmax: expected at least one number along dim 0, got x \(0, 3\)",
    ),
    "batch_norm, eps": (
        lambda: batch_norm(tensor(2, 3), tensor(3), tensor(3), eps=float("nan")),
        r"batch_norm: expected eps in \[0, inf\), got nan",
    ),
    "batch_norm, momentum": (
        lambda: batch_norm(tensor(2, 3), tensor(3), tensor(3), momentum=2),
        r"batch_norm: expected momentum in \[0, 1\], got 2",
    ),
    "gelu, approximate": (
        lambda: gelu(tensor(2), "erf"),
        "gelu: expected approximate='none' or 'tanh', got 'erf'",
    ),
    "softmax, dim": (lambda: softmax(tensor(2, 3), 2), r"softmax: dim 2 is not a dimension of \(2, 3\)"),
    "log_softmax, dim": (lambda: log_softmax(tensor(), 0), r"log_softmax: dim 0 is not a dimension of \(\)"),
    "flatten, dim": (lambda: flatten(tensor(2, 3), 2), r"flatten: start_dim 2 is not a dimension of \(2, 3\)"),
    "cat, nothing": (lambda: cat([]), r"cat: expected at least one tensor, got none"),
    "cat, shapes": (
        lambda: cat([tensor(2, 3), tensor(2, 4)]),
        r"cat: expected equal shapes except along dim 0, got \(2, 3\), \(2, 4\)",
    ),
    "cat, dim": (lambda: cat([tensor(2, 3)], 2), r"cat: dim 2 is not a dimension of \(2, 3\)"),
    "stack, nothing": (lambda: stack([]), r"stack: expected at least one tensor, got none"),
    "stack, shapes": (lambda: stack([tensor(2), tensor(3)]), r"stack: expected equal shapes, got \(2,\), \(3,\)"),
    "stack, dim": (lambda: stack([tensor(2)], 2), r"stack: dim 2 is not a dimension of \(1, 2\)"),
    "maximum, shapes": (lambda: maximum(tensor(2), tensor(3)), r"maximum: shapes \(2,\) and \(3,\) do not broadcast"),
}


@pytest.mark.parametrize(("use", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_operation_what_it_expected_and_what_it_got(use, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        use()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x: softmax(x, 0.5), r"softmax: expected dim to be a whole number, got 0\.5"),
        (lambda x: flatten(x, "a"), r"flatten: expected start_dim to be a whole number, got 'a'"),
        (lambda x: cat([x, x], 1.5), r"cat: expected dim to be a whole number, got 1\.5"),
        (lambda x: stack([x, x], None), "stack: expected dim to be a whole number, got None"),
        (lambda x: cat(x), r"cat: expected a list of tensors, got Tensor; write cat\(\[a, b\]\)"),
        (lambda x: stack(iter([x])), r"stack: expected a list of tensors, got list_iterator; write stack\(\[a, b\]\)"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(use, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        use(tensor(2, 3))


def test_the_squared_error_of_integers_is_refused():
    with pytest.raises(TypeError, match="mse_loss: expected floating-point x, got int64"):
        mse_loss(Tensor([0, 0]), Tensor([1, 0]))


@pytest.mark.parametrize("labels", [[0.0, 1.0], np.array([True, False]), Tensor([0.0, 1.0]), "ab", None], ids=repr)
def test_labels_are_integers(labels):
    with pytest.raises(TypeError, match=r"cross_entropy: expected integer labels, got .*; convert them to int64"):
        cross_entropy(tensor(2, 3), labels)


def test_a_condition_is_made_of_bools():
    with pytest.raises(TypeError, match=r"where: expected a condition of bools, got float32; compare it"):
        where(tensor(2), tensor(2), tensor(2))


@pytest.mark.parametrize(
    "use",
    [
        lambda x, y: conv2d(x.reshape(1, 1, 1, 2), y.reshape(1, 1, 2, 1)),
        lambda x, y: linear(x, y.reshape(2, 1)),
        lambda x, y: batch_norm(x.reshape(2, 1), y[0, :1], y[0, :1]),
        lambda x, y: batch_norm(x.reshape(2, 1), x[0, :1], x[0, :1], y[0, :1], y[0, :1], training=False),
        lambda x, y: maximum(x, y),
        lambda x, y: cat([x, y]),
        lambda x, y: mse_loss(x, y),
        lambda x, y: where(x > 0, x, y),
    ],
)
def test_mixed_dtypes_are_refused(use):
    with pytest.raises(TypeError, match=r"dtype float32 and float64; convert one with \.to\('float32'\)"):
        use(tensor(1, 2), tensor(1, 2, dtype=np.float64))


@pytest.mark.parametrize(
    ("value", "expected"), [(3, (3, 3)), ((1, 2), (1, 2)), ([1, 2], (1, 2)), (np.int64(2), (2, 2))], ids=str
)
def test_a_pair_is_a_number_or_two(value, expected):
    pair = as_pair("f", "stride", value, 1)
    assert pair == expected
    assert all(type(number) is int for number in pair)


@pytest.mark.parametrize("value", [0, -1, 1.5, (1,), (1, 2, 3), (0, 1), "12", None, (1, 1.5)], ids=repr)
def test_anything_else_is_no_pair(value):
    with pytest.raises(ValueError, match=r"f: expected stride to be a whole number >= 1 or a pair of them, got "):
        as_pair("f", "stride", value, 1)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_promote_no_gradient(device):
    """A learning script takes its eps and smoothing from np.linspace, and would compute in float64 from there on."""
    x = Tensor([[1.0, 2.0], [3.0, 5.0]], device=device, requires_grad=True)
    weight, bias = (Tensor([1.0, 1.0], device=device, requires_grad=True) for _ in range(2))
    y = batch_norm(x, weight, bias, eps=np.float64(1e-5), momentum=np.float64(0.1))
    y = dropout(y, np.float64(0.5), KEY)
    y = local_response_norm(y.reshape(2, 1, 1, 2), alpha=np.float64(1), beta=np.float64(0.7), k=np.float64(1))
    cross_entropy(y.reshape(2, 2), [0, 1], np.float64(0.1)).backward()
    assert {tensor.grad.dtype for tensor in (x, weight, bias)} == {np.dtype("float32")}


def test_numbers_may_stand_for_tensors_in_where_and_maximum(device):
    x = Tensor([-1.0, 2.0], device=device, requires_grad=True)
    for y in (where(x > 0, x, 0.0), maximum(x, 0), maximum(0.0, x), where(x < 0, 0, x)):
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y.numpy(), [0, 2])
        x.grad = None
        y.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), [0, 1])


def test_the_functions_of_several_tensors_are_in_the_package_itself():
    assert (minidl.cat, minidl.stack, minidl.where, minidl.maximum) == (cat, stack, where, maximum)
