"""Facts about a network as the page says them: names, shapes, numbers."""

import math

import numpy as np

from minidl.study.page.graph import Edge, Fork, Port
from minidl.study.page.tree import Group
from minidl.study.record import Input, Op, norm

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
