"""What the page quotes of an operation: its formula, its two methods, and the kernels that these call."""

import inspect
from collections.abc import Callable

from minidl.ops.function import Function
from minidl.study.page.source import helpers_of, kernels_called, twins

LEVELS = (  # title, and what it says of itself
    ("The operation", "The calculus: what is computed, and what is saved for backward."),
    ("Plain loops", "The same formula index by index: the reference that the fast kernels are tested against."),
    ("CPU kernel", "What ran on this page."),
)


def describe(function: type[Function], quote: Callable[[Callable], str]) -> dict:
    """Return {"formula", "levels"} of an operation. `quote` adds a function to the page and returns its key."""
    levels = []
    for (title, words), sides in zip(LEVELS, _sides(function), strict=True):
        if not any(sides):
            continue
        helpers = [helper for helper in helpers_of([*sides[0], *sides[1]]) if helper not in (*sides[0], *sides[1])]
        levels.append(
            {
                "title": title,
                "words": words,
                "forward": list(map(quote, sides[0])),
                "backward": list(map(quote, sides[1])),
                "helpers": list(map(quote, helpers)),
            }
        )
    # Without a docstring of its own, a class has Function's, which is about the interface.
    own = inspect.cleandoc(function.__doc__) if function.__doc__ else ""
    return {"formula": own, "levels": levels}


def _sides(function: type[Function]) -> list[tuple[list[Callable], list[Callable]]]:
    """For each level, the functions of the forward and of the backward side."""
    methods = function.forward, function.backward
    pairs = [[twins(name) for name in kernels_called(method)] for method in methods]
    loops, kernels = ([[pair[i] for pair in side if pair[i] is not None] for side in pairs] for i in (0, 1))
    return [([methods[0]], [methods[1]]), tuple(loops), tuple(kernels)]
