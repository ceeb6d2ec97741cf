"""The graph of one group: its children and the forks as boxes, with the edges along which values and gradients go."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from minidl.study.page.layout import Layout, lay_out
from minidl.study.page.tree import Child, Group, ops_of
from minidl.study.record import Input, Op, Recording

Source = Op | Input
Use = tuple[Op, int]  # an operation, and which of its inputs


@dataclasses.dataclass(eq=False)
class Port:
    """Where a value enters a group from outside, or (with source None) where its results leave it."""

    source: Source | None


@dataclasses.dataclass(eq=False)
class Fork:
    """A value that is used by several boxes: its gradient is the sum of what comes back from them."""

    source: Source
    paths: list["Edge"] = dataclasses.field(default_factory=list)


Box = Child | Port | Fork


@dataclasses.dataclass(eq=False)
class Edge:
    """A value on its way from one box to another, and the gradient that comes back."""

    start: Box
    end: Box
    source: Source  # whose value it is
    uses: list[Use]  # inside the box at the end

    def grad(self) -> np.ndarray | None:
        """The contribution of this path to dL/d(value): the sum over the uses at its end; None if there is none."""
        grads = [op.input_grads[number] for op, number in self.uses if op.input_grads is not None]
        grads = [grad for grad in grads if grad is not None]
        return sum(grads[1:], grads[0]) if grads else None

    def unchanged_from(self) -> Op | None:
        """The operation at the end, if it hands its dL/dy on unchanged, element by element: the + of a block does."""
        if len(self.uses) != 1:
            return None
        (op, _), grad = self.uses[0], self.grad()
        joins = sum(isinstance(source, Op) or getattr(source, "kind", "") == "input" for source in op.inputs) > 1
        same = joins and grad is not None and op.grad is not None and np.array_equal(grad, op.grad)
        return op if same else None


@dataclasses.dataclass(eq=False)
class Graph:
    """Boxes, edges and their layout."""

    boxes: list[Box]
    edges: list[Edge]
    layout: Layout


def graph_of(group: Group, recording: Recording) -> Graph:
    """Return the graph of a group's children."""
    ports, flows, leave = _flows(group, recording)
    boxes: list[Box] = []
    edges: list[Edge] = []
    for box in [*ports, *group.children]:
        boxes.append(box)
        for source, ends in flows.get(box, {}).items():
            start = box
            if len(ends) > 1:
                start = Fork(source)
                boxes.append(start)
                edges.append(Edge(box, start, source, [use for uses in ends.values() for use in uses]))
            paths = [Edge(start, end, source, uses) for end, uses in ends.items()]
            edges += paths
            if isinstance(start, Fork):
                start.paths = paths
    boxes += [leave] if any(edge.end is leave for edge in edges) else []
    number = {box: index for index, box in enumerate(boxes)}
    return Graph(boxes, edges, lay_out(len(boxes), [(number[edge.start], number[edge.end]) for edge in edges]))


def _flows(group: Group, recording: Recording) -> tuple[list[Port], dict, Port]:
    """Return the ports through which values enter, {box: {source: {box at the end: uses there}}}, and the port at which
    values leave."""
    child_of = {op: child for child in group.children for op in ops_of(child)}
    ports: dict[Source, Port] = {}
    leave = Port(None)
    flows: dict[Box, dict[Source, dict[Box, list[Use]]]] = {}
    for source, (op, number) in _uses(child_of, recording):
        start = child_of[source] if source in child_of else ports.setdefault(source, Port(source))
        end = child_of.get(op, leave)
        if end is not start:
            flows.setdefault(start, {}).setdefault(source, {}).setdefault(end, []).append((op, number))
    return list(ports.values()), flows, leave


def _uses(inside: dict[Op, Child], recording: Recording) -> Iterator[tuple[Source, Use]]:
    """Yield (source, use) of each value that is used or computed inside, in the order of the forward pass."""
    for op in inside:
        for number, source in enumerate(op.inputs):
            if (isinstance(source, Op) and source not in inside) or getattr(source, "kind", "") == "input":
                yield source, (op, number)
        for use in recording.consumers(op):
            yield op, use
