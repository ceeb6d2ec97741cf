"""Images for training: chosen, normalised, shifted and mirrored in one pass."""

import numpy as np

from minidl.kernels.cpu._pieces import PIECE_ELEMENTS, rows_of, slices
from minidl.kernels.cpu._threads import map_pieces


def crop_and_flip(images, chosen, tops, lefts, flips, mean, std, padding, reflect):
    """y[n]: (images[chosen[n]] - mean) / std, padded, cropped at (tops[n], lefts[n]), mirrored if flips[n]."""
    _, height, width, channels = images.shape
    y = np.empty((len(chosen), height, width, channels), mean.dtype)

    def fill(piece):
        inside = np.subtract(images[chosen[piece]], mean, dtype=y.dtype)
        inside /= std
        border = (0, 0), (padding, padding), (padding, padding), (0, 0)
        padded = np.pad(inside, border, mode="reflect" if reflect else "constant")
        for n, image in enumerate(padded, piece.start):
            crop = image[tops[n] : tops[n] + height, lefts[n] : lefts[n] + width]
            y[n] = crop[:, ::-1] if flips[n] else crop

    map_pieces(fill, slices(len(chosen), rows_of(PIECE_ELEMENTS, height * width * channels)), multiplications=0)
    return y
