"""How arrays are cut into pieces: by functions of shapes alone, never of dtype or of the number of threads."""

import math

# (measured) A megabyte of float32: in smaller pieces the threads wait for each other and the GIL between the passes.
PIECE_ELEMENTS = 2**18


def rows_of(elements: int, row: int) -> int:
    """How many rows of `row` elements make a piece of about `elements` elements; at least 1."""
    return max(1, elements // max(1, row))


def slices(total: int, length: int) -> list[slice]:
    """0:total in slices of that length; the last one may be shorter."""
    return [slice(start, min(start + length, total)) for start in range(0, total, length)]


def even_slices(total: int, longest: int) -> list[slice]:
    """0:total in as few slices of at most that length as possible, all of one length but the last."""
    return slices(total, math.ceil(total / math.ceil(total / longest)))
