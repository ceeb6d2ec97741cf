"""The layers. Each calls a function of `functional` with the parameters and options it holds."""

from typing import TYPE_CHECKING

import numpy as np

from minidl import functional as F  # noqa: N812 - the usual name
from minidl.checks import (
    Pair,
    Scale,
    as_interpolation,
    as_pair,
    as_windows,
    check_batch_norm_options,
    check_range,
    check_whole,
    expect,
)
from minidl.nn import init
from minidl.nn.layout import ConvWeight, LinearWeight
from minidl.nn.module import Module
from minidl.random import first_row, next_key, once
from minidl.tensor import Buffer, Parameter, Tensor


class Conv2d(Module):
    """Convolution of x (N, H, W, in_channels) with a learned kernel: see `functional.conv2d`.

    weight (KH, KW, in_channels, out_channels) starts as `init.he_normal`, bias (out_channels,) as zeros.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        bias: bool = True,
    ):
        check_whole("Conv2d", 1, in_channels=in_channels, out_channels=out_channels)
        self.kernel_size = as_pair("Conv2d", "kernel_size", kernel_size, 1)
        self.stride, self.padding = as_pair("Conv2d", "stride", stride, 1), as_pair("Conv2d", "padding", padding, 0)
        self.weight = Parameter(init.he_normal((*self.kernel_size, in_channels, out_channels)), layout=ConvWeight())
        self.bias = Parameter(np.zeros(out_channels, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, OH, OW, out_channels)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def extra_repr(self) -> str:
        """Return the channels, kernel size, stride and padding, and whether there is a bias."""
        kh, kw, c, o = self.weight.shape
        return f"{c} -> {o}, {kh}x{kw}, stride={self.stride}, padding={self.padding}, bias={self.bias is not None}"


class Linear(Module):
    """y = x W + b: weight (in_features, out_features) starts as `init.xavier_normal`, bias (out_features,) as zeros.

    If x is flattened from (H, W, C) images, pass flattened_from=(H, W, C): files have the rows in PyTorch's order.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        flattened_from: tuple[int, int, int] | None = None,
    ):
        check_whole("Linear", 1, in_features=in_features, out_features=out_features)
        if flattened_from is not None and np.prod(flattened_from) != in_features:
            raise ValueError(f"Linear: expected flattened_from of {in_features} elements in all, got {flattened_from}")
        self.weight = Parameter(init.xavier_normal((in_features, out_features)), layout=LinearWeight(flattened_from))
        self.bias = Parameter(np.zeros(out_features, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) -> (N, out_features)."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the features, and whether there is a bias."""
        return f"{self.weight.shape[0]} -> {self.weight.shape[1]}, bias={self.bias is not None}"


class BatchNorm2d(Module):
    """Batch normalisation of each channel over (N, H, W): see `functional.batch_norm`.

    weight and running_var start as ones, bias and running_mean as zeros. All four are (num_features,).
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        check_whole("BatchNorm2d", 1, num_features=num_features)
        check_batch_norm_options("BatchNorm2d", eps, momentum)
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, num_features) -> (N, H, W, num_features)."""
        running = self.running_mean, self.running_var
        return F.batch_norm(x, self.weight, self.bias, *running, self.training, self.momentum, self.eps)

    def extra_repr(self) -> str:
        """Return the number of channels and the constants."""
        return f"{self.weight.shape[0]}, eps={self.eps}, momentum={self.momentum}"


class ReLU(Module):
    """max(x, 0), element by element: see `functional.relu`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return F.relu(x)


class GELU(Module):
    """x times the probability that a standard normal variable is less than x: see `functional.gelu`."""

    def __init__(self, approximate: str = "none"):
        expect("GELU", approximate in ("none", "tanh"), "approximate='none' or 'tanh'", repr(approximate))
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return F.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """Return the name of the approximation."""
        return f"approximate={self.approximate!r}"


class MaxPool2d(Module):
    """The maximum of each window: see `functional.max_pool2d`."""

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, ceil_mode: bool = False):
        as_windows("MaxPool2d", kernel_size, stride, padding)
        self.kernel_size, self.stride, self.padding, self.ceil_mode = kernel_size, stride, padding, ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, OH, OW, C)."""
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode)

    def extra_repr(self) -> str:
        """Return the kernel size, stride and padding."""
        return f"{self.kernel_size}, stride={self.stride or self.kernel_size}, padding={self.padding}"


class AvgPool2d(Module):
    """The mean of each window: see `functional.avg_pool2d`."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        as_windows("AvgPool2d", kernel_size, stride, padding)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, OH, OW, C)."""
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def extra_repr(self) -> str:
        """Return the kernel size, stride and padding."""
        return f"{self.kernel_size}, stride={self.stride or self.kernel_size}, padding={self.padding}"


class GlobalAvgPool(Module):
    """The mean over the pixels, for each image and channel: see `functional.global_avg_pool`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, C)."""
        return F.global_avg_pool(x)


class Upsample(Module):
    """Images at another size, by bilinear interpolation: see `functional.interpolate`.

    It is PyTorch's `nn.Upsample` with align_corners=False, its default. (Its `nn.UpsamplingBilinear2d` has True.)
    """

    def __init__(self, size: Pair | None = None, scale_factor: Scale | None = None, *, mode: str):
        as_interpolation("Upsample", size, scale_factor, mode)
        self.size, self.scale_factor, self.mode = size, scale_factor, mode

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, OH, OW, C)."""
        return F.interpolate(x, self.size, self.scale_factor, mode=self.mode)

    def extra_repr(self) -> str:
        """Return the size or the scale factor, and the mode."""
        given = f"scale_factor={self.scale_factor}" if self.size is None else f"size={self.size}"
        return f"{given}, mode={self.mode!r}"


class Flatten(Module):
    """Merges all dimensions but the batch into one: see `functional.flatten`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H*W*C)."""
        return F.flatten(x)


class Dropout(Module):
    """In training, sets each element to 0 with the given probability: see `functional.dropout`.

    The mask is a function of (seed, step, layer). The buffer `key` holds these, and the layer counts the steps there.
    A copy by `copy.deepcopy` has the same key and drops the same elements: construct each layer anew.
    """

    def __init__(self, probability: float = 0.5):
        check_range("Dropout", 0, 1, probability=probability)
        self.probability = probability
        self.key = Buffer(next_key(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape; in evaluation, x itself."""
        if not self.training or self.probability == 0:
            return x
        return F.dropout(x, self.probability, *once(self._next_key))

    def _next_key(self) -> tuple:
        """The key of this step, and the number of the batch's first row."""
        key = self.key.data.copy()
        self.key.data[2] += 1
        return key, first_row()

    def extra_repr(self) -> str:
        """Return the probability."""
        return f"{self.probability}"


class LocalResponseNorm(Module):
    """Local response normalisation across channels: see `functional.local_response_norm`."""

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0):
        check_whole("LocalResponseNorm", 1, size=size)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """Return the constants."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class PadChannels(Module):
    """Adds channels of zeros before and after those of x: see `functional.pad_channels`."""

    def __init__(self, before: int, after: int):
        check_whole("PadChannels", 0, before=before, after=after)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, before + C + after)."""
        return F.pad_channels(x, self.before, self.after)

    def extra_repr(self) -> str:
        """Return the numbers of channels that are added."""
        return f"{self.before}, {self.after}"


class Softmax(Module):
    """exp(x_i) / sum_j exp(x_j) along `dim`: see `functional.softmax`."""

    def __init__(self, dim: int = -1):
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return F.softmax(x, self.dim)


class LogSoftmax(Module):
    """log(softmax(x)) along `dim`: see `functional.log_softmax`."""

    def __init__(self, dim: int = -1):
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return F.log_softmax(x, self.dim)


class CrossEntropyLoss(Module):
    """The mean over the batch of -log softmax(logits)[label]: see `functional.cross_entropy`."""

    def __init__(self, label_smoothing: float = 0.0):
        check_range("CrossEntropyLoss", 0, 1, closed=True, label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels) -> Tensor:
        """(N, K), (N,) -> a scalar."""
        return F.cross_entropy(logits, labels, self.label_smoothing)


class MSELoss(Module):
    """The mean of (x - target)^2 over all elements: see `functional.mse_loss`."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Two tensors of the same shape -> a scalar."""
        return F.mse_loss(x, target)


if not TYPE_CHECKING:  # type checkers do not compute lists, and would find no layer
    # `from layers import *` in minidl.nn: the classes defined here, without the imported names.
    __all__ = [name for name, value in vars().items() if getattr(value, "__module__", None) == __name__]
