"""Right answers that are written in another way than the reference: vectorised, in another order, by other formulas."""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from minidl import Function


def relu_backward_by_a_product(grad, y):
    return grad * (y > 0)


def relu_backward_by_a_copy(grad, y):
    result = grad.copy()
    result[y == 0] = 0
    return result


def relu_forward_by_the_absolute_value(x):
    return (x + abs(x)) / 2


def linear_forward_by_einsum(x, weight, bias):
    y = np.einsum("nc,co->no", x, weight)
    if bias is not None:
        y += bias
    return y


def linear_forward_in_float32(x, weight, bias):
    y = x.astype(np.float32) @ weight.astype(np.float32)
    return (y if bias is None else y + bias.astype(np.float32)).astype(x.dtype)


def linear_backward_x_backwards(grad, weight):
    result = np.zeros((len(grad), len(weight)), grad.dtype)
    for o in reversed(range(grad.shape[1])):
        result += np.multiply.outer(grad[:, o], weight[:, o])
    return result


def linear_backward_weight_transposed_twice(grad, x):
    return (grad.T @ x).T  # a view


def matmul_by_exact_sums(a, b):
    y = np.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype)
    a = np.broadcast_to(a, (*y.shape[:-2], *a.shape[-2:]))
    b = np.broadcast_to(b, (*y.shape[:-2], *b.shape[-2:]))
    for index in np.ndindex(y.shape):
        *batch, i, j = index
        y[index] = math.fsum(a[(*batch, i)] * b[(*batch, slice(None), j)])
    return y


def conv2d_forward_by_windows(x, weight, bias, stride, padding):
    (ph, pw), (sh, sw) = padding, stride
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    windows = sliding_window_view(padded, weight.shape[:2], axis=(1, 2))[:, ::sh, ::sw]  # N OH OW C KH KW
    y = np.einsum("nijcuv,uvco->onij", windows, weight).transpose(1, 2, 3, 0)
    return y if bias is None else y + bias[None, None, None, :]


def conv2d_forward_tap_by_tap(x, weight, bias, stride, padding):
    kh, kw, _, o = weight.shape
    (n, h, w, _), (ph, pw), (sh, sw) = x.shape, padding, stride
    oh, ow = (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1
    padded = np.zeros((n, h + 2 * ph, w + 2 * pw, x.shape[3]), x.dtype)
    padded[:, ph : ph + h, pw : pw + w] = x
    y = np.zeros((n, oh, ow, o), x.dtype)
    for u in range(kh):
        for v in range(kw):
            y += padded[:, u : u + sh * oh : sh, v : v + sw * ow : sw] @ weight[u, v]
    if bias is not None:
        y = y + bias
    return y


def conv2d_backward_x_as_a_convolution(grad, x, weight, stride, padding):
    """dL/dy with zeros between its pixels, convolved with the kernel turned by 180 degrees."""
    kh, kw = weight.shape[:2]
    n, h, w, _ = x.shape
    dilated = np.zeros((n, h + 2 * padding[0] + kh - 1, w + 2 * padding[1] + kw - 1, grad.shape[3]), grad.dtype)
    oh, ow = grad.shape[1:3]
    dilated[:, kh - 1 : kh - 1 + stride[0] * oh : stride[0], kw - 1 : kw - 1 + stride[1] * ow : stride[1]] = grad
    windows = sliding_window_view(dilated, (kh, kw), axis=(1, 2))
    full = np.einsum("nhwouv,uvco->nhwc", windows, weight[::-1, ::-1])
    return full[:, padding[0] : padding[0] + h, padding[1] : padding[1] + w]


def conv2d_backward_weight_by_windows(grad, x, weight, stride, padding):
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    windows = sliding_window_view(padded, weight.shape[:2], axis=(1, 2))[:, :: stride[0], :: stride[1]]
    return np.tensordot(windows, grad, ((0, 1, 2), (0, 1, 2))).transpose(1, 2, 0, 3)


def im2col_by_strides(x, kernel_size, stride, padding):
    (kh, kw), (sh, sw), (ph, pw) = kernel_size, stride, padding
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    n, h, w, c = padded.shape
    oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
    bn, bh, bw, bc = padded.strides
    patches = as_strided(padded, (n, oh, ow, kh, kw, c), (bn, bh * sh, bw * sw, bh, bw, bc))
    return patches.reshape(-1, kh * kw * c)


def col2im_by_positions(columns, x_shape, kernel_size, stride, padding):
    indices = np.arange(1, 1 + math.prod(x_shape), dtype=float).reshape(x_shape)
    seen = im2col_by_strides(indices, kernel_size, stride, padding).astype(int)  # 0 is padding
    flat = np.zeros(1 + math.prod(x_shape), columns.dtype)
    np.add.at(flat, seen.ravel(), columns.ravel())
    return flat[1:].reshape(x_shape)


def max_pool2d_forward_by_argmax(x, kernel_size, stride, padding, ceil_mode):
    (kh, kw), (sh, sw), (ph, pw) = kernel_size, stride, padding
    n, h, w, c = x.shape

    def count(length, k, s, p):
        room = length + 2 * p - k
        windows = room // s + 1
        return windows + (ceil_mode and room % s > 0 and windows * s < length + p)

    oh, ow = count(h, kh, sh, ph), count(w, kw, sw, pw)
    padded = np.full((n, (oh - 1) * sh + kh + ph, (ow - 1) * sw + kw + pw, c), -np.inf, x.dtype)
    padded = np.pad(padded, ((0, 0), (0, h), (0, w), (0, 0)), constant_values=-np.inf)
    padded[:, ph : ph + h, pw : pw + w] = x
    windows = sliding_window_view(padded, (kh, kw), axis=(1, 2))[:, ::sh, ::sw][:, :oh, :ow].reshape(n, oh, ow, c, -1)
    return windows.max(axis=-1), windows.argmax(axis=-1).astype(np.int8)


def max_pool2d_backward_by_positions(grad, best_tap, x_shape, kernel_size, stride, padding):
    n, i, j, c = np.indices(grad.shape)
    h = i * stride[0] - padding[0] + best_tap // kernel_size[1]
    w = j * stride[1] - padding[1] + best_tap % kernel_size[1]
    result = np.zeros(x_shape, grad.dtype)
    np.add.at(result, (n, h, w, c), grad)
    return result


def avg_pool2d_forward_by_cumulative_sums(x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    def axis_windows(length, k, s, p):
        room = length + 2 * p - k
        number = room // s + 1
        number += ceil_mode and room % s > 0 and number * s < length + p
        starts = np.arange(number) * s - p
        border = p if count_include_pad else 0
        counts = np.minimum(starts + k, length + border) - np.maximum(starts, -border)
        return np.clip(starts, 0, length), np.clip(starts + k, 0, length), counts

    top, bottom, rows = axis_windows(x.shape[1], kernel_size[0], stride[0], padding[0])
    left, right, columns = axis_windows(x.shape[2], kernel_size[1], stride[1], padding[1])
    table = np.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0))).cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    rows_summed = table[:, bottom] - table[:, top]
    sums = rows_summed[:, :, right] - rows_summed[:, :, left]
    return (sums / (rows[:, None] * columns)[None, :, :, None]).astype(x.dtype)


def global_avg_pool_forward_reshaped(x):
    return x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)


def global_avg_pool_backward_as_a_view(grad, x_shape):
    return np.broadcast_to((grad / (x_shape[1] * x_shape[2]))[:, None, None], x_shape)  # read-only


def batch_statistics_by_numpy(x):
    axes = tuple(range(x.ndim - 1))
    return x.mean(axis=axes, dtype=np.float64).astype(x.dtype), x.var(axis=axes, dtype=np.float64).astype(x.dtype)


def batch_norm_apply_folded(x, mean, variance, weight, bias, eps):
    scale = weight * (variance + eps) ** -0.5
    return x * scale + (bias - mean * scale)


def batch_norm_backward_step_by_step(grad, x, mean, variance, weight, eps, through_statistics):
    """As in the paper's section 3: through x_hat, then the variance, then the mean."""
    axes, std = tuple(range(x.ndim - 1)), (variance + eps) ** 0.5
    centred = x - mean
    grad_x_hat = grad * weight
    grad_x = grad_x_hat / std
    if through_statistics:
        m = x.size // x.shape[-1]
        grad_variance = (grad_x_hat * centred).sum(axis=axes) * -0.5 / std**3
        grad_mean = -(grad_x_hat / std).sum(axis=axes) - 2 * grad_variance * centred.mean(axis=axes)
        grad_x = grad_x + grad_variance * 2 * centred / m + grad_mean / m
    return grad_x, (grad * centred / std).sum(axis=axes), grad.reshape(-1, grad.shape[-1]).sum(axis=0)


def softmax_forward_by_the_logarithm(x):
    return np.exp(x - np.logaddexp.reduce(x, axis=1, keepdims=True))


def softmax_backward_by_the_jacobian(grad, y):
    jacobian = y[:, :, None] * (np.eye(y.shape[1], dtype=y.dtype) - y[:, None, :])
    return (jacobian @ grad[:, :, None])[:, :, 0]


def log_softmax_backward_vectorised(grad, y):
    return grad - np.exp(y) * grad.sum(axis=-1, keepdims=True)


def cross_entropy_forward_by_logaddexp(logits, labels, label_smoothing):
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    at_labels = logs[np.arange(len(labels)), labels]
    losses = -(1 - label_smoothing) * at_labels - label_smoothing * logs.mean(axis=1)
    return losses.mean(), np.exp(logs)  # a NumPy number, no array


def cross_entropy_backward_in_place_on_a_copy(grad, probabilities, labels, label_smoothing):
    result = probabilities - np.asarray(label_smoothing / probabilities.shape[1], probabilities.dtype)
    result[np.arange(len(labels)), labels] -= 1 - label_smoothing
    result *= grad / len(labels)
    return result


def cross_entropy_forward_image_by_image(logits, labels, label_smoothing):
    """The loss is a number of Python's, which has no dtype."""
    total, probabilities = 0.0, np.empty_like(logits)
    for n, (row, label) in enumerate(zip(logits, labels, strict=True)):
        logs = row - row.max() - math.log(np.exp(row - row.max()).sum())
        total -= float((1 - label_smoothing) * logs[label] + label_smoothing * logs.mean())
        probabilities[n] = np.exp(logs)
    return total / len(labels), probabilities


def mse_loss_forward_by_a_dot(x, target):
    difference = (x - target).ravel()
    return difference @ difference / x.size


def sum_to_shape_axis_by_axis(grad, shape):
    while grad.ndim > len(shape):
        grad = grad.sum(axis=0)
    for axis, length in enumerate(shape):
        if length == 1:
            grad = grad.sum(axis=axis, keepdims=True)
    return grad


def scatter_add_by_bincount(grad, positions, shape):
    counted = np.bincount(positions.ravel(), weights=grad.ravel(), minlength=math.prod(shape))
    return counted.astype(grad.dtype).reshape(shape)


def pad_channels_forward_by_concatenation(x, before, after):
    zeros = [np.zeros((*x.shape[:-1], count), x.dtype) for count in (before, after)]
    return np.concatenate([zeros[0], x, zeros[1]], axis=-1)


def pad_channels_backward_as_a_view(grad, before, after):
    return grad[..., before : grad.shape[-1] - after]


def residual_end_backward_by_hand(grad, y, z, mean, variance, weight, eps):
    grad_shortcut = np.where(y > 0, grad, 0)
    others = batch_norm_backward_step_by_step(grad_shortcut, z, mean, variance, weight, eps, True)
    return others[0], grad_shortcut, *others[1:]


def sgd_update_without_lists_of_its_own(parameters, grads, velocities, lr, momentum, weight_decay, nesterov):
    for p, g, v in zip(parameters, grads, velocities, strict=True):
        g = g + weight_decay * p
        if momentum:
            v *= momentum
            v += g
            g = g + momentum * v if nesterov else v.copy()
        p[...] = p - lr * g


class Tanh(Function):
    """By exponentials; backward returns a list's only element in a tuple."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return (grad / np.cosh(x) ** 2,)


class Mul(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return np.multiply(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        return sum_to_shape_axis_by_axis(b * grad, a.shape), sum_to_shape_axis_by_axis(a * grad, b.shape)


RIGHT_ANSWERS = [
    ("relu_backward", relu_backward_by_a_product),
    ("relu_backward", relu_backward_by_a_copy),
    ("relu_forward", relu_forward_by_the_absolute_value),
    ("linear_forward", linear_forward_by_einsum),
    ("linear_forward", linear_forward_in_float32),
    ("linear_backward_x", linear_backward_x_backwards),
    ("linear_backward_weight", linear_backward_weight_transposed_twice),
    ("matmul", matmul_by_exact_sums),
    ("conv2d_forward", conv2d_forward_by_windows),
    ("conv2d_forward", conv2d_forward_tap_by_tap),
    ("conv2d_backward_x", conv2d_backward_x_as_a_convolution),
    ("conv2d_backward_weight", conv2d_backward_weight_by_windows),
    ("im2col", im2col_by_strides),
    ("col2im", col2im_by_positions),
    ("max_pool2d_forward", max_pool2d_forward_by_argmax),
    ("max_pool2d_backward", max_pool2d_backward_by_positions),
    ("avg_pool2d_forward", avg_pool2d_forward_by_cumulative_sums),
    ("global_avg_pool_forward", global_avg_pool_forward_reshaped),
    ("global_avg_pool_backward", global_avg_pool_backward_as_a_view),
    ("batch_statistics", batch_statistics_by_numpy),
    ("batch_norm_apply", batch_norm_apply_folded),
    ("batch_norm_backward", batch_norm_backward_step_by_step),
    ("softmax_forward", softmax_forward_by_the_logarithm),
    ("softmax_backward", softmax_backward_by_the_jacobian),
    ("log_softmax_backward", log_softmax_backward_vectorised),
    ("cross_entropy_forward", cross_entropy_forward_by_logaddexp),
    ("cross_entropy_forward", cross_entropy_forward_image_by_image),
    ("cross_entropy_backward", cross_entropy_backward_in_place_on_a_copy),
    ("mse_loss_forward", mse_loss_forward_by_a_dot),
    ("sum_to_shape", sum_to_shape_axis_by_axis),
    ("scatter_add", scatter_add_by_bincount),
    ("pad_channels_forward", pad_channels_forward_by_concatenation),
    ("pad_channels_backward", pad_channels_backward_as_a_view),
    ("residual_end_backward", residual_end_backward_by_hand),
    ("sgd_update", sgd_update_without_lists_of_its_own),
    ("Tanh", Tanh),
    ("Mul", Mul),
]
