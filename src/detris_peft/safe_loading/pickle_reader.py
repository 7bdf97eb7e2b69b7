"""Interpreter of pickle opcodes: nothing is imported or called, unlike in `pickle.load`.

`pickle.Unpickler` with a restricted `find_class` is not enough for untrusted files: a few bytes make it allocate
gigabytes for the memo, overflow the C stack by hashing a nested tuple, or build a value that takes hours to print.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable
from typing import Any

from .limits import MAX_INTEGER_BYTES, MAX_INTEGER_KEY


class ForbiddenPickleError(pickle.UnpicklingError):
    """The pickle imports or calls something that the reader does not allow."""


class PickleReader:
    """Interpreter of pickle opcodes for plain values: containers, strings, bytes, numbers, booleans and None.

    Subclasses may allow some imports and calls in `find_global`, `call`, `build` and `find_persistent`, which all
    raise a `ForbiddenPickleError` here.

    Args:
        data: the file's content; `bytes` or `mmap`.
    """

    def __init__(self, data: Any) -> None:
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # stacks below each open MARK
        self.memo: dict[int, Any] = {}
        # Protocol 0 is text. If each line ends with CRLF, the line ends were converted.
        is_text = data[:1] != pickle.PROTO and isinstance(data, bytes)
        self._line_end = b"\r\n" if is_text and 0 < data.count(b"\n") == data.count(b"\r\n") else b"\n"

    def load(self, start: int = 0) -> Any:
        """Read one value; afterwards, `position` is behind it.

        Raises:
            ForbiddenPickleError: an import or a call that is not allowed.
            ValueError: damaged data, or a value that exceeds the limits.
        """
        self.stack, self.marks, self.memo, self.position = [], [], {}, start
        data, size = self.data, len(self.data)
        try:
            while self.position < size:
                opcode = data[self.position]
                self.position += 1
                if opcode in _VALUES:
                    value = _VALUES[opcode](self)  # may replace the stack
                    self.stack.append(value)
                elif opcode in _ACTIONS:
                    _ACTIONS[opcode](self)
                elif opcode == _STOP:
                    return self.stack.pop()
                else:
                    raise ValueError(f"unknown opcode {opcode:#04x} at byte {self.position - 1:,}")
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
            problem = f"{type(error).__name__} at byte {self.position:,}"
            raise ValueError(f"opcodes that do not fit together, {problem}") from None
        raise ValueError("truncated")

    def find_global(self, module: str, name: str) -> Any:
        """Return the value that represents a class or function."""
        raise ForbiddenPickleError(f"imports {printable(f'{module}.{name}')}")

    def call(self, function: Any, arguments: tuple) -> Any:
        """Return the result of REDUCE or NEWOBJ."""
        raise ForbiddenPickleError("calls a function")

    def build(self, instance: Any, state: Any) -> None:
        """Set the state of an object."""
        raise ForbiddenPickleError("sets the state of an object")

    def find_persistent(self, identifier: Any) -> Any:
        """Return an object that is stored outside the pickle."""
        raise ForbiddenPickleError("refers to objects outside the file")

    # -- arguments of opcodes -----------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise ValueError("truncated")
        part = self.data[self.position : end]
        self.position = end
        return part

    def unsigned(self, count: int) -> int:
        start = self.position
        self.position = start + count
        return int.from_bytes(self.data[start : start + count], "little")

    def sized(self, count: int) -> bytes:
        """Return bytes that follow their length, an unsigned integer of `count` bytes."""
        start = self.position + count
        end = start + int.from_bytes(self.data[self.position : start], "little")
        if end > len(self.data):
            raise ValueError("truncated")
        self.position = end
        return self.data[start:end]

    def line(self) -> bytes:
        end = self.data.find(self._line_end, self.position)
        if end < 0:
            raise ValueError("truncated")
        part = self.data[self.position : end]
        self.position = end + len(self._line_end)
        return part

    def index(self, text: bytes) -> int:
        if not text.isdigit() or len(text) > 10:
            raise ValueError(f"a memo index that is not a number, {text[:20]!r}")
        return int(text)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    # -- containers ---------------------------------------------------------------------------------------------------

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("keys and values outside a dict")
        for i in range(0, len(items), 2):
            target[_key(items[i])] = items[i + 1]

    def append_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items outside a list")
        self.stack[-1].extend(items)

    def add_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], set):
            raise ValueError("items outside a set")
        self.stack[-1].update(map(_key, items))

    def new_dict(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def pop_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("too few items for a tuple")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def pop_or_pop_mark(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def instantiate(self, module: str, name: str, arguments: list[Any]) -> None:
        self.push(self.call(self.find_global(module, name), tuple(arguments)))

    def call_top(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are not a tuple")
        self.push(self.call(function, arguments))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not text")
        self.push(self.find_global(module, name))

    def build_top(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)


def printable(text: str) -> str:
    """Return the start of a text from a file, without line breaks and control characters, for error messages."""
    return "".join(character if character.isprintable() else "?" for character in text[:100])


def _key(value: Any) -> Any:
    """Return a key of a dict or an item of a set.

    Tuples are refused, because hashing a nested one recurses in C, and so are large integers and floats, which can be
    chosen to have equal hashes.
    """
    if type(value) in (str, bytes, bool, type(None)) or (type(value) is int and abs(value) <= MAX_INTEGER_KEY):
        return value
    raise ValueError(f"a key that is neither text nor an integer but {type(value).__name__}")


def _python_2_text(text: bytes) -> str:
    """Decode a byte string of Python 2 by itself, so that one in Latin-1 does not garble the others."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _quoted(text: bytes) -> str:
    text = text.strip()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in b"'\"":
        raise ValueError("a string without quotes")
    return _python_2_text(codecs.escape_decode(text[1:-1])[0])  # type: ignore[attr-defined]


def _decimal(text: bytes) -> int:
    text = text.strip().removesuffix(b"L")
    if len(text) > 2 * MAX_INTEGER_BYTES:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def _integer_or_boolean(text: bytes) -> int | bool:
    text = text.strip()
    return text == b"01" if text in (b"00", b"01") else _decimal(text)


def _long(reader: PickleReader, count: int) -> int:
    if count > MAX_INTEGER_BYTES:
        raise ValueError(f"an integer of {count:,} bytes")
    return int.from_bytes(reader.take(count), "little", signed=True)


def _binary_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def _set_memo(reader: PickleReader, index: int) -> None:
    reader.memo[index] = reader.stack[-1]


def _global(reader: PickleReader) -> None:
    module, name = reader.line(), reader.line()
    reader.push(reader.find_global(module.decode("utf-8", "replace"), name.decode("utf-8", "replace")))


def _mark(reader: PickleReader) -> None:
    reader.marks.append(reader.stack)
    reader.stack = []


def _inst(reader: PickleReader) -> None:
    module, name = (reader.line().decode("utf-8", "replace") for _ in range(2))
    reader.instantiate(module, name, reader.pop_mark())


def _obj(reader: PickleReader) -> None:
    items = reader.pop_mark()
    reader.push(reader.call(items[0], tuple(items[1:])))


def _newobj_ex(reader: PickleReader) -> None:
    raise ForbiddenPickleError("creates an object with keyword arguments")


def _extension(reader: PickleReader) -> None:
    raise ForbiddenPickleError("imports from the extension registry")


_STOP = pickle.STOP[0]
# Opcodes that push one value.
_VALUES: dict[int, Callable[[PickleReader], Any]] = {
    pickle.NONE[0]: lambda r: None,
    pickle.NEWTRUE[0]: lambda r: True,
    pickle.NEWFALSE[0]: lambda r: False,
    pickle.EMPTY_LIST[0]: lambda r: [],
    pickle.EMPTY_DICT[0]: lambda r: {},
    pickle.EMPTY_TUPLE[0]: lambda r: (),
    pickle.EMPTY_SET[0]: lambda r: set(),
    pickle.INT[0]: lambda r: _integer_or_boolean(r.line()),
    pickle.LONG[0]: lambda r: _decimal(r.line()),
    pickle.FLOAT[0]: lambda r: float(r.line()),
    pickle.BININT[0]: lambda r: int.from_bytes(r.take(4), "little", signed=True),
    pickle.BININT1[0]: lambda r: r.unsigned(1),
    pickle.BININT2[0]: lambda r: r.unsigned(2),
    pickle.LONG1[0]: lambda r: _long(r, r.unsigned(1)),
    pickle.LONG4[0]: lambda r: _long(r, r.unsigned(4)),
    pickle.BINFLOAT[0]: lambda r: struct.unpack(">d", r.take(8))[0],
    pickle.STRING[0]: lambda r: _quoted(r.line()),
    pickle.SHORT_BINSTRING[0]: lambda r: _python_2_text(r.sized(1)),
    pickle.BINSTRING[0]: lambda r: _python_2_text(r.sized(4)),
    pickle.UNICODE[0]: lambda r: r.line().decode("raw-unicode-escape"),
    pickle.SHORT_BINUNICODE[0]: lambda r: _binary_text(r.sized(1)),
    pickle.BINUNICODE[0]: lambda r: _binary_text(r.sized(4)),
    pickle.BINUNICODE8[0]: lambda r: _binary_text(r.sized(8)),
    pickle.SHORT_BINBYTES[0]: lambda r: r.sized(1),
    pickle.BINBYTES[0]: lambda r: r.sized(4),
    pickle.BINBYTES8[0]: lambda r: r.sized(8),
    pickle.BYTEARRAY8[0]: lambda r: r.sized(8),
    pickle.GET[0]: lambda r: r.memo[r.index(r.line())],
    pickle.BINGET[0]: lambda r: r.memo[r.unsigned(1)],
    pickle.LONG_BINGET[0]: lambda r: r.memo[r.unsigned(4)],
    pickle.DUP[0]: lambda r: r.stack[-1],
    pickle.LIST[0]: lambda r: r.pop_mark(),
    pickle.TUPLE[0]: lambda r: tuple(r.pop_mark()),
    pickle.FROZENSET[0]: lambda r: frozenset(map(_key, r.pop_mark())),
    pickle.PERSID[0]: lambda r: r.find_persistent(r.line()),
    pickle.BINPERSID[0]: lambda r: r.find_persistent(r.stack.pop()),
}
_ACTIONS: dict[int, Callable[[PickleReader], Any]] = {
    pickle.MARK[0]: _mark,
    pickle.PROTO[0]: lambda r: r.take(1),
    pickle.FRAME[0]: lambda r: r.take(8),
    pickle.POP[0]: lambda r: r.pop_or_pop_mark(),
    pickle.POP_MARK[0]: lambda r: r.pop_mark(),
    pickle.PUT[0]: lambda r: _set_memo(r, r.index(r.line())),
    pickle.BINPUT[0]: lambda r: _set_memo(r, r.unsigned(1)),
    pickle.LONG_BINPUT[0]: lambda r: _set_memo(r, r.unsigned(4)),
    pickle.MEMOIZE[0]: lambda r: _set_memo(r, len(r.memo)),
    pickle.TUPLE1[0]: lambda r: r.pop_tuple(1),
    pickle.TUPLE2[0]: lambda r: r.pop_tuple(2),
    pickle.TUPLE3[0]: lambda r: r.pop_tuple(3),
    pickle.DICT[0]: lambda r: r.new_dict(r.pop_mark()),
    pickle.APPEND[0]: lambda r: r.append_items([r.stack.pop()]),
    pickle.APPENDS[0]: lambda r: r.append_items(r.pop_mark()),
    pickle.SETITEM[0]: lambda r: r.set_items([r.stack.pop(), r.stack.pop()][::-1]),
    pickle.SETITEMS[0]: lambda r: r.set_items(r.pop_mark()),
    pickle.ADDITEMS[0]: lambda r: r.add_items(r.pop_mark()),
    pickle.GLOBAL[0]: _global,
    pickle.STACK_GLOBAL[0]: lambda r: r.stack_global(),
    pickle.REDUCE[0]: lambda r: r.call_top(),
    pickle.NEWOBJ[0]: lambda r: r.call_top(),
    pickle.NEWOBJ_EX[0]: _newobj_ex,
    pickle.BUILD[0]: lambda r: r.build_top(),
    pickle.INST[0]: _inst,
    pickle.OBJ[0]: _obj,
    pickle.EXT1[0]: _extension,
    pickle.EXT2[0]: _extension,
    pickle.EXT4[0]: _extension,
}
