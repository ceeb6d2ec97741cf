"""Bilinear interpolation between the pixels of an image, separately for each channel."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class UpsampleBilinear2d(Function):
    """y[n,i,j] = sum over h, w of a(i,h) b(j,w) x[n,h,w].   dL/dx[n,h,w] = sum over i, j of a(i,h) b(j,w) dL/dy[n,i,j].

    Pixel i of the output lies at s = (i + 1/2) step - 1/2 among the pixels of the input, cut off at both ends: `step`
    is in input pixels per output pixel, and the centre of a pixel is half a pixel from its edge. The weight of row h is
        a(i,h) = max(0, 1 - |s - h|),
    which is not 0 for the two nearest rows at most; b is the same for columns. y is linear in x, so only the shape of x
    is saved. Long, Shelhamer, Darrell 2015 (arXiv:1411.4038), section 3.3, upsample the scores of a network this way.
    """

    @staticmethod
    def forward(ctx, x, *, output_size, step):
        ctx.save(x.shape, step)
        return kernels_for(x).upsample_bilinear2d_forward(x, output_size, step)

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).upsample_bilinear2d_backward(grad, *ctx.saved)
