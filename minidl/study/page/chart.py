"""The chart of the page: the norms of all gradients, from the image to the loss."""

from minidl.study.page.words import finite, source_title
from minidl.study.record import Op, Recording, norm


def chart_of(recording: Recording, boxes: dict[int, str]) -> dict:
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
