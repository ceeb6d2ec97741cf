"""The bias of a convolution or a linear layer: one number for each channel."""

from minidl.kernels.cpu._channels import as_rows, channel_sums, rows_per_chunk
from minidl.kernels.cpu._parallel import sum_chunks


def bias_backward(grad):
    """dL/dbias, (C,): the sum of dL/dy over every axis but the last."""
    rows = as_rows(grad)
    channels = grad.shape[-1]
    return sum_chunks(lambda start, stop: channel_sums(rows[start:stop], channels), len(rows), rows_per_chunk(rows))
