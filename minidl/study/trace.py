"""A training step as a table: each operation with its layer, shapes, time, norms and the memory it keeps."""

import contextlib
import itertools
import json
import math
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from minidl.nn.module import Module
from minidl.study.record import Call, Input, Memory, Op, Recording, record

LEAST_WIDTH, USUAL_WIDTH, MOST_WIDTH = 100, 120, 140  # characters in a line
HEADINGS = (
    ("layer", "operation", "shape", "param-", "mult-", "ms for-", "back-", "|y|", "|dL/dy|", "keeps", "who else"),
    ("", "", "", "eters", "adds", "ward", "ward", "", "", "", "keeps it"),
)
LEAST_FOR_NAMES = 10  # characters for the last column; if there are fewer, the shapes of the inputs are left out


@contextlib.contextmanager
def trace(model: Module) -> Iterator["Trace"]:
    """Trace the operations that run inside the `with` block, in this thread. Print the trace after it.

        with minidl.study.trace(model) as t:
            loss = cross_entropy(model(images), labels)
            loss.backward()
        print(t)
        t.save("trace.json")  # for https://ui.perfetto.dev or chrome://tracing

    Call `backward()` inside the block, too. The results are the same bits as without a trace. Outside of the block a
    trace costs nothing. Inside, the times are those of the operations alone; run a step before the traced one, as the
    first step of a program fills caches. `recompute` saves everything inside the block.

    Raises TypeError if `model` is not a Module, RuntimeError if another trace or recording is open.
    """
    with record(model, keep=False) as recording:
        yield Trace(recording)


class Trace:
    """What `trace` saw. Printed, it is a table with a line for each operation, grouped by the stages of the model.

    An operation keeps arrays for its backward. Arrays that share memory count once, at the first operation that keeps
    them; in the lines of the others the number is in parentheses. Parameters, buffers and the model's input exist
    anyway and do not count. A parameter counts at the first operation that uses it. |y| is the L2 norm of the result,
    |dL/dy| that of its gradient. Multiply-adds are those of convolutions, linear layers and matrix products in
    forward, for the whole batch.
    """

    def __init__(self, recording: Recording):
        self.recording = recording

    @property
    def ops(self) -> list[Op]:
        """The operations, in the order of the forward pass."""
        return self.recording.ops

    @property
    def parameters(self) -> int:
        """The number of parameters that the operations used, each counted once."""
        return sum(self._parameters().values())

    @property
    def macs(self) -> int:
        """The multiply-adds of the forward pass, for the whole batch."""
        return sum(op.macs for op in self.ops)

    @property
    def kept_bytes(self) -> int:
        """The bytes that are held between forward and backward, without parameters, buffers and the model's input."""
        return sum(memory.nbytes for memory in self._memories() if not _exists_anyway(memory))

    @property
    def forward_seconds(self) -> float:
        """The time of all operations in forward."""
        return sum(op.forward_seconds for op in self.ops)

    @property
    def backward_seconds(self) -> float:
        """The time of all operations in backward."""
        return sum(op.backward_seconds or 0.0 for op in self.ops)

    def __str__(self) -> str:
        """The table, as wide as the terminal."""
        columns = shutil.get_terminal_size((USUAL_WIDTH, 24)).columns
        return self.table(min(max(columns, LEAST_WIDTH), MOST_WIDTH))

    def table(self, width: int = USUAL_WIDTH) -> str:
        """Return the table in lines of at most `width` characters.

        The names in the last column are cut to the width. A narrow table has the shapes of the results alone.
        """
        if not self.ops:
            return "trace: no operation ran inside the block"
        rows = self._rows(_input_and_result)
        if width - sum(_widths(rows)) < LEAST_FOR_NAMES:
            rows = self._rows(_result)
        notes = [line for note in self._notes() for line in textwrap.wrap(note, width, subsequent_indent="  ")]
        return "\n".join([*_aligned(rows, width), "", *notes])

    def save(self, path: str | PathLike) -> None:
        """Write the trace as JSON in Chrome's Trace Event Format, which Perfetto and chrome://tracing show.

        Layers contain their operations, forward and backward. A counter shows the bytes that are kept for backward.
        """
        events = [*_layers(self.recording.calls), *_backward_layers(self._in_backward())]
        events += [*map(_forward, self.ops), *map(_backward, self._in_backward()), *self._counter()]
        events.sort(key=lambda event: event["ts"])  # of two that begin together, a layer stays before what is in it
        document = {"traceEvents": [*_metadata(), *events], "displayTimeUnit": "ms"}
        Path(path).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")

    # -- counting ------------------------------------------------------------------------------------------------------

    def _parameters(self) -> dict[Op, int]:
        """The number of parameters that each operation is the first to use."""
        seen, counts = set(), {}
        for op in self.ops:
            new = {source for source in op.inputs if _is_kind(source, "parameter")} - seen
            counts[op] = sum(math.prod(source.shape) for source in new)
            seen |= new
        return counts

    def _memories(self) -> list[Memory]:
        return list(dict.fromkeys(memory for op in self.ops for memory in op.keeps))

    def _in_backward(self) -> list[Op]:
        """The operations in the order of the backward pass."""
        return sorted((op for op in self.ops if op.backward_start is not None), key=lambda op: op.backward_start)

    def _stage(self, op: Op) -> str | None:
        """The part of the model, such as "layer1", that the operation is in; "" for layers that are no stages."""
        if not op.layer:
            return op.layer
        first = op.layer.split(".")[0]
        modules = dict(self.recording.model.children())
        return first if first in modules and any(modules[first].children()) else ""

    # -- the table -----------------------------------------------------------------------------------------------------

    def _rows(self, shapes: Callable[[Op, Op], str]) -> list[tuple[str, ...] | None]:
        """The cells of all lines. None is a rule."""
        parameters, rows = self._parameters(), [*HEADINGS, None]
        for stage, ops in itertools.groupby(self.ops, self._stage):
            ops = list(ops)
            rows += [self._summary(self._title(stage), shapes(ops[0], ops[-1]), ops, parameters)]
            rows += [self._row(op, shapes(op, op), stage, parameters) for op in ops]
        return [*rows, None, self._summary("total", "", self.ops, parameters)]

    def _title(self, stage: str | None) -> str:
        if stage is None:
            return "outside of the model"
        return stage or type(self.recording.model).__name__

    def _summary(self, title: str, shapes: str, ops: list[Op], parameters: dict[Op, int]) -> tuple[str, ...]:
        kept = sum(memory.nbytes for op in ops for memory in op.keeps if _counts_for(memory, op))
        return (
            title,
            "",
            shapes,
            _count(sum(parameters[op] for op in ops)),
            _count(sum(op.macs for op in ops)),
            _milliseconds(sum(op.forward_seconds for op in ops)),
            _milliseconds(sum(op.backward_seconds or 0.0 for op in ops) or None),
            *("", "", _size(kept), ""),
        )

    def _row(self, op: Op, shapes: str, stage: str | None, parameters: dict[Op, int]) -> tuple[str, ...]:
        kept = [memory for memory in op.keeps if not _exists_anyway(memory)]
        counted = sum(memory.nbytes for memory in kept if _counts_for(memory, op))
        shared = sum(memory.nbytes for memory in kept if not _counts_for(memory, op))
        return (
            f" {_relative(op.layer, stage)}",
            op.function.__name__,
            shapes,
            _count(parameters[op]),
            _count(op.macs),
            _milliseconds(op.forward_seconds),
            _milliseconds(op.backward_seconds),
            _norm(op.value_norm),
            _norm(op.grad_norm),
            _size(counted) or (f"({_size(shared)})" if shared else ""),
            ", ".join(dict.fromkeys(_label(other, stage) for m in kept for other in m.kept_by if other is not op)),
        )

    def _notes(self) -> Iterator[str]:
        yield f"{self.parameters:,} parameters; {self.macs:,} multiply-adds{self._for_each_image()}"
        memories = [memory for memory in self._memories() if _exists_anyway(memory)]
        others = {kind: sum(m.nbytes for m in memories if m.source.kind == kind) for kind in ("parameter", "input")}
        named = [f"{_size(nbytes)} of {kind}s" for kind, nbytes in others.items() if nbytes]
        besides = f"; it also uses {' and '.join(named)}, which exist anyway" if named else ""
        yield f"backward needs {_size(self.kept_bytes) or '0 B'} that forward keeps, each array counted once{besides}"
        if any(len(memory.kept_by) > 1 for memory in self._memories() if not _exists_anyway(memory)):
            yield "a number in parentheses is counted at the operation that the last column names first"
        unused = sum(parameter.numel() for parameter in self.recording.model.parameters()) - self.parameters
        if unused:
            yield f"{unused:,} parameters of the model were used by no operation"
        if not self._in_backward():
            yield "no backward ran inside the block"

    def _for_each_image(self) -> str:
        shapes = {source.shape for op in self.ops for source in op.inputs if _is_kind(source, "input")}
        batches = {shape[0] if shape else 1 for shape in shapes}
        size = batches.pop() if len(batches) == 1 else 0
        return f", {self.macs // size:,} for each of {size} inputs" if size > 1 and self.macs % size == 0 else ""

    # -- the file ------------------------------------------------------------------------------------------------------

    def _counter(self) -> Iterator[dict]:
        """Events with the bytes that are kept for backward at each time."""
        changes = []
        for memory in self._memories():
            if _exists_anyway(memory):
                continue
            first = memory.kept_by[0]
            changes.append((first.start + first.forward_seconds, memory.nbytes))
            if all(op.backward_seconds is not None for op in memory.kept_by):  # it is freed after the last of them
                changes.append((max(op.backward_start + op.backward_seconds for op in memory.kept_by), -memory.nbytes))
        total = 0
        for time, change in sorted(changes):
            total += change
            yield {"ph": "C", "name": "kept for backward", "ts": time * 1e6, "pid": 1, "args": {"bytes": total}}


# -- whose memory ------------------------------------------------------------------------------------------------------


def _is_kind(source: Op | Input | None, *kinds: str) -> bool:
    return isinstance(source, Input) and source.kind in kinds


def _exists_anyway(memory: Memory) -> bool:
    return _is_kind(memory.source, "parameter", "buffer", "input")


def _counts_for(memory: Memory, op: Op) -> bool:
    """True if this operation is the first of those that keep the memory."""
    return not _exists_anyway(memory) and memory.kept_by[0] is op


# -- cells of the table ------------------------------------------------------------------------------------------------


def _relative(layer: str | None, stage: str | None) -> str:
    """The name of a layer inside its stage: "0.conv1" for "layer1.0.conv1"."""
    return (layer or "").removeprefix(f"{stage}.") if layer != stage else ""


def _label(op: Op, stage: str | None) -> str:
    """The name of an operation: its layer, if that runs nothing else, or "0 ReLU"."""
    name = _relative(op.layer, stage)
    has_parts = op.call is None or any(op.call.module.children())
    return f"{name} {op.function.__name__}".strip() if has_parts or not name else name


def _input_and_result(first: Op, last: Op) -> str:
    return f"{_inputs(first)} -> {_shape(last.shape)}"


def _result(first: Op, last: Op) -> str:
    return _shape(last.shape)


def _inputs(op: Op) -> str:
    """The shapes of the inputs that are no parameters: "4x32x32x16", and "2 * 4x32x32x16" for two alike."""
    shapes = [
        _shape(shape)
        for shape, source in zip(op.input_shapes, op.inputs, strict=True)
        if shape is not None and not _is_kind(source, "parameter", "buffer")
    ]
    counts = {shape: shapes.count(shape) for shape in shapes}
    return ", ".join(shape if count == 1 else f"{count} * {shape}" for shape, count in counts.items())


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _count(number: int) -> str:
    """A number in at most six characters: 9,408, 36.9k, 2.36M, 162M, 15.5G."""
    return f"{number:,}" if 0 < number < 10_000 else _scaled(number, 1000, ("", "k", "M", "G", "T", "P"))


def _size(nbytes: int) -> str:
    return _scaled(nbytes, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(number: int, base: int, units: Sequence[str]) -> str:
    """Three significant digits and a unit. Nothing for 0."""
    scaled = float(number)
    for unit in units:
        if scaled < 999.5 or unit == units[-1]:
            break
        scaled /= base
    digits = 0 if unit == units[0] or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f}{unit}" if number else ""


def _norm(norm: float | None) -> str:
    """Three digits, or as many as an integer below a million has."""
    if norm is None:
        return ""
    return f"{norm:,.0f}" if 1000 <= norm < 999_999.5 else f"{norm:.3g}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.2f}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def _widths(rows: list[tuple[str, ...] | None]) -> list[int]:
    """The width of each column but the last, with a blank after it. Titles may go on into the second column."""
    cells = [("" if not row[1] else row[0], *row[1:]) for row in rows if row is not None]
    widths = [max(map(len, column)) + 1 for column in zip(*cells, strict=True)][:-1]
    longest = max(len(row[0]) + 1 for row in rows if row is not None and not row[1])
    return [widths[0], max(widths[1], longest - widths[0]), *widths[2:]]


def _aligned(rows: list[tuple[str, ...] | None], width: int) -> Iterator[str]:
    """The rows as lines, which the last column does not make longer than the width."""
    widths = _widths(rows)
    left, room = sum(widths[:3]), max(width - sum(widths), len("keeps it"))
    for row in rows:
        if row is None:
            yield "-" * (sum(widths) + room)
            continue
        texts, numbers, names = row[:3], row[3:-1], row[-1]
        if row[1]:
            line = "".join(text.ljust(size) for text, size in zip(texts, widths, strict=False))
        else:  # a title may go on to the right
            line = f"{row[0]} ".ljust(widths[0] + widths[1]) + row[2]
        line = line[: left - 1].ljust(left)
        line += "".join(number.rjust(size - 1) + " " for number, size in zip(numbers, widths[3:], strict=True))
        yield (line + (names if len(names) <= room else f"{names[: room - 3]}...")).rstrip()


# -- events of the file ------------------------------------------------------------------------------------------------


def _metadata() -> Iterator[dict]:
    for kind, name in (("process_name", "minidl"), ("thread_name", "training step")):
        yield {"ph": "M", "name": kind, "pid": 1, "tid": 1, "args": {"name": name}}


def _event(name: str, category: str, start: float, seconds: float, **facts) -> dict:
    """A complete event. Times are in microseconds; JSON has no NaN and no infinity."""
    args = {
        key: str(fact) if isinstance(fact, float) and not math.isfinite(fact) else fact for key, fact in facts.items()
    }
    times = {"ts": start * 1e6, "dur": seconds * 1e6}
    return {"ph": "X", "name": name, "cat": category, **times, "pid": 1, "tid": 1, "args": args}


def _name(call: Call) -> str:
    return call.layer or type(call.module).__name__


def _layers(calls: list[Call]) -> Iterator[dict]:
    for call in calls:
        yield _event(_name(call), "layer", call.start, call.seconds, module=type(call.module).__name__)


def _forward(op: Op) -> dict:
    facts = {"layer": op.layer, "inputs": _inputs(op), "result": _shape(op.shape), "multiply-adds": op.macs}
    kept = sum(memory.nbytes for memory in op.keeps if _counts_for(memory, op))
    facts |= {"norm of the result": op.value_norm, "kept for backward (bytes)": kept}
    return _event(op.function.__name__, "forward", op.start, op.forward_seconds, **facts)


def _backward(op: Op) -> dict:
    facts = {"layer": op.layer, "gradient": _shape(op.shape), "norm of the gradient": op.grad_norm}
    name = f"{op.function.__name__} backward"
    return _event(name, "backward", op.backward_start, op.backward_seconds, **facts)


def _backward_layers(ops: list[Op]) -> list[dict]:
    """Events for the layers in backward: from the first to the last of the operations that run one after the other."""
    events: list[dict] = []
    spans: list[tuple[Call, float]] = []  # those that contain the current operation, from the outside in
    end = 0.0
    for op in [*ops, None]:
        path = _path(op.call) if op else []
        while [call for call, _ in spans] != path[: len(spans)]:
            call, start = spans.pop()
            events.append(_event(f"{_name(call)} backward", "layer", start, end - start))
        if op:
            spans += [(call, op.backward_start) for call in path[len(spans) :]]
            end = op.backward_start + op.backward_seconds
    return events[::-1]  # they end from the inside out


def _path(call: Call | None) -> list[Call]:
    """The calls from the model down to this one."""
    return [*_path(call.parent), call] if call else []
