"""Mistakes in convolution, by loops and by im2col, and in the gradient of a bias."""

import numpy as np

from minidl.study.slips.tools import called_with, changed, cut, only, pad_image, scaled, taps, without, wrapped_image

# -- the weight, the stride, the padding: slips that forward and backward share ----------------------------------------


def turned(call):
    """The kernel rotated by 180 degrees."""
    return call.weight[::-1, ::-1]


def upside_down(call):
    """The kernel mirrored along its height alone."""
    return call.weight[::-1]


def left_to_right(call):
    """The kernel mirrored along its width alone."""
    return call.weight[:, ::-1]


def without_a_tap(call):
    """The kernel without its upper left tap."""
    return without((0, 0), call.weight)


def transposed_taps(call):
    """The kernel with height and width exchanged."""
    return call.weight.swapaxes(0, 1)


GEOMETRY = {
    "with a stride of 1, whatever the stride": {"stride": lambda call: (1, 1)},
    "with the two strides exchanged": {"stride": lambda call: call.stride[::-1]},
    "with the padding ignored": {"padding": lambda call: (0, 0)},
    "with the two paddings exchanged": {"padding": lambda call: call.padding[::-1]},
}


WRAPPED = "with the padding read from the other end: a negative index counts from there"
STRICT = "without the first row and column of x: 0 < h in the place of 0 <= h"


def wrapped(call):
    """x padded by its other end."""
    return wrapped_image(call.x, call.padding)


def without_the_first(call):
    """x without its first row and column."""
    x = call.x.copy()
    x[:, 0], x[:, :, 0] = 0, 0
    return x


def no_padding(call):
    """The padding for an image that is padded already."""
    return 0, 0


def geometry(result: str, part: int | None = None) -> dict:
    """The slips of stride and padding, for one of the results."""
    return {f"{result} {name}": called_with(part, **changes) for name, changes in GEOMETRY.items()}


def windows_too_near(result: str) -> dict:
    """Forward with the right number of windows, but each one pixel from the one before, whatever the stride."""
    return {
        f"{result} of windows one pixel apart: i and j not times the stride": cut(called_with(stride=lambda c: (1, 1)))
    }


# -- forward -----------------------------------------------------------------------------------------------------------


def _taps_inside(call):
    """How many taps of each window are inside the image: (N, OH, OW, 1)."""
    kh, kw = call.weight.shape[:2]
    return call(x=np.ones_like(call.x[..., :1]), weight=np.ones((kh, kw, 1, 1)), bias=None)


def _bias_at_each_tap(call):
    return call(bias=None) + (0 if call.bias is None else call.bias * _taps_inside(call))


def _last_tap_only(channels=slice(None)):
    """What `y[:, i, j] = ...` leaves of a sum that needs `+=`."""

    def wrong(call):
        y, weight = np.zeros_like(call(bias=None)), call.weight[:, :, channels]
        for i, j, u, v, h, w in taps(call.x.shape[1:3], y.shape[1:3], weight.shape[:2], call.stride, call.padding):
            y[:, i, j] = call.x[:, h, w, channels] @ weight[u, v]
        return y if call.bias is None else y + call.bias

    return wrong


def _windows_over_the_border_skipped(call):
    kh, kw = call.weight.shape[:2]
    y = np.where(_taps_inside(call) == kh * kw, call(bias=None), 0)
    return y if call.bias is None else y + call.bias


def _padding_added(call):
    """h = i SH + u + PH, as if x began 2 PH later."""
    (ph, pw), moved = call.padding, np.zeros_like(call.x)
    rest = call.x[:, 2 * ph :, 2 * pw :]
    moved[:, : rest.shape[1], : rest.shape[2]] = rest
    return call(x=moved)


FORWARD = {
    "y with the kernel turned by 180 degrees, as a convolution is defined in mathematics": called_with(weight=turned),
    "y with the kernel upside down": called_with(weight=upside_down),
    "y with the kernel mirrored from left to right": called_with(weight=left_to_right),
    "y with the kernel's height and width exchanged": called_with(weight=transposed_taps),
    "y with the weight's channels in and out exchanged": called_with(weight=lambda call: call.weight.swapaxes(2, 3)),
    "y without the bias": called_with(bias=lambda call: None),
    "y with the bias added at each tap instead of once": _bias_at_each_tap,
    "y without the upper left tap": called_with(weight=without_a_tap),
    "y of the last tap alone: it is assigned where it should be added": _last_tap_only(),
    "y of the last tap and channel alone: it is assigned where it should be added": _last_tap_only([-1]),
    "y of the first channel alone: not summed over the channels": called_with(x=lambda c: only((..., 0), c.x)),
    "y with the windows that reach over the border left out": _windows_over_the_border_skipped,
    "y with the padding added to the position instead of subtracted": _padding_added,
    "y with a padding that repeats the edge instead of zeros": called_with(
        x=lambda call: pad_image(call.x, call.padding, mode="edge"), padding=lambda call: (0, 0)
    ),
    f"y {WRAPPED}": called_with(x=wrapped, padding=no_padding),
    f"y {STRICT}": called_with(x=without_the_first),
    "y with a padding of ones": called_with(
        x=lambda call: pad_image(call.x, call.padding, constant_values=1), padding=lambda call: (0, 0)
    ),
    **geometry("y"),
    **windows_too_near("y"),
}

# -- backward ----------------------------------------------------------------------------------------------------------


def _assigned(part: int):
    """The last window of each pixel, or of each tap, instead of the sum."""

    def wrong(call):
        grad_x, grad_weight = np.zeros_like(call.x), np.zeros_like(call.weight)
        geometry_of_call = call.grad.shape[1:3], call.weight.shape[:2], call.stride, call.padding
        for i, j, u, v, h, w in taps(call.x.shape[1:3], *geometry_of_call):
            grad_x[:, h, w] = call.grad[:, i, j] @ call.weight[u, v].T
            grad_weight[u, v] = call.x[:, h, w].T @ call.grad[:, i, j]
        return tuple((grad_x, grad_weight)[i] if i == part and r is not None else r for i, r in enumerate(call()))

    return wrong


def _added_at_the_other_end(call):
    """What belongs to the padding is added to the pixel that a negative index names."""
    (ph, pw), (height, width) = call.padding, call.x.shape[1:3]
    padded, right = call(x=pad_image(call.x, call.padding), padding=(0, 0))[0], call()
    if padded is None:
        return right
    padded[:, height : height + ph] += padded[:, :ph]
    padded[:, :, width : width + pw] += padded[:, :, :pw]
    return padded[:, ph : ph + height, pw : pw + width], right[1]


def _border_left_on(call):
    """dL/d(padded x): the padding is not cut off again."""
    return call(x=pad_image(call.x, call.padding), padding=(0, 0))[0], call()[1]


BACKWARD = {
    "dL/dx with the kernel not turned by 180 degrees": called_with(0, weight=turned),
    "dL/dx with the kernel turned upside down only": called_with(0, weight=upside_down),
    "dL/dx with the kernel mirrored from left to right only": called_with(0, weight=left_to_right),
    "dL/dx with the kernel's height and width exchanged": called_with(0, weight=transposed_taps),
    "dL/dx with the weight's channels in and out exchanged": called_with(0, weight=lambda c: c.weight.swapaxes(2, 3)),
    "dL/dx without the upper left tap": called_with(0, weight=without_a_tap),
    "dL/dx of the last window alone: it is assigned where it should be added": _assigned(0),
    "dL/dx of the padded image: the border of the padding is not cut off": _border_left_on,
    "dL/dx of the first channel of y alone: not summed over them": called_with(
        0, grad=lambda call: only((..., 0), call.grad)
    ),
    f"dL/dx {WRAPPED}": _added_at_the_other_end,
    f"dL/dx {STRICT}": changed(lambda right, call: np.where(without_the_first(call) == call.x, right, 0), 0),
    f"dL/dweight {WRAPPED}": called_with(1, x=wrapped, padding=no_padding),
    f"dL/dweight {STRICT}": called_with(1, x=without_the_first),
    "dL/dweight without the upper left tap": changed(lambda right, call: without((0, 0), right), 1),
    "dL/dweight of the first image alone": called_with(1, grad=lambda call: only(0, call.grad)),
    "dL/dweight of the last image alone": called_with(1, grad=lambda call: only(-1, call.grad)),
    "dL/dweight of the last window alone: it is assigned where it should be added": _assigned(1),
    "dL/dweight turned by 180 degrees": changed(lambda right, call: right[::-1, ::-1], 1),
    "dL/dweight upside down": changed(lambda right, call: right[::-1], 1),
    "dL/dweight mirrored from left to right": changed(lambda right, call: right[:, ::-1], 1),
    "dL/dweight with the channels in and out exchanged": changed(lambda right, call: right.swapaxes(2, 3), 1),
    "dL/dweight divided by N: the mean over the images for the sum": scaled(lambda call: 1 / len(call.x), 1),
    "dL/dweight 0.1 % too small": scaled(0.999, 1),
}

# -- the bias ----------------------------------------------------------------------------------------------------------


BIAS = {
    "dL/dbias of the first image alone: not summed over the batch": called_with(grad=lambda call: call.grad[:1]),
    "dL/dbias of the last image alone": called_with(grad=lambda call: call.grad[-1:]),
    "dL/dbias of a wrong shape: summed over the batch with keepdims": lambda c: c.grad.sum(axis=0, keepdims=True),
    "dL/dbias summed over the first axis alone": lambda call: call.grad.sum(axis=0),
    "dL/dbias summed over the last axis, the channels, instead of the others": lambda c: c.grad.sum(axis=-1),
    "dL/dbias summed over everything, the channels too": lambda call: call.grad.sum(),
    "dL/dbias as the mean instead of the sum": lambda call: call() / (call.grad.size // call.grad.shape[-1]),
    "dL/dbias divided by N: the mean over the images for the sum": scaled(lambda call: 1 / len(call.grad)),
    "dL/dbias summed over the pixels, an image at a time": lambda call: call.grad.reshape(
        len(call.grad), -1, call.grad.shape[-1]
    ).sum(axis=1),
}

# -- im2col ------------------------------------------------------------------------------------------------------------


def _patches(call, right):
    """(N*OH*OW, KH, KW, C)."""
    return right.reshape(-1, *call.kernel_size, call.x.shape[3])


def _rows_by_window(right, call):
    """Rows in the order (OH, OW, N)."""
    return right.reshape(len(call.x), -1, right.shape[1]).swapaxes(0, 1).reshape(right.shape)


def _output_size(call, size, stride):
    return [(size[i] + 2 * call.padding[i] - call.kernel_size[i]) // stride[i] + 1 for i in (0, 1)]


def _patches_too_near(call):
    n, *size, _ = call.x.shape
    (oh, ow), right = _output_size(call, size, call.stride), call()
    near = call(stride=(1, 1)).reshape(n, *_output_size(call, size, (1, 1)), -1)
    return near[:, :oh, :ow].reshape(right.shape)


IM2COL = {
    "the columns in the order (C, KH, KW) instead of (KH, KW, C)": changed(
        lambda right, call: np.moveaxis(_patches(call, right), 3, 1).reshape(right.shape)
    ),
    "the columns in the order (KW, KH, C) instead of (KH, KW, C)": changed(
        lambda right, call: _patches(call, right).swapaxes(1, 2).reshape(right.shape)
    ),
    "the columns with each patch turned by 180 degrees": changed(
        lambda right, call: _patches(call, right)[:, ::-1, ::-1].reshape(right.shape)
    ),
    "the rows in the order (OH, OW, N) instead of (N, OH, OW)": changed(_rows_by_window),
    "the transpose: patches as columns instead of rows": changed(lambda right, call: right.T),
    "the patches of an image whose padding repeats the edge": called_with(
        x=lambda call: pad_image(call.x, call.padding, mode="edge"), padding=lambda call: (0, 0)
    ),
    "the numbers tap by tap, (KH, KW, N, OH, OW, C), reshaped without a transpose": changed(
        lambda right, call: _patches(call, right).transpose(1, 2, 0, 3).reshape(right.shape)
    ),
    "the patches of windows one pixel apart: i and j not times the stride": _patches_too_near,
    **geometry("the patches"),
}


def _windows(call):
    """(patches (N, OH, OW, KH, KW, C), output size)."""
    (n, *size, c), (kh, kw) = call.x_shape, call.kernel_size
    oh, ow = _output_size(call, size, call.stride)
    return call.columns.reshape(n, oh, ow, kh, kw, c), (oh, ow)


def _col2im_assigned(call):
    patches, output_size = _windows(call)
    x = np.zeros(call.x_shape)
    for u, v in np.ndindex(*call.kernel_size):  # tap by tap, as col2im adds
        for i, j, *_, h, w in taps(call.x_shape[1:3], output_size, (1, 1), call.stride, _less(call.padding, (u, v))):
            x[:, h, w] = patches[:, i, j, u, v]
    return x


def _less(padding, tap):
    return padding[0] - tap[0], padding[1] - tap[1]


def _border_of_col2im(call):
    n, h, w, c = call.x_shape
    (ph, pw) = call.padding
    return call(x_shape=(n, h + 2 * ph, w + 2 * pw, c), padding=(0, 0))


COL2IM = {
    "the pixels of the last tap alone: assigned where they should be added": _col2im_assigned,
    "the mean over the windows instead of the sum": lambda call: (
        call() / np.maximum(call(columns=np.ones_like(call.columns)), 1)
    ),
    "the padded image: the border of the padding is not cut off": _border_of_col2im,
    "the pixels with each patch turned by 180 degrees": called_with(
        columns=lambda call: _windows(call)[0][:, :, :, ::-1, ::-1].reshape(call.columns.shape)
    ),
    "the pixels of columns read in the order (C, KH, KW)": called_with(
        columns=lambda call: np.moveaxis(
            call.columns.reshape(len(call.columns), call.x_shape[3], *call.kernel_size), 1, 3
        ).reshape(call.columns.shape)
    ),
    "the pixels of columns read in the order (KW, KH, C)": called_with(
        columns=lambda call: (
            call.columns.reshape(len(call.columns), *call.kernel_size[::-1], call.x_shape[3])
            .swapaxes(1, 2)
            .reshape(call.columns.shape)
        )
    ),
}

MISTAKES = {
    "conv2d_forward": FORWARD,
    "conv2d_forward_by_im2col": FORWARD,
    "conv2d_backward": BACKWARD | geometry("dL/dx", 0) | geometry("dL/dweight", 1),
    "conv2d_backward_by_im2col": BACKWARD,
    "bias_backward": BIAS,
    "im2col": IM2COL,
    "col2im": COL2IM,
}
