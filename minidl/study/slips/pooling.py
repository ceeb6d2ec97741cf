"""Mistakes in pooling."""

import numpy as np

from minidl.study.slips.convolution import WRAPPED, geometry, windows_too_near
from minidl.study.slips.tools import called_with, changed, pad_image, scaled, taps


def _visits(call, output_size, least=0):
    """(i, j, u, v, h, w) of the windows of a pooling, with h and w of at least `least`."""
    size = (call.x.shape if "x" in call.arguments else call.x_shape)[1:3]
    return taps(size, output_size, call.kernel_size, call.stride, call.padding, least)


def _taps_of_a_window(call):
    return call.kernel_size[0] * call.kernel_size[1]


POOL_GEOMETRY = {"stride": lambda call: call.kernel_size}

# -- maximum -----------------------------------------------------------------------------------------------------------


def _last_of_equals(call):
    """A comparison by >= where > would keep the first."""
    y, best_tap = call()
    last = best_tap.copy()
    for i, j, u, v, h, w in _visits(call, y.shape[1:3]):
        last[:, i, j] = np.where(call.x[:, h, w] == y[:, i, j], u * call.kernel_size[1] + v, last[:, i, j])
    return y, last


def _padding_of_zeros(call):
    """y where the padding takes part as 0."""
    return call(x=pad_image(call.x, call.padding), padding=(0, 0))


def _by_columns(best_tap, call):
    u, v = np.divmod(best_tap, call.kernel_size[1])
    return v * call.kernel_size[0] + u


def _pixel_of_the_image(best_tap, call):
    u, v = np.divmod(best_tap, call.kernel_size[1])
    oh, ow = best_tap.shape[1:3]
    h = np.arange(oh)[:, None, None] * call.stride[0] - call.padding[0] + u
    w = np.arange(ow)[:, None] * call.stride[1] - call.padding[1] + v
    return h * call.x.shape[2] + w


def _tap_inside(best_tap, call):
    """The position in the part of the window that is inside the image, which is what argmax of that part returns."""
    u, v = np.divmod(best_tap, call.kernel_size[1])
    top = np.arange(best_tap.shape[1]) * call.stride[0] - call.padding[0]
    left = np.arange(best_tap.shape[2]) * call.stride[1] - call.padding[1]
    width = np.minimum(left + call.kernel_size[1], call.x.shape[2]) - np.maximum(left, 0)
    return (u + np.minimum(top, 0)[:, None, None]) * width[:, None] + v + np.minimum(left, 0)[:, None]


def _from_zero(call):
    """The maximum starts from 0, with best_tap 0: neither changes where no value is positive."""
    y, best_tap = call()
    return np.maximum(y, 0), np.where(y > 0, best_tap, 0)


def _minimum(call):
    y, best_tap = call(x=-call.x)
    return -y, best_tap


def _mean(y, call):
    total, count = np.zeros_like(y), np.zeros(y.shape[1:])
    for i, j, _, _, h, w in _visits(call, y.shape[1:3]):
        total[:, i, j] += call.x[:, h, w]
        count[i, j] += 1
    return total / count


def _wrapped(call):
    """Negative positions count from the end, as in Python."""
    y, best_tap = (np.zeros_like(result) for result in call())
    best_tap -= 1
    for i, j, u, v, h, w in _visits(call, y.shape[1:3], least=-max(call.padding)):
        wins = (best_tap[:, i, j] == -1) | (call.x[:, h, w] > y[:, i, j])
        y[:, i, j] = np.where(wins, call.x[:, h, w], y[:, i, j])
        best_tap[:, i, j] = np.where(wins, u * call.kernel_size[1] + v, best_tap[:, i, j])
    return y, best_tap


def _of_any_channel(call):
    y, best_tap = call()
    return np.broadcast_to(y.max(axis=-1, keepdims=True), y.shape), best_tap


MAX_FORWARD = {
    "best_tap of the last of equal values: >= in the place of >": _last_of_equals,
    "y with zeros as padding, which win over negative numbers: pad with -infinity": _padding_of_zeros,
    "y never below 0: the maximum starts from 0": changed(lambda y, call: np.maximum(y, 0), 0),
    "y never below 0, with best_tap 0 there: the maximum starts from 0": _from_zero,
    f"y {WRAPPED}": _wrapped,
    "best_tap counted by columns, v*KH + u instead of u*KW + v": changed(_by_columns, 1),
    "best_tap as the position in the image, h*W + w instead of u*KW + v": changed(_pixel_of_the_image, 1),
    "best_tap counted in the part of the window that is inside the image": changed(_tap_inside, 1),
    "best_tap counted from 1": changed(lambda best_tap, call: best_tap + 1, 1),
    "the minimum instead of the maximum": _minimum,
    "y as the mean of the window instead of its maximum": changed(_mean, 0),
    "y of the largest absolute value": changed(lambda y, call: call(x=abs(call.x))[0], 0),
    "y as the maximum over the channels too": _of_any_channel,
    "y with the stride of the kernel's size": called_with(**POOL_GEOMETRY),
    "y with ceil_mode ignored": called_with(ceil_mode=lambda call: False),
    "y in ceil_mode always": called_with(ceil_mode=lambda call: True),
    "y with the kernel's height and width exchanged": called_with(kernel_size=lambda call: call.kernel_size[::-1]),
    **geometry("y"),
    **windows_too_near("y"),
}


def _to_tap(tap):
    return called_with(best_tap=lambda call: np.full_like(call.best_tap, tap(call)))


def _to_all(call):
    return sum(call(best_tap=np.full_like(call.best_tap, tap)) for tap in range(_taps_of_a_window(call)))


def _last_window(keeps: bool):
    """The last window that wins a pixel, or, if 0 is assigned too, the last one that sees it."""

    def wrong(call):
        grad_x = np.zeros(call.x_shape)
        for i, j, u, v, h, w in _visits(call, call.grad.shape[1:3]):
            is_best = call.best_tap[:, i, j] == u * call.kernel_size[1] + v
            grad_x[:, h, w] = np.where(is_best, call.grad[:, i, j], keeps * grad_x[:, h, w])
        return grad_x

    return wrong


def _taps_by_columns(call):
    v, u = np.divmod(call.best_tap, call.kernel_size[0])
    return u * call.kernel_size[1] + v


MAX_BACKWARD = {
    "dL/dx to the last pixel of the window": _to_tap(lambda call: _taps_of_a_window(call) - 1),
    "dL/dx to the first pixel of the window": _to_tap(lambda call: 0),
    "dL/dx to all pixels of the window": _to_all,
    "dL/dx shared by all pixels of the window, as in average pooling": lambda c: _to_all(c) / _taps_of_a_window(c),
    "dL/dx of the last window that a pixel wins: it is assigned where it should be added": _last_window(True),
    "dL/dx of the last window that sees a pixel: it is assigned where it should be added": _last_window(False),
    "dL/dx with the taps counted by columns, v*KH + u instead of u*KW + v": called_with(best_tap=_taps_by_columns),
    "dL/dx with the taps counted from 1": called_with(best_tap=lambda call: call.best_tap - 1),
    "dL/dx of 1 at each maximum: not multiplied by dL/dy": called_with(grad=lambda call: np.ones_like(call.grad)),
    "dL/dx with the stride of the kernel's size": called_with(**POOL_GEOMETRY),
    **geometry("dL/dx"),
}

# -- average -----------------------------------------------------------------------------------------------------------


def _summed(call):
    """Each window's sum, or, of a gradient, each window's gradient to all of its pixels."""
    if "x" in call.arguments:
        y = np.zeros_like(call())
        for i, j, _, _, h, w in _visits(call, y.shape[1:3]):
            y[:, i, j] += call.x[:, h, w]
        return y
    grad_x = np.zeros(call.x_shape)
    for i, j, _, _, h, w in _visits(call, call.grad.shape[1:3]):
        grad_x[:, h, w] += call.grad[:, i, j]
    return grad_x


def _shares(call):
    """What one window gives to each pixel, (windows, pixel): by a gradient of that window alone."""
    grad_x = np.zeros(call.x_shape)
    for i, j in np.ndindex(*call.grad.shape[1:3]):
        alone = np.zeros_like(call.grad)
        alone[:, i, j] = call.grad[:, i, j]
        share = call(grad=alone)
        grad_x = np.where(share != 0, share, grad_x)
    return grad_x


def average(result: str) -> dict:
    """Slips of the divisor, and of the windows: forward and backward have the same ones."""
    return {
        f"{result} as a sum: not divided": _summed,
        f"{result} divided by KH*KW, however many pixels count": lambda c: _summed(c) / _taps_of_a_window(c),
        f"{result} divided by KH alone": lambda call: _summed(call) / call.kernel_size[0],
        f"{result} divided by KW alone": lambda call: _summed(call) / call.kernel_size[1],
        f"{result} with the padding counted, though count_include_pad is False": called_with(
            count_include_pad=lambda call: True
        ),
        f"{result} with the padding not counted, though count_include_pad is True": called_with(
            count_include_pad=lambda call: False
        ),
        f"{result} with the kernel's height and width exchanged": called_with(
            kernel_size=lambda call: call.kernel_size[::-1]
        ),
        f"{result} with the stride of the kernel's size": called_with(**POOL_GEOMETRY),
        **geometry(result),
    }


AVERAGE_FORWARD = {
    **average("y"),
    **windows_too_near("y"),
    "y with ceil_mode ignored": called_with(ceil_mode=lambda call: False),
    "y as the maximum of the window": lambda call: _maximum(call),
}
AVERAGE_BACKWARD = {
    **average("dL/dx"),
    "dL/dx of the last window alone: it is assigned where it should be added": _shares,
    "dL/dx not multiplied by dL/dy": called_with(grad=lambda call: np.ones_like(call.grad)),
}


def _maximum(call):
    y = np.full(call().shape, -np.inf)
    for i, j, _, _, h, w in _visits(call, y.shape[1:3]):
        y[:, i, j] = np.maximum(y[:, i, j], call.x[:, h, w])
    return y


# -- global ------------------------------------------------------------------------------------------------------------


def _pixels(call):
    _, height, width, _ = call.x.shape if "x" in call.arguments else call.x_shape
    return height * width


GLOBAL_FORWARD = {
    "y as a sum: not divided": scaled(_pixels),
    "y divided by H alone": scaled(lambda call: call.x.shape[2]),
    "y divided by W alone": scaled(lambda call: call.x.shape[1]),
    "y as the maximum instead of the mean": lambda call: call.x.max(axis=(1, 2)),
    "y as the first pixel": lambda call: call.x[:, 0, 0],
    "y of a wrong shape: (N, 1, 1, C)": changed(lambda right, call: right[:, None, None, :]),
    "y averaged over the axes 2 and 3, as if images were (N, C, H, W)": lambda call: call.x.mean(axis=(2, 3)),
    "y averaged over the batch too": lambda call: call.x.mean(axis=(0, 1, 2)),
    "y averaged over the height alone": lambda call: call.x.mean(axis=1),
}
GLOBAL_BACKWARD = {
    "dL/dx not divided": scaled(_pixels),
    "dL/dx divided by H alone": scaled(lambda call: call.x_shape[2]),
    "dL/dx divided by W alone": scaled(lambda call: call.x_shape[1]),
    "dL/dx divided by all elements of an image, the channels too": scaled(lambda call: 1 / call.x_shape[3]),
    "dL/dx divided by N too": scaled(lambda call: 1 / call.x_shape[0]),
    "dL/dx at the first pixel alone": changed(
        lambda right, call: np.pad(right[:, :1, :1], ((0, 0), (0, right.shape[1] - 1), (0, right.shape[2] - 1), (0, 0)))
    ),
    "dL/dx of a wrong shape: (N, 1, 1, C), not spread": changed(lambda right, call: right[:, :1, :1]),
    "dL/dx of dL/dy: not divided and not spread": lambda call: call.grad,
}

MISTAKES = {
    "max_pool2d_forward": MAX_FORWARD,
    "max_pool2d_backward": MAX_BACKWARD,
    "avg_pool2d_forward": AVERAGE_FORWARD,
    "avg_pool2d_backward": AVERAGE_BACKWARD,
    "global_avg_pool_forward": GLOBAL_FORWARD,
    "global_avg_pool_backward": GLOBAL_BACKWARD,
}
