"""What PyTorch does in the place of our kernels, with the arguments that one of ours was called with.

Each function of COUNTERPARTS makes the tensors, in NCHW or channels_last memory, and returns the function to be timed.
Gradients come from torch.autograd.grad, for exactly those inputs that our kernel differentiates by.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}


def counterpart(name: str, layout: str, arguments: tuple) -> Callable | None:
    """The function to be timed, or None if PyTorch is not known to have one."""
    prepare = COUNTERPARTS.get(name)
    return prepare and prepare(LAYOUTS[layout], *arguments)


def copied(array: np.ndarray) -> Tensor:
    """A tensor of its own memory, without gaps."""
    return torch.from_numpy(np.array(array, order="C"))


def tensor(array: np.ndarray, layout: torch.memory_format) -> Tensor:
    """Images (N, H, W, C) -> (N, C, H, W) in that memory layout, anything else as it is."""
    copy = copied(array)
    return copy.permute(0, 3, 1, 2).contiguous(memory_format=layout) if copy.ndim == 4 else copy


def kernel_tensor(weight: np.ndarray, layout: torch.memory_format) -> Tensor:
    """(KH, KW, C, O) -> (O, C, KH, KW)."""
    return copied(weight).permute(3, 2, 0, 1).contiguous(memory_format=layout)


def gradients(y: Tensor, inputs: list[Tensor], grad: Tensor) -> Callable:
    """The way back, as often as wanted."""
    return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)


# ---- convolution, linear ---------------------------------------------------------------------------------------------


def conv2d_forward(layout, x, weight, bias, stride, padding):
    x, weight = tensor(x, layout), kernel_tensor(weight, layout)
    bias = None if bias is None else copied(bias)
    return lambda: F.conv2d(x, weight, bias, stride, padding)


def conv2d_backward(layout, grad, x, weight, stride, padding, needs_x, needs_weight):
    x = tensor(x, layout).requires_grad_(needs_x)
    weight = kernel_tensor(weight, layout).requires_grad_(needs_weight)
    inputs = [each for each in (x, weight) if each.requires_grad]
    if not inputs:  # only the bias is learned, which is another kernel
        return None
    return gradients(F.conv2d(x, weight, None, stride, padding), inputs, tensor(grad, layout))


def linear_forward(layout, x, weight, bias):
    x, weight = copied(x), copied(weight).T.contiguous()
    bias = None if bias is None else copied(bias)
    return lambda: F.linear(x, weight, bias)


def linear_backward_x(layout, grad, weight):
    weight = copied(weight).T.contiguous()
    x = torch.zeros(len(grad), weight.shape[1], requires_grad=True)
    return gradients(F.linear(x, weight), [x], copied(grad))


def linear_backward_weight(layout, grad, x):
    weight = torch.zeros(grad.shape[1], x.shape[1], requires_grad=True)
    return gradients(F.linear(copied(x), weight), [weight], copied(grad))


def bias_backward(layout, grad):
    grad = tensor(grad, layout)
    dims = [dim for dim in range(grad.ndim) if dim != 1]
    return lambda: grad.sum(dims)


# ---- batch normalisation: one operation in PyTorch, with the statistics, or with the sums ----------------------------


def batch_norm_apply(layout, x, mean, variance, weight, bias, eps):
    x = tensor(x, layout)
    mean, variance, weight, bias = map(copied, (mean, variance, weight, bias))
    return lambda: F.batch_norm(x, mean, variance, weight, bias, training=True, eps=eps)


def batch_norm_backward(layout, grad, x, _mean, _variance, weight, eps, _through_statistics):
    x, weight = tensor(x, layout).requires_grad_(), copied(weight).requires_grad_()
    bias = torch.zeros_like(weight, requires_grad=True)
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return gradients(y, [x, weight, bias], tensor(grad, layout))


# ---- activations, pooling, the loss ----------------------------------------------------------------------------------


def add(layout, a, b):
    """Two gradients that meet."""
    a, b = tensor(a, layout), tensor(b, layout)
    return lambda: a + b


def relu_forward(layout, x):
    x = tensor(x, layout)
    return lambda: F.relu(x)


def relu_backward(layout, grad, y):
    y = tensor(y, layout).requires_grad_()  # relu(y) = y cuts off what relu(x) = y did
    return gradients(F.relu(y), [y], tensor(grad, layout))


def gelu_forward(layout, x, approximate, _needs_slope):
    """Ours computes the slope as well, PyTorch's in backward."""
    x = tensor(x, layout)
    return lambda: F.gelu(x, approximate=approximate)


def max_pool2d_forward(layout, x, kernel_size, stride, padding, ceil_mode):
    x = tensor(x, layout)
    return lambda: F.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode)


def max_pool2d_backward(layout, grad, best_tap, x_shape, kernel_size, stride, padding):
    """PyTorch notes the best tap's pixel, h W + w."""
    i, j = np.indices(best_tap.shape)[1:3]
    h = i * stride[0] - padding[0] + best_tap // kernel_size[1]
    w = j * stride[1] - padding[1] + best_tap % kernel_size[1]
    pixels = tensor(h * x_shape[2] + w, layout)
    x, grad = tensor(np.zeros(x_shape, grad.dtype), layout), tensor(grad, layout)
    backward = torch.ops.aten.max_pool2d_with_indices_backward  # autograd.grad needs the x that won, and x is not kept
    return lambda: backward(grad, x, kernel_size, stride, padding, (1, 1), False, pixels)


def global_avg_pool_forward(layout, x):
    x = tensor(x, layout)
    return lambda: x.mean((2, 3))


def global_avg_pool_backward(layout, grad, x_shape):
    x = tensor(np.zeros(x_shape, grad.dtype), layout).requires_grad_()
    return gradients(x.mean((2, 3)), [x], copied(grad))


def pad_channels_forward(layout, x, before, after):
    x = tensor(x, layout)
    return lambda: F.pad(x, (0, 0, 0, 0, before, after))


def pad_channels_backward(layout, grad, before, after):
    channels = grad.shape[-1] - before - after
    x = tensor(np.zeros((*grad.shape[:-1], channels), grad.dtype), layout).requires_grad_()
    return gradients(F.pad(x, (0, 0, 0, 0, before, after)), [x], tensor(grad, layout))


def cross_entropy_forward(layout, logits, labels, label_smoothing):
    logits, labels = copied(logits), copied(labels)
    return lambda: F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def cross_entropy_backward(layout, grad, probabilities, labels, label_smoothing):
    logits = copied(probabilities).log().requires_grad_()
    loss = F.cross_entropy(logits, copied(labels), label_smoothing=label_smoothing)
    return gradients(loss, [logits], copied(grad))


# ---- the update ------------------------------------------------------------------------------------------------------


def sgd_update(layout, parameters, grads, velocities, lr, momentum, weight_decay, nesterov):
    copies = [copied(parameter).requires_grad_() for parameter in parameters]
    for copy, grad in zip(copies, grads, strict=True):
        copy.grad = copied(grad)
    options = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov, "fused": True}
    return torch.optim.SGD(copies, float(lr), **options).step


COUNTERPARTS = {
    function.__name__: function
    for function in (
        conv2d_forward,
        conv2d_backward,
        linear_forward,
        linear_backward_x,
        linear_backward_weight,
        bias_backward,
        batch_norm_apply,
        batch_norm_backward,
        add,
        relu_forward,
        relu_backward,
        gelu_forward,
        max_pool2d_forward,
        max_pool2d_backward,
        global_avg_pool_forward,
        global_avg_pool_backward,
        pad_channels_forward,
        pad_channels_backward,
        cross_entropy_forward,
        cross_entropy_backward,
        sgd_update,
    )
}


def check_same(name: str, ours: object, theirs: object) -> None:
    """Fail unless both results have the same norms, which do not depend on the layout; an update in place has none."""
    for array, other in zip(arrays_in(ours), arrays_in(theirs), strict=False):
        norms = np.linalg.norm(array), np.linalg.norm(other)
        # The gradient of a bias in front of a batch norm is 0, up to rounding.
        if not math.isclose(*norms, rel_tol=1e-3, abs_tol=1e-6):
            raise SystemExit(f"error: {name} and PyTorch's counterpart differ: norms {norms}")


def arrays_in(result: object) -> list[np.ndarray]:
    """The floating-point arrays of a result: of tensors, of tuples of them, without what is None."""
    parts = result if isinstance(result, tuple) else (result,)
    arrays = [part.detach().numpy() if isinstance(part, Tensor) else part for part in parts if part is not None]
    return [array.ravel() for array in arrays if np.issubdtype(array.dtype, np.floating)]
