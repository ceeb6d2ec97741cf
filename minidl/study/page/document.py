"""What the page shows, as one JSON document: the boxes of all graphs, and for each the contents of its panel."""

import numpy as np

from minidl.study.page import quotes
from minidl.study.page.chart import chart_of
from minidl.study.page.graph import Box, Edge, Fork, Graph, Port, graph_of
from minidl.study.page.pictures import photograph, picture
from minidl.study.page.source import input_names, plain_function, quoted, saved_names
from minidl.study.page.tree import Folded, Group, fold, grow, ops_of, shown
from minidl.study.page.words import (
    SIGNS,
    category,
    cosine,
    count_of,
    edge_facts,
    heading,
    is_layer,
    milliseconds,
    name_of,
    norm_facts,
    number_text,
    op_title,
    path_title,
    shape_text,
    short,
    source_title,
)
from minidl.study.record import Input, Op, Recording, norm

# With more operations than this, repeated parts are folded. With more than the second, even so, there is no page.
MOST_BEFORE_FOLDING, MOST_OPS = 250, 1000


class TooLargeError(ValueError):
    """The network runs more operations than a page can hold."""


def make_document(recording: Recording, head: dict, pixels: np.ndarray | None = None) -> dict:
    """Return the document of a recorded training step. `head` has its title, facts and notes.

    Raises TooLargeError if the network runs more operations than a page can hold.
    """
    root = grow(recording)
    if len(recording.ops) > MOST_BEFORE_FOLDING:
        fold(root)
    count = sum(1 for _ in shown(root))
    if count > MOST_OPS:
        raise TooLargeError(
            f"the network runs {len(recording.ops):,} operations, of which {count:,} are not repetitions; a page holds "
            f"{MOST_OPS:,}: explain a part of the network, by a function that returns one block of it"
        )
    writer = _Writer(recording, pixels)
    network = writer.group(root, None)
    return head | {
        "network": network,
        "functions": writer.functions,
        "quotes": writer.quotes,
        "chart": chart_of(recording, {box["op"]: box["id"] for box in writer.op_boxes}),
    }


class _Writer:
    """Writes boxes as dictionaries, and collects the functions that they quote."""

    def __init__(self, recording: Recording, pixels: np.ndarray | None):
        self.recording, self.pixels = recording, pixels
        self.functions: dict[str, dict] = {}
        self.quotes: dict[str, dict] = {}
        self.op_boxes: list[dict] = []
        self._numbers = 0

    def _id(self) -> str:
        self._numbers += 1
        return f"box{self._numbers}"

    # -- boxes ---------------------------------------------------------------------------------------------------------

    def group(self, group: Group, parent: Group | None) -> dict:
        """A module, with the graph inside it."""
        ops = list(group.ops())
        box = {
            "id": self._id(),
            "kind": "group",
            "title": heading(group.name, parent) or type(group.module).__name__,
            "detail": type(group.module).__name__,
            "name": group.name,
            "ops": len(ops),
            "macs": count_of(sum(op.macs for op in ops)),
            "parameters": count_of(sum(parameter.numel() for parameter in group.module.parameters())),
            "shape": shape_text(ops[-1].shape),
            "last": ops[-1].number,
            "quote": self.quote(type(group.module).forward),
        }
        return box | {"graph": self.graph(graph_of(group, self.recording), group)}

    def graph(self, graph: Graph, group: Group) -> dict:
        """The boxes of a graph and their edges, which refer to the boxes by number."""
        boxes = [self.box(box, group) for box in graph.boxes]
        number = {box: index for index, box in enumerate(graph.boxes)}
        edges = []
        for edge in graph.edges:
            ends = number[edge.start], number[edge.end]
            edges.append({"ends": ends, "wire": graph.layout.wires.get(ends), **edge_facts(edge)})
        for box, first, last, span in zip(
            boxes, graph.layout.rows, graph.layout.lasts, graph.layout.spans, strict=True
        ):
            box |= {"rows": (first, last), "span": span}
        wired = set(graph.layout.wires.values())
        used = {column for first, last in graph.layout.spans for column in [first]}
        return {
            "boxes": boxes,
            "edges": edges,
            "columns": ["box" if c in used else "wire" for c in range(graph.layout.columns) if c in used | wired],
        }

    def box(self, box: Box, group: Group) -> dict:
        """One box of a group's graph."""
        if isinstance(box, Group):
            return self.group(box, group)
        if isinstance(box, Op):
            return self.op(box, group)
        if isinstance(box, Folded):
            return self.folded(box, group)
        return self.fork(box, group) if isinstance(box, Fork) else self.port(box, group)

    def port(self, port: Port, group: Group) -> dict:
        """An end of an edge that leads out of the group; in the whole network, the input."""
        if group.name or not isinstance(port.source, Input):
            return {"id": self._id(), "kind": "port"}
        grads = Edge(port, port, port.source, self.recording.consumers(port.source)).grad()
        return {
            "id": self._id(),
            "kind": "input",
            "title": port.source.name,
            "detail": "the input of the network",
            "shape": shape_text(port.source.shape),
            "photograph": None if self.pixels is None else photograph(self.pixels),
            "value": picture(port.source.value),
            "grad": picture(grads),
            "grad_norm": None if grads is None else number_text(norm(grads)),
        }

    def fork(self, fork: Fork, group: Group) -> dict:
        """A value that several boxes use, with the gradients that come back from them."""
        grads = [path.grad() for path in fork.paths]
        known = [grad for grad in grads if grad is not None]
        total = sum(known[1:], known[0]) if known else None
        largest = max((float(np.abs(grad).max(initial=0)) for grad in [*known, total]), default=0) if known else 0
        titles = [path_title(path, group) for path in fork.paths]
        paths = [
            {
                "to": title if titles.count(title) == 1 else f"{title}, operation {path.uses[0][0].number}",
                "unchanged": path.unchanged_from() is not None,
                **norm_facts(grad),
                "picture": picture(grad, largest),
            }
            for path, title, grad in zip(fork.paths, titles, grads, strict=True)
        ]
        return {
            "id": self._id(),
            "kind": "fork",
            "title": "used twice" if len(paths) == 2 else f"used {len(paths)} times",
            "detail": source_title(fork.source),
            "shape": shape_text(fork.source.shape),
            "paths": paths,
            "total": {**norm_facts(total), "picture": picture(total, largest)},
            "cosine": cosine(known) if len(known) == len(grads) == 2 else None,
        }

    def folded(self, folded: Folded, group: Group) -> dict:
        """Repetitions that are not shown one by one."""
        first, last = (heading(name_of(child), group) for child in (folded.children[0], folded.children[-1]))
        return {
            "id": self._id(),
            "kind": "folded",
            "title": f"{folded.repetitions:,} more",
            "detail": f"{first} ... {last}, each like the one above",
            "ops": sum(1 for _ in ops_of(folded)),
            "names": [first, last],
        }

    def op(self, op: Op, group: Group) -> dict:
        """An operation."""
        sign = SIGNS.get(op.function.__name__)
        box = {
            "id": self._id(),
            "kind": "op",
            "op": op.number,
            "title": op_title(op, group) if is_layer(op, group) else sign or op.function.__name__,
            "detail": op.function.__name__ if is_layer(op, group) or sign else "",
            "is_layer": is_layer(op, group),
            "layer": op.layer,
            "category": category(op.function),
            "function": self.function(op.function),
            "shape": shape_text(op.shape),
            "dtype": str(op.dtype),
            "inputs": [self.input(op, number) for number in range(len(op.inputs))],
            "hyperparameters": [[name, short(value)] for name, value in op.hyperparameters.items()],
            "saved": self.saved(op),
            "macs": count_of(op.macs),
            "forward": milliseconds(op.forward_seconds),
            "backward": milliseconds(op.backward_seconds),
            "value": picture(op.value),
            "value_norm": number_text(op.value_norm),
            "grad": picture(op.grad),
            "grad_norm": number_text(op.grad_norm),
            "scalar": f"{op.value.item():.6g}" if op.value.size == 1 else None,
        }
        self.op_boxes.append(box)
        return box

    def input(self, op: Op, number: int) -> dict:
        """One input of an operation, with the gradient that goes back to it."""
        source = op.inputs[number]
        names = input_names(op.function)
        name = names[number] if number < len(names) and names[number][0] != "*" else f"input {number}"
        if source is None:
            return {"name": name, "what": "absent"}
        grad = op.input_grads[number] if op.input_grads is not None and op.needs_grad[number] else None
        facts = {"name": name, "what": source_title(source), "shape": shape_text(source.shape), **norm_facts(grad)}
        return facts | ({"op": source.number} if isinstance(source, Op) else {})

    def saved(self, op: Op) -> list[dict]:
        """What forward saved for backward: names as in the source, shapes, bytes, and whose array it is."""
        names = saved_names(op.function)
        if len(names) != len(op.saved):
            names = [f"value {number}" for number in range(len(op.saved))]
        return [self.saved_value(name, value, op) for name, value in zip(names, op.saved, strict=True)]

    def saved_value(self, name: str, value, op: Op) -> dict:
        """One saved value."""
        if not isinstance(value, np.ndarray):
            return {"name": name, "value": short(value)}
        same = ["y, its own result"] if value is op.value else []
        same += [source_title(source) for source in op.inputs if source is not None and source.value is value]
        return {
            "name": name,
            "shape": shape_text(value.shape),
            "dtype": str(value.dtype),
            "bytes": f"{value.nbytes:,}",
            "same": same[0] if same else None,
        }

    # -- functions and their source ------------------------------------------------------------------------------------

    def function(self, function: type) -> str:
        """Add an operation to the functions of the page, and return its key."""
        key = f"{function.__module__}.{function.__qualname__}"
        if key not in self.functions:
            self.functions[key] = {"name": function.__name__} | quotes.describe(function, self.quote)
        return key

    def quote(self, function) -> str:
        """Add a function's source to the quotes of the page, and return its key."""
        quote = quoted(plain_function(function))
        key = f"{quote['name']} {quote['place']}"  # two lambdas have the same name
        self.quotes[key] = quote
        return key
