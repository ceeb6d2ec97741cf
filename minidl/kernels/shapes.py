"""How large the outputs of windows are: what convolutions and poolings share on all devices."""


def output_size(size, kernel_size, stride, padding, ceil_mode: bool = False) -> tuple[int, int]:
    """(OH, OW): how many windows fit into the padded image, from pairs (height, width).

    With ceil_mode an incomplete last window counts too, if it starts inside the image or the padding before it.
    """
    return tuple(_windows_along(*axis, ceil_mode) for axis in zip(size, kernel_size, stride, padding, strict=True))


def _windows_along(size: int, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> int:
    room = size + 2 * padding - kernel_size
    windows = room // stride + 1
    one_more = ceil_mode and room % stride > 0 and windows * stride < size + padding
    return windows + 1 if one_more else windows
