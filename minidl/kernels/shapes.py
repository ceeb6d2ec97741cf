"""What convolutions and poolings share on all devices: how large outputs are, and how taps are numbered."""


def output_size(size, kernel_size, stride, padding, ceil_mode: bool = False) -> tuple[int, int]:
    """(OH, OW): how many windows fit into the padded image, from pairs (height, width).

    With ceil_mode an incomplete last window counts too, if it starts inside the image or the padding before it.
    """
    counts = []
    for pixels, kernel, step, before in zip(size, kernel_size, stride, padding, strict=True):
        room = pixels + 2 * before - kernel
        windows = room // step + 1
        one_more = ceil_mode and room % step > 0 and windows * step < pixels + before
        counts.append(windows + one_more)
    return tuple(counts)


def tap_dtype(kernel_size) -> str:
    """What holds the number u*KW + v of a tap (u, v), and one number more, which is no tap's: a byte if it can."""
    return "uint8" if kernel_size[0] * kernel_size[1] <= 255 else "uint32"
