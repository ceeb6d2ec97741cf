"""Where the boxes of a graph go: rows from top to bottom in the order of the computation, columns for its branches.

A box is one row below the lowest of the boxes that it reads from (longest-path layering, the first step of Sugiyama,
Tagawa, Toda 1981). An edge that passes rows gets a cell in each of them, its wire, so that no box covers it. The
longest branch stays in the column of the box at which the branches begin; the others go to the right.
"""

import dataclasses
from collections.abc import Iterable

Edge = tuple[int, int]  # from a box to a later one


@dataclasses.dataclass
class Layout:
    """The place of every box and wire. Boxes are numbered from 0."""

    rows: list[int]
    lasts: list[int]  # the last row that a box may fill: those of the only wire below it are free when it is unfolded
    spans: list[tuple[int, int]]  # first and last column of each box
    wires: dict[Edge, int]  # the column of each edge that passes rows

    @property
    def columns(self) -> int:
        """The number of columns."""
        return 1 + max([*(last for _, last in self.spans), *self.wires.values()], default=0)


def lay_out(boxes: int, edges: Iterable[Edge]) -> Layout:
    """Return places for the boxes 0 ... boxes - 1. Each edge leads from a box to one with a larger number."""
    placement = _Placement(boxes, sorted(set(edges)))
    for box in sorted(range(boxes), key=lambda box: (placement.rows[box], box)):
        placement.place(box)
    spans = [placement.span(box) for box in range(boxes)]
    return Layout(placement.rows, [placement.last(box, spans[box]) for box in range(boxes)], spans, placement.wires)


class _Placement:
    """A grid that is filled row by row."""

    def __init__(self, boxes: int, edges: list[Edge]):
        self.after: list[list[int]] = [[] for _ in range(boxes)]
        self.before: list[list[int]] = [[] for _ in range(boxes)]
        for i, j in edges:
            self.after[i].append(j)
            self.before[j].append(i)
        self.rows = _longest_paths(self.before, range(boxes))
        heights = _longest_paths(self.after, reversed(range(boxes)))
        # The successor that stays in the column of the box: the one with the longest way to the end.
        self.main = [max(after, key=lambda j: (heights[j], -j), default=None) for after in self.after]
        self.columns = [0] * boxes
        self.wires: dict[Edge, int] = {}
        self.taken: set[tuple[int, int]] = set()  # cells (row, column)

    def place(self, box: int) -> None:
        """Choose the column of a box, then those of the wires that begin there."""
        row = self.rows[box]
        first = min((self._column_for(i, box) for i in self.before[box]), default=0)
        self.columns[box] = self._free_column(first, [row])
        self.taken.add((row, self.columns[box]))
        for j in sorted(self.after[box], key=lambda j: (j != self.main[box], j)):
            passed = range(row + 1, self.rows[j])
            if passed:
                column = self._free_column(self._column_for(box, j), passed)
                self.wires[box, j] = column
                self.taken.update((between, column) for between in passed)

    def _column_for(self, box: int, successor: int) -> int:
        """The column where an edge should continue: that of its wire, below the box, or one to the right of it."""
        if (box, successor) in self.wires:
            return self.wires[box, successor]
        return self.columns[box] + (self.main[box] != successor)

    def _free_column(self, first: int, rows: Iterable[int]) -> int:
        column = first
        while any((row, column) in self.taken for row in rows):
            column += 1
        return column

    def span(self, box: int) -> tuple[int, int]:
        """The columns of a box: its own, and those to the right, if they are free, of what is connected to it."""
        row, first = self.rows[box], self.columns[box]
        connected = [self.wires.get((i, box), self.columns[i]) for i in self.before[box]]
        connected += [self.wires.get((box, j), self.columns[j]) for j in self.after[box]]
        last = first
        while last < max(connected, default=0) and (row, last + 1) not in self.taken:
            last += 1
        self.taken.update((row, column) for column in range(first, last + 1))
        return first, last

    def last(self, box: int, span: tuple[int, int]) -> int:
        """The last row that a box may fill."""
        after = self.after[box]
        if len(after) == 1 and span == (self.wires.get((box, after[0])),) * 2:
            return self.rows[after[0]] - 1
        return self.rows[box]


def _longest_paths(before: list[list[int]], order: Iterable[int]) -> list[int]:
    """The number of edges of the longest path to each box, given the boxes before it."""
    lengths = [0] * len(before)
    for box in order:
        lengths[box] = 1 + max((lengths[i] for i in before[box]), default=-1)
    return lengths
