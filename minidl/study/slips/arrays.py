"""Mistakes in products of matrices, in channels added and cut, in positions, and in images cropped and flipped."""

import numpy as np

from minidl.study.slips.tools import called_with, changed, only, scaled

# -- products ----------------------------------------------------------------------------------------------------------

MATMUL = {
    "y of the last k alone: it is assigned where it should be added": lambda call: (
        call.a[..., :, -1:] * call.b[..., -1:, :]
    ),
    "y of the first k alone": lambda call: call.a[..., :, :1] * call.b[..., :1, :],
    "y divided by K: the mean instead of the sum": scaled(lambda call: 1 / call.a.shape[-1]),
    "y with the factors exchanged: b @ a": called_with(a=lambda call: call.b, b=lambda call: call.a),
    "y with b transposed": called_with(b=lambda call: call.b.swapaxes(-1, -2)),
    "y with a transposed": called_with(a=lambda call: call.a.swapaxes(-1, -2)),
    "the elements multiplied: a * b instead of a @ b": lambda call: call.a * call.b,
    "the transpose of y": changed(lambda y, call: y.swapaxes(-1, -2)),
}
LINEAR_FORWARD = {
    "y without the bias": called_with(bias=lambda call: None),
    "y with the bias subtracted": called_with(bias=lambda call: None if call.bias is None else -call.bias),
    "y with the bias added once for each channel of x": called_with(
        bias=lambda call: None if call.bias is None else call.bias * call.x.shape[1]
    ),
    "y with the weight transposed": called_with(weight=lambda call: call.weight.T),
    "y of the first channel of x alone": called_with(x=lambda call: only((..., 0), call.x)),
    "y of the last channel of x alone: it is assigned where it should be added": called_with(
        x=lambda call: only((..., -1), call.x)
    ),
    "y divided by C: the mean over the channels instead of the sum": lambda call: call(x=call.x / call.x.shape[1]),
    "the transpose of y": changed(lambda y, call: y.T),
}
LINEAR_X = {
    "dL/dx with the weight not transposed": called_with(weight=lambda call: call.weight.T),
    "dL/dx divided by N: the mean over the images": scaled(lambda call: 1 / len(call.grad)),
    "dL/dx of the first channel of y alone": called_with(grad=lambda call: only((..., 0), call.grad)),
    "dL/dx of the last channel of y alone: it is assigned where it should be added": called_with(
        grad=lambda call: only((..., -1), call.grad)
    ),
    "dL/dx divided by O: the mean over the channels of y": scaled(lambda call: 1 / call.grad.shape[1]),
    "dL/dx not multiplied by dL/dy": called_with(grad=lambda call: np.ones_like(call.grad)),
    "dL/dx transposed": changed(lambda right, call: right.T),
}
LINEAR_WEIGHT = {
    "dL/dweight transposed: (O, C) instead of (C, O)": changed(lambda right, call: right.T),
    "dL/dweight divided by N: the mean over the images for the sum": scaled(lambda call: 1 / len(call.x)),
    "dL/dweight of the first image alone": called_with(grad=lambda call: only(0, call.grad)),
    "dL/dweight of the last image alone: it is assigned where it should be added": called_with(
        grad=lambda call: only(-1, call.grad)
    ),
    "dL/dweight not multiplied by dL/dy": called_with(grad=lambda call: np.ones_like(call.grad)),
    "dL/dweight not multiplied by x": called_with(x=lambda call: np.ones_like(call.x)),
    "dL/dweight of each image: not summed over the batch": lambda call: call.x[:, :, None] * call.grad[:, None, :],
    "dL/dweight as the product of two sums instead of the sum of the products": lambda call: np.outer(
        call.x.sum(axis=0), call.grad.sum(axis=0)
    ),
}

# -- channels ----------------------------------------------------------------------------------------------------------


def _edges(call):
    pads = [(0, 0)] * (call.x.ndim - 1) + [(call.before, call.after)]
    return np.pad(call.x, pads, mode="edge")


PAD_FORWARD = {
    "y with `before` and `after` exchanged": called_with(before=lambda c: c.after, after=lambda c: c.before),
    "y with the edge repeated instead of zeros": _edges,
    "y without the channels after": called_with(after=lambda call: 0),
    "y without the channels before": called_with(before=lambda call: 0),
    "y with ones instead of zeros": lambda call: call() + (1 - call(x=np.ones_like(call.x))),
    "y with zeros before the rows instead of the channels": lambda call: np.pad(
        call.x, [(0, 0)] * (call.x.ndim - 2) + [(call.before, call.after), (0, 0)]
    ),
    "y one channel further": changed(lambda y, call: np.roll(y, 1, axis=-1)),
}
PAD_BACKWARD = {
    "dL/dx with `before` and `after` exchanged": called_with(before=lambda c: c.after, after=lambda c: c.before),
    "dL/dx of all channels: nothing is cut off": lambda call: call.grad,
    "dL/dx of the first channels": lambda call: call.grad[..., : call().shape[-1]],
    "dL/dx of the last channels": lambda call: call.grad[..., -call().shape[-1] :],
    "dL/dx with the channels before left on": called_with(before=lambda call: 0),
    "dL/dx with the channels after left on": called_with(after=lambda call: 0),
    "dL/dx one channel further": changed(lambda right, call: np.roll(right, 1, axis=-1)),
    "dL/dx cut from the rows instead of the channels": lambda call: call.grad[
        ..., call.before : call.grad.shape[-2] - call.after, :
    ],
}

# -- positions ---------------------------------------------------------------------------------------------------------


def _assigned(call):
    y = np.zeros(call().size)
    y[call.positions.ravel()] = call.grad.ravel()
    return y.reshape(call.shape)


def _first_of_each(call):
    y = np.zeros(call().size)
    y[call.positions.ravel()[::-1]] = call.grad.ravel()[::-1]
    return y.reshape(call.shape)


def _times_seen(call):
    return np.maximum(call(grad=np.ones_like(call.grad)), 1)


SCATTER = {
    "the last element of each position: assigned where it should be added, as y[positions] += grad does": _assigned,
    "the first element of each position": _first_of_each,
    "the mean of the elements of each position instead of their sum": lambda call: call() / _times_seen(call),
    "how often each position occurs: not multiplied by grad": called_with(grad=lambda c: np.ones_like(c.grad)),
    "y flattened: not of the given shape": changed(lambda y, call: y.ravel()),
    "the elements of the wrong positions: one further": called_with(
        positions=lambda call: (call.positions + 1) % call().size
    ),
}

# -- images ------------------------------------------------------------------------------------------------------------


def _cropped(pixel=lambda x, mean, std: (x - mean) / std, place=None, outside=None, statistics_of_output=False):
    """The kernel with another formula of a pixel, another place in the image, or another value outside of it."""

    def wrong(call):
        _, height, width, _ = call.images.shape
        y = np.zeros((len(call.chosen), *call.images.shape[1:]))
        for n, i, j in np.ndindex(y.shape[:3]):
            h, w = (place or _place)(call, n, i, j)
            if call.reflect:
                h, w = min(abs(h), 2 * (height - 1) - abs(h)), min(abs(w), 2 * (width - 1) - abs(w))
            inside = 0 <= h < height and 0 <= w < width
            where = (i, j) if statistics_of_output else (h, w)
            if inside:
                y[n, i, j] = pixel(call.images[call.chosen[n], h, w].astype(float), call.mean[where], call.std[where])
            elif outside:
                y[n, i, j] = outside(call.mean[i, j], call.std[i, j])
        return y

    return wrong


def _place(call, n, i, j):
    width = call.images.shape[2]
    return i + call.tops[n] - call.padding, (width - 1 - j if call.flips[n] else j) + call.lefts[n] - call.padding


def _flipped_first(call, n, i, j):
    width = call.images.shape[2]
    w = j + call.lefts[n] - call.padding
    return i + call.tops[n] - call.padding, width - 1 - w if call.flips[n] else w


def _upside_down(call, n, i, j):
    height = call.images.shape[1]
    row = height - 1 - i if call.flips[n] else i
    return row + call.tops[n] - call.padding, j + call.lefts[n] - call.padding


CROP = {
    "y with no image flipped": called_with(flips=lambda call: np.zeros_like(call.flips)),
    "y with all images flipped": called_with(flips=lambda call: np.ones_like(call.flips)),
    "y with the other images flipped": called_with(flips=lambda call: ~call.flips),
    "y flipped upside down instead of left to right": _cropped(place=_upside_down),
    "y flipped before the crop instead of after it": _cropped(place=_flipped_first),
    "y with tops and lefts exchanged": called_with(tops=lambda call: call.lefts, lefts=lambda call: call.tops),
    "y not shifted": called_with(
        tops=lambda call: np.full_like(call.tops, call.padding),
        lefts=lambda call: np.full_like(call.lefts, call.padding),
    ),
    "y shifted the other way": called_with(
        tops=lambda call: 2 * call.padding - call.tops, lefts=lambda call: 2 * call.padding - call.lefts
    ),
    "y with the padding not subtracted from the position": called_with(padding=lambda call: 0),
    "y with the first images instead of those chosen": called_with(chosen=lambda call: np.arange(len(call.chosen))),
    "y with the mean not subtracted": called_with(mean=lambda call: 0 * call.mean),
    "y not divided by std": called_with(std=lambda call: np.ones_like(call.std)),
    "y neither centred nor divided": _cropped(pixel=lambda x, mean, std: x),
    "y multiplied by std instead of divided": _cropped(pixel=lambda x, mean, std: (x - mean) * std),
    "y with mean and std of the output's pixel instead of the image's": _cropped(statistics_of_output=True),
    "y with zeros outside of the image, though `reflect` is set": called_with(reflect=lambda call: False),
    "y with -mean/std outside of the image instead of 0": _cropped(outside=lambda mean, std: -mean / std),
}


MISTAKES = {
    "matmul": MATMUL,
    "linear_forward": LINEAR_FORWARD,
    "linear_backward_x": LINEAR_X,
    "linear_backward_weight": LINEAR_WEIGHT,
    "pad_channels_forward": PAD_FORWARD,
    "pad_channels_backward": PAD_BACKWARD,
    "scatter_add": SCATTER,
    "crop_and_flip": CROP,
}
