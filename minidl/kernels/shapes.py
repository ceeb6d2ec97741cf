"""Shapes shared by convolution and pooling on all devices: the output size, and the dtype of tap numbers."""


def output_size(size, kernel_size, stride, padding, ceil_mode: bool = False) -> tuple[int, int]:
    """(OH, OW): how many windows fit into the padded image. All arguments are pairs (height, width).

    With ceil_mode an incomplete last window counts too, if it starts inside the image or in the padding before it.
    """
    counts = []
    for h, kh, sh, ph in zip(size, kernel_size, stride, padding, strict=True):  # then w, kw, sw, pw
        room = h + 2 * ph - kh
        windows = room // sh + 1
        one_more = ceil_mode and room % sh > 0 and windows * sh < h + ph
        counts.append(windows + one_more)
    return tuple(counts)


def tap_dtype(kernel_size) -> str:
    """The dtype for tap numbers u*KW + v, plus one value that means "no tap": uint8 if they fit, else uint32."""
    return "uint8" if kernel_size[0] * kernel_size[1] <= 255 else "uint32"
