"""Arguments to try a kernel or an op with: drawn so that slips show.

The sizes of the axes differ from each other, windows overlap or leave gaps, strides and paddings are pairs, and images
do not fill their windows evenly. Another seed gives other shapes and other numbers. All floats are float64.
"""

import math
from collections.abc import Callable

import numpy as np

from minidl.kernels import reference
from minidl.study.residual import residual_end_forward

Arguments = dict[str, object]


def cases(name: str, seed: int) -> list[Arguments]:
    """The cases of a kernel: for each one its arguments by name."""
    rng = np.random.default_rng([seed, *name.encode()])
    return [_rounded(call) for call in KERNEL_CASES[name](rng)]


def op_cases(name: str, seed: int) -> list[Arguments]:
    """The cases of an op: `inputs`, a tuple of arrays, and `options`, the keyword arguments of its forward."""
    rng = np.random.default_rng([seed, *name.encode()])
    return [_rounded({"inputs": inputs, "options": options}) for inputs, options in OP_CASES[name](rng)]


def has_cases(name: str) -> bool:
    """True if it is known how to try this kernel or op."""
    return name in KERNEL_CASES or name in OP_CASES


def _rounded(value):
    """The same numbers as float32 can hold them, so that one right result serves both dtypes."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rounded(item) for item in value)
    is_double = isinstance(value, np.ndarray) and value.dtype == np.float64
    return value.astype(np.float32).astype(np.float64) if is_double else value


def sizes(rng, count: int, low: int = 2, high: int = 8) -> list[int]:
    """Return `count` lengths of axes, all different, low <= length < high."""
    return rng.permutation(np.arange(low, high))[:count].tolist()


# -- convolution -------------------------------------------------------------------------------------------------------

# (kernel size, stride, padding, as many channels out as in)
CONVOLUTIONS = [
    ((3, 3), (1, 1), (1, 1), True),
    ((3, 3), (2, 2), (1, 1), False),
    ((2, 3), (2, 1), (1, 0), False),
    ((3, 2), (1, 3), (0, 1), False),
    ((4, 3), (1, 1), (0, 0), False),
]


def _convolution(rng, geometry) -> Arguments:
    (kh, kw), stride, padding, is_square = geometry
    n, c, o = sizes(rng, 3, 2, 6)
    size = tuple(int(length) for length in rng.permutation([5, 6, 7, 8])[:2])
    weight = rng.standard_normal((kh, kw, c, c if is_square else o))
    x, bias = rng.standard_normal((n, *size, c)), rng.standard_normal(weight.shape[3])
    return {"x": x, "weight": weight, "bias": bias, "stride": stride, "padding": padding}


def _conv2d_forward(rng):
    for geometry in CONVOLUTIONS:
        yield _convolution(rng, geometry)
    yield {**_convolution(rng, CONVOLUTIONS[1]), "bias": None}


def _conv2d_backward_by_im2col(rng):
    for geometry in CONVOLUTIONS:
        call = _convolution(rng, geometry)
        y = reference.conv2d_forward(**call)
        del call["bias"]
        yield {"grad": rng.standard_normal(y.shape), **call}


def _conv2d_backward(rng):
    for call in _conv2d_backward_by_im2col(rng):
        yield {**call, "needs_x": True, "needs_weight": True}


def _im2col(rng):
    for geometry in CONVOLUTIONS:
        call = _convolution(rng, geometry)
        yield {"x": call["x"], "kernel_size": geometry[0], "stride": geometry[1], "padding": geometry[2]}


def _col2im(rng):
    for call in _im2col(rng):
        x = call.pop("x")
        columns = rng.standard_normal(reference.im2col(x, **call).shape)
        yield {"columns": columns, "x_shape": x.shape, **call}


def _bias_backward(rng):
    for axes in (2, 4):
        yield {"grad": rng.standard_normal(sizes(rng, axes))}


# -- products ----------------------------------------------------------------------------------------------------------


def _matmul(rng):
    b, i, k, j = sizes(rng, 4)
    for left, right in [((i, k), (k, j)), ((k, k), (k, k)), ((b, i, k), (b, k, j)), ((b, 1, i, k), (j, k, i))]:
        yield {"a": rng.standard_normal(left), "b": rng.standard_normal(right)}


def _linear_forward(rng):
    for bias in (True, False):
        n, c, o = sizes(rng, 3)
        for out in (o, c):
            weight = rng.standard_normal((c, out))
            yield {
                "x": rng.standard_normal((n, c)),
                "weight": weight,
                "bias": rng.standard_normal(out) if bias else None,
            }


def _linear_backward_x(rng):
    for call in _linear_forward(rng):
        n, out = len(call["x"]), call["weight"].shape[1]
        yield {"grad": rng.standard_normal((n, out)), "weight": call["weight"]}


def _linear_backward_weight(rng):
    for call in _linear_forward(rng):
        n, out = len(call["x"]), call["weight"].shape[1]
        yield {"grad": rng.standard_normal((n, out)), "x": call["x"]}


# -- pooling -----------------------------------------------------------------------------------------------------------

# (kernel size, stride, padding, ceil_mode)
POOLINGS = [
    ((2, 2), (2, 2), (0, 0), False),
    ((3, 3), (2, 2), (1, 1), False),
    ((3, 2), (1, 2), (1, 0), True),
    ((2, 4), (2, 3), (1, 2), True),
    ((3, 3), (2, 2), (0, 1), True),
]


def _pooling(rng, geometry) -> Arguments:
    n, c = sizes(rng, 2, 2, 5)
    call = dict(zip(("kernel_size", "stride", "padding", "ceil_mode"), geometry, strict=True))
    while True:
        size = tuple(int(length) for length in rng.permutation([5, 6, 7, 8])[:2])
        if not call["ceil_mode"] or _has_incomplete_windows(size, call):
            return {"x": rng.standard_normal((n, *size, c)), **call}


def _has_incomplete_windows(size, call: Arguments) -> bool:
    """True if ceil_mode makes a difference for images of this size."""
    x = np.zeros((1, *size, 1))
    outputs = [reference.max_pool2d_forward(x, **{**call, "ceil_mode": mode})[0] for mode in (False, True)]
    return outputs[0].shape != outputs[1].shape


def _max_pool2d_forward(rng):
    for geometry in POOLINGS:
        yield _pooling(rng, geometry)
    call = _pooling(rng, POOLINGS[1])
    yield {**call, "x": rng.integers(0, 3, call["x"].shape).astype(float)}  # many equal values
    yield {**call, "x": -1 - rng.random(call["x"].shape)}  # all negative: padding must not win


def _max_pool2d_backward(rng):
    for call in _max_pool2d_forward(rng):
        y, best_tap = reference.max_pool2d_forward(**call)
        x_shape = call.pop("x").shape
        del call["ceil_mode"]
        yield {"grad": rng.standard_normal(y.shape), "best_tap": best_tap, "x_shape": x_shape, **call}


def _avg_pool2d_forward(rng):
    for geometry in POOLINGS:
        for count_include_pad in (False, True):
            yield {**_pooling(rng, geometry), "count_include_pad": count_include_pad}


def _avg_pool2d_backward(rng):
    for call in _avg_pool2d_forward(rng):
        y = reference.avg_pool2d_forward(**call)
        yield {"grad": rng.standard_normal(y.shape), "x_shape": call.pop("x").shape, **call}


def _global_avg_pool_forward(rng):
    for _ in range(2):
        yield {"x": rng.standard_normal(sizes(rng, 4))}


def _global_avg_pool_backward(rng):
    for call in _global_avg_pool_forward(rng):
        n, h, w, c = call["x"].shape
        yield {"grad": rng.standard_normal((n, c)), "x_shape": (n, h, w, c)}


# -- bilinear interpolation --------------------------------------------------------------------------------------------

# Scale factors of the rows and of the columns; not all sizes times them are whole numbers.
SCALES = [(2, 3), (1.5, 2.7), (3.4, 0.6)]


def _upsample_bilinear2d_forward(rng):
    for scale in SCALES:
        n, h, w, c = sizes(rng, 4, 3)
        output_size = math.floor(h * scale[0]), math.floor(w * scale[1])
        step = 1 / scale[0], 1 / scale[1]
        yield {"x": rng.standard_normal((n, h, w, c)), "output_size": output_size, "step": step}


def _upsample_bilinear2d_backward(rng):
    for call in _upsample_bilinear2d_forward(rng):
        n, h, w, c = call["x"].shape
        grad = rng.standard_normal((n, *call["output_size"], c))
        yield {"grad": grad, "x_shape": (n, h, w, c), "step": call["step"]}


# -- normalisation -----------------------------------------------------------------------------------------------------


def _channels(rng, shape) -> Arguments:
    """Statistics unrelated to x, as in eval mode; and an eps as large as the variance, so that its place matters."""
    c = shape[-1]
    mean, weight, bias = rng.standard_normal((3, c))
    return {"mean": mean, "variance": rng.uniform(0.3, 3, c), "weight": weight, "bias": bias, "eps": 0.3}


def _batch_statistics(rng):
    for axes in (2, 4, 4):
        shape = sizes(rng, axes, 3, 8)
        yield {"x": 2 * rng.standard_normal(shape) + rng.standard_normal(shape[-1])}


def _batch_norm_apply(rng):
    for axes in (2, 4, 4):
        shape = sizes(rng, axes, 3, 8)
        yield {"x": rng.standard_normal(shape), **_channels(rng, shape)}


def _batch_norm_backward(rng):
    for number, call in enumerate(_batch_norm_apply(rng)):
        del call["bias"]
        training = number != 2
        if training:
            call["mean"], call["variance"] = reference.batch_statistics(call["x"])
        yield {"grad": rng.standard_normal(call["x"].shape), **call, "through_statistics": training}


def _response_norm(rng, size) -> Arguments:
    shape = (*sizes(rng, 3, 2, 5), 7)
    return {"x": rng.standard_normal(shape), "size": size, "alpha": 0.4, "beta": 0.75, "k": 1.5}


def _local_response_norm_forward(rng):
    for size in (3, 4, 5):
        yield _response_norm(rng, size)


def _local_response_norm_backward(rng):
    for call in _local_response_norm_forward(rng):
        y, scale = reference.local_response_norm_forward(**call)
        del call["k"]
        yield {"grad": rng.standard_normal(y.shape), "x": call["x"], "y": y, "scale": scale, **call}


# -- element-wise, softmax, losses -------------------------------------------------------------------------------------


def _pair_of_arrays(rng):
    for axes in (1, 3):
        shape = sizes(rng, axes, 3, 8)
        yield {"a": rng.standard_normal(shape), "b": rng.standard_normal(shape)}


def _relu_forward(rng):
    for axes in (2, 4):
        x = 2 * rng.standard_normal(sizes(rng, axes))
        x.ravel()[::5] = 0
        yield {"x": x}


def _relu_backward(rng):
    for call in _relu_forward(rng):
        y = reference.relu_forward(call["x"])
        yield {"grad": rng.standard_normal(y.shape), "y": y}


def _gelu_forward(rng):
    for axes, approximate in ((2, "none"), (4, "none"), (3, "tanh")):
        yield {"x": 2 * rng.standard_normal(sizes(rng, axes)), "approximate": approximate, "needs_slope": True}


def _gelu_backward(rng):
    for call in _gelu_forward(rng):
        _, slope = reference.gelu_forward(**call)
        yield {"grad": rng.standard_normal(slope.shape), "slope": slope}


def _gelu(rng):
    for call in _gelu_forward(rng):
        yield (call["x"],), {"approximate": call["approximate"]}


def _softmax_forward(rng):
    """In the last case exp overflows in some rows; in others it is 0 unless the row's own maximum is subtracted."""
    for offsets in ((0,), (0,), (0, 800, -800)):
        shape = sizes(rng, 2, 3, 8)
        yield {"x": np.resize(offsets, shape[0])[:, None] + rng.standard_normal(shape)}


def _log_softmax_forward(rng):
    """In the last case softmax is rounded to 0; its logarithm is not -infinity all the same."""
    for size in (1, 1, 800):
        yield {"x": size * rng.standard_normal(sizes(rng, 2, 3, 8))}


def _softmax_backward(rng):
    for call in list(_softmax_forward(rng))[:2]:
        y = reference.softmax_forward(call["x"])
        yield {"grad": rng.standard_normal(y.shape), "y": y}


def _log_softmax_backward(rng):
    for call in list(_log_softmax_forward(rng))[:2]:
        y = reference.log_softmax_forward(call["x"])
        yield {"grad": rng.standard_normal(y.shape), "y": y}


def _cross_entropy_forward(rng):
    for smoothing in (0.0, 0.2, 0.5):
        n, k = sizes(rng, 2, 3, 8)
        yield {"logits": rng.standard_normal((n, k)), "labels": rng.integers(0, k, n), "label_smoothing": smoothing}
    logits = 800 * rng.standard_normal((n, k))  # the labels' probabilities are rounded to 0
    yield {"logits": logits, "labels": logits.argmin(axis=1), "label_smoothing": 0.0}


def _cross_entropy_backward(rng):
    for call in list(_cross_entropy_forward(rng))[:3]:
        probabilities = reference.softmax_forward(call.pop("logits"))
        yield {"grad": np.asarray(rng.uniform(0.5, 3)), "probabilities": probabilities, **call}


def _mse_loss_forward(rng):
    for call in _pair_of_arrays(rng):
        yield {"x": call["a"], "target": call["b"]}


def _mse_loss_backward(rng):
    for call in _mse_loss_forward(rng):
        yield {"grad": np.asarray(rng.uniform(0.5, 3)), **call}


def _key(rng):
    return rng.integers(0, 2**32, 4, dtype=np.uint32)


def _dropout_forward(rng):
    for probability in (0.3, 0.6):
        yield {"x": rng.standard_normal(sizes(rng, 3, 3, 8)), "probability": probability, "key": _key(rng)}


def _dropout_backward(rng):
    for call in _dropout_forward(rng):
        yield {"grad": call.pop("x"), **call}


# -- channels, positions, images ---------------------------------------------------------------------------------------


def _pad_channels_forward(rng):
    for axes in (2, 4):
        before, after = rng.permutation([1, 3]).tolist()
        yield {"x": rng.standard_normal(sizes(rng, axes)), "before": before, "after": after}


def _pad_channels_backward(rng):
    for call in _pad_channels_forward(rng):
        y = reference.pad_channels_forward(**call)
        yield {"grad": rng.standard_normal(y.shape), "before": call["before"], "after": call["after"]}


def _scatter_add(rng):
    for axes in (1, 3):
        shape = tuple(sizes(rng, axes))
        positions = rng.integers(0, math.prod(shape), sizes(rng, 2, 3, 8))
        yield {"grad": rng.standard_normal(positions.shape), "positions": positions, "shape": shape}


def _crop_and_flip(rng):
    for padding, reflect in ((1, False), (2, False), (2, True)):
        n, c, chosen = *sizes(rng, 2, 2, 5), 4
        height, width = sizes(rng, 2, 4, 8)
        tops, lefts = rng.integers(0, 2 * padding + 1, (2, chosen))
        yield {
            "images": rng.integers(0, 256, (n + 3, height, width, c)).astype(np.uint8),
            "chosen": rng.permutation(n + 3)[:chosen],
            "tops": tops,
            "lefts": lefts,
            "flips": rng.permutation([True, True, False, False]),
            "mean": rng.uniform(50, 200, (height, width, c)),
            "std": rng.uniform(20, 80, (height, width, c)),
            "padding": padding,
            "reflect": reflect,
        }


# -- updates -----------------------------------------------------------------------------------------------------------


def _update_running_statistics(rng):
    for count in (2, 6, 1):
        c = sizes(rng, 1)
        arrays = {name: rng.uniform(0.5, 2, c) for name in ("running_mean", "running_variance", "mean", "variance")}
        yield {**arrays, "momentum": 0.3, "count": count}


def _lists(rng, names: list[str], shapes) -> Arguments:
    return {name: [rng.standard_normal(shape) for shape in shapes] for name in names}


def _sgd_update(rng):
    for momentum, weight_decay, nesterov in ((0.8, 0.2, False), (0.8, 0.2, True), (0.0, 0.0, False)):
        shapes = [sizes(rng, axes) for axes in (1, 2)]
        lists = _lists(rng, ["parameters", "grads", "velocities"], shapes)
        yield {**lists, "lr": 0.3, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}


def _adam_update(rng):
    for decoupled, weight_decay in ((False, 0.2), (True, 0.2), (False, 0.0)):
        shapes = [sizes(rng, axes) for axes in (1, 2)]
        lists = _lists(rng, ["parameters", "grads", "means"], shapes)
        squares = [rng.uniform(0.1, 2, shape) for shape in shapes]
        steps = [np.asarray(float(step)) for step in sizes(rng, 2, 1, 6)]
        options = {"lr": 0.3, "beta1": 0.8, "beta2": 0.95, "eps": 0.2, "weight_decay": weight_decay}
        yield {**lists, "squares": squares, "steps": steps, **options, "decoupled": decoupled}


# -- beside the kernels ------------------------------------------------------------------------------------------------


def _residual_end_forward(rng):
    for axes in (4, 4):
        shape = sizes(rng, axes, 3, 7)
        z = rng.standard_normal(shape) + rng.standard_normal(shape[-1])
        call = {"z": z, "shortcut": rng.standard_normal(shape), **_channels(rng, shape)}
        call["mean"], call["variance"] = reference.batch_statistics(z)
        yield call


def _residual_end_backward(rng):
    for call in _residual_end_forward(rng):
        y = residual_end_forward(**call)
        del call["shortcut"], call["bias"]
        yield {"grad": rng.standard_normal(y.shape), "y": y, **call}


def _sum_to_shape(rng):
    a, b, c = sizes(rng, 3)
    for shape in ((b, c), (1, c), (a, 1, c), (b, 1), (c,), (a, b, c), ()):
        yield {"grad": rng.standard_normal((a, b, c)), "shape": shape}


KERNEL_CASES: dict[str, Callable] = {
    "conv2d_forward": _conv2d_forward,
    "conv2d_backward": _conv2d_backward,
    "bias_backward": _bias_backward,
    "im2col": _im2col,
    "col2im": _col2im,
    "conv2d_forward_by_im2col": _conv2d_forward,
    "conv2d_backward_by_im2col": _conv2d_backward_by_im2col,
    "matmul": _matmul,
    "linear_forward": _linear_forward,
    "linear_backward_x": _linear_backward_x,
    "linear_backward_weight": _linear_backward_weight,
    "max_pool2d_forward": _max_pool2d_forward,
    "max_pool2d_backward": _max_pool2d_backward,
    "avg_pool2d_forward": _avg_pool2d_forward,
    "avg_pool2d_backward": _avg_pool2d_backward,
    "global_avg_pool_forward": _global_avg_pool_forward,
    "global_avg_pool_backward": _global_avg_pool_backward,
    "upsample_bilinear2d_forward": _upsample_bilinear2d_forward,
    "upsample_bilinear2d_backward": _upsample_bilinear2d_backward,
    "batch_statistics": _batch_statistics,
    "batch_norm_apply": _batch_norm_apply,
    "batch_norm_backward": _batch_norm_backward,
    "add": _pair_of_arrays,
    "relu_forward": _relu_forward,
    "relu_backward": _relu_backward,
    "gelu_forward": _gelu_forward,
    "gelu_backward": _gelu_backward,
    "softmax_forward": _softmax_forward,
    "softmax_backward": _softmax_backward,
    "log_softmax_forward": _log_softmax_forward,
    "log_softmax_backward": _log_softmax_backward,
    "cross_entropy_forward": _cross_entropy_forward,
    "cross_entropy_backward": _cross_entropy_backward,
    "mse_loss_forward": _mse_loss_forward,
    "mse_loss_backward": _mse_loss_backward,
    "dropout_forward": _dropout_forward,
    "dropout_backward": _dropout_backward,
    "local_response_norm_forward": _local_response_norm_forward,
    "local_response_norm_backward": _local_response_norm_backward,
    "pad_channels_forward": _pad_channels_forward,
    "pad_channels_backward": _pad_channels_backward,
    "scatter_add": _scatter_add,
    "crop_and_flip": _crop_and_flip,
    "update_running_statistics": _update_running_statistics,
    "sgd_update": _sgd_update,
    "adam_update": _adam_update,
    "sum_to_shape": _sum_to_shape,
    "residual_end_forward": _residual_end_forward,
    "residual_end_backward": _residual_end_backward,
}


# -- ops ---------------------------------------------------------------------------------------------------------------


def _two(rng):
    """Two inputs: of one shape, and of shapes that broadcast."""
    a, b, c = sizes(rng, 3)
    for left, right in [((a, b), (a, b)), ((c, a, b), (a, 1)), ((b,), (c, a, b))]:
        yield (rng.uniform(0.5, 2, left), rng.uniform(0.5, 2, right) * rng.choice([-1, 1], right)), {}


def _one(rng):
    for axes in (2, 3):
        yield (rng.uniform(0.2, 2, sizes(rng, axes)),), {}


def _signed(rng):
    for axes in (2, 3):
        yield (2 * rng.standard_normal(sizes(rng, axes)),), {}


def _with(**options):
    """One input, with these options of forward."""
    return lambda rng: [(inputs, options) for inputs, _ in _one(rng)]


def _pow(rng):
    for (inputs, _), exponent in zip(_one(rng), (3, -1.5), strict=True):
        yield inputs, {"exponent": exponent}
    yield (rng.integers(0, 3, sizes(rng, 2)).astype(float),), {"exponent": 0}  # 0^0 is 1, and its gradient 0


def _products(rng):
    """Square factors, so that mistakes show as wrong numbers; then others, and factors that broadcast."""
    b, i, k, j = sizes(rng, 4)
    for left, right in [((i, i), (i, i)), ((b, i, i), (i, i)), ((i, i), (b, i, i)), ((i, k), (k, j))]:
        yield (rng.standard_normal(left), rng.standard_normal(right)), {}


def _clip(rng):
    """The last cases have one bound, and numbers on it."""
    for inputs, _ in _one(rng):
        yield inputs, {"low": 0.6, "high": 1.5}
    for low, high in ((None, 2.0), (1.0, None)):
        yield (rng.integers(0, 4, sizes(rng, 2)).astype(float),), {"low": low, "high": high}


def _maximum(rng):
    yield from _two(rng)
    shape = sizes(rng, 2)
    yield (rng.integers(-1, 2, shape).astype(float), rng.integers(-1, 2, shape).astype(float)), {}  # many are equal


def _where(rng):
    for (a, b), _ in _two(rng):
        yield (a, b), {"condition": rng.random(np.broadcast_shapes(a.shape, b.shape)) < 0.5}


def _reduced(rng):
    for dim, keepdim in ((None, False), ((1,), False), ((0, 2), True)):
        x = rng.integers(-2, 3, sizes(rng, 3)).astype(float)  # some are equal
        yield (x,), {"dim": dim, "keepdim": keepdim}


def _permute(rng):
    yield (rng.standard_normal(sizes(rng, 3)),), {"dims": (2, 0, 1)}
    yield (rng.standard_normal([4, 4, 4]),), {"dims": (1, 2, 0)}


def _reshape(rng):
    a, b, c = sizes(rng, 3)
    yield (rng.standard_normal((a, b, c)),), {"shape": (c * b, a)}


def _get_item(rng):
    yield (rng.standard_normal(sizes(rng, 2, 4, 8)),), {"index": (slice(1, 3),)}
    yield (rng.standard_normal(sizes(rng, 2, 4, 8)),), {"index": ([2, 0, 2, 1],)}


def _cat(rng):
    a, b, c, d = sizes(rng, 4)
    yield (rng.standard_normal((a, b, c)), rng.standard_normal((a, d, c))), {"dim": 1}


def _from_kernel(kernel: str, inputs: tuple[str, ...]):
    """The cases of the kernel that computes the op's forward, without its cases of `None` for an input."""

    def drawn(rng):
        for call in KERNEL_CASES[kernel](rng):
            arrays = tuple(call.pop(name) for name in inputs)
            if all(array is not None for array in arrays):
                yield arrays, call

    return drawn


def _batch_norm(rng):
    for inputs, options in _batch_norm_eval(rng):
        mean, variance = reference.batch_statistics(inputs[0])
        yield inputs, {**options, "mean": mean, "variance": variance}


_batch_norm_eval = _from_kernel("batch_norm_apply", ("x", "weight", "bias"))

OP_CASES: dict[str, Callable] = {
    "ReLU": _from_kernel("relu_forward", ("x",)),
    "GELU": _gelu,
    "Add": _two,
    "Sub": _two,
    "Mul": _two,
    "Div": _two,
    "Pow": _pow,
    "MatMul": _products,
    "Exp": _one,
    "Log": _one,
    "Sqrt": _one,
    "Sigmoid": _signed,
    "Tanh": _signed,
    "Clip": _clip,
    "Maximum": _maximum,
    "Where": _where,
    "BatchNorm": _batch_norm,
    "BatchNormEval": _batch_norm_eval,
    "Conv2d": _from_kernel("conv2d_forward", ("x", "weight", "bias")),
    "Cast": _with(dtype=np.float32),
    "Move": _with(device="cpu"),
    "Dropout": _from_kernel("dropout_forward", ("x",)),
    "Linear": _from_kernel("linear_forward", ("x", "weight", "bias")),
    "LocalResponseNorm": _from_kernel("local_response_norm_forward", ("x",)),
    "CrossEntropy": _from_kernel("cross_entropy_forward", ("logits",)),
    "MSELoss": _from_kernel("mse_loss_forward", ("x", "target")),
    "PadChannels": _from_kernel("pad_channels_forward", ("x",)),
    "MaxPool2d": _from_kernel("max_pool2d_forward", ("x",)),
    "AvgPool2d": _from_kernel("avg_pool2d_forward", ("x",)),
    "GlobalAvgPool": _from_kernel("global_avg_pool_forward", ("x",)),
    "UpsampleBilinear2d": _from_kernel("upsample_bilinear2d_forward", ("x",)),
    "Sum": _reduced,
    "Max": _reduced,
    "Reshape": _reshape,
    "Permute": _permute,
    "GetItem": _get_item,
    "Cat": _cat,
    "Softmax": _from_kernel("softmax_forward", ("x",)),
    "LogSoftmax": _from_kernel("log_softmax_forward", ("x",)),
}
