"""Every kernel as plain loops: the executable specification that the kernels of each device are tested against.

Nothing here is fast, and everything can be read beside its formula. The loops run over the indices of the formula; only
batch and channels are computed as whole arrays, where that keeps the formula visible. Results have the dtype of the
arguments. No kernel modifies its arguments, except the three updates at the end.

Images are (N, H, W, C), convolution weights (KH, KW, C, O), linear weights (C, O). `kernel_size`, `stride` and
`padding` are pairs: (KH, KW), (SH, SW), (PH, PW). `grad` is dL/dy, the gradient of the loss with respect to the output;
`grad_x` is dL/dx. Indices: (i, j) is a window, that is a pixel of the output; (u, v) is a tap, that is a pixel of the
kernel; (h, w) is a pixel of the input.
"""

import math

import numpy as np

# ---- windows: shared by convolution and pooling ----------------------------------------------------------------------


def _output_size(size, kernel_size, stride, padding, ceil_mode=False):
    """(OH, OW): how many windows fit into the padded image.

    With ceil_mode an incomplete last window counts too, if it starts inside the image or in the padding before it.
    """
    return tuple(_windows_along(*axis, ceil_mode) for axis in zip(size, kernel_size, stride, padding, strict=True))


def _windows_along(size, kernel_size, stride, padding, ceil_mode):
    """The number of windows along one axis; all arguments are integers."""
    room = size + 2 * padding - kernel_size
    windows = room // stride + 1
    one_more = ceil_mode and room % stride > 0 and windows * stride < size + padding
    return windows + 1 if one_more else windows


def _taps(size, output_size, kernel_size, stride, padding):
    """Yield every (i, j, u, v, h, w) such that window (i, j) sees the input pixel (h, w) through tap (u, v):

        h = i*SH + u - PH,    w = j*SW + v - PW.

    Windows come in row-major order, and so do the taps of each window. Taps that fall on the padding are skipped.
    """
    height, width = size
    for i, j, u, v in np.ndindex(*output_size, *kernel_size):
        h = i * stride[0] + u - padding[0]
        w = j * stride[1] + v - padding[1]
        if 0 <= h < height and 0 <= w < width:
            yield i, j, u, v, h, w


# ---- convolution: a sum of products over the taps, linear in x and in weight -----------------------------------------


def conv2d_forward(x, weight, bias, stride, padding):
    """y[n, i, j, o] = bias[o] + sum over u, v, c of x[n, h, w, c] * weight[u, v, c, o];  y is (N, OH, OW, O).

    (h, w) is the pixel under tap (u, v) of window (i, j), see `_taps`; x is 0 on the padding. The kernel is not
    flipped: this is cross-correlation, as everywhere in deep learning. `bias` is (O,) or None.
    """
    kernel_size, size = weight.shape[:2], x.shape[1:3]
    output_size = _output_size(size, kernel_size, stride, padding)
    y = np.zeros((len(x), *output_size, weight.shape[3]), x.dtype)
    for i, j, u, v, h, w in _taps(size, output_size, kernel_size, stride, padding):
        y[:, i, j] += x[:, h, w] @ weight[u, v]  # (N, C) @ (C, O)
    return y if bias is None else y + bias


def conv2d_backward(grad, x, weight, stride, padding, needs_x, needs_weight):
    """(grad_x, grad_weight), by the loop of the forward pass; None for a gradient that is not needed.

    Forward, each step of the loop adds x[h, w] * weight[u, v] to y[i, j]. Backward, the same step adds
    grad[i, j] * weight[u, v] to grad_x[h, w] and x[h, w] * grad[i, j] to grad_weight[u, v].
    """
    grad_x, grad_weight = np.zeros_like(x), np.zeros_like(weight)
    for i, j, u, v, h, w in _taps(x.shape[1:3], grad.shape[1:3], weight.shape[:2], stride, padding):
        grad_x[:, h, w] += grad[:, i, j] @ weight[u, v].T  # (N, O) @ (O, C)
        grad_weight[u, v] += x[:, h, w].T @ grad[:, i, j]  # (C, N) @ (N, O)
    return grad_x if needs_x else None, grad_weight if needs_weight else None


def bias_backward(grad):
    """(O,): the sum of `grad` over all axes but the last, because the bias was added at each of these positions."""
    grad_bias = np.zeros(grad.shape[-1])  # float64
    for position in np.ndindex(grad.shape[:-1]):
        grad_bias += grad[position]
    return grad_bias.astype(grad.dtype)


# ---- convolution by im2col: a step between these loops and kernels/cpu/conv.py ---------------------------------------
# The patch of x that each window sees becomes a row of a matrix. The whole convolution is then one matrix product.


def im2col(x, kernel_size, stride, padding):
    """The patches of x as rows of a matrix: (N, H, W, C) -> (N, OH, OW, KH, KW, C) -> (N*OH*OW, KH*KW*C)."""
    (n, *size, c), (kh, kw), (sh, sw), (ph, pw) = x.shape, kernel_size, stride, padding
    oh, ow = _output_size(size, kernel_size, stride, padding)
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    patches = np.empty((n, oh, ow, kh, kw, c), x.dtype)
    for u, v in np.ndindex(kh, kw):
        patches[:, :, :, u, v] = padded[:, u : u + sh * oh : sh, v : v + sw * ow : sw]  # seen through tap (u, v)
    return patches.reshape(n * oh * ow, kh * kw * c)


def col2im(columns, x_shape, kernel_size, stride, padding):
    """The transpose of im2col, (N*OH*OW, KH*KW*C) -> (N, H, W, C): add each element to the pixel it was copied from."""
    (n, *size, c), (kh, kw), (sh, sw), (ph, pw) = x_shape, kernel_size, stride, padding
    oh, ow = _output_size(size, kernel_size, stride, padding)
    patches = columns.reshape(n, oh, ow, kh, kw, c)
    padded = np.zeros((n, size[0] + 2 * ph, size[1] + 2 * pw, c), columns.dtype)
    for u, v in np.ndindex(kh, kw):
        padded[:, u : u + sh * oh : sh, v : v + sw * ow : sw] += patches[:, :, :, u, v]
    return padded[:, ph : ph + size[0], pw : pw + size[1]]


def conv2d_forward_by_im2col(x, weight, bias, stride, padding):
    """Y = columns W + bias, W the weight as a (KH*KW*C, O) matrix. Y is (N*OH*OW, O), returned as (N, OH, OW, O)."""
    kh, kw, c, o = weight.shape
    output_size = _output_size(x.shape[1:3], (kh, kw), stride, padding)
    y = im2col(x, (kh, kw), stride, padding) @ weight.reshape(kh * kw * c, o)
    return (y if bias is None else y + bias).reshape(len(x), *output_size, o)  # (N*OH*OW, O) -> (N, OH, OW, O)


def conv2d_backward_by_im2col(grad, x, weight, stride, padding):
    """(grad_x, grad_weight): dL/dW = columns^T dL/dY, and dL/dx = col2im(dL/dcolumns) with dL/dcolumns = dL/dY W^T."""
    kh, kw, c, o = weight.shape
    rows, matrix = grad.reshape(-1, o), weight.reshape(kh * kw * c, o)  # -> (N*OH*OW, O), (KH*KW*C, O)
    grad_weight = im2col(x, (kh, kw), stride, padding).T @ rows
    return col2im(rows @ matrix.T, x.shape, (kh, kw), stride, padding), grad_weight.reshape(weight.shape)


# ---- products of matrices --------------------------------------------------------------------------------------------


def matmul(a, b):
    """y[..., i, j] = sum over k of a[..., i, k] * b[..., k, j]. The axes before the last two broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = np.zeros((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    for k in range(a.shape[-1]):
        y += a[..., :, k, None] * b[..., None, k, :]
    return y


def linear_forward(x, weight, bias):
    """y[n, o] = bias[o] + sum over c of x[n, c] * weight[c, o].  `bias` is (O,) or None."""
    y = matmul(x, weight)
    return y if bias is None else y + bias


def linear_backward_x(grad, weight):
    """dL/dx[n, c] = sum over o of dL/dy[n, o] * weight[c, o]."""
    return matmul(grad, weight.T)


def linear_backward_weight(grad, x):
    """dL/dweight[c, o] = sum over n of x[n, c] * dL/dy[n, o]."""
    return matmul(x.T, grad)


# ---- pooling ---------------------------------------------------------------------------------------------------------


def max_pool2d_forward(x, kernel_size, stride, padding, ceil_mode):
    """(y, best_tap): the maximum of each window, and the tap u*KW + v that holds it; both are (N, OH, OW, C).

    Of equal values the first in row-major order wins. A NaN wins over every number. Padding never wins.
    """
    size = x.shape[1:3]
    output_size = _output_size(size, kernel_size, stride, padding, ceil_mode)
    y = np.zeros((len(x), *output_size, x.shape[3]), x.dtype)
    best_tap = np.full(y.shape, -1)  # none yet
    for i, j, u, v, h, w in _taps(size, output_size, kernel_size, stride, padding):
        pixel, best = x[:, h, w], y[:, i, j]  # (N, C)
        wins = (best_tap[:, i, j] == -1) | (pixel > best) | (np.isnan(pixel) & ~np.isnan(best))
        y[:, i, j] = np.where(wins, pixel, best)
        best_tap[:, i, j] = np.where(wins, u * kernel_size[1] + v, best_tap[:, i, j])
    return y, best_tap


def max_pool2d_backward(grad, best_tap, x_shape, kernel_size, stride, padding):
    """grad_x: the whole gradient of a window goes to its best tap, and none to the others."""
    grad_x = np.zeros(x_shape, grad.dtype)
    for i, j, u, v, h, w in _taps(x_shape[1:3], grad.shape[1:3], kernel_size, stride, padding):
        is_best = best_tap[:, i, j] == u * kernel_size[1] + v  # (N, C)
        grad_x[:, h, w] += np.where(is_best, grad[:, i, j], 0)
    return grad_x


def avg_pool2d_forward(x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """y[n, i, j, c] = the sum over window (i, j), where padding is 0, divided by its pixel count: see `_pixels`."""
    size = x.shape[1:3]
    output_size = _output_size(size, kernel_size, stride, padding, ceil_mode)
    y = np.zeros((len(x), *output_size, x.shape[3]), x.dtype)
    for i, j, _, _, h, w in _taps(size, output_size, kernel_size, stride, padding):
        y[:, i, j] += x[:, h, w] / _pixels((i, j), size, kernel_size, stride, padding, count_include_pad)
    return y


def avg_pool2d_backward(grad, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """grad_x: each pixel of a window gets an equal share of its gradient. `grad` has the output size of ceil_mode."""
    size = x_shape[1:3]
    grad_x = np.zeros(x_shape, grad.dtype)
    for i, j, _, _, h, w in _taps(size, grad.shape[1:3], kernel_size, stride, padding):
        grad_x[:, h, w] += grad[:, i, j] / _pixels((i, j), size, kernel_size, stride, padding, count_include_pad)
    return grad_x


def _pixels(window, size, kernel_size, stride, padding, count_include_pad):
    """The number of pixels that window (i, j) averages: those in the image and, with count_include_pad, in the padding.

    With ceil_mode the last window may reach beyond the padding. That part is never counted, as in PyTorch.
    """
    lengths = []
    for axis in (0, 1):
        start = window[axis] * stride[axis] - padding[axis]
        border = padding[axis] if count_include_pad else 0
        stop = min(start + kernel_size[axis], size[axis] + border)
        lengths.append(stop - max(start, -border))
    return math.prod(lengths)


def global_avg_pool_forward(x):
    """y[n, c] = the mean of channel c of image n:  (N, H, W, C) -> (N, C)."""
    _, height, width, _ = x.shape
    y = np.zeros((x.shape[0], x.shape[3]))  # float64
    for h, w in np.ndindex(height, width):
        y += x[:, h, w]
    return (y / (height * width)).astype(x.dtype)


def global_avg_pool_backward(grad, x_shape):
    """dL/dx[n, h, w, c] = dL/dy[n, c] / (H*W):  (N, C) -> (N, H, W, C)."""
    _, height, width, _ = x_shape
    grad_x = np.empty(x_shape, grad.dtype)
    for h, w in np.ndindex(height, width):
        grad_x[:, h, w] = grad / (height * width)
    return grad_x


# ---- bilinear interpolation ------------------------------------------------------------------------------------------


def upsample_bilinear2d_forward(x, output_size, step):
    """y[n, i, j] = the sum over the four nearest pixels (h, w) of weight * x[n, h, w]:  see `_nearest_pixels`."""
    y = np.zeros((len(x), *output_size, x.shape[3]), x.dtype)
    for i, j, h, w, weight in _nearest_pixels(x.shape[1:3], output_size, step):
        y[:, i, j] += weight * x[:, h, w]
    return y


def upsample_bilinear2d_backward(grad, x_shape, step):
    """grad_x: each of the four nearest pixels gets the share of the gradient that it had of y."""
    grad_x = np.zeros(x_shape, grad.dtype)
    for i, j, h, w, weight in _nearest_pixels(x_shape[1:3], grad.shape[1:3], step):
        grad_x[:, h, w] += weight * grad[:, i, j]
    return grad_x


def _nearest_pixels(size, output_size, step):
    """Yield (i, j, h, w, weight): the two nearest rows times the two nearest columns of each output pixel (i, j)."""
    for i, j in np.ndindex(*output_size):
        for h, weight_of_row in _two_nearest(i, size[0], step[0]):
            for w, weight_of_column in _two_nearest(j, size[1], step[1]):
                yield i, j, h, w, weight_of_row * weight_of_column


def _two_nearest(i, size, step):
    """(h, 1 - f) and (h + 1, f): the nearest pixels along one axis, and their weights.

    h + f is the position (i + 1/2) * step - 1/2 of output pixel i, with `step` in input pixels per output pixel; it is
    at least 0 and at most size - 1. At the last pixel f is 0, so any pixel will do in the place of h + 1.
    """
    position = min(max((i + 0.5) * step - 0.5, 0), size - 1)
    h = int(position)
    f = position - h
    return (h, 1 - f), (min(h + 1, size - 1), f)


# ---- batch normalisation: Ioffe and Szegedy 2015, arXiv:1502.03167 ---------------------------------------------------
# Each channel is normalised on its own, over its M values in the batch: M = N*H*W for images, M = N for vectors.


def batch_statistics(x):
    """(mean, variance), each (C,), over all axes but the last. The variance is the biased one, divided by M."""
    mean, variance = np.empty(x.shape[-1], x.dtype), np.empty(x.shape[-1], x.dtype)
    for c in range(x.shape[-1]):
        mean[c] = x[..., c].mean(dtype=np.float64)
        # Not E[x^2] - mean^2: if the mean is large, almost all digits cancel.
        variance[c] = ((x[..., c] - mean[c]) ** 2).mean(dtype=np.float64)
    return mean, variance


def batch_norm_apply(x, mean, variance, weight, bias, eps):
    """y = weight * x_hat + bias,  x_hat = (x - mean) / sqrt(variance + eps)."""
    return weight * _normalised(x, mean, variance, eps) + bias


def batch_norm_backward(grad, x, mean, variance, weight, eps, through_statistics):
    """(grad_x, grad_weight, grad_bias).

    With g = `grad` and M rows:
        grad_bias = sum of g,  grad_weight = sum of g * x_hat,
        grad_x = weight / sqrt(variance + eps) * (g - grad_bias / M - x_hat * grad_weight / M).
    The last two terms are the gradient through the mean and through the variance. They are dropped if not
    `through_statistics`: in eval mode both are constants.
    """
    x_hat = _normalised(x, mean, variance, eps)
    grad_bias, grad_weight = bias_backward(grad), bias_backward(grad * x_hat)
    rows = math.prod(x.shape[:-1])  # M
    grad_x_hat = grad - grad_bias / rows - x_hat * (grad_weight / rows) if through_statistics else grad
    grad_x = weight / np.sqrt(variance + eps) * grad_x_hat
    return grad_x, grad_weight, grad_bias


def _normalised(x, mean, variance, eps):
    """x_hat: each value's distance from the mean of its channel, in standard deviations."""
    return (x - mean) / np.sqrt(variance + eps)


# ---- activations -----------------------------------------------------------------------------------------------------


def add(a, b):
    """y = a + b, for arrays of the same shape."""
    return np.asarray(a + b)  # for 0-d arrays NumPy returns a scalar


def relu_forward(x):
    """y = max(x, 0)."""
    return np.asarray(np.maximum(x, 0))


def relu_backward(grad, y):
    """dL/dx = dL/dy where y > 0, and 0 where y <= 0. Where y is NaN the gradient passes, as in PyTorch."""
    return np.where(y <= 0, 0, grad)


def gelu_forward(x, approximate, needs_slope):
    """(y, slope) with y = x P(x) and slope = dy/dx = P(x) + x p(x); None in place of a slope that is not needed."""
    y, slope = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    for i in np.ndindex(x.shape):
        near = min(max(x[i], -40), 40)  # where P(x) is 0 or 1 already: infinity * 0 would be NaN
        probability, density = _normal_by_tanh(near) if approximate == "tanh" else _normal(near)
        y[i] = max(x[i], near) * probability
        slope[i] = probability + near * density
    return y, slope if needs_slope else None


def _normal(x):
    """P(x) = (1 + erf(x / sqrt(2))) / 2, which is erfc(-x / sqrt(2)) / 2, and p(x) = exp(-x^2 / 2) / sqrt(2 pi)."""
    return math.erfc(-x / math.sqrt(2)) / 2, math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _normal_by_tanh(x):
    """P(x) = (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), and p(x) = (1 - tanh(u)^2) / 2 du/dx."""
    scale = math.sqrt(2 / math.pi)
    t = math.tanh(scale * (x + 0.044715 * x**3))
    return (1 + t) / 2, (1 - t * t) / 2 * scale * (1 + 3 * 0.044715 * x**2)


def gelu_backward(grad, slope):
    """dL/dx = dL/dy dy/dx, where `slope` is dy/dx."""
    return np.asarray(grad * slope)


def softmax_forward(x):
    """y[n, k] = exp(x[n, k]) / sum over l of exp(x[n, l]).  Subtracting the row's maximum first prevents overflow."""
    y = np.empty(x.shape, x.dtype)
    for n, row in enumerate(x):
        exponentials = np.exp(row - row.max())
        y[n] = exponentials / exponentials.sum()
    return y


def softmax_backward(grad, y):
    """dL/dx[n] = y[n] * (dL/dy[n] - <dL/dy[n], y[n]>),  since dy[k]/dx[l] = y[k] * ([k = l] - y[l])."""
    grad_x = np.empty(y.shape, grad.dtype)
    for n, row in enumerate(y):
        grad_x[n] = row * (grad[n] - grad[n] @ row)
    return grad_x


def log_softmax_forward(x):
    """y[n, k] = x[n, k] - log(sum over l of exp(x[n, l])).  Finite where softmax itself is rounded to 0."""
    y = np.empty(x.shape, x.dtype)
    for n, row in enumerate(x):
        shifted = row - row.max()
        y[n] = shifted - np.log(np.exp(shifted).sum())
    return y


def log_softmax_backward(grad, y):
    """dL/dx[n] = dL/dy[n] - softmax(x[n]) * sum of dL/dy[n],  since dy[k]/dx[l] = [k = l] - softmax(x)[l]."""
    grad_x = np.empty(y.shape, grad.dtype)
    for n, row in enumerate(y):
        grad_x[n] = grad[n] - np.exp(row) * grad[n].sum()
    return grad_x


# ---- losses: each one is a 0-d array ---------------------------------------------------------------------------------


def cross_entropy_forward(logits, labels, label_smoothing):
    """(loss, probabilities):  loss = - mean over n of sum over k of target[n, k] * log(probabilities[n, k]).

    probabilities = softmax(logits), (N, K); for the targets see `_smoothed_targets`.
    """
    targets, log_probabilities = _smoothed_targets(logits, labels, label_smoothing), log_softmax_forward(logits)
    likelihoods = np.zeros_like(targets)  # 0 where the target is 0: 0 * log 0 = 0
    np.multiply(targets, log_probabilities, out=likelihoods, where=targets > 0)
    return np.asarray(-likelihoods.sum() / len(logits)), softmax_forward(logits)


def cross_entropy_backward(grad, probabilities, labels, label_smoothing):
    """dL/dlogits = dL/dloss * (probabilities - targets) / N."""
    return grad * (probabilities - _smoothed_targets(probabilities, labels, label_smoothing)) / len(probabilities)


def _smoothed_targets(like, labels, label_smoothing):
    """(N, K): s/K for each class, and 1 - s more for the label (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
    targets = np.full(like.shape, label_smoothing / like.shape[1], like.dtype)
    for n, label in enumerate(labels):
        targets[n, label] += 1 - label_smoothing
    return targets


def mse_loss_forward(x, target):
    """loss = the mean of (x - target)^2 over all elements."""
    return np.asarray(((x - target) ** 2).mean())


def mse_loss_backward(grad, x, target):
    """dL/dx = dL/dloss * 2 * (x - target) / (number of elements)."""
    return grad * 2 * (x - target) / x.size


# ---- dropout: Srivastava et al. 2014, with random bits computed from a counter ---------------------------------------


def dropout_forward(x, probability, key, first=0):
    """y = x * keep / (1 - probability),  so that E[y] = x.  keep = (uniform >= probability), drawn for each element.

    `key` is uint32 (seed low, seed high, step, layer). Element k of x, in C order, uses number n = `first` + k
    of the random stream: word n % 4 of Philox block n // 4. Its uniform number is the upper 24 bits of that word
    divided by 2^24, which float32 represents exactly.
    """
    return x * _keep(x.shape, probability, key, first) / (1 - probability)


def dropout_backward(grad, probability, key, first=0):
    """dL/dx = dL/dy * keep / (1 - probability). The key yields the same mask again, so the mask need not be stored."""
    return grad * _keep(grad.shape, probability, key, first) / (1 - probability)


def _keep(shape, probability, key, first):
    """The mask: True for each element that is kept."""
    seed_low, seed_high, step, layer = (int(word) for word in key)
    keep = np.empty(math.prod(shape), bool)
    for k in range(keep.size):
        block, word = divmod(first + k, 4)
        words = _philox4x32((block % 2**32, block >> 32, step, layer), (seed_low, seed_high))
        uniform = (words[word] >> 8) * 2**-24  # in [0, 1)
        keep[k] = uniform >= probability
    return keep.reshape(shape)


def _philox4x32(counter, key, rounds=10):
    """Philox4x32-10: four random 32-bit words, computed from a counter of four words and a key of two.

    Each round forms two 64-bit products and swaps their halves; the key changes from round to round. Salmon, Moraes,
    Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". The constants are from their library Random123.
    """
    c0, c1, c2, c3 = counter
    for number in range(rounds):
        key0 = (key[0] + number * 0x9E3779B9) % 2**32
        key1 = (key[1] + number * 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
    return c0, c1, c2, c3


# ---- channels: local response normalisation, padding -----------------------------------------------------------------


def local_response_norm_forward(x, size, alpha, beta, k):
    """(y, scale):  scale[..., c] = k + alpha * sum of x[..., d]^2 over the channels d near c,  y = x * scale^-beta.

    Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks", section 3.3.
    alpha multiplies the sum, as in the paper. PyTorch multiplies the mean, so its alpha is `size` times this one.
    """
    scale = np.full(x.shape, k, x.dtype)
    for c in range(x.shape[-1]):
        scale[..., c] += alpha * (x[..., _near(c, size)] ** 2).sum(axis=-1)
    return x * scale**-beta, scale


def local_response_norm_backward(grad, x, y, scale, size, alpha, beta):
    """dL/dx[d] = dL/dy[d] * scale[d]^-beta - 2 * alpha * beta * x[d] * sum over c of dL/dy[c] * y[c] / scale[c].

    The sum is over the channels c whose neighbourhood contains d.
    """
    grad_x = grad * scale**-beta
    for c in range(x.shape[-1]):
        near = _near(c, size)
        through_scale = grad[..., c] * y[..., c] / scale[..., c]
        grad_x[..., near] -= 2 * alpha * beta * x[..., near] * through_scale[..., None]
    return grad_x


def _near(channel, size):
    """The slice of the `size` channels around `channel`, cut at both ends. An even size has one more channel below."""
    first = channel - size // 2
    return slice(max(first, 0), first + size)


def pad_channels_forward(x, before, after):
    """y: zeros added before and after the channels: (..., C) -> (..., before + C + after)."""
    y = np.zeros((*x.shape[:-1], before + x.shape[-1] + after), x.dtype)
    for c in range(x.shape[-1]):
        y[..., before + c] = x[..., c]
    return y


def pad_channels_backward(grad, before, after):
    """grad_x: the gradient without the added channels: (..., before + C + after) -> (..., C)."""
    grad_x = np.empty((*grad.shape[:-1], grad.shape[-1] - before - after), grad.dtype)
    for c in range(grad_x.shape[-1]):
        grad_x[..., c] = grad[..., before + c]
    return grad_x


def scatter_add(grad, positions, shape):
    """y of the given shape. In the flattened y, y[p] is the float64 sum of the elements of grad with position p."""
    y = np.zeros(math.prod(shape))
    for element, position in zip(grad.ravel(), positions.ravel(), strict=True):
        y[position] += element
    return y.reshape(shape).astype(grad.dtype)


# ---- augmentation: random changes to an image before the network sees it ---------------------------------------------


def crop_and_flip(images, chosen, tops, lefts, flips, mean, std, padding, reflect):
    """y[n, i, j] = (x[h, w] - mean[h, w]) / std[h, w] with x = images[chosen[n]], and 0 where (h, w) is outside x:

        h = i + tops[n] - padding,    w = j + lefts[n] - padding,    with W - 1 - j instead of j if flips[n].

    Tops and lefts are in [0, 2*padding]; the value `padding` means no shift. y has the dtype of mean and std. With
    `reflect`, what is outside x is its mirror image: h is -1 for row 1, and H for row H - 2.
    """
    _, height, width, _ = images.shape
    y = np.zeros((len(chosen), *images.shape[1:]), mean.dtype)
    for n, i, j in np.ndindex(y.shape[:3]):
        h = i + tops[n] - padding
        w = (width - 1 - j if flips[n] else j) + lefts[n] - padding
        if reflect:
            h, w = min(abs(h), 2 * (height - 1) - abs(h)), min(abs(w), 2 * (width - 1) - abs(w))
        if 0 <= h < height and 0 <= w < width:
            y[n, i, j] = (images[chosen[n], h, w] - mean[h, w]) / std[h, w]
    return y


# ---- updates: the only kernels that modify their arguments -----------------------------------------------------------


def update_running_statistics(running_mean, running_variance, mean, variance, momentum, count):
    """r = (1 - momentum) * r + momentum * new, in place, for the running mean and the running variance.

    `variance` is the biased one of a batch with `count` values per channel. The running variance averages the unbiased
    one, variance * count / (count - 1). For count 1, where that is undefined, it uses the biased one.
    """
    sample_variance = variance * count / max(count - 1, 1)
    running_mean[...] = (1 - momentum) * running_mean + momentum * mean
    running_variance[...] = (1 - momentum) * running_variance + momentum * sample_variance


def sgd_update(parameters, grads, velocities, lr, momentum, weight_decay, nesterov):
    """v = momentum * v + g,  p = p - lr * v,  with g = grad + weight_decay * p,  for each parameter p, in place.

    With nesterov, p = p - lr * (g + momentum * v) (Sutskever et al. 2013, in PyTorch's form). The velocities v start
    at zero. If momentum is 0, `velocities` may be an empty list.
    """
    for number, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        step = grad + weight_decay * parameter
        if momentum != 0:
            velocity = velocities[number]
            velocity[...] = momentum * velocity + step
            step = step + momentum * velocity if nesterov else velocity
        parameter -= lr * step


def adam_update(parameters, grads, means, squares, steps, lr, beta1, beta2, eps, weight_decay, decoupled):
    """One step of Adam (Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1), in place.

    `steps` holds the number of updates of each parameter, 0 before the first one:

        step = step + 1
        mean = beta1 * mean + (1 - beta1) * g,    square = beta2 * square + (1 - beta2) * g^2
        p = p - lr * mean_hat / (sqrt(square_hat) + eps),    mean_hat = mean / (1 - beta1^step), square_hat likewise

    Here g = grad + weight_decay * p. If `decoupled`, g = grad and p is first multiplied by 1 - lr * weight_decay
    (AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2).
    """
    for parameter, grad, mean, square, step in zip(parameters, grads, means, squares, steps, strict=True):
        step[...] += 1
        g = grad if decoupled else grad + weight_decay * parameter
        if decoupled:
            parameter *= 1 - lr * weight_decay
        mean[...] = beta1 * mean + (1 - beta1) * g
        square[...] = beta2 * square + (1 - beta2) * g**2
        mean_hat = mean / (1 - beta1 ** int(step))
        square_hat = square / (1 - beta2 ** int(step))
        parameter -= lr * mean_hat / (np.sqrt(square_hat) + eps)
