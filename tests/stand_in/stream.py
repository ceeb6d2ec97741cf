"""Streams, events and graphs. Everything is done when the call returns, except in a capture: there it is only noted."""

import time
from collections.abc import Callable
from typing import ClassVar


class CUDARuntimeError(RuntimeError):
    """What CUDA itself refuses."""


class Graph:
    """What was captured: functions to call at each launch. The arrays they write to live as long."""

    def __init__(self, operations: list[Callable[[], None]]):
        self.operations = operations

    def launch(self, stream: "Stream | None" = None) -> None:
        for operation in self.operations:
            operation()


class Event:
    """A point that has been reached as soon as it is recorded."""

    def __init__(self, block: bool = False, disable_timing: bool = False):
        self.recorded = 0  # how often
        self.seconds = 0.0  # when

    def record(self, stream: "Stream | None" = None) -> None:
        self.recorded += 1
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass


def get_elapsed_time(start: Event, end: Event) -> float:
    """In milliseconds."""
    return 1000 * (end.seconds - start.seconds)


class Stream:
    """A stream; `with stream:` makes it the current one."""

    current: ClassVar[list["Stream"]] = []

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.non_blocking = non_blocking
        self.operations: list[Callable[[], None]] | None = None  # a list during a capture
        self.is_spoilt = False

    def __enter__(self) -> "Stream":
        Stream.current.append(self)
        return self

    def __exit__(self, *error) -> None:
        Stream.current.pop()

    def begin_capture(self) -> None:
        if not self.non_blocking:  # CuPy captures these too, but then refuses any use of the default stream
            raise RuntimeError("the stand-in captures on Stream(non_blocking=True) only")
        if self.is_capturing():
            raise CUDARuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        self.operations, self.is_spoilt = [], False

    def end_capture(self) -> Graph:
        if not self.is_capturing():
            raise CUDARuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        operations, self.operations = self.operations, None
        if self.is_spoilt:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        return Graph(operations)

    def is_capturing(self) -> bool:
        return self.operations is not None

    def wait_event(self, event: Event) -> None:
        """What it stands for has happened already."""

    def synchronize(self) -> None:
        if self.is_capturing():
            self.is_spoilt = True
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )


Stream.null = Stream(null=True)
Stream.current.append(Stream.null)


def get_current_stream() -> Stream:
    return Stream.current[-1]


def synchronize() -> None:
    """Wait for the whole device."""
    get_current_stream().synchronize()


def is_capturing() -> bool:
    return get_current_stream().is_capturing()


def run(operation: Callable[[], None]) -> None:
    """Call it, or in a capture add it to the graph."""
    if is_capturing():
        get_current_stream().operations.append(operation)
    else:
        operation()


def refuse_in_capture(what: str) -> None:
    """In CuPy's words."""
    if is_capturing():
        raise RuntimeError(f"the current stream is capturing, so {what} are disallowed")
