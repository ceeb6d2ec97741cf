"""Mistakes in bilinear interpolation."""

from collections.abc import Callable

import numpy as np

from minidl.kernels import reference
from minidl.study.calls import Call
from minidl.study.slips.tools import called_with, changed


def _sizes(call: Call):
    """(H, W) and (OH, OW), of a call of forward or of backward."""
    if "x" in call.arguments:
        return call.x.shape[1:3], call.output_size
    return call.x_shape[1:3], call.grad.shape[1:3]


def _with_weights(weights: Callable):
    """The result for other weights: weights(H, OH, step) is the matrix (OH, H) of an axis."""

    def wrong(call):
        a, b = (weights(*axis) for axis in zip(*_sizes(call), call.step, strict=True))
        if "x" in call.arguments:
            return np.einsum("ih,jw,nhwc->nijc", a, b, call.x)
        return np.einsum("ih,jw,nijc->nhwc", a, b, call.grad)

    return wrong


def _at(positions: np.ndarray, size: int) -> np.ndarray:
    """The right weights, (OH, H), for other positions of the output pixels."""
    inside = np.clip(positions, 0, size - 1)
    return np.maximum(0, 1 - abs(inside[:, None] - np.arange(size)))


def _corners_aligned(size, output_size, step):
    return _at(np.arange(output_size) * (size - 1) / max(output_size - 1, 1), size)


def _half_a_pixel_forgotten(size, output_size, step):
    return _at(np.arange(output_size) * step, size)


def _not_shifted_back(size, output_size, step):
    return _at((np.arange(output_size) + 0.5) * step, size)


def _right_positions(size, output_size, step):
    return np.clip((np.arange(output_size) + 0.5) * step - 0.5, 0, size - 1)


def _nearest(size, output_size, step):
    positions = _right_positions(size, output_size, step)
    return np.eye(size)[np.floor(positions + 0.5).astype(int)]


def _exchanged(size, output_size, step):
    """f for h and 1 - f for h + 1."""
    positions = _right_positions(size, output_size, step)
    first = positions.astype(int)
    f, rows = positions - first, np.arange(output_size)
    weights = np.zeros((output_size, size))
    np.add.at(weights, (rows, first), f)
    np.add.at(weights, (rows, np.minimum(first + 1, size - 1)), 1 - f)
    return weights


def _wrapped(size, output_size, step):
    """Positions below 0 are kept: h = -1 counts from the end, as in Python."""
    positions = np.minimum((np.arange(output_size) + 0.5) * step - 0.5, size - 1)
    first = np.floor(positions).astype(int)
    f, rows = positions - first, np.arange(output_size)
    weights = np.zeros((output_size, size))
    np.add.at(weights, (rows, first), 1 - f)
    np.add.at(weights, (rows, np.minimum(first + 1, size - 1)), f)
    return weights


def _first_alone(size, output_size, step):
    """The pixel h + 1 is missing."""
    positions = _right_positions(size, output_size, step)
    return np.where(np.arange(size) == np.floor(positions)[:, None], _at(positions, size), 0)


def weights(result: str) -> dict:
    """Slips of the weights: forward and backward have the same ones."""
    return {
        f"{result} as with align_corners=True: positions i (H - 1) / (OH - 1)": _with_weights(_corners_aligned),
        f"{result} at the positions i * step: without half a pixel": _with_weights(_half_a_pixel_forgotten),
        f"{result} at the positions (i + 1/2) * step: 1/2 is not subtracted": _with_weights(_not_shifted_back),
        f"{result} of the nearest pixel alone": _with_weights(_nearest),
        f"{result} with the weights of h and h + 1 exchanged": _with_weights(_exchanged),
        f"{result} with positions below 0, which count from the end": _with_weights(_wrapped),
        f"{result} without the pixels h + 1 and w + 1": _with_weights(_first_alone),
        f"{result} with the steps of rows and columns exchanged": called_with(step=lambda call: call.step[::-1]),
        f"{result} with the step from the sizes, though it is given": called_with(
            step=lambda call: tuple(size / output for size, output in zip(*_sizes(call), strict=True))
        ),
    }


def _interpolated_back(call):
    """dL/dy interpolated at the size of x, as if forward were run the other way."""
    step = 1 / call.step[0], 1 / call.step[1]
    return reference.upsample_bilinear2d_forward(call.grad, call.x_shape[1:3], step)


def _assigned(call):
    """Of the output pixels that an input pixel has a weight for, the last one alone counts."""
    (height, width), (rows, columns) = _sizes(call)
    a, b = (_at(_right_positions(*axis), axis[0]) for axis in zip(*_sizes(call), call.step, strict=True))
    grad_x = np.zeros(call.x_shape)
    for i, j, h, w in np.ndindex(rows, columns, height, width):
        if a[i, h] * b[j, w] > 0:
            grad_x[:, h, w] = a[i, h] * b[j, w] * call.grad[:, i, j]
    return grad_x


MISTAKES = {
    "upsample_bilinear2d_forward": weights("y"),
    "upsample_bilinear2d_backward": {
        **weights("dL/dx"),
        "dL/dx as dL/dy interpolated at the size of x: not the transpose of forward": _interpolated_back,
        "dL/dx of the last output pixel alone: it is assigned where it should be added": _assigned,
        "dL/dx divided by the area of a pixel: the mean of its gradients instead of the sum": changed(
            lambda right, call: right * call.step[0] * call.step[1]
        ),
        "dL/dx not multiplied by dL/dy": called_with(grad=lambda call: np.ones_like(call.grad)),
    },
}
