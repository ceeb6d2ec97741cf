"""The chart of the page: the norms of all gradients, from the image to the loss."""

from minidl.study.page.words import finite, source_title
from minidl.study.record import Op, Recording, norm


def chart_of(recording: Recording, boxes: dict[int, str]) -> dict:
    """The norms of all gradients from the image to the loss, and at each skip connection those of its two parts."""
    skips = []
    for op in recording.ops:
        uses = recording.consumers(op)
        parts = [norm_of_use(use) for use in uses]
        if len(parts) == 2 and None not in parts and op.grad_norm and uses[0][0] is not uses[1][0]:  # not x * x
            first, second = _lengths(uses[0][0], uses[1][0], recording.ops)
            parts = parts if first >= second else parts[::-1]  # the shortcut is the shorter one
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


def _lengths(first: Op, second: Op, ops: list[Op]) -> tuple[int, int]:
    """The number of operations on each of two paths until they meet, given the first operation of each."""
    paths = {first: {1}, second: {2}}  # of each operation, the paths that it is on
    for op in ops[first.number :]:
        paths[op] = paths.get(op, set()).union(*(paths.get(source, ()) for source in op.inputs))
        if len(paths[op]) == 2:
            break
    return sum(found == {1} for found in paths.values()), sum(found == {2} for found in paths.values())


def norm_of_use(use: tuple[Op, int]) -> float | None:
    """The norm of the gradient that an operation sends back to one of its inputs."""
    op, number = use
    grad = None if op.input_grads is None else op.input_grads[number]
    return None if grad is None else norm(grad)
