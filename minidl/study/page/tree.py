"""The hierarchy of a recording: calls of modules inside calls of modules, and at the bottom the operations."""

import dataclasses
from collections.abc import Callable, Iterator

from minidl.nn import Module
from minidl.study.record import Call, Op, Recording


@dataclasses.dataclass(eq=False)
class Group:
    """A call of a module that runs more than one operation, or the whole network with its loss."""

    name: str  # of the module, as in named_modules(); "" for the whole network
    module: Module
    children: list["Group | Op | Folded"] = dataclasses.field(default_factory=list)

    def ops(self) -> Iterator[Op]:
        """Yield all operations inside, in the order of the forward pass, also those of folded parts."""
        for child in self.children:
            yield from ops_of(child)


@dataclasses.dataclass(eq=False)
class Folded:
    """Parts of a group that repeat what stands before them, and are not shown one by one."""

    children: list[Group | Op]
    period: int  # how many of them are one repetition

    @property
    def repetitions(self) -> int:
        """How often the part is repeated here."""
        return len(self.children) // self.period


Child = Group | Op | Folded


def ops_of(child: Child) -> Iterator[Op]:
    """Yield the operations of a child of a group: itself, if it is one."""
    if isinstance(child, Op):
        yield child
    else:
        for part in child.children:
            yield from ops_of(part)


def grow(recording: Recording) -> Group:
    """Return the whole network as a tree. A module that runs a single operation is that operation."""
    root = Group("", recording.model)
    groups: dict[Call | None, Group] = {None: root}
    for op in recording.ops:
        _group_of(op.call, groups).children.append(op)
    _replace_single_operations(root)
    return root


def _group_of(call: Call | None, groups: dict[Call | None, Group]) -> Group:
    """Return the group of a call, and make it if this is the call's first operation."""
    if call not in groups:
        if call.parent is None and call.layer == "":  # the model itself: beside it there is only the loss
            groups[call] = groups[None]
        else:
            groups[call] = Group(call.layer, call.module)
            _group_of(call.parent, groups).children.append(groups[call])
    return groups[call]


def _replace_single_operations(group: Group) -> None:
    for number, child in enumerate(group.children):
        if isinstance(child, Group):
            _replace_single_operations(child)
            if len(child.children) == 1 and isinstance(child.children[0], Op):
                group.children[number] = child.children[0]


# -- repetitions -------------------------------------------------------------------------------------------------------

LONGEST_PERIOD = 8  # the most children of a group that one repetition may have
LEAST_REPETITIONS = 4  # the first, the last, and at least two that are folded


def fold(group: Group) -> None:
    """Replace the middle of every long repetition, here and below, by one `Folded`: the first and the last remain."""
    for child in group.children:
        if isinstance(child, Group):
            fold(child)
    signatures = [_signature(child) for child in group.children]
    children, start = [], 0
    while start < len(signatures):
        period, repetitions = _repetition(signatures, start)
        end = start + period * repetitions
        part = group.children[start:end]
        if repetitions >= LEAST_REPETITIONS:
            part = [*part[:period], Folded(part[period:-period], period), *part[-period:]]
        children += part
        start = end
    group.children = children


def _repetition(signatures: list[tuple], start: int) -> tuple[int, int]:
    """Return (period, repetitions) of the longest repetition that begins at `start`; of equally long ones, the shortest
    period."""
    best = 1, 1
    for period in range(1, LONGEST_PERIOD + 1):
        first, repetitions = signatures[start : start + period], 1
        while first == signatures[start + period * repetitions :][:period]:
            repetitions += 1
        if repetitions >= LEAST_REPETITIONS and period * repetitions > best[0] * best[1]:
            best = period, repetitions
    return best


def _signature(child: Child) -> tuple:
    """What is equal for children that compute the same on the same shapes."""
    kind = type(child.module) if isinstance(child, Group) else None
    return kind, *((op.function, op.input_shapes, op.shape) for op in ops_of(child))


def shown(group: Group, matches: Callable[[Child], bool] = lambda child: isinstance(child, Op)) -> Iterator[Child]:
    """Yield all children, here and below, that are not folded away and match; by default the operations."""
    for child in group.children:
        if matches(child):
            yield child
        if isinstance(child, Group):
            yield from shown(child, matches)
