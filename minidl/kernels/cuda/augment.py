"""Images for training: chosen, normalised, shifted and mirrored, from uint8 images that stay on the device."""

import cupy
import numpy as np

from minidl.kernels.cuda._launch import CudaKernel, contiguous

CROP_AND_FLIP = CudaKernel(
    "crop_and_flip",
    """
// A thread for each element k = ((n*H + i)*W + j)*C + c of y. Pixel (i, j) of y shows pixel (h, w) of the image.
// `chosen` is not checked, because the host would have to wait for it. An index outside the images yields NaN.
extern "C" __global__ void crop_and_flip(
    const unsigned char* images, const long long* chosen, const long long* tops, const long long* lefts,
    const long long* flips, const real* mean, const real* deviation, real* y,
    index M, index H, index W, index C, index padding, int reflect, index count
) {
    index k = thread_number();
    if (k >= count) return;
    index c = k % C, j = k / C % W, i = k / C / W % H, n = k / C / W / H;
    index h = i + tops[n] - padding;
    index w = (flips[n] ? W - 1 - j : j) + lefts[n] - padding;
    if (reflect) {
        h = min(abs(h), 2 * (H - 1) - abs(h));
        w = min(abs(w), 2 * (W - 1) - abs(w));
    }
    real value = 0;
    if (chosen[n] < 0 || chosen[n] >= M) {
        value = value / value;
    } else if (h >= 0 && h < H && w >= 0 && w < W) {
        index pixel = (h * W + w) * C + c;
        value = ((real)images[(index)chosen[n] * H * W * C + pixel] - mean[pixel]) / deviation[pixel];
    }
    y[k] = value;
}
""",
)


def crop_and_flip(images, chosen, tops, lefts, flips, mean, std, padding, reflect):
    """y[n]: (images[chosen[n]] - mean) / std, padded, cropped at (tops[n], lefts[n]), mirrored if flips[n]."""
    y = cupy.empty((len(chosen), *images.shape[1:]), mean.dtype)
    draws = (contiguous(draw.astype(np.int64, copy=False)) for draw in (chosen, tops, lefts, flips))
    arrays = contiguous(images), *draws, contiguous(mean), contiguous(std), y
    CROP_AND_FLIP.for_each(y.size, *arrays, *images.shape, padding, bool(reflect), y.size, dtype=y.dtype)
    return y
