"""Streams that capture: what is launched on one is noted, and done when the graph is launched."""

import contextlib
from collections.abc import Callable

NO_CUBLAS = "calling cuBLAS API during stream capture is currently unsupported"

_current = []  # the streams that `with` has entered


class Graph:
    """What was noted; the arrays that it works on live as long as it does."""

    def __init__(self):
        self.steps: list[Callable[[], object]] = []

    def launch(self, stream: "Stream | None" = None) -> None:
        refuse("a graph's launch")
        for step in self.steps:
            step()


class Stream(contextlib.AbstractContextManager):
    """Everything is done when the call returns, if the stream does not capture."""

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.non_blocking = non_blocking
        self.graph = None

    def __enter__(self) -> "Stream":
        _current.append(self)
        return self

    def __exit__(self, *_) -> None:
        _current.pop()

    def begin_capture(self) -> None:
        if not self.non_blocking:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.graph = Graph()

    def end_capture(self) -> Graph:
        if self.graph is None:
            raise RuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        graph, self.graph = self.graph, None
        return graph

    def is_capturing(self) -> bool:
        return self.graph is not None

    def synchronize(self) -> None:
        if self.is_capturing():
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")

    def wait_event(self, event: object) -> None:
        pass

    def record(self, event: object = None) -> object:
        return event


NULL = Stream(null=True)


def current_stream() -> Stream:
    return _current[-1] if _current else NULL


def is_capturing() -> bool:
    return current_stream().is_capturing()


def do(step: Callable[[], object]) -> None:
    """Do it now, or note it where the current stream captures."""
    if is_capturing():
        current_stream().graph.steps.append(step)
    else:
        step()


def refuse(what: str) -> None:
    """An error where the current stream captures: what needs the numbers, which nobody has computed yet."""
    if is_capturing():
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} is not permitted when stream is capturing")
