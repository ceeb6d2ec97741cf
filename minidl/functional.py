"""The operations as functions of tensors. Each checks its arguments and documents its formula and shapes.

Images are (N, H, W, C) and convolution weights (KH, KW, C, O). Names are PyTorch's where PyTorch has the function.
"""

import math

import numpy as np

from minidl.checks import (
    Pair,
    Scale,
    as_interpolation,
    as_pair,
    check_batch,
    check_batch_norm,
    check_batch_norm_options,
    check_fits,
    check_labels,
    check_per_channel,
    check_pooling,
    check_range,
    check_same_shape,
    check_whole,
    expect,
    nchw_hint,
)
from minidl.dtypes import float32, is_half
from minidl.kernels import kernels_for
from minidl.ops.activation import GELU, ReLU
from minidl.ops.arithmetic import Maximum, Where
from minidl.ops.batch_norm import BatchNorm, BatchNormEval
from minidl.ops.conv import Conv2d
from minidl.ops.dropout import Dropout
from minidl.ops.function import Function
from minidl.ops.linear import Linear
from minidl.ops.local_response_norm import LocalResponseNorm
from minidl.ops.loss import CrossEntropy, MSELoss
from minidl.ops.pad import PadChannels
from minidl.ops.pool import AvgPool2d, GlobalAvgPool, MaxPool2d
from minidl.ops.shape import Cat
from minidl.ops.softmax import LogSoftmax, Softmax
from minidl.ops.upsample import UpsampleBilinear2d
from minidl.random import once
from minidl.tensor import Tensor, apply, apply_broadcast, check_dim, check_floats, check_tensors

# -- joining and choosing ----------------------------------------------------------------------------------------------


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """The tensors joined along `dim`. All their other dimensions must be equal.

    >>> cat([Tensor([1.0, 2.0]), Tensor([3.0])])
    Tensor([1., 2., 3.], shape=(3,), float32)
    """
    check_same_shape("cat", tensors, except_dim=dim)
    return apply(Cat, *tensors, dim=dim)


def stack(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """The tensors, all of one shape, joined along a new dimension `dim`.

    >>> stack([Tensor([1.0, 2.0]), Tensor([3.0, 4.0])]).shape
    (2, 2)
    """
    check_same_shape("stack", tensors)
    shape = list(tensors[0].shape)
    check_dim("stack", dim, (len(tensors), *shape))
    shape.insert(dim % (len(shape) + 1), 1)
    return cat([tensor.reshape(shape) for tensor in tensors], dim)


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where `condition`, a tensor of bools, is True, and b elsewhere. All three broadcast.

    >>> x = Tensor([-1.0, 2.0])
    >>> where(x > 0, x, x * 0.1)
    Tensor([-0.1,  2. ], shape=(2,), float32)
    """
    check_tensors("where", condition)
    if condition.dtype != bool:
        raise TypeError(f"where: expected a condition of bools, got {condition.dtype}; compare it first, as in x > 0")
    return apply_broadcast(Where, a, b, condition=condition.data)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """The larger of a and b, element by element. They broadcast. Where a = b, each of them gets half of the gradient.

    >>> maximum(Tensor([1.0, 5.0]), Tensor([3.0, 2.0]))
    Tensor([3., 5.], shape=(2,), float32)
    """
    return apply_broadcast(Maximum, a, b)


def flatten(x: Tensor, start_dim: int = 1) -> Tensor:
    """x with the dimensions from `start_dim` on merged into one: (N, H, W, C) -> (N, H*W*C).

    >>> flatten(Tensor(np.zeros((2, 3, 4, 5)))).shape
    (2, 60)
    """
    check_tensors("flatten", x)
    check_dim("flatten", start_dim, x.shape, "start_dim")
    return x.reshape(*x.shape[:start_dim], math.prod(x.shape[start_dim:]))


# -- layers ------------------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W + b: x (N, in), weight (in, out), bias (out,) -> (N, out).

    >>> linear(Tensor([[1.0, 2.0]]), Tensor([[1.0], [10.0]]), Tensor([0.5]))
    Tensor([[21.5]], shape=(1, 1), float32)
    """
    check_batch("linear", x, "(N, in)", 2)
    expect("linear", weight.ndim == 2, "weight (in, out)", "shape", weight.shape)
    expect("linear", x.shape[1] == weight.shape[0], f"x (N, in) for weight (in, out) = {weight.shape}", "x", x.shape)
    check_per_channel("linear", "bias", bias, weight.shape[1])
    return apply(Linear, x, weight, bias)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0) -> Tensor:
    """Convolution of x (N, H, W, C) with weight (KH, KW, C, O) and bias (O,): y (N, OH, OW, O).

    OH = (H + 2 padding - KH) // stride + 1, OW likewise. The kernel is not flipped (cross-correlation). `stride` and
    `padding`, by zeros, are a number or (height, width). On a CPU, Winograd's algorithm spreads rounding errors, NaN
    and infinity to outputs up to 5 pixels away; `minidl.set_convolution("im2col")` turns it off.

    >>> image, blur = Tensor(np.ones((1, 4, 4, 1))), Tensor(np.full((3, 3, 1, 1), 1 / 9))
    >>> conv2d(image, blur, padding=1)[0, :, :, 0]
    Tensor([[0.4444, 0.6667, 0.6667, 0.4444],
            [0.6667, 1.    , 1.    , 0.6667],
            [0.6667, 1.    , 1.    , 0.6667],
            [0.4444, 0.6667, 0.6667, 0.4444]], shape=(4, 4), float64)
    """
    check_batch("conv2d", x, "(N, H, W, C)", 4)
    expect("conv2d", weight.ndim == 4, "weight (KH, KW, C, O)", "shape", weight.shape)
    kh, kw, channels, out_channels = weight.shape
    if x.shape[3] != channels:
        raise ValueError(
            f"conv2d: x has {x.shape[3]} channels, weight expects {channels} (x {x.shape}, weight {weight.shape})"
            + nchw_hint(x, channels)
        )
    check_per_channel("conv2d", "bias", bias, out_channels)
    stride, padding = as_pair("conv2d", "stride", stride, 1), as_pair("conv2d", "padding", padding, 0)
    check_fits("conv2d", x, (kh, kw), padding)
    return apply(Conv2d, x, weight, bias, stride=stride, padding=padding)


def max_pool2d(
    x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, ceil_mode: bool = False
) -> Tensor:
    """The maximum of each window, in each channel: (N, H, W, C) -> (N, OH, OW, C), as torch.nn.MaxPool2d.

    `stride` defaults to kernel_size. Padding counts as -inf and is at most half of kernel_size. With ceil_mode=True, a
    last window that extends beyond the padded image counts too, unless it starts in the padding after the image.

    >>> max_pool2d(Tensor([[[[1.0], [2.0]], [[3.0], [4.0]]]]), 2).item()
    4.0
    """
    windows = check_pooling("max_pool2d", x, kernel_size, stride, padding)
    return apply(MaxPool2d, x, **windows, ceil_mode=ceil_mode)


def avg_pool2d(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window, in each channel: (N, H, W, C) -> (N, OH, OW, C), as torch.nn.AvgPool2d.

    The padding's zeros are included in the mean unless count_include_pad is False. The rest is as in `max_pool2d`.

    >>> avg_pool2d(Tensor([[[[1.0], [2.0]], [[3.0], [4.0]]]]), 2).item()
    2.5
    """
    windows = check_pooling("avg_pool2d", x, kernel_size, stride, padding)
    return apply(AvgPool2d, x, **windows, ceil_mode=ceil_mode, count_include_pad=count_include_pad)


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean over the pixels, for each image and channel: (N, H, W, C) -> (N, C) (Lin, Chen, Yan 2014, section 3.2).

    >>> global_avg_pool(Tensor([[[[1.0], [2.0]], [[3.0], [4.0]]]]))
    Tensor([[2.5]], shape=(1, 1), float32)
    """
    check_batch("global_avg_pool", x, "(N, H, W, C)", 4)
    return apply(GlobalAvgPool, x)


def interpolate(x: Tensor, size: Pair | None = None, scale_factor: Scale | None = None, *, mode: str) -> Tensor:
    """x (N, H, W, C) at another `size`, (OH, OW), or `scale_factor` times its size, rounded down; mode is "bilinear".

    Each pixel is interpolated between the four nearest pixels, as in PyTorch with align_corners=False: pixel i of the
    output has its centre at (i + 1/2) / s among the pixels of x, where s is `scale_factor`, or OH / H for a `size`; if
    OH = H, as with 5 pixels and a factor of 1.1, s is 1. An image that is made much smaller is not smoothed: most of
    its pixels have no influence. On the CPU an infinity or a NaN reaches all pixels of its channel. `mode` has no
    default, as PyTorch's is "nearest".

    >>> interpolate(Tensor([[[[0.0], [4.0]]]]), size=(1, 4), mode="bilinear").reshape(4)
    Tensor([0., 1., 3., 4.], shape=(4,), float32)
    """
    check_batch("interpolate", x, "(N, H, W, C)", 4)
    output_size, factors = as_interpolation("interpolate", size, scale_factor, mode)
    _, height, width, _ = x.shape
    if factors is None:
        step = height / output_size[0], width / output_size[1]
    else:
        output_size = math.floor(height * factors[0]), math.floor(width * factors[1])
        step = 1 / factors[0] if output_size[0] != height else 1.0, 1 / factors[1] if output_size[1] != width else 1.0
        expect("interpolate", min(output_size) > 0, "an output of at least one pixel", output_size, "for x", x.shape)
    return apply(UpsampleBilinear2d, x, output_size=output_size, step=step)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """y = weight (x - mean) / sqrt(variance + eps) + bias for each channel of x (N, C) or (N, H, W, C).

    In training, mean and variance are those of x (variance: divided by the count M), and gradients flow through them.
    The running values, if given, become (1 - momentum) running + momentum new, with a variance divided by M - 1.
    In evaluation, the running values are used, as constants. Ioffe, Szegedy 2015, algorithms 1 and 2.

    >>> batch_norm(Tensor([[1.0], [3.0]]), Tensor([1.0]), Tensor([0.0]), eps=0)
    Tensor([[-1.],
            [ 1.]], shape=(2, 1), float32)
    """
    check_batch_norm(x, weight, bias, running_mean, running_var)
    check_batch_norm_options("batch_norm", eps, momentum)
    if training:
        mean, variance = once(lambda: _statistics(x, running_mean, running_var, momentum))
        return apply(BatchNorm, x, weight, bias, mean=mean, variance=variance, eps=float(eps))
    if running_mean is None:
        raise ValueError("batch_norm: evaluation (training=False) needs running_mean and running_var")
    # Copies: a later training step may change the running values before this backward.
    mean, variance = once(lambda: (running_mean.data.copy(), running_var.data.copy()))
    return apply(BatchNormEval, x, weight, bias, mean=mean, variance=variance, eps=float(eps))


def _statistics(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float):
    """Return the mean and variance of each channel of x, and update the running values if they are given."""
    kernels, count = kernels_for(x.data), x.numel() // x.shape[-1]
    expect("batch_norm", count > 1, "more than one number per channel to take statistics of", "x", x.shape)
    mean, variance = kernels.batch_statistics(x.data)
    if running_mean is not None:
        kernels.update_running_statistics(running_mean.data, running_var.data, mean, variance, momentum, count)
    return mean, variance


def relu(x: Tensor) -> Tensor:
    """max(x, 0) for each element x.

    >>> relu(Tensor([-1.0, 2.0]))
    Tensor([0., 2.], shape=(2,), float32)
    """
    return apply(ReLU, x)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x P(x), where P(x) is the probability that a standard normal variable is less than x: (1 + erf(x / sqrt(2))) / 2.

    With approximate="tanh", P(x) is (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. Results differ by up to 5e-4.
    Hendrycks, Gimpel 2016, "Gaussian error linear units".

    >>> gelu(Tensor([-1.0, 0.0, 2.0]))
    Tensor([-0.1587,  0.    ,  1.9545], shape=(3,), float32)
    """
    expect("gelu", approximate in ("none", "tanh"), "approximate='none' or 'tanh'", repr(approximate))
    return apply(GELU, x, approximate=approximate)


def dropout(x: Tensor, probability: float, key: np.ndarray, first_row: int = 0) -> Tensor:
    """Each element becomes 0 with probability p = `probability`, else x / (1 - p) (Srivastava et al. 2014).

    `key` is a uint32 array (seed low, seed high, step, layer), and the mask depends on nothing else. The layer
    `minidl.nn.Dropout` keeps a key and counts the steps. If x is a part of a larger batch, `first_row` is the number of
    its first row in that batch: each row is then masked as in the larger batch.

    >>> dropout(Tensor([1.0, 1.0, 1.0, 1.0]), 0.5, np.array([7, 0, 0, 0], np.uint32)).max().item()
    2.0
    """
    check_floats("dropout", x)
    check_range("dropout", 0, 1, probability=probability)
    if getattr(key, "shape", None) != (4,) or key.dtype != np.uint32:
        raise ValueError(f"dropout: expected a key of four uint32 numbers, got {key!r}")
    check_whole("dropout", 0, first_row=first_row)
    return apply(Dropout, x, probability=probability, key=key, first=first_row * math.prod(x.shape[1:]))


def local_response_norm(x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Tensor:
    """y_c = x_c / (k + alpha * the sum of x_d^2 over the `size` channels d around c)^beta; x (N, H, W, C).

    Krizhevsky, Sutskever, Hinton 2012, section 3.3; the defaults are theirs. PyTorch has alpha / size instead of alpha.

    >>> local_response_norm(Tensor([[[[1.0]]]]), alpha=2.0, beta=1.0).item()
    0.25
    """
    check_batch("local_response_norm", x, "(N, H, W, C)", 4)
    check_whole("local_response_norm", 1, size=size)
    return apply(LocalResponseNorm, x, size=size, alpha=alpha, beta=beta, k=k)


def pad_channels(x: Tensor, before: int, after: int) -> Tensor:
    """x with `before` channels of zeros before its own and `after` channels after: (..., C) -> (..., before+C+after).

    >>> pad_channels(Tensor([[1.0, 2.0]]), 1, 0)
    Tensor([[0., 1., 2.]], shape=(1, 3), float32)
    """
    check_tensors("pad_channels", x)
    check_whole("pad_channels", 0, before=before, after=after)
    return apply(PadChannels, x, before=before, after=after)


# -- probabilities and losses ------------------------------------------------------------------------------------------


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(x_i) / sum_j exp(x_j) along `dim`; float32 if x is bfloat16 or float16.

    >>> softmax(Tensor([[0.0, 0.0]]))
    Tensor([[0.5, 0.5]], shape=(1, 2), float32)
    """
    return _along("softmax", Softmax, x, dim)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """log(softmax(x)) along `dim`, as x_i - log sum_j exp(x_j), which is accurate even where the softmax is tiny.

    It is float32 if x is bfloat16 or float16.

    >>> log_softmax(Tensor([[0.0, 0.0]]))
    Tensor([[-0.6931, -0.6931]], shape=(1, 2), float32)
    """
    return _along("log_softmax", LogSoftmax, x, dim)


def cross_entropy(logits: Tensor, labels, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of -log softmax(logits)[label]: logits (N, K), labels (N,), integers in [0, K) -> ().

    With label smoothing s the target is (1 - s) onehot(label) + s / K (Szegedy et al. 2016, section 7). The loss of
    bfloat16 logits is float32.

    >>> cross_entropy(Tensor([[2.0, 2.0], [0.0, 0.0]]), np.array([0, 1]))
    Tensor(0.6931, shape=(), float32)
    """
    check_batch("cross_entropy", logits, "(N, K)", 2)
    check_range("cross_entropy", 0, 1, closed=True, label_smoothing=label_smoothing)
    labels = Tensor(labels).data if isinstance(labels, list | tuple | Tensor) else labels
    check_labels(labels, logits)
    labels = labels.copy() if isinstance(labels, np.ndarray) else labels  # the caller may write the next ones there
    return apply(CrossEntropy, _in_float32(logits), labels=labels, label_smoothing=float(label_smoothing))


def mse_loss(x: Tensor, target: Tensor) -> Tensor:
    """The mean of (x - target)^2 over all elements; x and target have the same shape. Of bfloat16 it is float32.

    >>> mse_loss(Tensor([1.0, 2.0]), Tensor([1.0, 4.0])).item()
    2.0
    """
    check_floats("mse_loss", x)
    check_tensors("mse_loss", target)
    expect("mse_loss", x.numel() > 0, "a batch that is not empty", "shape", x.shape)
    if x.shape != target.shape:
        raise ValueError(f"mse_loss: x {x.shape} and target {target.shape} differ in shape; reshape one of them")
    return apply(MSELoss, _in_float32(x), _in_float32(target))


def _in_float32(x: Tensor) -> Tensor:
    """Return bfloat16 as float32: sums of exponentials and of squares need more than 8 bits of precision."""
    return x.to(float32) if is_half(x.dtype) else x


def _along(name: str, function: type[Function], x: Tensor, dim: int) -> Tensor:
    """Apply `function`, which works along the last axis of (N, K), along dimension `dim` of any x."""
    check_floats(name, x)
    x = _in_float32(x)
    check_dim(name, dim, x.shape)
    expect(name, x.shape[dim] > 0, f"at least one number along dim {dim}", "x", x.shape)
    order = list(range(x.ndim))
    order[dim], order[-1] = order[-1], order[dim]  # an exchange of two dimensions is its own inverse
    moved = x if order[dim] == dim % x.ndim else x.permute(order)
    y = apply(function, moved.reshape(-1, moved.shape[-1])).reshape(moved.shape)
    return y if moved is x else y.permute(order)
