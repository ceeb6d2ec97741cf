"""Images for training: chosen, normalised, shifted and mirrored in one go, in chunks."""

import numpy as np

from minidl.kernels.cpu._channels import CHUNK_ELEMENTS
from minidl.kernels.cpu._parallel import chunk_length, map_chunks


def crop_and_flip(images, chosen, tops, lefts, flips, mean, std, padding):
    """y[n]: (images[chosen[n]] - mean) / std amid `padding` zeros, cut at (tops[n], lefts[n]), mirrored if flips[n]."""
    _, height, width, channels = images.shape
    y = np.empty((len(chosen), height, width, channels), mean.dtype)

    def fill(start, stop):
        padded = np.zeros((stop - start, height + 2 * padding, width + 2 * padding, channels), y.dtype)
        inside = padded[:, padding : padding + height, padding : padding + width]
        np.subtract(images[chosen[start:stop]], mean, out=inside)
        inside /= std
        for n, image in enumerate(padded, start):
            crop = image[tops[n] : tops[n] + height, lefts[n] : lefts[n] + width]
            y[n] = crop[:, ::-1] if flips[n] else crop

    map_chunks(fill, len(chosen), chunk_length(height * width * channels, CHUNK_ELEMENTS))
    return y
