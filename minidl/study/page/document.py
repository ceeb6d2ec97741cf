"""What the page shows, as one JSON document: the boxes of all graphs, and for each the contents of its panel."""

import math

import numpy as np

from minidl.study.page import quotes
from minidl.study.page.graph import Box, Edge, Fork, Graph, Port, graph_of
from minidl.study.page.pictures import photograph, picture
from minidl.study.page.source import input_names, quoted, saved_names
from minidl.study.page.tree import Folded, Group, fold, grow, ops_of, shown
from minidl.study.record import Input, Op, Recording, norm

# With more operations than this, repeated parts are folded. With more than the second, even so, there is no page.
MOST_BEFORE_FOLDING, MOST_OPS = 250, 1000
KINDS = {  # a part of the name of a file in minidl/ops -> the colour of its boxes
    "conv": "product",
    "linear": "product",
    "norm": "norm",
    "activation": "activation",
    "softmax": "activation",
    "pool": "pool",
    "loss": "loss",
    "arithmetic": "arithmetic",
    "reduce": "arithmetic",
}
TIMES = "\N{MULTIPLICATION SIGN}"
SIGNS = {"Add": "+", "Sub": "-", "Mul": TIMES, "Div": "/", "MatMul": "@"}


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
        "chart": chart(recording, {box["op"]: box["id"] for box in writer.op_boxes}),
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
            "value": maybe_picture(port.source.value),
            "grad": maybe_picture(grads),
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
                "picture": maybe_picture(grad, largest),
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
            "total": {**norm_facts(total), "picture": maybe_picture(total, largest)},
            "cosine": cosine(known) if len(known) == len(grads) == 2 else None,
        }

    def folded(self, folded: Folded, group: Group) -> dict:
        """Repetitions that are not shown one by one."""
        first, last = (heading(name_of(child), group) for child in (folded.children[0], folded.children[-1]))
        norms = [ops[-1].grad_norm for ops in (list(ops_of(child)) for child in folded.children)]
        return {
            "id": self._id(),
            "kind": "folded",
            "title": f"{folded.repetitions:,} more",
            "detail": f"{first} ... {last}, each like the one above",
            "ops": sum(1 for _ in ops_of(folded)),
            "names": [first, last],
            "norms": [finite(value) for value in norms],
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
            "value": maybe_picture(op.value),
            "value_norm": number_text(op.value_norm),
            "grad": maybe_picture(op.grad),
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
        what = source_title(source) if isinstance(source, Op) else f"{source.kind} {source.name}"
        facts = {"name": name, "what": what, "shape": shape_text(source.shape), **norm_facts(grad)}
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
        inputs = [source for source in op.inputs if source is not None]
        same = ["y, its own result"] if value is op.value else []
        same += [
            source_title(source) if isinstance(source, Op) else f"{source.kind} {source.name}"
            for source in inputs
            if source.value is value
        ]
        facts = {
            "name": name,
            "shape": shape_text(value.shape),
            "dtype": str(value.dtype),
            "bytes": f"{value.nbytes:,}",
        }
        return facts | {"same": same[0] if same else None}

    # -- functions and their source ------------------------------------------------------------------------------------

    def function(self, function: type) -> str:
        """Add an operation to the functions of the page, and return its key."""
        key = f"{function.__module__}.{function.__qualname__}"
        if key not in self.functions:
            self.functions[key] = {"name": function.__name__} | quotes.describe(function, self.quote)
        return key

    def quote(self, function) -> str:
        """Add a function's source to the quotes of the page, and return its key."""
        key = f"{function.__module__}.{function.__qualname__}"
        if key not in self.quotes:
            self.quotes[key] = quoted(function)
        return key


# -- the chart ---------------------------------------------------------------------------------------------------------


def chart(recording: Recording, boxes: dict[int, str]) -> dict:
    """The norms of all gradients from the image to the loss, and at each skip connection those of its two parts."""
    skips = []
    for op in recording.ops:
        uses = recording.consumers(op)
        parts = [norm_of_use(use) for use in uses]
        if len(parts) == 2 and None not in parts and op.grad_norm:
            skips.append(
                {"at": op.number, "near": finite(parts[0]), "far": finite(parts[1]), "sum": finite(op.grad_norm)}
            )
    stages: dict[str, int] = {}
    for op in recording.ops:
        stages.setdefault("loss" if op.layer is None else op.layer.split(".")[0], op.number)
    return {
        "norms": [finite(op.grad_norm) for op in recording.ops],
        "names": [source_title(op) for op in recording.ops],
        "skips": skips,
        "stages": [[name, number] for name, number in stages.items() if name],
        "boxes": boxes,
    }


def norm_of_use(use: tuple[Op, int]) -> float | None:
    """The norm of the gradient that an operation sends back to one of its inputs."""
    op, number = use
    grad = None if op.input_grads is None else op.input_grads[number]
    return None if grad is None else norm(grad)


# -- facts as text -----------------------------------------------------------------------------------------------------


def edge_facts(edge: Edge) -> dict:
    """The labels of an edge."""
    grad = None if isinstance(edge.end, Port) and not edge.uses else edge.grad()
    shape = edge.source.shape
    unchanged = isinstance(edge.start, Fork) and edge.unchanged_from() is not None
    shown_shape = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape  # of one image
    return {"shape": shape_text(shown_shape), **norm_facts(grad), "unchanged": unchanged}


def norm_facts(grad: np.ndarray | None) -> dict:
    """The norm of a gradient as a number, for bars, and as text."""
    value = None if grad is None else norm(grad)
    return {"norm": finite(value), "norm_text": number_text(value)}


def cosine(grads: list[np.ndarray]) -> str | None:
    """The cosine of the angle between two gradients."""
    a, b = (np.asarray(grad, np.float64) for grad in grads)
    length = norm(a) * norm(b)
    return f"{float((a * b).sum()) / length:z.2f}" if math.isfinite(length) and length > 0 else None


def category(function: type) -> str:
    """The kind of an operation, which gives its box a colour."""
    package, _, file = function.__module__.rpartition(".")
    kinds = [kind for part, kind in KINDS.items() if part in file]
    return (kinds or ["shape"])[0] if package == "minidl.ops" else "own"


def relative_name(name: str | None, group: Group | None) -> str:
    """The name of a module inside a group: 'conv1' for 'layer1.0.conv1' in 'layer1.0'."""
    return (name or "").removeprefix(f"{group.name}." if group is not None and group.name else "")


def heading(name: str, group: Group | None) -> str:
    """The relative name, with one part more if it is a number: 'layer1.0' says more than '0'."""
    relative = relative_name(name, group)
    return ".".join(name.split(".")[-2:]) if relative.isdigit() else relative


def name_of(child: Group | Op) -> str:
    """The name of a group, or of the layer of an operation."""
    return child.name if isinstance(child, Group) else child.layer or child.function.__name__


def source_title(source: Op | Input) -> str:
    """What a value is, in a few words: 'ReLU of layer1.0', 'layer1.0.conv1', 'input x'."""
    if isinstance(source, Input):
        return f"{source.kind} {source.name}"
    if source.layer is None:
        return source.function.__name__
    return f"{source.layer} ({source.function.__name__})" if source.layer else source.function.__name__


def path_title(path: Edge, group: Group) -> str:
    """Where a path leads: the box at its end."""
    if isinstance(path.end, Port):
        return "the rest of the network"
    if isinstance(path.end, Op):
        sign = SIGNS.get(path.end.function.__name__)
        return f"the {sign}" if sign and not is_layer(path.end, group) else op_title(path.end, group)
    return heading(path.end.name, group) if isinstance(path.end, Group) else "repeated parts"


def is_layer(op: Op, group: Group) -> bool:
    """True if the operation is all that a module inside the group does."""
    return op.layer is not None and op.layer != group.name


def op_title(op: Op, group: Group) -> str:
    """The name of the layer, or of the operation if it is called by the group itself."""
    return heading(op.layer, group) if is_layer(op, group) else op.function.__name__


def shape_text(shape: tuple[int, ...] | None) -> str:
    """(32, 32, 16) with signs of multiplication between the lengths."""
    return f" {TIMES} ".join(map(str, shape)) if shape else "scalar"


def number_text(value: float | None) -> str:
    """A number with three digits, or 'none'."""
    if value is None:
        return "none"
    return f"{float(f'{value:.3g}'):,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def finite(value: float | None) -> float | None:
    """The number with four digits, or None: JSON has no NaN and no infinity."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def count_of(value: int) -> str:
    """A count with separators, '' for 0."""
    return f"{value:,}" if value else ""


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    return "none" if seconds is None else f"{1000 * seconds:.2f} ms"


def short(value) -> str:
    """A hyper-parameter in at most 60 characters; an array by its shape."""
    text = f"array of shape {value.shape}" if isinstance(value, np.ndarray) and value.size > 4 else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def maybe_picture(array: np.ndarray | None, largest: float | None = None) -> dict | None:
    """A picture of an array, if there is one."""
    return None if array is None else picture(array, largest)
