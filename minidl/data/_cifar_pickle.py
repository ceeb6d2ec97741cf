"""A reader for the pickles of the CIFAR archives. It runs no code, and its time and memory are bounded.

A pickle is a program for a stack machine: each opcode is one byte, some with an argument. `pickle` itself may call any
function that the file names. This reader knows only the opcodes that CIFAR's files need, and the three names by which
NumPy pickles an array. It never imports a name and never calls one. The opcodes are those of CPython's pickletools.py.
"""

import math
import pickle
import reprlib
import struct
from collections.abc import Callable

import numpy as np

# A file of CIFAR-100 has 200,000 opcodes. Each adds one object of at most 100 bytes, besides the bytes of the file.
MOST_OPCODES = 2**20

# The names that a file may contain, and what each stands for here.
NAMES = {
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "ndarray",
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",  # its name since NumPy 2
}


def unpickle(content: bytes) -> dict:
    """Read the dictionary in a CIFAR file. Its keys are bytes; `[b"data"].values` is the array of the images.

    The result shares no memory with `content`. Memory: at most the size of the file, and 100 bytes for each of
    `MOST_OPCODES` opcodes. Time: proportional to the size of the file.

    Raises:
        pickle.UnpicklingError: the pickle is damaged, is not a dictionary, or needs anything but uint8 arrays, lists,
            tuples, dictionaries, strings and integers of 32 bits.
    """
    try:
        found = _Reader(content).run()
    except (IndexError, KeyError, TypeError, ValueError) as error:  # such as an empty stack
        raise pickle.UnpicklingError(f"unpickle: damaged, or not a pickle: {quoted(error)}") from error
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"unpickle: expected a dictionary, got {type(found).__name__}")
    return found


def quoted(value: object) -> str:
    """Shorten a value from a file, which may be very long, for an error message."""
    quote = reprlib.Repr()
    quote.maxstring = quote.maxother = 100
    return quote.repr(value)


class PickledArray:
    """An array in the pickle; `values` is the uint8 array."""

    values = np.empty(0, np.uint8)  # until the opcode BUILD


class _Name:
    """A name in the pickle: one of the values of NAMES."""

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning


class _ByteType:
    """The dtype uint8 in the pickle."""


class _Reader:
    """The stack machine. `marks` holds the heights of the stack at which the opcode MARK was read."""

    def __init__(self, content: bytes) -> None:
        self.content, self.position = content, 0
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}  # a dictionary: a list would become as long as the largest index

    def run(self) -> object:
        """Run all opcodes up to STOP and return the object on top of the stack."""
        for _ in range(MOST_OPCODES):
            code = self.take(1)
            if code == b".":
                return self.stack[-1]
            if code not in _OPCODES:
                raise pickle.UnpicklingError(f"unpickle: a CIFAR file does not need the opcode {code!r}: refused")
            _OPCODES[code](self)
        raise pickle.UnpicklingError(f"unpickle: expected at most {MOST_OPCODES:,} opcodes, got more")

    # -- arguments of opcodes ------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes of the file."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.content):
            raise ValueError(f"expected {count:,} more bytes, got {len(self.content) - start:,}")
        return self.content[start : self.position]

    def number(self, form: str) -> int:
        """Return the next number; `form` is its format in `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Return the text up to the next newline."""
        return self.take(self.content.index(b"\n", self.position) + 1 - self.position)[:-1].decode()

    def pop_to_mark(self) -> list:
        """Remove and return the objects above the last mark."""
        height = self.marks.pop()
        found = self.stack[height:]
        del self.stack[height:]
        return found

    # -- opcodes -------------------------------------------------------------------------------------------------------

    def put(self, index: int) -> None:
        """PUT: remember the object on top of the stack."""
        self.memo[index] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        """TUPLE1 to TUPLE3: replace the top `count` objects by a tuple of them."""
        found = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(found)))

    def extend(self, objects: list) -> None:
        """APPENDS: append the objects to the list on top of the stack."""
        if type(self.stack[-1]) is not list:
            raise TypeError(f"expected a list, got {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(objects)

    def set_items(self, objects: list) -> None:
        """SETITEMS: keys and values, in turn, go into the dictionary on top of the stack."""
        if type(self.stack[-1]) is not dict or len(objects) % 2:
            raise TypeError(f"expected a dictionary, keys and values, got {type(self.stack[-1]).__name__}")
        for key, value in zip(objects[::2], objects[1::2], strict=True):
            if type(key) not in (bytes, str):  # the hash of nested tuples can take for ever
                raise TypeError(f"expected keys that are text, got {type(key).__name__}")
            self.stack[-1][key] = value

    def name(self, module: object, name: object) -> None:
        """GLOBAL: a name; `pickle` would import it here."""
        if type(module) is not str or type(name) is not str or (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"unpickle: a CIFAR file does not need {quoted(f'{module}.{name}')}: refused")
        self.stack.append(_Name(NAMES[module, name]))

    def reduce(self) -> None:
        """REDUCE: `pickle` would call a function here. This is either numpy.dtype("u1", ...) or an empty array."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or type(arguments) is not tuple or function.meaning == "ndarray":
            raise TypeError("expected a dtype or an array, got another call")
        if function.meaning == "array":
            self.stack.append(PickledArray())
        elif arguments[0] in (b"u1", "u1"):
            self.stack.append(_ByteType())
        else:
            raise pickle.UnpicklingError(f"unpickle: a CIFAR file holds uint8 arrays only, got {quoted(arguments[0])}")

    def build(self) -> None:
        """BUILD: fill the array on top of the stack. The state of a dtype is ignored: a byte has no byte order."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is PickledArray:
            _version, shape, dtype, fortran_order, content = state
            if type(dtype) is not _ByteType or type(content) is not bytes or len(shape) > 4:
                raise TypeError("expected the state of a uint8 array")
            if min(shape) < 0 or math.prod(shape) != len(content):
                raise ValueError(f"expected bytes for an array of shape {quoted(shape)}, got {len(content):,}")
            target.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran_order else "C")
        elif type(target) is not _ByteType:
            raise TypeError(f"expected an array, got {type(target).__name__}")


def _push(value: Callable[[_Reader], object]) -> Callable[[_Reader], None]:
    """The opcode that pushes this value."""
    return lambda reader: reader.stack.append(value(reader))


_OPCODES: dict[bytes, Callable[[_Reader], object]] = {
    b"\x80": lambda reader: reader.take(1),  # PROTO
    b"\x95": lambda reader: reader.take(8),  # FRAME: a hint for reading ahead
    b"N": _push(lambda reader: None),
    b"\x88": _push(lambda reader: True),
    b"\x89": _push(lambda reader: False),
    # integers: BININT, BININT1, BININT2
    b"J": _push(lambda reader: reader.number("<i")),
    b"K": _push(lambda reader: reader.number("<B")),
    b"M": _push(lambda reader: reader.number("<H")),
    # strings of Python 2: SHORT_BINSTRING, BINSTRING; bytes: SHORT_BINBYTES, BINBYTES, BINBYTES8; text
    b"U": _push(lambda reader: reader.take(reader.number("<B"))),
    b"T": _push(lambda reader: reader.take(reader.number("<I"))),
    b"C": _push(lambda reader: reader.take(reader.number("<B"))),
    b"B": _push(lambda reader: reader.take(reader.number("<I"))),
    b"\x8e": _push(lambda reader: reader.take(reader.number("<Q"))),
    b"\x8c": _push(lambda reader: reader.take(reader.number("<B")).decode()),
    b"X": _push(lambda reader: reader.take(reader.number("<I")).decode()),
    # containers
    b"(": lambda reader: reader.marks.append(len(reader.stack)),
    b")": _push(lambda reader: ()),
    b"]": _push(lambda reader: []),
    b"}": _push(lambda reader: {}),
    b"t": _push(lambda reader: tuple(reader.pop_to_mark())),
    b"\x85": lambda reader: reader.tuple_of(1),
    b"\x86": lambda reader: reader.tuple_of(2),
    b"\x87": lambda reader: reader.tuple_of(3),
    b"a": lambda reader: reader.extend([reader.stack.pop()]),
    b"e": lambda reader: reader.extend(reader.pop_to_mark()),
    b"s": lambda reader: reader.set_items([reader.stack.pop(-2), reader.stack.pop()]),
    b"u": lambda reader: reader.set_items(reader.pop_to_mark()),
    # objects met before: BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
    b"q": lambda reader: reader.put(reader.number("<B")),
    b"r": lambda reader: reader.put(reader.number("<I")),
    b"\x94": lambda reader: reader.put(len(reader.memo)),
    b"h": _push(lambda reader: reader.memo[reader.number("<B")]),
    b"j": _push(lambda reader: reader.memo[reader.number("<I")]),
    # names and arrays: GLOBAL, STACK_GLOBAL, REDUCE, BUILD
    b"c": lambda reader: reader.name(reader.line(), reader.line()),
    b"\x93": lambda reader: reader.name(reader.stack.pop(-2), reader.stack.pop()),
    b"R": _Reader.reduce,
    b"b": _Reader.build,
}
