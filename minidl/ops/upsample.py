"""Bilinear interpolation between the pixels of an image, separately for each channel."""

from minidl.kernels import kernels_for
from minidl.ops.function import Function


class UpsampleBilinear2d(Function):
    """y[n,i,j] = sum over h, w of a(i,h) b(j,w) x[n,h,w].   dL/dx[n,h,w] = sum over i, j of a(i,h) b(j,w) dL/dy[n,i,j].

    Row i of the output lies at s = (i + 1/2) step - 1/2 among the rows of the input, limited to [0, H - 1]. `step` is
    the number of input rows per output row; 1/2 is the distance from the edge of a pixel to its centre. The weight
        a(i,h) = max(0, 1 - |s - h|)
    of row h is 0 for all but the two nearest rows. b is the same for columns. y is linear in x, so only the shape of x
    is saved. Long, Shelhamer, Darrell 2015 (arXiv:1411.4038), section 3.3, upsample the scores of a network this way.
    """

    @staticmethod
    def forward(ctx, x, *, output_size, step):
        ctx.save(x.shape, step)
        return kernels_for(x).upsample_bilinear2d_forward(x, output_size, step)

    @staticmethod
    def backward(ctx, grad):
        return kernels_for(grad).upsample_bilinear2d_backward(grad, *ctx.saved)
