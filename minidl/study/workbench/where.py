"""Where a result is wrong, in words and as a map: at the borders, in every second row, in one channel, at one tap."""

import numpy as np

from minidl.study.workbench.compare import different

# What the axes of a result are called: of a convolution's weight, and of everything else by the number of axes.
WEIGHT_AXES = ("tap row", "tap column", "channel in", "channel out")
AXES = {1: ("channel",), 2: ("row", "column"), 3: ("image", "row", "channel"), 4: ("image", "row", "column", "channel")}

MOST_ROWS, MOST_COLUMNS = 24, 64  # of a map
MOST_INDICES = 5  # in a sentence


def where(name: str, actual: np.ndarray, expected: np.ndarray) -> tuple[str, str]:
    """(a sentence, a map) of the elements that differ. Both arrays have the same shape."""
    wrong = different(actual, expected)
    names = WEIGHT_AXES if name == "dL/dweight" and wrong.ndim == 4 else AXES.get(wrong.ndim, ())
    counted = f"{wrong.sum()} of {wrong.size} numbers of {name} are wrong" if wrong.size > 1 else f"{name} is wrong"
    places = [] if wrong.all() else _places(wrong, names)
    sentence = f"{counted}: {', '.join(places)}." if places else f"{counted}."
    return sentence, _map(wrong, names)


def _places(wrong: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """What the wrong elements have in common."""
    places = []
    if wrong.ndim == 4 and names != WEIGHT_AXES and min(wrong.shape[1:3]) > 2:
        inside = wrong[:, 1:-1, 1:-1]
        if not inside.any():
            places.append("at the borders only, which is where the padding counts")
        elif inside.all():
            places.append("everywhere but at some places of the borders")
    for axis, name in enumerate(names):
        others = tuple(other for other in range(wrong.ndim) if other != axis)
        place = _along(wrong.any(axis=others), name)
        places += [place] if place else []
    return places


def _along(has_wrong: np.ndarray, name: str) -> str:
    """Which indices of one axis have wrong elements; '' if all have some."""
    indices = np.flatnonzero(has_wrong).tolist()
    length = len(has_wrong)
    if len(indices) == length or not indices:
        return ""
    if len(indices) == 1:
        return f"in {name} {indices[0]} alone"
    if set(indices) <= {0, length - 1}:
        return f"in the first and the last {name} only"
    step = indices[1] - indices[0]
    if step > 1 and indices == list(range(indices[0], length, step)):
        return f"in every {_ordinal(step)} {name}, from {indices[0]} on"
    if indices == list(range(indices[0], indices[-1] + 1)):
        return f"in the {name}s {indices[0]} to {indices[-1]} of {length}"
    if len(indices) > MOST_INDICES:
        return f"in {len(indices)} of {length} {name}s"
    return f"in the {name}s {', '.join(map(str, indices))} of {length}"


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third", 4: "fourth"}.get(number, f"{number}th")


def _map(wrong: np.ndarray, names: tuple[str, ...]) -> str:
    """Rows and columns: # where any number is wrong, . where all are right. '' if there is nothing to see."""
    if wrong.ndim == 4:
        grid = wrong.any(axis=(2, 3) if names == WEIGHT_AXES else (0, 3))
    elif wrong.ndim in (2, 3):
        grid = wrong.reshape(-1, wrong.shape[-1])
    else:
        return ""
    if grid.all() or not grid.size:
        return ""
    return _drawn(grid, "taps" if names == WEIGHT_AXES else "rows and columns")


def _drawn(grid: np.ndarray, what: str) -> str:
    cut = grid[:MOST_ROWS, :MOST_COLUMNS]
    rows = ["  " + "".join("#" if wrong else "." for wrong in row) for row in cut]
    more = ["  ..."] if cut.shape != grid.shape else []
    return "\n".join([f"The {what} of it (# wrong, . right):", *rows, *more])
