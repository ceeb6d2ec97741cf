"""The chart of the page: the norms of all gradients, from the image to the loss."""

from minidl.study.page.words import finite, source_title
from minidl.study.record import Input, Op, Recording, norm


def chart_of(recording: Recording, boxes: dict[int, str]) -> dict:
    """The norms of all gradients from the image to the loss, and at each skip connection those of its two parts."""
    stages: dict[str, int] = {}
    for op in recording.ops:
        stages.setdefault("loss" if op.layer is None else op.layer.split(".")[0], op.number)
    return {
        "norms": [finite(op.grad_norm) for op in recording.ops],
        "names": [source_title(op) for op in recording.ops],
        "skips": [skip for source in sources_of(recording) if (skip := skip_from(recording, source))],
        "stages": [[name, number] for name, number in stages.items() if name],
        "boxes": boxes,
    }


def sources_of(recording: Recording) -> list[Op | Input]:
    """The network's inputs and all operations: where a skip connection may begin."""
    inputs = [source for op in recording.ops for source in op.inputs if isinstance(source, Input)]
    return [*dict.fromkeys(source for source in inputs if source.kind == "input"), *recording.ops]


def skip_from(recording: Recording, source: Op | Input) -> dict | None:
    """The two parts of the gradient and their sum, where two operations use the source. Inputs are left of the ops."""
    uses = recording.consumers(source)
    if len(uses) != 2 or uses[0][0] is uses[1][0]:  # such as y * y, which is no skip connection
        return None
    first, second = _lengths(uses[0][0], uses[1][0], recording.ops)
    uses = uses if first >= second else uses[::-1]  # the shortcut is the shorter path, whichever is computed first
    grads = [None if op.input_grads is None else op.input_grads[number] for op, number in uses]
    if any(grad is None for grad in grads):
        return None
    near, far = map(norm, grads)
    at, total = (source.number, source.grad_norm) if isinstance(source, Op) else (-0.5, norm(grads[0] + grads[1]))
    return {"at": at, "near": finite(near), "far": finite(far), "sum": finite(total)} if total else None


def _lengths(first: Op, second: Op, ops: list[Op]) -> tuple[int, int]:
    """The number of operations on each of two paths until they meet, given the first operation of each."""
    paths = {first: {1}, second: {2}}  # of each operation, the paths that it is on
    for op in ops[first.number :]:
        paths[op] = paths.get(op, set()).union(*(paths.get(source, ()) for source in op.inputs))
        if len(paths[op]) == 2:
            break
    return sum(found == {1} for found in paths.values()), sum(found == {2} for found in paths.values())
